# ---
# jupyter:
#   jupytext: {text_representation: {extension: .py, format_name: percent}}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown] name="title"
# # 01 Pre-training objectives
#
# **What is a model asked, and what may it look at meanwhile?** Chapter 0 set models that have read beside models that have
# not. All that a pre-trained model knows, it learned by answering one kind of question, millions of times, about text that
# nobody labelled. This chapter is about the question.
#
# You will
#
# - read one sentence as five objectives see it: causal, masked, permuted, span corruption, infilling;
# - move the settings of each, and count what a corruption really does;
# - train a model of each kind on the same text, and find out what their losses say, and what they don't;
# - let a model cheat, and write the test that catches it;
# - see what a second stream is for, and let a pre-trained encoder fill in the gaps of your own sentence.
#
# **How to read it.** [00 Start here](00_start_here.ipynb) explains it. In short: run from top to bottom, commit to a guess at
# each *Predict*, and open folded code by its three dots.
#
# **If you build compilers:** a pre-trained model is the front end that you reuse, fine-tuning is your language on top of
# it, and the objective decides what the reusable part can know. The analogy breaks in one place: nobody writes the
# rules of this front end. They are whatever helped to answer the question.

# %% name="progress" jupyter={"source_hidden": true}
from course_lib.lab import progress

progress("01")

# %% [markdown] name="words"
# <details><summary><b>Words used below</b> (unfold when you meet one)</summary>
#
# - **Token**: a word or a part of one, known to the model by its *id*. **Special tokens** stand for no text: `[BOS]` and
#   `[EOS]` begin and end a document, `[CLS]` and `[SEP]` do the same for BERT, `[MASK]` hides a token, `[PAD]` fills a row
#   up, and *sentinels* such as `<extra_id_0>` stand for a removed stretch. All other tokens are *ordinary*.
# - **Attention**: the step in which each position takes information from others; a **mask** of yes and no says from whom.
#   A **block**, or layer, is one such step with a small network behind it, a **head** (of attention) one of several parallel looks.
# - **Hidden state**: the vector that a model has computed for a position. **Logits**: its scores for every token there.
# - **Encoder**: sees the whole text at once. **Decoder**: writes from left to right, and sees what is already written.
# - **Two streams**: a permuted model computes two vectors for each position. That of the *content* stream knows the token there, that of the
#   *query* stream only the place; it is the one that predicts.
# - **Rotary positions**: a way to tell a model how far apart two tokens are, by turning their vectors.
# - **Target**: a token that the model is asked for; its **label** is the right answer. **Loss**: minus the natural logarithm
#   of the probability that a model gave to the right token, averaged over the targets: so many *nats per target*. Betting
#   evenly on V tokens costs ln V.
# - **Row**: a stretch of text of a fixed number of tokens. **Batch**: the rows that are read together. **Step**: one change of
#   the model's weights, computed from a batch. **Learning rate**: how far a step goes.
# - **Held out**: text that no model of this course is trained on. **Seed**: what a random generator starts from.
# - **Frozen features, probe**: a model's hidden states, unchanged, and a simple classifier that reads them. A **sample** is a
#   set of labelled reviews, drawn at random, that a probe learns from.
#   **Bag of words**: a classifier that knows which words and pairs of words a text has, and not in what order.
# - **Names in the code** end in their axes: `ids_BT` has a row for each text of a batch (B) and a column for each position
#   (T); N counts anything else, Q and K are the positions that look and are looked at.
#
# Every term of the course: [the glossary](../docs/glossary.md).
# </details>

# %% name="setup" tags=["setup"] jupyter={"source_hidden": true}
import statistics
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
from IPython.display import Markdown, display
from tqdm.auto import tqdm

from course_lib import checks, masks, objectives, plots, runs
from course_lib.data import PretrainingDataset, course_tokenizer, training_rows
from course_lib.evaluation import columns, influences, mean_interval, proportion_interval, uniform_loss, unigram_loss
from course_lib.generation import fill_in
from course_lib.layers import TransformerConfig
from course_lib.losses import token_loss
from course_lib.model import Decoder, TwoStream
from course_lib.optimizers import make_optimizer
from course_lib.pretrained import load_checkpoint
from course_lib.records import Record
from course_lib.runtime import pick_device, seeded
from course_lib.training import new_model, train
from course_lib.vocabulary import IGNORE_INDEX
from course_lib.widgets.binder import compare, guess, sweep, table
from course_lib.widgets.fill_in import fill_in_box
from course_lib.widgets.masking import compute_masking, describe_masking, draw_masking, mask_explorer
from course_lib.widgets.objectives import describe_objective, draw_objective, five_tasks, objective_explorer
from course_lib.widgets.tasks import compute_objective

tokenizer = course_tokenizer()
vocabulary = tokenizer.vocabulary
device = pick_device()

# %% [markdown] name="text"
# The text is real: film reviews from IMDB and Rotten Tomatoes. The tokenizer was trained on the same reviews, folds
# case, and knows some thousands of words and parts of words. The cell reads the training reviews, cuts them into rows of
# tokens, and does the same with the held-out ones.

# %% name="read-text"
packed, held_out = (training_rows(split=split) for split in tqdm(["train", "dev"], desc="reading and tokenising"))
Markdown(
    f"{packed.ids_NT.numel():,} tokens to train on in rows of {packed.ids_NT.shape[1]}, "
    f"{held_out.ids_NT.numel():,} held out, a vocabulary of {vocabulary.size:,}. One row begins: "
    f"*{tokenizer.decode(held_out.ids_NT[0, 1:40].tolist())} …*"
)

# %% [markdown] name="five-tasks"
# ## 1 One sentence, five tasks
#
# Take any sentence and hide something from a model; what you hide, it can be asked for. Five ways are well known:
#
# | objective | the model reads | it must say | known from |
# |---|---|---|---|
# | **causal** | everything before a token | that token, for every position | GPT |
# | **masked** | the whole text with some tokens hidden | the tokens that were chosen | BERT |
# | **permuted** | the tokens that come earlier in a random order | the last tokens of that order | XLNet |
# | **span** corruption | the text with stretches replaced by one sentinel each | each sentinel's stretch | T5 |
# | **infilled** | the text with stretches replaced by one mask each, some masks standing for nothing | the whole text | BART |
#
# **Predict.** A model learns from what it is asked, so count. Which of the five asks for the most tokens per hundred
# tokens of text, each with the settings of its own paper?

# %% name="predict-targets" jupyter={"source_hidden": true}
most_targets = guess("Which objective asks for the most tokens?", ["causal", "masked", "permuted", "span", "infilled"])
display(most_targets)

# %% [markdown] name="your-sentence"
# The picture is drawn from what the library's functions returned for the sentence below, with more of it hidden than the papers hide,
# so that there is something to see. Put your own in its place and run the cell again.

# %% name="five-tasks-of-one-sentence"
my_sentence = "The film starts slowly, but the last half hour is worth every minute of it."
plots.show(
    five_tasks(my_sentence, tokenizer),
    alt="One sentence as five objectives see it: the tokens that are read and predicted, and beside each a matrix of "
    "which position may look at which.",
)

# %% [markdown] name="five-tasks-reading"
# Read the matrices by row: each row is a position that looks, each dark cell a position that it may look at. Causal is a
# triangle. Masked is full: the secret is kept by hiding tokens, not by forbidding looks. Permuted hides nothing and
# forbids looks instead, in an order that changes with every batch; a predicted token stands in the row that is read (the
# first matrix: the *content* stream), and the prediction itself (the second: the *query* stream) is kept from looking at it, where you see a cross. The last two have an encoder that
# sees all of a damaged text, and a decoder that writes from left to right.

# %% name="count-targets" jupyter={"source_hidden": true}
shares = {}
for objective in ["causal", "masked", "permuted", "span", "infilled"]:
    dataset = PretrainingDataset(held_out, vocabulary, objective)
    batches = [dataset.batch(number) for number in range(8)]
    n_targets = sum(int(batch.is_target_BL.sum()) for batch in batches)
    shares[objective] = 100 * n_targets / (len(batches) * dataset.batch_size * held_out.ids_NT.shape[1])
ranked = sorted(shares, key=shares.get, reverse=True)
close = [name for name in ranked if shares[ranked[0]] - shares[name] < 2]
display(
    compare(
        most_targets,
        f"Per hundred tokens of text: {', '.join(f'{name} {shares[name]:.1f}' for name in ranked)}. "
        + (f"{' and '.join(close)} are level at the top. " if len(close) > 1 else "")
        + f"From the same text, {ranked[0]} gets {shares[ranked[0]] / shares[ranked[-1]]:.1f} times as many questions as "
        f"{ranked[-1]}. Whether a question that is asked more often teaches more is another matter: keep these numbers for section 4.",
        close,
    )
)

# %% [markdown] name="why-not-hide-everything"
# ## 2 Move the settings
#
# A masked model is asked about the tokens that were *chosen*, a small share of all. The obvious way is to hide every chosen
# one. BERT hides eight in ten of them; one in ten is swapped for a random token, and one in ten stays in plain sight, where
# the answer could be copied.
#
# **Predict.** The mask probability is the share of tokens that are chosen. Set it to the value in BERT's paper, 0.15: of a
# hundred tokens, how many does the model see as `[MASK]`?

# %% name="predict-hidden" jupyter={"source_hidden": true}
hidden_guess = guess("How many of a hundred tokens are hidden?", [("about 15", 15), ("about 12", 12), ("about 8", 8)])
display(hidden_guess)

# %% name="count-hidden" jupyter={"source_hidden": true}
rows_BT = held_out.ids_NT[:64]
batch = objectives.masked(rows_BT, vocabulary, mask_prob=0.15, generator=seeded(1))
chosen_in_100 = 100 * batch.is_target_BL.float().mean().item()
hidden_in_100 = 100 * (batch.input_ids_BT == vocabulary.mask).float().mean().item()
display(
    compare(
        hidden_guess,
        f"In this batch {chosen_in_100:.1f} of a hundred tokens were chosen and {hidden_in_100:.1f} are hidden (another batch "
        "differs a little: each token is a draw of its own). The difference is deliberate. No real text contains `[MASK]`, so "
        "a model that is only ever asked at `[MASK]` could neglect every other position. One that may be asked about *any* "
        "token, and cannot trust what it reads there, has to work on all of them.",
        12,
    )
)

# %% [markdown] name="move-mask-probability"
# **Move.** This is a real review as a masked model reads it, and below it the shares of a whole batch. Raise the mask
# probability (drag the slider, or click it and use the arrow keys) until the hidden tokens outnumber all others. Could *you*
# still guess them? And what happens to the chosen tokens that stay readable?

# %% name="explore-mask-probability"
explorer = mask_explorer(rows_BT, tokenizer)
display(explorer)

# %% name="mask-probability-without-a-kernel" jupyter={"source_hidden": true}
view = compute_masking(rows_BT, tokenizer, mask_prob=0.15)
plots.show(draw_masking(view), describe_masking(view))

# %% name="mask-probability-answer" jupyter={"source_hidden": true}
at_prob = {n / 20: compute_masking(rows_BT, tokenizer, mask_prob=n / 20).shares for n in range(1, 21)}
majority = next((prob for prob, share in at_prob.items() if share["hidden"] > 0.5), None)
Markdown(
    "<details><summary>Moved it? Compare</summary>\n\n"
    + (
        f"Hidden tokens are in the majority from {majority:.2f} on: only eight in ten of the chosen ones are hidden. "
        f"Swapped and kept tokens grow along with them; at {majority:.2f} they are "
        f"{100 * at_prob[majority]['swapped']:.0f}% and {100 * at_prob[majority]['kept']:.0f}% of all tokens. "
        if majority
        else "In this batch hidden tokens are never in the majority. "
    )
    + f"Even at 1, {100 - 100 * at_prob[1.0]['hidden']:.0f}% of what the model reads is not `[MASK]`, but it can trust little of it."
    "\n\n</details>"
)

# %% [markdown] name="explore-objectives-question"
# **Move.** Now all five. Choose *span*, leave the share alone and raise the mean span: do the answers that the decoder
# has to write get longer or shorter, and why? Then choose *permuted* and change the seed: what in the picture moves, and
# what stays?

# %% name="explore-objectives"
tasks = objective_explorer(my_sentence, tokenizer)
display(tasks)

# %% name="objectives-without-a-kernel" jupyter={"source_hidden": true}
span_view = compute_objective(torch.tensor(tokenizer.encode(my_sentence)), tokenizer, "span", prob=0.3, mean_span=2)
plots.show(draw_objective(span_view), describe_objective(span_view))

# %% name="span-lengths" jupyter={"source_hidden": true}
lengths = {}
for mean_span in [1, 3, 10]:
    batch = objectives.span_corrupted(rows_BT, vocabulary, mean_span=mean_span, generator=seeded(2))
    lengths[mean_span] = batch.is_target_BL.sum(1).float().mean().item()
removed = 0.15 * vocabulary.is_ordinary_V[rows_BT].sum(1).float().mean().item()
Markdown(
    "<details><summary>Moved it? Compare</summary>\n\nMean length of the target, in tokens, by mean span: "
    + ", ".join(f"{span}: {length:.1f}" for span, length in lengths.items())
    + f". About {removed:.1f} tokens are removed in each case; what varies is the number of sentinels, one for each "
    "stretch and one at the end. Longer stretches make shorter targets. In *permuted* the text never changes with the seed; which tokens "
    "are asked for does, and who may look at whom.\n\n</details>"
)

# %% [markdown] name="eighty-ten-ten"
# ## 3 Count what a corruption really does
#
# The paper says: of the chosen tokens, eighty in a hundred are hidden, ten are swapped for a random token, ten stay. A
# sentence like that is a claim about code, and code can be measured.
#
# The paper does not say from which tokens the random one is drawn. **Predict.** If you
# had written the library: how often *should* the random token be a special one, `[MASK]`, `[PAD]` or a sentinel?

# %% name="predict-special" jupyter={"source_hidden": true}
special_guess = guess(
    "How often should the random token be a special one?",
    [("never", "never"), ("as often as any other token", "sometimes"), ("it makes no difference", "whatever")],
)
display(special_guess)

# %% name="count-fates"
tokens_BT = held_out.ids_NT[: 100_000 // held_out.ids_NT.shape[1] + 1]
batch = objectives.masked(tokens_BT, vocabulary, generator=seeded(3))
original_N, shown_N = tokens_BT[batch.is_target_BL], batch.input_ids_BT[batch.is_target_BL]
n_chosen, n_special = len(original_N), int((~vocabulary.is_ordinary_V[tokens_BT]).sum())
fates = {
    "hidden": int((shown_N == vocabulary.mask).sum()),
    "swapped": int(((shown_N != vocabulary.mask) & (shown_N != original_N)).sum()),
    "kept": int((shown_N == original_N).sum()),
}
intervals = {name: proportion_interval(count, n_chosen) for name, count in fates.items()}
swapped_to_special = int((~vocabulary.is_ordinary_V[shown_N] & (shown_N != vocabulary.mask)).sum())
chosen_special = int((batch.is_target_BL & ~vocabulary.is_ordinary_V[tokens_BT]).sum())
plots.show(
    plots.draw_bars(
        list(intervals),
        *columns(intervals.values()),
        references={"the paper: 0.1": 0.1, "the paper: 0.8": 0.8},
        xlabel="share of the chosen tokens, with 95% confidence intervals",
        number="{:.3f}",
    ),
    alt="Bars with intervals: the measured shares of hidden, swapped and kept tokens beside the paper's.",
)

# %% name="explain-fates" jupyter={"source_hidden": true}
expected = {"hidden": 0.8, "swapped": 0.1, "kept": 0.1}
inside = [name for name, share in expected.items() if intervals[name].holds(share)]
display(
    compare(
        special_guess,
        "A padding token in mid-sentence, or an end where nothing ends, teaches what no text will ever show, so this library "
        "draws from the ordinary tokens alone. "
        f"Of {tokens_BT.numel():,} tokens {n_chosen:,} were chosen. {swapped_to_special} random tokens are special, and of "
        f"the {n_special:,} special tokens in the text {chosen_special} were chosen. The intervals hold the paper's shares "
        f"for {', '.join(inside) or 'none of the three'}. (A 95% confidence interval misses in one of twenty measurements. "
        f"And a random token can by chance be the original: one time in {len(vocabulary.ordinary_ids):,}, which moves a "
        "sliver from swapped to kept.)",
        "never" if swapped_to_special == 0 else "sometimes",
    )
)

# %% [markdown] name="laboratory"
# ## 4 The objective laboratory
#
# Now train them. Same reviews, same rows, same width, same number of blocks in a stack, same optimiser, same number of tokens read.
# Three things differ besides the objective: the causal model is laid out as GPT-2 and the others as BERT with rotary
# positions; span corruption and infilling need an encoder *and* a decoder, so two stacks; and span corruption has a
# learning rate of its own, for a reason that the end of this section shows.
#
# A run long enough to learn something takes longer than a chapter can wait, so that part is a *record*: the raw rows
# lie in `data/records/objectives.jsonl` with the command, the machine and the versions that made them, and
# `course record objectives` makes them again. What your machine does now is the beginning of the same runs, drawn on top:
# if your points miss the line, do not believe the line.
#
# **Predict.** After the same number of tokens, whose loss per target will be the lowest?

# %% name="predict-loss" jupyter={"source_hidden": true}
names = ["causal", "masked", "permuted", "span", "infilled"]
lowest_guess = guess("Whose loss will be the lowest at the end?", names)
display(lowest_guess)

# %% name="train-live"
LIVE_STEPS = 2
lab = runs.Laboratory()
live, models = {}, {}
for name in tqdm(names, desc="objectives"):
    models[name] = lab.model(name)
    dataset = lab.dataset(name, packed)
    live[name] = list(train(models[name], dataset, steps=LIVE_STEPS, rate=lab.rate_of(name)))

# %% name="draw-losses" jupyter={"source_hidden": true}
record = Record(runs.RECORDS_FOLDER / "objectives.jsonl")
tokens_a_step = lab.row_length * lab.batch_size
recorded = {name: record.values("loss", name=name) for name in names}


def smoothed(pairs, width=9):
    """Tokens read, and the running median of the loss: single batches differ."""
    steps, losses = zip(*pairs, strict=True)
    middle = [statistics.median(losses[max(0, i - width // 2) : i + width // 2 + 1]) for i in range(len(losses))]
    return [step * tokens_a_step for step in steps], middle


plots.show(
    plots.draw_curves(
        {name: smoothed(pairs) for name, pairs in recorded.items()},
        {name: ([r.tokens for r in rows], [r.loss for r in rows]) for name, rows in live.items()},
        references={"knows nothing: ln V": uniform_loss(vocabulary)},
        xlabel="tokens read (log scale)",
        ylabel="loss, nats per target",
        log_x=True,
    ),
    alt="Loss of five objectives against tokens read: recorded lines, and the first steps of this machine on top.",
)

# %% name="draw-first-steps" jupyter={"source_hidden": true}
close_up = {name: [pair for pair in pairs if pair[0] <= LIVE_STEPS] for name, pairs in recorded.items()}
plots.show(
    plots.draw_curves(
        {name: tuple(zip(*pairs, strict=True)) for name, pairs in close_up.items()},
        {name: ([r.step for r in rows], [r.loss for r in rows]) for name, rows in live.items()},
        xlabel="step",
        ylabel="loss, nats per target",
    ),
    alt="The first steps close up: recorded losses as lines, the losses that this machine has just computed as markers.",
)

# %% name="live-against-record" jupyter={"source_hidden": true}
gaps = [abs(row.loss - dict(recorded[name])[row.step]) / row.loss for name, rows in live.items() for row in rows]
Markdown(
    f"Over {len(gaps)} steps that this machine has just taken, the largest distance from the record is "
    f"{100 * max(gaps):.2f}% of the loss"
    + (": the same run, as far as it goes." if max(gaps) < 0.03 else ": **too far. Treat the record with suspicion.**")
)

# %% [markdown] name="loss-question"
# Every curve starts near the same height: a model that knows nothing spreads its bets over the vocabulary, and
# that costs the logarithm of its size. Then they part. Here is where they end, on held-out text, beside a rival that only
# counts how often each token was an answer.

# %% name="final-losses"
final = {name: record.values("held_out", name=name)[-1] for name in names}
baselines = {}
for name in tqdm(names, desc="counting targets"):
    seen = torch.cat([b.labels_BL[b.is_target_BL] for b in (lab.dataset(name, packed).batch(k) for k in range(40))])
    dev_batches = [lab.dataset(name, held_out).batch(k) for k in range(24)]
    asked = torch.cat([b.labels_BL[b.is_target_BL] for b in dev_batches])
    baselines[name] = unigram_loss(seen, asked, vocabulary)
rows = [
    [name, f"{final[name][0] * tokens_a_step / 1e6:.1f} M", f"{final[name][1]:.2f}", f"{baselines[name]:.2f}",
     f"{baselines[name] - final[name][1]:.2f}"]
    for name in names
]  # fmt: skip
table(["objective", "tokens read", "held-out loss, nats per target", "loss of counting", "ahead of counting by"], rows)

# %% [markdown] name="comparable-question"
# **Predict.** Can you say from this table which objective has learned the most?

# %% name="predict-comparable" jupyter={"source_hidden": true}
comparable_guess = guess(
    "Which objective has learned the most?",
    [
        ("the one with the lowest loss", "lowest"),
        ("the one furthest ahead of counting", "ahead"),
        ("the table cannot say", "different"),
    ],
)
display(comparable_guess)

# %% name="explain-losses" jupyter={"source_hidden": true}
lowest = min(names, key=lambda name: final[name][1])
highest_rival, lowest_rival = max(names, key=baselines.get), min(names, key=baselines.get)
sample = lab.dataset("infilled", held_out).batch(0)
given_away = (sample.input_ids_BT != vocabulary.pad).logical_and(sample.input_ids_BT != vocabulary.mask).sum().item()
given_away = 100 * given_away / int(sample.is_target_BL.sum())
display(compare(lowest_guess, f"The lowest is {lowest}, at {final[lowest][1]:.2f} nats.", lowest))
display(
    compare(
        comparable_guess,
        "They answer different questions, with different help. A masked model sees both sides of a gap, a causal one the "
        f"left side only. An infilling model is shown {given_away:.0f} in a hundred of the tokens that it has to write. And the "
        f"questions differ in themselves: mere counting costs {baselines[lowest_rival]:.2f} nats for {lowest_rival} and "
        f"{baselines[highest_rival]:.2f} for {highest_rival}. The distance from counting does not rank them either, since "
        "nobody knows how far each could fall. Compare two models on the *same* question, or on a task that neither was "
        "trained for.",
        "different",
    )
)

# %% [markdown] name="time-per-target"
# What does a target cost in time? Your machine has just timed its own steps.

# %% name="time-table" jupyter={"source_hidden": true}
seconds = {name: statistics.median(r.seconds for r in rows[1:]) for name, rows in live.items()}
targets = {name: statistics.mean(r.targets for r in rows) for name, rows in live.items()}
rows = [
    [name, f"{models[name].n_parameters() / 1e6:.1f} M", f"{1e3 * seconds[name]:.0f} ms", f"{targets[name]:,.0f}",
     f"{1e6 * seconds[name] / targets[name]:.0f} µs"]
    for name in names
]  # fmt: skip
cheapest = min(names, key=lambda name: seconds[name] / targets[name])
display(table(["objective", "parameters", "a step", "targets in it", "a target"], rows))
Markdown(
    f"Every step reads {tokens_a_step:,} tokens. By so few timed steps, the quickest per step is {min(seconds, key=seconds.get)}, the cheapest per "
    f"target is {cheapest}. A step with more targets scores all {vocabulary.size:,} tokens at more places, and takes longer."
)

# %% [markdown] name="probe"
# ### A task that none was trained for
#
# Freeze each model, average its last hidden state (the encoder's, where there are two stacks) over the first tokens of a review, and fit a logistic regression that
# reads sentiment from it. Nothing of the model is trained, so whatever this *probe* finds was there already. The record
# holds it for several numbers of labelled reviews, over several samples of them. The models were trained once, so the
# intervals speak of the samples, not of other seeds of the training.
#
# **Predict.** Which objective's features will give the most accurate probe?

# %% name="predict-probe" jupyter={"source_hidden": true}
probe_guess = guess("Whose frozen features will be the best?", names)
display(probe_guess)

# %% name="draw-probe" jupyter={"source_hidden": true}
FEW, LABELS = 100, (100, 500, 2000)


def probes(name, labels, of=record):
    """{tokens read: {sample: % right}} of the recorded probe."""
    rungs = of.by_step(f"probe_{labels}", name=name)
    return {n * tokens_a_step: {seed: 100 * v for seed, v in right.items()} for n, right in rungs.items()}


ladders = {name: probes(name, FEW) for name in names}
words = {labels: probes("bag of words", labels)[0] for labels in LABELS}
plots.show(
    plots.draw_curves(
        {name: ([t / 1e6 for t in rungs], [statistics.mean(right.values()) for right in rungs.values()])
         for name, rungs in ladders.items()},
        references={"bag of words": statistics.mean(words[FEW].values())},
        xlabel="million tokens read",
        ylabel=f"accuracy of the probe, %, from {FEW} labels",
    ),
    alt="Accuracy of a sentiment probe on frozen features of five objectives against tokens read, beside a bag of words.",
)  # fmt: skip

# %% [markdown] name="paired"
# Every method was given the same samples and the same test reviews, so differences are taken sample by sample: what makes
# a sample easy for all cancels.

# %% name="probe-table" jupyter={"source_hidden": true}


def difference(right, other):
    """Interval of the mean difference in points, over the samples that both were measured on."""
    return mean_interval([right[sample] - other[sample] for sample in right])


first, last = ({name: rungs[pick(rungs)] for name, rungs in ladders.items()} for pick in (min, max))
after = {name: mean_interval(list(last[name].values())) for name in names}
gain = {name: difference(last[name], first[name]) for name in names}
trained = {(name, labels): probes(name, labels) for name in names for labels in LABELS}
over_words = {key: difference(rungs[max(rungs)], words[key[1]]) for key, rungs in trained.items()}
rows = [
    [name, f"{statistics.mean(first[name].values()):.1f}", f"{after[name]:.1f}", f"{gain[name]:+.1f}"] for name in names
]
display(table([f"from {FEW} labels", "untrained, accuracy in %", "after the whole run", "points gained"], rows))
rows = [[name, *(f"{over_words[name, labels]:+.1f}" for labels in LABELS)] for name in names]
display(table(["points ahead of a bag of words", *(f"from {labels} labels" for labels in LABELS)], rows))

# %% name="explain-probe" jupyter={"source_hidden": true}
best = max(names, key=lambda name: after[name].value)
level = [name for name in names if name != best and difference(last[best], last[name]).low <= 0]
gained = [name for name in names if gain[name].low > 0]
beats = {labels: [name for name in names if over_words[name, labels].low > 0] for labels in LABELS}
loses = {labels: [name for name in names if over_words[name, labels].high < 0] for labels in LABELS}
display(
    compare(
        probe_guess,
        f"The best features are those of the {best} model: right in {after[best].value:.1f}% ({after[best].low:.1f} to {after[best].high:.1f}) from {FEW} labels"
        + (
            f"; it is not clearly ahead of {', '.join(level)}. "
            if level
            else ", ahead of all others beyond the 95% intervals. "
        )
        + (f"Reading text without labels has helped {', '.join(gained)}, by intervals above zero. " if gained else "")
        + " ".join(
            f"From {labels} labels, {', '.join(beats[labels]) or 'nobody'} beat{'s' * (len(beats[labels]) < 2)} a bag of words"
            f" and {', '.join(loses[labels]) or 'nobody'} clearly lose{'s' * (len(loses[labels]) < 2)} to it."
            for labels in LABELS
        )
        + (
            f" Less counting words, it stands at {', '.join(f'{over_words[best, n].value:+.1f} points with {n:,}' for n in LABELS)} labels: so small a "
            "pre-training pays, if at all, where labels are few."
            if over_words[best, LABELS[0]].value > over_words[best, LABELS[-1]].value
            else " More labels do not narrow its lead over counting words here."
        )
        + " Compare this order with that of the losses, and with that of the targets in section 1. (The objectives differ in more than these, so an order "
        "that agrees proves no cause.)",
        best,
    )
)

# %% [markdown] name="collapse"
# ### A loss that falls while the features die
#
# One thing was not the same for all: span corruption was trained at a lower learning rate. A second record shows why. It is
# the same run at the learning rate of the others.
#
# **Predict.** At the common rate, too, the loss of span corruption falls. What do its features do?

# %% name="predict-collapse" jupyter={"source_hidden": true}
collapse_guess = guess(
    "What do the features do at the common rate?",
    [("they get better, more slowly", "better"), ("they stay as untrained", "same"), ("they get worse", "worse")],
)
display(collapse_guess)

# %% name="draw-collapse" jupyter={"source_hidden": true}
collapse = Record(runs.RECORDS_FOLDER / "span_collapse.jsonl")
common, own = "at the common rate", "at its own rate"
ladder_of = {own: probes("span", FEW), common: probes("span", FEW, collapse)}
plots.show(
    plots.draw_curves(
        {name: ([t / 1e6 for t in rungs], [statistics.mean(right.values()) for right in rungs.values()])
         for name, rungs in ladder_of.items()},
        references={"chance": 50.0},
        xlabel="million tokens read",
        ylabel=f"accuracy of the probe, %, from {FEW} labels",
    ),
    alt="Probe accuracy of two span-corruption runs against tokens read: at its own learning rate, and at the common one.",
)  # fmt: skip

# %% name="explain-collapse" jupyter={"source_hidden": true}
losses_of = {own: record.values("held_out", name="span"), common: collapse.values("held_out", name="span")}
moved = {name: difference(rungs[max(rungs)], rungs[min(rungs)]) for name, rungs in ladder_of.items()}
ends_worse, ends_better = moved[common].high < 0, moved[common].low > 0
display(
    compare(
        collapse_guess,
        ". ".join(
            f"{name[0].upper() + name[1:]}: held-out loss from {losses_of[name][0][1]:.2f} to {losses_of[name][-1][1]:.2f}, probe "
            f"{moved[name]:+.1f} points against untrained"
            for name in (own, common)
        )
        + ". "
        + (
            "A decoder can lower its loss a good way from the tokens that it has written itself. That may be what happened: at "
            "the high rate the encoder's features are ruined before the decoder needs them (one run each; the intervals are over samples). Whatever the cause, the loss did not tell."
            if ends_worse
            else "Here the features survived; the loss alone could not have told you that either."
        ),
        "worse" if ends_worse else "better" if ends_better else "same",
    )
)

# %% name="probe-live"
check = runs.SentimentProbe(labels=(100,), seeds=3, tests=300)
methods = {
    "bag of words": check.bag_of_words,
    f"masked, after {LIVE_STEPS} steps": lambda: check.of_model(models["masked"]),
}
here = {name: method() for name, method in tqdm(methods.items(), desc="methods")}
rows = [[name, f"{mean_interval([100 * value for value in found.values()]):.1f}"] for name, found in here.items()]
display(table(["on this machine, from 100 labels, fewer samples and tests", "% right, with a 95% interval"], rows))

# %% [markdown] name="leaks"
# ## 5 Let it cheat
#
# A mask that is off by one cell crashes nothing. The model trains, the loss falls, and an answer stands in plain sight.
#
# Here each of two models is trained twice: once honestly, once with a small mistake. The causal mask slips by one, so that a
# position sees the token that it has to predict; in the permuted model a target's query may look at its own token.
#
# **Predict.** How will the loss of a leaking model look beside the honest one?

# %% name="predict-leak" jupyter={"source_hidden": true}
leak_guess = guess(
    "How will the leaking loss look?",
    [
        ("lower from the first step on", "at once"),
        ("alike at first, then it falls away", "later"),
        ("no visible difference", "none"),
    ],
)
display(leak_guess)

# %% name="train-leaks"
LEAK_STEPS, LEAK_LENGTH = 100, 16
short_rows = replace(packed, ids_NT=packed.ids_NT[:4000, :LEAK_LENGTH], document_ids_NT=packed.document_ids_NT[:4000, :LEAK_LENGTH])  # fmt: skip
small = TransformerConfig(vocabulary.size, d_model=128, n_layers=2, n_heads=4, d_ff=512, max_len=LEAK_LENGTH)
small_rotary = small.with_(positions="rotary")
diagonal = torch.eye(LEAK_LENGTH, dtype=torch.bool)


def slip_by_one(batch):
    """Each position also sees the next one: the token that it has to predict."""
    return replace(batch, may_attend_BQK=torch.ones(1, LEAK_LENGTH, LEAK_LENGTH, dtype=torch.bool).tril(1))


def see_yourself(batch):
    """Each query also sees its own token."""
    return replace(batch, may_query_BQK=batch.may_query_BQK | diagonal)


experiments = {
    "causal, honest": ("causal", Decoder, small, lambda batch: batch),
    "causal, slipped by one": ("causal", Decoder, small, slip_by_one),
    "permuted, honest": ("permuted", TwoStream, small_rotary, lambda batch: batch),
    "permuted, sees itself": ("permuted", TwoStream, small_rotary, see_yourself),
}
curves, cheats = {}, {}
for name, (objective, kind, config, change) in tqdm(experiments.items(), desc="runs"):
    dataset = PretrainingDataset(short_rows, vocabulary, objective, batch_size=16)
    cheats[name] = new_model(kind, config)
    steps = train(
        cheats[name], map(change, dataset), steps=LEAK_STEPS, rate=lambda step: 3e-3 * min(1, (step + 1) / 20)
    )
    curves[name] = [row.loss for row in steps]

# %% name="draw-leaks" jupyter={"source_hidden": true}
plots.show(
    plots.draw_curves(
        {name: (range(1, LEAK_STEPS + 1), losses) for name, losses in curves.items()},
        xlabel="step",
        ylabel="loss, nats per target",
    ),
    alt="Training losses against steps: a causal and a permuted model, each once honest and once with a leak.",
)

# %% name="explain-leaks" jupyter={"source_hidden": true}
pairs = {
    "causal": ("causal, honest", "causal, slipped by one"),
    "permuted": ("permuted, honest", "permuted, sees itself"),
}


def parts_at(honest, leaking, margin=0.5, width=5):
    """The first step from which the leak is ahead by `margin` nats on average over the next few, None if it never is."""
    ahead = [a - b for a, b in zip(curves[honest], curves[leaking], strict=True)]
    found = (n for n in range(LEAK_STEPS - width) if statistics.mean(ahead[n : n + width]) > margin)
    return next((n + 1 for n in found), None)


shown_at = {name: parts_at(*pair) for name, pair in pairs.items()}
at_end = {name: statistics.mean(losses[-10:]) for name, losses in curves.items()}
outcomes = ["none" if n is None else "at once" if n <= 5 else "later" for n in shown_at.values()]
display(
    compare(
        leak_guess,
        "; ".join(
            f"{name}: honest {at_end[pair[0]]:.2f}, leaking {at_end[pair[1]]:.2f} at the end, half a nat apart "
            + (f"from step {shown_at[name]}" if shown_at[name] else "at no time")
            for name, pair in pairs.items()
        )
        + ". "
        + (
            "They start alike: a model has to *find* the leak before it can use it. "
            + "".join(
                f"By itself the leaking {name} loss of {at_end[leaking]:.2f} "
                + (
                    f"would raise suspicion: a larger model came to {final[name][1]:.2f} in section 4, and not in {LEAK_STEPS} steps. "
                    if at_end[leaking] < final[name][1]
                    else f"looks like any other: the honest model of section 4 came to {final[name][1]:.2f}. "
                )
                for name, (_, leaking) in pairs.items()
            )
            + "Only an honest twin beside it gives every leak away, and late. (One run of each.)"
            if set(outcomes) == {"later"}
            else "It need not come out the same way for every model: the loss is no reliable alarm."
        ),
        outcomes[0] if len(set(outcomes)) == 1 else None,
    )
)

# %% [markdown] name="leak-test"
# **The test that does not wait.** Whether an answer can leak is a property of the wiring, so no training is needed to see
# it. Take an untrained model, change one token, and ask which predictions change, *by so much as one bit*. Do it for every
# token. What may not be seen must not matter; what may be seen must.

# %% name="measure-influence"
row_BT = torch.tensor([tokenizer.encode("the best film of the year, by far")[:9]])
pieces = [tokenizer.token(i).strip() for i in row_BT[0].tolist()]
row_names = [f"{token} → {following}" for token, following in pairwise(pieces)]
honest = objectives.causal(row_BT, vocabulary)
wired = {
    "honest": honest,
    "slipped by one": replace(honest, may_attend_BQK=torch.ones(1, *[row_BT.shape[1]] * 2, dtype=torch.bool).tril(1)),
}
untrained = new_model(Decoder, small, device="cpu")
found = {name: influences(untrained, batch, vocabulary) for name, batch in wired.items()}
plots.show(
    plots.draw_visibilities(
        [
            plots.Visibility(matrix.numpy(), row_names, pieces, f"{name}: what matters to whom")
            for name, matrix in found.items()
        ],
        meaning=("changing the column changes the row", "not by one bit"),
    ),
    alt="Two matrices of measured influence, honest and slipped by one: rows are predictions, columns the tokens changed.",
)

# %% name="explain-influence" jupyter={"source_hidden": true}
own = {name: matrix.diagonal(1).sum().item() for name, matrix in found.items()}
further = {name: int(matrix.triu(1).sum(1).max()) for name, matrix in found.items()}
Markdown(
    f"A row “a → b” is the prediction of b at a. Predictions that depend on their own answer: {own['honest']} of {len(row_names)} "
    f"in the honest model, {own['slipped by one']} of {len(row_names)} in the slipped one. And the slip reaches "
    f"{further['slipped by one']} tokens ahead, though the mask slipped by one: the model has {small.n_layers} layers, and each "
    "slips once more. **A mask limits one layer; influence follows paths.** (`tests/test_model.py` does this to every objective "
    "and every model of the library.)"
)

# %% [markdown] name="two-streams"
# ## 6 Why permutation needs two streams
#
# A causal model predicts the next token from the hidden state of the last one: *next* is always one to the right, so
# the state need not say where. Under a permutation, *next* can be anywhere. Take one hidden state that has read some
# tokens, and two orders that agree so far and then go to different places.
#
# **Predict.** One stream: the state of the last token read has to predict the next. How far apart are its two predictions?

# %% name="predict-streams" jupyter={"source_hidden": true}
stream_guess = guess(
    "How far apart are the two predictions of one stream?",
    [("not at all", "equal"), ("a little", "little"), ("a lot", "far")],
)
display(stream_guess)

# %% name="ambiguity"
sentence = tokenizer.encode("a slow start and a wonderful end to a strange film")
sentence_BT = torch.tensor([sentence])
T = len(sentence)
read_so_far = [2, 7, 4]  # positions, in the order in which they were read
next_places = [0, T - 1]


def order_of(places):
    """int64 [1, T]: each position's place in an order that begins with `places`."""
    rest = [t for t in range(T) if t not in places]
    return torch.tensor([[*places, *rest]]).argsort(1)


two_streams = new_model(TwoStream, small_rotary, device="cpu").eval()
every_BT = torch.ones(1, T, dtype=torch.bool)
one, two = [], []
with torch.no_grad():
    for place in next_places:
        content_BTT, query_BTT = masks.permutation(order_of([*read_so_far, place]), every_BT)
        state = two_streams(sentence_BT, content_BTT).hidden_states[-1][:, read_so_far[-1]]
        one.append(two_streams.head(state))
        two.append(two_streams.predict(sentence_BT, content_BTT, query_BTT, every_BT)[place])
apart = {"one stream": (one[0] - one[1]).abs().max().item(), "two streams": (two[0] - two[1]).abs().max().item()}
asked = [tokenizer.token(sentence[place]).strip() for place in next_places]
display(
    compare(
        stream_guess,
        f"One stream: the largest difference between its two predictions is {apart['one stream']}. It is *the same vector*, "
        f"read twice, and it has to mean “{asked[0]}” the first time and “{asked[1]}” the second. With a second stream, "
        f"which knows the place that it predicts and not the token there, the two differ by {apart['two streams']:.4f} even "
        "before training.",
        "equal" if apart["one stream"] == 0 else "little",
    )
)

# %% [markdown] name="floor"
# That sets a floor, and it can be computed. Let both kinds of model learn this one sentence by heart: they always read the
# same tokens first, and the next place is drawn anew each time. With one stream the best that a model can do is to bet on
# all the tokens that are left. (“a” with a space before it is one token, at the start of the text another.) The cell trains
# both and draws the floor beside them.

# %% name="train-streams"
STREAM_STEPS = 80
tiny = TransformerConfig(vocabulary.size, d_model=64, n_layers=2, n_heads=4, d_ff=256, max_len=T, positions="rotary")
places_left = [t for t in range(T) if t not in read_so_far]
tokens_left = [sentence[t] for t in places_left]
floor = -statistics.mean(np.log(tokens_left.count(token) / len(tokens_left)) for token in tokens_left)


def next_token_loss(model, next_B, *, streams):
    """Summed loss and count: the token at each place of `next_B`, from the tokens read so far."""
    order_BT = torch.cat([order_of([*read_so_far, place]) for place in next_B.tolist()])
    content_BTT, query_BTT = masks.permutation(order_BT, torch.ones_like(order_BT, dtype=torch.bool))
    ids_BT = sentence_BT.expand(len(next_B), T)
    if streams == 2:
        wanted_BT = torch.arange(T) == next_B[:, None]
        return token_loss(model.predict(ids_BT, content_BTT, query_BTT, wanted_BT), ids_BT[wanted_BT])
    state_BE = model(ids_BT, content_BTT).hidden_states[-1][:, read_so_far[-1]]
    return token_loss(model.head(state_BE), sentence_BT[0, next_B])


learned = {}
for streams, name in ((1, "one stream"), (2, "two streams")):
    model, losses = new_model(TwoStream, tiny, device="cpu"), []
    optimizer, draw = make_optimizer(model), seeded(5)
    optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = 3e-3
    for _ in range(STREAM_STEPS):
        next_B = torch.tensor(places_left)[torch.randint(len(places_left), (64,), generator=draw)]
        total, count = next_token_loss(model, next_B, streams=streams)
        (total / count).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total.item() / count)
    learned[name] = losses
plots.show(
    plots.draw_curves(
        {name: (range(1, STREAM_STEPS + 1), losses) for name, losses in learned.items()},
        references={"one stream's floor": floor},
        xlabel="step",
        ylabel="loss, nats per target",
    ),
    alt="Training losses of one stream and of two streams on one sentence, with the computed floor of one stream dashed.",
)

# %% name="explain-streams" jupyter={"source_hidden": true}
ends = {name: statistics.mean(losses[-10:]) for name, losses in learned.items()}
Markdown(
    f"One stream ends at {ends['one stream']:.2f}, and its floor is {floor:.2f}: "
    + ("it has learned all that it can" if abs(ends["one stream"] - floor) < 0.1 * floor else "it is not there yet")
    + f". Two streams end at {ends['two streams']:.2f}. The two models are built alike; "
    "what differs is that the second stream may know *where* without knowing *what*."
)

# %% [markdown] name="fill-in"
# ## 7 Fill in your own
#
# A masked model can be asked directly. The models below are one model, seen early and at the end of its training: the
# course's encoder, pre-trained on the same reviews for longer than a chapter can wait. Chapter 2 looks at how.
#
# **Predict.** For the gap in “the [MASK] was very good.”, will the *early* one's first guess make an English sentence?

# %% name="predict-fill" jupyter={"source_hidden": true}
fill_guess = guess("Will the first guess make an English sentence?", [("it fits", "fits"), ("it does not fit", "not")])
display(fill_guess)

# %% name="load-fill-in"
fillers = {"early": load_checkpoint("encoder_early"), "at its end": load_checkpoint("encoder")}
recipe = runs.RECIPES["encoder"]
early_tokens = recipe.rungs[1] * recipe.tokens  # the second checkpoint that was kept
all_tokens = recipe.tokens + runs.RECIPES["encoder_longer"].tokens
Markdown(f"The early model had read {early_tokens / 1e6:.0f} M tokens, the later one {all_tokens / 1e6:.0f} M.")

# %% name="fill-in-static" jupyter={"source_hidden": true}
frequency_V = torch.bincount(packed.ids_NT.flatten(), minlength=vocabulary.size) / packed.ids_NT.numel()


def likeliest(text, model="at its end"):
    return fill_in(fillers[model], tokenizer, text)


sentences = [
    "the [MASK] was very good.",
    "one of the [MASK] movies i have ever seen.",
    "the acting is [MASK] and the plot is [MASK].",
    "i laughed at every [MASK] of it.",
]
rows = [
    [text, f"gap {n + 1}", *(", ".join(f"{token.strip()} {100 * p:.0f}%" for token, p in gap[:4]) for gap in gaps)]
    for text in sentences
    for n, gaps in enumerate(zip(*(likeliest(text, name) for name in fillers), strict=True))
]
display(table(["text", "gap", *fillers], rows))
(early_token, early_share), (late_token, late_share) = (likeliest(sentences[0], name)[0][0] for name in fillers)
display(
    compare(
        fill_guess,
        f"Early it says “{early_token.strip()}”, with {100 * early_share:.0f}%; at its end “{late_token.strip()}”, with "
        f"{100 * late_share:.0f}%. Blindly, without the sentence, the first is right in "
        f"{100 * frequency_V[tokenizer.encode(early_token)[0]].item():.1f}% of all places, the second in "
        f"{100 * frequency_V[tokenizer.encode(late_token)[0]].item():.1f}%. Whether they fit, you judge. Look at the other rows "
        "too: a model tends to learn which *kind* of word a gap wants before it learns which word.",
    )
)

# %% [markdown] name="fill-in-question"
# **Move.** Type your own sentence with `[MASK]` in it and press Enter, until the model fills a gap with nonsense. Which gaps
# does it fill sensibly: those that grammar decides, or those that need to know what a film is?

# %% name="fill-in-box"
box = fill_in_box(likeliest, "i have never seen such a [MASK] film.")
display(box)

# %% name="fill-in-answer" jupyter={"source_hidden": true}
FREQUENT = 100
gaps = objectives.masked(held_out.ids_NT[:64], vocabulary, generator=seeded(13))
with torch.no_grad():
    first_N = fillers["at its end"].target_logits(gaps).argmax(-1)
hidden_N = gaps.labels_BL[gaps.is_target_BL]
is_frequent_N = torch.isin(hidden_N, frequency_V.topk(FREQUENT).indices)
is_gap_N = (gaps.input_ids_BT == vocabulary.mask)[
    gaps.is_target_BL
]  # some targets are kept or swapped, and stand in the row
right_if = {
    kind: proportion_interval(int((first_N == hidden_N)[of].sum()), int(of.sum()))
    for kind, of in ((kind, is_gap_N & (is_frequent_N == kind)) for kind in (True, False))
}
Markdown(
    f"<details><summary>Moved it? Compare</summary>\n\nOver {int(is_gap_N.sum()):,} hidden tokens in held-out reviews the first guess is right "
    f"in {right_if[True]:.0%} where the answer is one of the {FREQUENT} most frequent tokens (small words and punctuation, "
    f"most of them), and in {right_if[False]:.0%} where it is another. "
    + (
        "The frequent ones are easier: many of them the grammar of a sentence nearly settles. The others hang on what is being talked about."
        if right_if[True].low > right_if[False].high
        else "The two are not clearly apart."
    )
    + "\n\n</details>"
)

# %% [markdown] name="exercises"
# ## Exercises
#
# Four functions to write. Each check runs yours on real and on nasty input and says in words what is wrong. It hands your
# function back if it is right, and the library's otherwise, so that you can go on either way.

# %% [markdown] name="exercise-shift" tags=["exercise"]
# ### Exercise 1: shift the labels
#
# A causal model reads `input_ids_BT` (int64, one row per text) and must predict, at each position, the *next* token. Write the
# labels: the next token where there is one, and `-100` (`IGNORE_INDEX`) where nothing is asked, which is at the last position
# and wherever the token or its successor is padding. (The end of a document is no padding: what follows it is asked for too.)
#
# <details><summary>Hint 1</summary>

# Start from a tensor full of <code>-100</code> with the input's shape, and fill in all columns but the last.</details>
# <details><summary>Hint 2</summary>

# Where are both <code>input_ids_BT[:, :-1]</code> and <code>input_ids_BT[:, 1:]</code> real?</details>


# %% name="exercise-shift-code" tags=["exercise"]
def my_shift_labels(input_ids_BT, pad_id):
    ### BEGIN SOLUTION
    labels_BT = torch.full_like(input_ids_BT, IGNORE_INDEX)
    is_real_BT = input_ids_BT != pad_id
    has_next_BT = is_real_BT[:, :-1] & is_real_BT[:, 1:]
    labels_BT[:, :-1] = input_ids_BT[:, 1:].masked_fill(~has_next_BT, IGNORE_INDEX)
    return labels_BT
    ### END SOLUTION


# %% name="exercise-shift-check" tags=["check"]
shift_labels = checks.shift_labels(my_shift_labels)

# %% [markdown] name="exercise-mask" tags=["exercise"]
# ### Exercise 2: mask
#
# Write BERT's masking. Choose each ordinary token with probability `mask_prob`; a chosen one is hidden
# (`vocabulary.mask`) with probability 0.8, swapped for a random ordinary token with 0.1, and left as it is otherwise. Return what the model reads, and the labels
# (the original where a token was chosen, `-100` elsewhere). Special tokens are never chosen and never drawn; the caller's
# tensor stays as it is; all randomness comes from `generator`.
#
# `vocabulary.is_ordinary_V` is a bool table by id; `vocabulary.draw_ordinary(count, generator)` draws ordinary ids.
#
# <details><summary>Hint 1</summary>

# One uniform draw per token can decide everything: whether it is chosen, and what becomes of it.</details>
# <details><summary>Hint 2</summary>

# If a token is chosen when its draw is below <code>mask_prob</code>, then below which number is it hidden?</details>


# %% name="exercise-mask-code" tags=["exercise"]
def my_mask_tokens(input_ids_BT, vocabulary, mask_prob, generator):
    ### BEGIN SOLUTION
    fate_BT = torch.rand(input_ids_BT.shape, generator=generator)
    is_target_BT = (fate_BT < mask_prob) & vocabulary.is_ordinary_V[input_ids_BT]
    is_hidden_BT = is_target_BT & (fate_BT < 0.8 * mask_prob)
    is_swapped_BT = is_target_BT & ~is_hidden_BT & (fate_BT < 0.9 * mask_prob)
    shown_BT = input_ids_BT.masked_fill(is_hidden_BT, vocabulary.mask)
    shown_BT[is_swapped_BT] = vocabulary.draw_ordinary(int(is_swapped_BT.sum()), generator)
    return shown_BT, input_ids_BT.masked_fill(~is_target_BT, IGNORE_INDEX)
    ### END SOLUTION


# %% name="exercise-mask-check" tags=["check"]
mask_tokens = checks.mask_tokens(my_mask_tokens)

# %% [markdown] name="exercise-permutation" tags=["exercise"]
# ### Exercise 3: who may look, under a permutation
#
# `order_BT` gives each position's place in the order of prediction, `is_target_BT` says which positions are predicted. Return two
# bool tensors [B, T, T] (rows look, columns are looked at): what the *content* stream sees and what the *query* stream sees.
#
# Everybody sees every non-target. A target also sees the targets of an earlier place; its content sees itself too, its query
# does not. A non-target sees no target.
#
# <details><summary>Hint 1</summary>

# <code>order_BT[:, None, :] < order_BT[:, :, None]</code> compares every key with every query.</details>
# <details><summary>Hint 2</summary>

# Write the query stream first. The content stream is that, and one thing more.</details>


# %% name="exercise-permutation-code" tags=["exercise"]
def my_permutation_mask(order_BT, is_target_BT):
    ### BEGIN SOLUTION
    is_earlier_BTT = order_BT[:, None, :] < order_BT[:, :, None]
    query_BTT = ~is_target_BT[:, None, :] | (is_target_BT[:, :, None] & is_earlier_BTT)
    return query_BTT | torch.eye(order_BT.shape[1], dtype=torch.bool), query_BTT
    ### END SOLUTION


# %% name="exercise-permutation-check" tags=["check"]
permutation_mask = checks.permutation_mask(my_permutation_mask)

# %% [markdown] name="exercise-spans" tags=["exercise"]
# ### Exercise 4: corrupt spans, and restore the text
#
# Plain lists this time. `is_noise` marks the tokens to remove. Return the input, where each stretch of removed tokens is
# replaced by one sentinel (the first stretch by `sentinels[0]`, and so on), and the target: each sentinel followed by the
# tokens it stands for, and at the end the next sentinel that no stretch has used (where nothing is removed, that is
# the whole target). Then write the way back: from input and target to the text.
#
# <details><summary>Hint 1</summary>

# A stretch begins where a token is noise and the one before it is not.</details>
# <details><summary>Hint 2</summary>

# For the way back, read the target once and note, for each sentinel, what follows it.</details>


# %% name="exercise-spans-code" tags=["exercise"]
def my_corrupt_spans(ids, is_noise, sentinels):
    ### BEGIN SOLUTION
    shown, target, n = [], [], 0
    for t, token in enumerate(ids):
        if not is_noise[t]:
            shown.append(token)
            continue
        if t == 0 or not is_noise[t - 1]:
            shown.append(sentinels[n])
            target.append(sentinels[n])
            n += 1
        target.append(token)
    return shown, [*target, sentinels[n]]
    ### END SOLUTION


def my_restore_spans(shown, target, sentinels):
    ### BEGIN SOLUTION
    spans = {}
    for token in target:
        if token in sentinels:
            spans[token] = current = []
        else:
            current.append(token)
    return [t for token in shown for t in (spans[token] if token in sentinels else [token])]
    ### END SOLUTION


# %% name="exercise-spans-check" tags=["check"]
corrupt_spans, restore_spans = checks.corrupt_spans(my_corrupt_spans, my_restore_spans)

# %% [markdown] name="clinic"
# ## Bug clinic
#
# Four **patients**: pieces of code that look right and run, each with a classic mistake. Do not look for it by reading. Run
# the experiment below the code, decide from its numbers what must be wrong, then unfold the diagnosis. The cure, and the same
# experiment on it, come after (with the first patient's cure nothing is left to line up).

# %% [markdown] name="clinic-denoise-story"
# ### Patient 1: denoising
#
# “Replace stretches of the text by one mask each. The labels are the original text.” The model has one stack and predicts
# at each position of its input. (The claims table at the end says where this comes from.)

# %% name="clinic-denoise" tags=["clinic"]


def patient_denoise(ids, is_noise, mask_id):
    shown = []
    for t, token in enumerate(ids):
        if not is_noise[t]:
            shown.append(token)
        elif t == 0 or not is_noise[t - 1]:
            shown.append(mask_id)
    labels = ids[: len(shown)]
    return shown, labels


def kept_in_step(denoise, part=slice(None), n_rows=50):
    """Where the input shows an ordinary token and has a label: the share of places where the two agree, in a part of each
    row. None where the labels have a length of their own."""
    agree = asked = 0
    noise = torch.rand(n_rows, held_out.ids_NT.shape[1], generator=seeded(7)) < 0.3
    for row, is_noise in zip(held_out.ids_NT[:n_rows].tolist(), noise.tolist(), strict=True):
        shown, labels = denoise(row, is_noise, vocabulary.mask)
        if len(labels) != len(shown):
            return None
        pairs = [(s, label) for s, label in zip(shown[part], labels[part], strict=True) if s != vocabulary.mask]
        agree, asked = agree + sum(s == label for s, label in pairs), asked + len(pairs)
    return agree / asked


# %% name="clinic-denoise-experiment"
parts = {f"{start} to {start + 7}": slice(start, start + 8) for start in range(0, 48, 8)}
table(
    ["positions of the input", "shown token and label agree"],
    [[name, f"{100 * kept_in_step(patient_denoise, part):.0f}%"] for name, part in parts.items()],
)

# %% [markdown] name="clinic-denoise-diagnosis"
# <details><summary>Diagnosis</summary>
#
# Where a token is shown, it should be its own label everywhere. Each stretch that shrinks to one mask moves everything behind
# it to the left, and the labels do not move along: behind the first stretch, a position is asked for a token that belongs
# elsewhere. Frequent tokens are frequent everywhere, so the loss can fall all the same. Either keep the length (one mask per
# token, as BERT), or let a decoder write the text (as BART): then nothing has to line up, and the lengths differ.
# </details>

# %% name="clinic-denoise-cure" tags=["clinic"]


def cured_denoise(ids, is_noise, mask_id):
    shown, _ = patient_denoise(ids, is_noise, mask_id)
    return shown, list(ids)  # a decoder writes the whole text


# %% [markdown] name="clinic-random-story"
# ### Patient 2: a random token
#
# “Some of the chosen tokens are swapped for a random token of the vocabulary.”

# %% name="clinic-random" tags=["clinic"]


def patient_swap(input_ids_BT, is_swapped_BT, generator):
    random_BT = torch.randint(vocabulary.size, input_ids_BT.shape, generator=generator)
    return torch.where(is_swapped_BT, random_BT, input_ids_BT)


def tokens_put_in(swap):
    """The ids that a swap has put in, over the hundred thousand tokens of section 3."""
    is_swapped_BT = vocabulary.is_ordinary_V[tokens_BT] & (torch.rand(tokens_BT.shape, generator=seeded(8)) < 0.3)
    return swap(tokens_BT, is_swapped_BT, seeded(9))[is_swapped_BT]


# %% name="clinic-random-experiment"
put_in = tokens_put_in(patient_swap)
low = [tokenizer.token(i) for i in put_in.sort().values[:300:40].tolist()]
Markdown(f"{len(put_in):,} tokens were put in. Sorted by id, every fortieth from the lowest up: `{'`, `'.join(low)}`.")

# %% [markdown] name="clinic-random-diagnosis"
# <details><summary>Diagnosis</summary>
#
# <code>randint(vocabulary.size)</code> draws from all ids, the special ones included: ends where nothing ends, sentinels,
# padding in mid-sentence. That is hardly often enough to show in a loss curve. A padding mask computed from the ids then hides a real
# position, and a model that may be asked to *say* these tokens learns that they stand anywhere. Draw from the ordinary ids.
# </details>

# %% name="clinic-random-cure" tags=["clinic"]


def cured_swap(input_ids_BT, is_swapped_BT, generator):
    return input_ids_BT.masked_scatter(is_swapped_BT, vocabulary.draw_ordinary(int(is_swapped_BT.sum()), generator))


def special_among(ids_N):
    """How many of these ids are special tokens."""
    return int((~vocabulary.is_ordinary_V[ids_N]).sum())


# %% name="clinic-random-after" jupyter={"source_hidden": true}
Markdown(
    f"<details><summary>Patient and cure</summary>\n\nSpecial tokens put in: {special_among(put_in)} by the patient, "
    f"{special_among(tokens_put_in(cured_swap))} after the cure.\n\n</details>"
)

# %% [markdown] name="clinic-detour-story"
# ### Patient 3: a permutation mask for rows with special tokens
#
# “`[CLS]` should know the whole text, and everybody should be able to look at `[CLS]`. So special tokens see all, and are
# seen by all.” In rows without special tokens the mask is exactly right.

# %% name="clinic-detour" tags=["clinic"]


def patient_permutation(order_BT, is_target_BT, is_special_BT):
    content_BTT, query_BTT = masks.permutation(order_BT, is_target_BT)
    return content_BTT | is_special_BT[:, :, None], query_BTT | is_special_BT[:, None, :]


def answers_leaked(mask, special_ids, n_layers=3):
    """Targets whose prediction changes with their own token, in an untrained model: how many, of how many."""
    ids_BT = torch.tensor([[*special_ids, *tokenizer.encode("a slow start and a wonderful end")]])
    batch = objectives.permuted(ids_BT, vocabulary, predict_share=0.5, generator=seeded(10))
    order_BT = (torch.rand(ids_BT.shape, generator=seeded(11)) + batch.is_target_BL).argsort(1).argsort(1)
    content_BTT, query_BTT = mask(order_BT, batch.is_target_BL, ~vocabulary.is_ordinary_V[ids_BT])
    batch = replace(batch, may_attend_BQK=content_BTT, may_query_BQK=query_BTT)
    model = new_model(TwoStream, tiny.with_(n_layers=n_layers, max_len=32), device="cpu")
    changed_NT = influences(model, batch, vocabulary)
    own_N = changed_NT[torch.arange(len(changed_NT)), batch.is_target_BL[0].nonzero().squeeze(1)]
    return int(own_N.sum()), len(own_N)


# %% name="clinic-detour-experiment"
rows = [
    [
        n_layers,
        *(
            f"{'{} of {}'.format(*answers_leaked(patient_permutation, ids, n_layers))}"
            for ids in ([], [vocabulary.cls])
        ),
    ]
    for n_layers in (1, 2, 3)
]
display(table(["layers", "answers seen, no special token", "answers seen, row with [CLS]"], rows))
Markdown("No query looks at its own token, with any number of layers. By which way does the answer arrive?")

# %% [markdown] name="clinic-detour-diagnosis"
# <details><summary>Diagnosis</summary>
#
# By a detour: in one layer `[CLS]` reads the target, in the next the target's query reads `[CLS]`. One layer is too short for
# it, which is why a leak test with one layer passes. A special token is no target, so everybody may see it; it must not see a
# target itself. Overwriting the inputs with mask tokens would hide such a leak from the loss, and defeat the point of the
# objective, which is to read the text unharmed.
# </details>

# %% name="clinic-detour-cure" tags=["clinic"]


def cured_permutation(order_BT, is_target_BT, is_special_BT):
    return masks.permutation(order_BT, is_target_BT)


# %% name="clinic-detour-after" jupyter={"source_hidden": true}
before, after_cure = (answers_leaked(mask, [vocabulary.cls]) for mask in (patient_permutation, cured_permutation))
Markdown(
    f"<details><summary>Patient and cure</summary>\n\nAnswers seen with [CLS] in the row: {before[0]} of {before[1]} by the "
    f"patient, {after_cure[0]} of {after_cure[1]} after the cure.\n\n</details>"
)

# %% [markdown] name="clinic-place-story"
# ### Patient 4: a dataset that forgets
#
# “Mask the batch and return it with its labels.” The dataset hands out parts of one big tensor, epoch after epoch.

# %% name="clinic-place" tags=["clinic"]


def patient_mask(input_ids_BT, generator):
    labels_BT = input_ids_BT.clone()
    is_target_BT = (torch.rand(input_ids_BT.shape, generator=generator) < 0.15) & vocabulary.is_ordinary_V[input_ids_BT]
    input_ids_BT[is_target_BT] = vocabulary.mask
    return input_ids_BT, labels_BT.masked_fill(~is_target_BT, IGNORE_INDEX)


def epochs_of(mask, n_epochs=10):
    """For each epoch: the share of what the model reads that is [MASK], and how many targets it is given."""
    dataset_NT, found = held_out.ids_NT[:64].clone(), []
    for epoch in range(n_epochs):
        shown = [mask(rows_BT, seeded(12, epoch, n)) for n, rows_BT in enumerate(dataset_NT.split(16))]
        hidden = torch.cat([ids_BT for ids_BT, _ in shown]) == vocabulary.mask
        found.append((hidden.float().mean().item(), sum(int((labels != IGNORE_INDEX).sum()) for _, labels in shown)))
    return found


# %% name="clinic-place-experiment"
history = epochs_of(patient_mask)
table(
    ["epoch", "share of the input that is [MASK]", "targets"],
    [[n + 1, f"{100 * history[n][0]:.0f}%", f"{history[n][1]:,}"] for n in (0, 2, 9)],
)

# %% [markdown] name="clinic-place-diagnosis"
# <details><summary>Diagnosis</summary>
#
# The function writes into the tensor that it was given, and that tensor *is* the dataset. What an epoch hides stays hidden;
# each epoch there is less to read and less to ask. The questions get harder, the loss may rise, and one blames the learning
# rate. Use functions that return a new tensor (<code>masked_fill</code>, not <code>masked_fill_</code>), and test that the
# caller's tensor is untouched.
# </details>

# %% name="clinic-place-cure" tags=["clinic"]


def cured_mask(input_ids_BT, generator):
    return patient_mask(input_ids_BT.clone(), generator)


# %% name="clinic-place-after" jupyter={"source_hidden": true}
Markdown(
    f"<details><summary>Patient and cure</summary>\n\nIn the tenth epoch {100 * history[-1][0]:.0f}% of the input is [MASK] "
    f"with the patient, {100 * epochs_of(cured_mask)[-1][0]:.0f}% after the cure.\n\n</details>"
)

# %% [markdown] name="claims"
# ## What is usually said
#
# **The source** is the text that this course grew out of; its curves were drawn, not measured. The verdicts are computed from
# the figures above.

# %% name="claims-table" jupyter={"source_hidden": true}
permuted_batch = objectives.permuted(rows_BT, vocabulary, generator=seeded(1))
n_masks = int((permuted_batch.input_ids_BT == vocabulary.mask).sum())
in_step = kept_in_step(patient_denoise)
rows = [
    [
        "Masked models hide the share of tokens that mask_prob says.",
        "mask_prob = 0.15",
        f"{chosen_in_100:.1f} in 100 chosen, {hidden_in_100:.1f} hidden",
        "holds" if abs(chosen_in_100 - hidden_in_100) < 1 else "that share is chosen, fewer are hidden",
    ],
    [
        "Causal training gets a signal from every token.",
        "not said",
        f"{shares['causal']:.0f} targets in 100 tokens; masked {shares['masked']:.0f}",
        "holds" if shares["causal"] > 95 else "does not hold here",
    ],
    [
        "The objective with the lowest loss is the best.",
        "not said",
        f"lowest loss: {lowest}; best probe: {best}",
        "did not hold here" if lowest != best else "happened to hold here; the loss could not tell",
    ],
    [
        "Denoising: mask stretches, predict the original.",
        "labels cut to the input's length",
        f"shown token and label agree in {100 * in_step:.0f}% of places",
        "labels in step" if in_step > 0.99 else "labels out of step",
    ],
    [
        "Permutation models need no mask token.",
        "not said",
        f"{n_masks} of {permuted_batch.input_ids_BT.numel():,} tokens read are [MASK]",
        "none is used" if n_masks == 0 else "does not hold here",
    ],
    [
        "Pre-training on unlabelled text helps a task.",
        "claimed",
        f"from {FEW} labels: the best probe gained {gain[best]:+.1f} points, and is {over_words[best, FEW]:+.1f} points ahead of a bag of words",
        ("helps over an untrained model" if gain[best].low > 0 else "not settled here")
        + f"; clearly ahead of a bag of words {', '.join(f'with {n:,} labels {len(beats[n])} of {len(names)}' for n in LABELS)}",
    ],
]
table(["usually said", "the source", "measured here", "verdict"], rows)

# %% [markdown] name="summary"
# ## What to take along
#
# - An objective is three tensors: what is read, what is asked, who may look at whom. The training loop is the same for all.
# - Masking is three fates decided by one draw, and special tokens are outside of it.
# - A loss is a grade in one exam. Compare grades of the same exam, or send all candidates to a new one.
# - A leak crashes nothing. Test the wiring, to the bit, before you train, with more than one layer.
# - Permutation keeps the text whole and needs a stream that knows where and not what.
#
# The loop that trained all these models stayed out of sight. What happens in it between a batch and a better model, and how
# much can go wrong there without an error message? That is the next chapter.
#
# ## Sources
#
# - Radford et al. 2018, *Improving language understanding by generative pre-training* (GPT)
# - Devlin et al. 2018, BERT, [arXiv:1810.04805](https://arxiv.org/abs/1810.04805)
# - Yang et al. 2019, XLNet, [arXiv:1906.08237](https://arxiv.org/abs/1906.08237)
# - Raffel et al. 2019, T5, [arXiv:1910.10683](https://arxiv.org/abs/1910.10683)
# - Lewis et al. 2019, BART, [arXiv:1910.13461](https://arxiv.org/abs/1910.13461)
# - Su et al. 2021, RoFormer (rotary positions), [arXiv:2104.09864](https://arxiv.org/abs/2104.09864)
# - Maas et al. 2011, *Learning word vectors for sentiment analysis* (the IMDB reviews); Pang and Lee 2005,
#   [arXiv:cs/0506075](https://arxiv.org/abs/cs/0506075) (the Rotten Tomatoes sentences)
#
# **Next:** [02 The pre-training loop](02_pretraining_loop.ipynb)

# %% name="sweep-controls" tags=["remove-cell"] jupyter={"source_hidden": true}
tried = [sweep(each) for each in (explorer, tasks)]  # every control to its ends: fails if one of them shows an error
assert all(not each.banner.value for each in (explorer, tasks, box))
Markdown(f"{sum(tried)} settings of the explorers tried, no error shown.")
