# ---
# jupyter:
#   jupytext: {text_representation: {extension: .py, format_name: percent}}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown] name="title"
# # 04 Practical fine-tuning
#
# **Could you defend your result?** Chapter 3 left you with a strategy and a score that looks good. Was there a test text in the
# training text? What does a bag of words score? Which texts does the model get wrong, and how sure is it then? This chapter takes one
# task from the raw file to an answer to all of these. Its second half then turns a model that continues text into one that does what
# it is told.
#
# You will
#
# - plant duplicates across a split, and see what they do to a score;
# - count how much of a batch is padding, and get rid of it;
# - choose a head by measuring, stop early, and go back to the best epoch;
# - see how many labels a pre-trained model needs to pay, and how far a bag of words follows it;
# - measure what fine-tuning makes a model forget;
# - read the most confident mistakes one by one, move a threshold, and let every model judge a review of yours, token by token;
# - tune a decoder on instructions, and measure whether it follows them: by rules, and by a judge that shares no text with it.
#
# **How to read it.** As [00 Start here](00_start_here.ipynb) explains. The chapter has two halves, sections 1 to 7 and 8 to
# 10, with room for a break between them.
#
# **If you build compilers:** this is where the language is written and shipped. The test suite decides what you may claim,
# and a test case that the grammar was written from proves nothing. The analogy breaks at the word *correct*: a parser
# accepts or does not, and this program is right in most cases and does not know in which.

# %% name="progress" jupyter={"source_hidden": true}
from course_lib.lab import progress

progress("04")

# %% [markdown] name="words"
# <details><summary><b>Words used below</b> (unfold when you meet one)</summary>
#
# - **Labels**: the answers that a model learns from, here 1 for a positive text and 0 for a negative one. **Split**: which texts are
#   trained on (*train*), looked at while training (*dev*), and looked at once, at the end (*test*). **Sample**: labelled texts, drawn
#   at random, that a run learns from.
# - **Head**: the small layer that turns a text's vector into a decision; its outputs are **logits**. **Pooling**: how the vectors of
#   all tokens become that one vector.
# - **Encoder**: sees the whole text at once. **Decoder**: writes from left to right.
# - **Epoch**: every training text once. **Early stopping**: to stop when the dev texts get no better. **Learning rate**, *rate* for
#   short: how far a step goes.
# - **Collator**: makes a batch of examples. **Padding**: what fills short texts up to the longest of a batch.
# - **Bag of words**: a classifier that knows which words and pairs of words a text has, and not in what order (TF-IDF and a logistic
#   regression). **From scratch**: the course's encoder with random weights.
# - **Calibrated**: of the answers given with 80% confidence, 80% are right. **ECE**, the expected calibration error: how far from
#   that, on average.
# - **Macro F1**: the mean over the classes of F1, the harmonic mean of two shares: of the answers of a class that are right (precision), and
#   of its texts that are found (recall). **Bootstrap**: an interval from the same texts, drawn again and again with replacement.
# - **Interval**: a 95% confidence interval; of 100 such intervals about 95 hold the true value. **Nat**: the unit of a loss with the
#   natural logarithm. **The source**: the text that this course grew out of.
# - **Names in the code** end in their axes: `labels_BT` has a row for each text of the batch (B) and a column for each position (T).
#
# Every term of the course: [the glossary](../docs/glossary.md).
# </details>

# %% name="setup" tags=["setup"] jupyter={"source_hidden": true}
import copy
import csv
import hashlib
import tempfile
import time
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from IPython.display import Markdown, display
from tqdm.auto import tqdm

from course_lib import checks, masks, plots
from course_lib.data import (
    PretrainingDataset,
    corpus_path,
    course_tokenizer,
    holds_slur,
    load_reviews,
    normalize,
    reviews_of,
    training_rows,
)
from course_lib.evaluation import (
    accuracy,
    bootstrap_interval,
    calibration_error,
    columns,
    confusion,
    fit_bag_of_words,
    labelled_sample,
    macro_f1,
    mean_interval,
    most_confident_mistakes,
    paired_comparison,
    proportion_interval,
    share_interval,
)
from course_lib.finetuning import (
    ClassificationCollator,
    Classifier,
    FineTuning,
    GenerationCollator,
    Instruction,
    Padding,
    PartlyFrozen,
    Seq2SeqCollator,
    Turn,
    as_batch,
    encode,
    encode_chat,
    epochs,
    fine_tune,
    grouped_batches,
    length_grouped,
    parse,
    predictions,
    prompt_of,
    render,
)
from course_lib.finetuning.tasks import TASKS, labelled_sentences, make_examples
from course_lib.generation import generate
from course_lib.model import Encoder, EncoderDecoder
from course_lib.peft import LoRA, apply, merge_and_unload, switch
from course_lib.pretrained import load_checkpoint, minilm
from course_lib.records import Record
from course_lib.runs import RECORDS_FOLDER, FineTune, finetune, load_tuned
from course_lib.runs.efficiency import METHODS, Efficiency, outcome
from course_lib.runs.following import MAX_LEN, Following, assess, follow, held_out_prompts, load_follower
from course_lib.runs.judging import load_judge
from course_lib.runs.reading import load_reader
from course_lib.runtime import pick_device, seeded
from course_lib.training import held_out_loss, new_model, train
from course_lib.widgets.binder import compare, guess, guess_number, sweep, table
from course_lib.widgets.generation import GenerationBench, generation_explorer
from course_lib.widgets.own_review import draw_judged, judge_with, judge_with_bag_of_words, review_explorer
from course_lib.widgets.threshold import threshold_explorer

device = pick_device()
minilm_base, minilm_tokenizer = minilm()
tokenizer = course_tokenizer()
SENTENCES = {split: reviews_of(split, "rotten_tomatoes") for split in ("train", "dev", "test")}
to_learn, to_try = (
    SENTENCES["train"][:-300],
    SENTENCES["train"][-300:],
)  # the last ones are for comparing; the test waits


def texts_of(reviews):
    return [review.text for review in reviews]


def labels_of(reviews):
    return np.array([review.label for review in reviews])


# %% [markdown] name="data-first"
# ## 1 Data first
#
# The corpus is film reviews from IMDB and single sentences from Rotten Tomatoes, each labelled after the verdict of the
# person who wrote it. Before anything is trained: does a text stand in it twice? The cell compares normalised texts, so that
# capitals and spaces make no difference.

# %% name="count-duplicates"
with corpus_path().open(encoding="utf-8", newline="") as file:
    raw = [row["text"] for row in csv.DictReader(file)]
n_of = Counter(review.source for review in load_reviews())
n_distinct = n_of.total()
n_as_written = len(set(raw))
Markdown(
    f"{len(raw):,} rows, {n_distinct:,} distinct texts ({n_of['imdb']:,} reviews and {n_of['rotten_tomatoes']:,} sentences): **{len(raw) - n_distinct} rows are copies** of another one "
    f"({len(raw) - n_as_written} of them to the letter). `load_reviews` keeps each text once, and decides its split by a hash of the "
    "normalised text: adding texts, removing some or shuffling them moves no other text to another side."
)

# %% [markdown] name="duplicates-question"
# That is few. In text collected from the web it can be many (arXiv:2107.06499). The next cell trains a bag of words on 600
# sentences and tests it on 300 others.
#
# **Predict.** Half of these 300 are put into its training text as well, in capitals. What does it score then?

# %% name="without-a-leak"
pool = labelled_sample(to_learn, 1200, seed=0)
test_part, train_part = pool[:300], pool[300:900]


def right_with_leak(share):
    """Which test sentences a bag of words gets right, the leaked first, with this share of them among its training
    sentences, in capitals."""
    tests = [test_part[n] for n in torch.randperm(len(test_part), generator=seeded(0)).tolist()]
    copies = tests[: round(share * len(tests))]
    learned = [*texts_of(train_part), *(text.upper() for text in texts_of(copies))]
    wanted = np.concatenate([labels_of(train_part), labels_of(copies)]).astype(int)
    return fit_bag_of_words(learned, wanted).predict(texts_of(tests)) == labels_of(tests)


leaked = {0.0: right_with_leak(0.0)}
Markdown(f"Without a leak it is right in {leaked[0.0].mean():.1%}.")

# %% name="predict-duplicates" jupyter={"source_hidden": true}
leak_guess = guess_number("Accuracy with half of the test sentences leaked", low=0, high=100, step=1, unit="%")
display(leak_guess)

# %% name="plant-duplicates" jupyter={"source_hidden": true}
leaked |= {share: right_with_leak(share) for share in (0.1, 0.25, 0.5)}
shares_right = {share: share_interval(right) for share, right in leaked.items()}
plots.show(
    plots.draw_bars(
        [f"{share:.0%} of the test leaked" for share in leaked],
        *columns(shares_right.values(), times=100),
        references={"chance": 50},
        xlabel="accuracy of a bag of words on 300 sentences, %, with 95% confidence intervals",
        number="{:.1f}",
    ),
    alt="Accuracy of the same classifier for a growing share of test sentences that stand in its training text too.",
)  # fmt: skip

# %% name="compare-duplicates" jupyter={"source_hidden": true}
compare(
    leak_guess,
    f"{leaked[0.5].mean():.1%}, and without the leak {leaked[0.0].mean():.1%}. Of the half that was leaked it gets {leaked[0.5][:150].mean():.0%} "
    f"right, of the other half {leaked[0.5][150:].mean():.0%} ({leaked[0.0][150:].mean():.0%} without a leak; a copy is one more label, too): the "
    "score is a mixture of what the classifier knows and what it has been told. "
    "Nothing in training looks suspicious, and the copies are not equal as strings: a split must compare what a reader would call the same text.",
    100 * leaked[0.5].mean(),
    near=4,
)

# %% [markdown] name="lengths"
# **Lengths.** A batch is a rectangle. Its texts are not of one length, so the short ones are filled up with padding, which is computed
# and thrown away. How long are the texts?

# %% name="measure-lengths" jupyter={"source_hidden": true}
LONGEST = 254  # tokens, and two special ones around them
mixed = labelled_sample(reviews_of("train"), 1000, seed=1)
encoded = tokenizer.encode_all(texts_of(mixed))
sizes = {
    source: [min(len(ids), LONGEST) for ids, review in zip(encoded, mixed, strict=True) if review.source == source]
    for source in ("imdb", "rotten_tomatoes")
}
plots.show(
    plots.draw_histogram(
        {"IMDB reviews": sizes["imdb"], "Rotten Tomatoes sentences": sizes["rotten_tomatoes"]},
        xlabel=f"length of a text in tokens, cut at {LONGEST}",
    ),
    alt="Lengths of texts in tokens: sentences are short, most reviews reach the cut.",
)

# %% [markdown] name="padding-question"
# Three ways to make batches of 16 from this mixture: pad every text to the longest that is allowed; pad to the longest *of the batch*
# (dynamic padding); and put texts of like length into one batch first, then pad to its longest (length grouping).

# %% name="count-padding"
collate = ClassificationCollator(tokenizer.vocabulary, Padding(LONGEST + 2))
to_most = ClassificationCollator(tokenizer.vocabulary, Padding(LONGEST + 2, fill_to=LONGEST + 2))
rows = [{"input_ids": ids, "label": review.label} for ids, review in zip(encoded, mixed, strict=True)]
in_any_order = [n.tolist() for n in torch.randperm(len(rows), generator=seeded(0)).split(16)]
by_length = list(length_grouped([len(ids) for ids in encoded], 16, generator=seeded(0)))
MODES = {
    "padded to the maximum": (to_most, in_any_order),
    "dynamic padding": (collate, in_any_order),
    "length grouping": (collate, by_length),
}
padded = {}
for name, (make, batches) in MODES.items():
    real_BT = [make([rows[n] for n in numbers])["attention_mask"] for numbers in batches]
    padded[name] = 1 - sum(int(m.sum()) for m in real_BT) / sum(m.numel() for m in real_BT)
plots.show(
    plots.draw_bars(
        list(padded),
        [100 * share for share in padded.values()],
        xlabel="share of all tokens that is padding, %",
        number="{:.1f}",
    ),
    alt="Share of padding for three ways of making batches.",
)

# %% [markdown] name="padding-timed"
# Padding takes time: the cell trains a small encoder for one epoch on some of these texts in each of the three ways. (Its weights are
# random and it has two narrow layers: padding is a share of the work, whatever is trained. One run of each: another program on your
# machine may disturb it.)

# %% name="time-padding"
few = mixed[:64]
small = load_checkpoint("encoder").config.with_(d_model=128, d_ff=512, n_layers=2, n_heads=2)
speeds, real_shares = {}, {}
HOW = {
    "padded to the maximum": {"pad_to_most": True},
    "dynamic padding": {},
    "length grouping": {"length_grouped": True},
}


def one_epoch(reviews, **options):
    """What one epoch on some reviews read, and its seconds."""
    how = FineTuning(epochs=1, head_first=False, max_tokens=LONGEST, **options)
    model, began = Classifier(new_model(Encoder, small)).to(device), time.perf_counter()
    (only,) = epochs(model, texts_of(reviews), labels_of(reviews), tokenizer, how)
    return only, time.perf_counter() - began


one_epoch(few[:32])  # the first steps of a process are slow: not measured
for name, options in tqdm(HOW.items()):
    only, seconds = one_epoch(few, **options)
    speeds[name], real_shares[name] = (only.tokens - only.padding) / seconds, 1 - only.padding / only.tokens
slowest = speeds["padded to the maximum"]
display(
    table(
        ["batches", "padding", "real tokens a second, as a multiple of the first row"],
        [[name, f"{1 - real_shares[name]:.0%}", f"{speed / slowest:.1f}"] for name, speed in speeds.items()],
    )
)
at_most = np.mean([size == LONGEST for part in sizes.values() for size in part])
Markdown(
    f"{at_most:.0%} of the texts are as long as is allowed. A batch of 16 drawn at random holds one of them with probability "
    f"{1 - (1 - at_most) ** 16:.0%}, and then padding to the longest of the batch is padding to the maximum. Only texts of like length together "
    f"make short batches (of {len(few)} texts, in {-(-len(few) // 16)} batches, not as short as of all, above). Where two rows with equal padding "
    "differ in speed, you see the noise of one run."
)

# %% [markdown] name="head"
# ## 2 A head, and when to stop
#
# A transformer gives a vector for every token, and a classifier needs one for the text. Three ways to pool are common: the
# first token (`[CLS]` in BERT), the last (the only one that has seen everything in a decoder), and the mean of all. On top
# comes a linear layer, or a dense layer with tanh and then a linear one, as in BERT and in the source. (The source writes
# 768 for a model's width. `Classifier` reads it from the model: MiniLM's is another.)
#
# **Predict.** MiniLM (chapter 3) is fine-tuned on 100 sentences and compared on 300 training sentences that are kept aside;
# no choice is made on the test. (To save time its word embeddings and the lower two thirds of its layers stay as they are, here and in all that
# is fine-tuned live from it: no gradient has to go down there, and what they make of a sentence is computed once, whatever is trained on
# top. The record of section 3 trains the whole of it.) Which pooling is best?

# %% name="predict-pooling" jupyter={"source_hidden": true}
pooling_guess = guess("The best of the three", ["mean", "[CLS]", "last token", "all within 3 points"])
display(pooling_guess)

# %% name="fine-tune-minilm"
hundred, learned = (labelled_sample(to_learn, count, seed=0) for count in (100, 300))
LIVE = FineTuning(rate=4e-4, epochs=2, dropout=0.0, head_first=False, length_grouped=True)
partly_frozen = PartlyFrozen(minilm_base, n_frozen=4)  # of its 6 layers


def with_fresh_head(base=partly_frozen, **head):
    """A classifier on a copy of MiniLM."""
    torch.manual_seed(0)  # a dense layer begins random
    return Classifier(copy.deepcopy(base), **head).to(device)


def on_minilm(learned, how=LIVE, base=partly_frozen, **head):
    """MiniLM with a fresh head, fine-tuned on labelled reviews."""
    classifier = with_fresh_head(base, **head)
    fine_tune(classifier, texts_of(learned), labels_of(learned), minilm_tokenizer, how)
    return classifier


def is_right(classifier, reviews):
    given = predictions(classifier, texts_of(reviews), minilm_tokenizer).argmax(1)
    return given == labels_of(reviews)


# %% name="compare-poolings"
HEADS = {
    "mean": {},
    "[CLS]": {"pooling": "cls"},
    "last token": {"pooling": "last"},
    "mean, dense and tanh": {"inner": "tanh"},
}
by_head = {name: is_right(on_minilm(hundred, **options), to_try) for name, options in tqdm(HEADS.items())}
shares_of_heads = {name: share_interval(right) for name, right in by_head.items()}
plots.show(
    plots.draw_bars(
        list(shares_of_heads),
        *columns(shares_of_heads.values(), times=100),
        references={"chance": 50},
        xlabel="accuracy on 300 sentences from 100 labels, %, with 95% confidence intervals",
        number="{:.1f}",
    ),
    alt="Accuracy of four heads on MiniLM, with intervals.",
)

# %% name="compare-pooling" jupyter={"source_hidden": true}
three = {name: 100 * shares_of_heads[name].value for name in ("mean", "[CLS]", "last token")}
best_head = max(three, key=three.get)
apart_by = max(three.values()) - min(three.values())
beside_mean = {name: paired_comparison(by_head["mean"], right) for name, right in by_head.items() if name != "mean"}
compare(
    pooling_guess,
    f"{', '.join(f'{name} {value:.1f}%' for name, value in three.items())}. The mean, which MiniLM's makers used when they trained it to compare "
    "sentences, less each of the others, in points: "
    + "; ".join(
        f"{name} {100 * d.value:+.1f} ({100 * d.low:+.1f} to {100 * d.high:+.1f})"
        for name, d in ((name, pair.difference) for name, pair in beside_mean.items())
    )
    + ". These intervals know of 300 sentences, and of one sample of 100 labels: before you believe a ranking of heads, repeat it on other samples.",
    "all within 3 points" if apart_by <= 3 else best_head,
)

# %% [markdown] name="curves"
# **When to stop.** With few labels a model soon knows its training texts by heart. The cell trains on 300 sentences and
# looks at sentences of the dev split after every epoch. It stops after two epochs that bring nothing (its *patience*), and at the end
# the classifier is what it was after its best epoch. (A step is one batch of 16 sentences, so its loss jumps with what they are.
# Saying one half to everything costs ln 2.)

# %% name="train-with-curves"
classifier = with_fresh_head()
how = replace(LIVE, epochs=4, patience=2)
held_out = (texts_of(SENTENCES["dev"]), labels_of(SENTENCES["dev"]))
seen = []
coming = epochs(classifier, texts_of(learned), labels_of(learned), minilm_tokenizer, how, held_out=held_out)
for epoch in tqdm(coming, total=how.epochs):
    seen.append(epoch)
    at_last = copy.deepcopy(classifier)  # behind the last epoch the classifier goes back to the best
best_epoch = min(seen, key=lambda epoch: epoch.held_out)
plots.show(
    plots.draw_curves(
        {
            "training, each step": (
                [e.number - 1 + (k + 1) / len(e.losses) for e in seen for k in range(len(e.losses))],
                [loss for e in seen for loss in e.losses],
            ),
            "dev sentences": ([e.number for e in seen], [e.held_out for e in seen]),
        },
        {"the best epoch": ([best_epoch.number], [best_epoch.held_out])},
        references={"ln 2": np.log(2)},
        xlabel="epoch",
        ylabel="loss, nats per text",
        kinds=None,
    ),
    alt="Training loss of every step, and loss on dev sentences after every epoch, with the best epoch marked.",
)

# %% name="read-curves" jupyter={"source_hidden": true}
last_epoch = seen[-1]
Markdown(
    f"Best on dev sentences: epoch {best_epoch.number} ({best_epoch.held_out:.3f} nats, {best_epoch.accuracy:.1%} right). "
    f"After epoch {last_epoch.number}, {'the last that was planned' if last_epoch.number == how.epochs else 'two of which brought nothing'}, it has "
    f"{last_epoch.loss:.3f} nats on its training texts and "
    f"{last_epoch.held_out:.3f} on dev sentences ({last_epoch.accuracy:.1%} right). "
    + (
        "The loss rises while the accuracy hardly changes: the model gets more sure, of its wrong answers too. That is why the loss chooses: it "
        "weighs what the model claims of every text, while accuracy on a few hundred texts moves by luck. "
        if last_epoch.held_out > best_epoch.held_out and abs(last_epoch.accuracy - best_epoch.accuracy) < 0.03
        else ""
    )
    + f"What was trained after the best epoch is thrown away: the classifier below is that of the best one. That choice was made on "
    f"{len(held_out[0])} dev sentences, so their figures flatter it a little. No choice has been made on the test sentences."
)

# %% [markdown] name="efficiency"
# ## 3 How many labels does it take?
#
# This question decides a project. The record below has, for 50 to 3,000 labels, a bag of words, the course's encoder from
# random weights ("scratch") and pre-trained on film reviews ("encoder"), and MiniLM, which has read far more, and nothing
# about films in particular, fine-tuned in full and by LoRA. "Read on" is MiniLM that has first filled in masked words of the
# training reviews, without their labels, as the end of this section explains. All read the same first 126 tokens of a text.
#
# **Predict.** A whole review has many words, a sentence few. On which of the two does a bag of words do better, beside MiniLM, as the
# labels become many?

# %% name="predict-efficiency" jupyter={"source_hidden": true}
crossing_guess = guess(
    "The bag of words comes closer to MiniLM on", ["whole reviews (IMDB)", "single sentences (Rotten Tomatoes)"]
)
display(crossing_guess)

# %% name="draw-efficiency" jupyter={"source_hidden": true}
record = Record(RECORDS_FOLDER / "efficiency.jsonl")
efficiency = Efficiency()
SOURCE_NAMES = {"imdb": "IMDB reviews", "rotten_tomatoes": "Rotten Tomatoes sentences"}


def curve(source, name):
    """{labels: accuracies over samples, in %} of a method, as far as they are recorded."""
    recorded = record.by_step("accuracy", name=f"{source}, {name}")
    return {n: [100 * v for v in samples.values()] for n, samples in recorded.items()}


def as_series(by_labels):
    spread = {n: mean_interval(values) for n, values in by_labels.items() if len(values) > 1}
    return plots.Series(list(spread), *columns(spread.values()))


SHOWN = ("bag of words", "scratch", "encoder", "MiniLM", "MiniLM, LoRA", "MiniLM, read on")
curves = {
    source: {name: curve(source, name) for name in METHODS if source in METHODS[name].sources}
    for source in SOURCE_NAMES
}
sittings = {(s["machine"].get("device", "cpu"), s["date"]) for s in record.provenance()}
for source, title in SOURCE_NAMES.items():
    shown = {name: as_series(by) for name, by in curves[source].items() if name in SHOWN and len(by) > 1}
    display(Markdown(f"**{title}**: mean accuracy over samples, with 95% intervals of the mean."))
    display(
        plots.show(
            plots.draw_curves(
                shown,
                xlabel="labels (log scale)",
                ylabel="accuracy, %",
                log_x=True,
                kinds=None,
            ),
            alt=f"Accuracy against the number of labels on {title}: {', '.join(shown)}.",
        )
    )
display(
    Markdown(
        "Recorded by `course record efficiency` on " + ", ".join(f"{d} ({when})" for d, when in sorted(sittings)) + "."
    )
)

# %% name="compare-efficiency" jupyter={"source_hidden": true}
ahead = {}
for source in SOURCE_NAMES:
    both = curves[source]["MiniLM"].keys() & curves[source]["bag of words"].keys()
    ahead[source] = {
        n: np.mean(curves[source]["MiniLM"][n]) - np.mean(curves[source]["bag of words"][n]) for n in sorted(both)
    }
most = max(ahead["imdb"].keys() & ahead["rotten_tomatoes"].keys())
closer = "imdb" if ahead["imdb"][most] < ahead["rotten_tomatoes"][most] else "rotten_tomatoes"
lead = "; ".join(
    f"{SOURCE_NAMES[source]}: " + ", ".join(f"{points:+.1f} with {n:,}" for n, points in by.items())
    for source, by in ahead.items()
)
from_scratch = {
    source: max(
        (n for n, v in curves[source]["scratch"].items() if np.mean(v) < np.mean(curves[source]["bag of words"][n])),
        default=0,
    )
    for source in SOURCE_NAMES
}
compare(
    crossing_guess,
    f"MiniLM fine-tuned less bag of words, in points: {lead}. A review of a hundred words repeats its verdict in many of them, so counting "
    "goes far; a sentence says it once, and often in words that were in no training sentence. "
    + (
        f"The model from random weights is behind the bag of words {'at every number recorded, ' if from_scratch['imdb'] == most else ''}"
        f"up to {from_scratch['imdb']:,} labelled reviews: the transformer as such is no advantage with few labels, what it has read is. "
        if from_scratch["imdb"]
        else ""
    )
    + "The course's small encoder, which has read these very reviews without their labels, less MiniLM, on reviews: "
    + ", ".join(
        f"{np.mean(curves['imdb']['encoder'][n]) - np.mean(curves['imdb']['MiniLM'][n]):+.1f} points with {n:,} labels"
        for n in (min(ahead["imdb"]), most)
    )
    + ".",
    "whole reviews (IMDB)" if closer == "imdb" else "single sentences (Rotten Tomatoes)",
)  # fmt: skip

# %% [markdown] name="longer-texts"
# **Do the curves cross?** Every method gets the same stretch of text, and it was cut at 126 tokens. Give both twice as much,
# and the bag of words gains too. The table says at how many of the recorded numbers of labels the model is ahead.

# %% name="read-longer" jupyter={"source_hidden": true}
PAIRS = {
    "126 tokens": ("MiniLM", "bag of words"),
    "256 tokens": ("MiniLM, 256", "bag of words, 256"),
    "126 tokens, the course's encoder": ("encoder", "bag of words"),
    "126 tokens, MiniLM, read on": ("MiniLM, read on", "bag of words"),
}
lines = []
for stretch, (model, words) in PAIRS.items():
    beside = {
        n: np.mean(curves["imdb"][model][n]) - np.mean(curves["imdb"][words][n])
        for n in efficiency.labels
        if n in curves["imdb"][model] and n in curves["imdb"][words]
    }
    least = min(beside, key=beside.get)
    won = sum(points > 0 for points in beside.values())
    lines.append([stretch, f"at {won} of {len(beside)}", f"{beside[least]:+.1f} with {least:,}"])
table(
    ["IMDB, first", "model ahead, of the numbers of labels recorded", "least lead over the bag of words, points"], lines
)

# %% [markdown] name="live-efficiency"
# **Live.** One point of the record once more, on your machine: 50 labelled sentences, the first sample.

# %% name="run-efficiency"
live = {}
for name in tqdm(("bag of words", "encoder")):
    live[name] = 100 * outcome(efficiency, "rotten_tomatoes", 50, 0, name)[0]
recorded = {name: 100 * record.by_step("accuracy", name=f"rotten_tomatoes, {name}")[50][0] for name in live}
table(
    ["method", "live, %", "recorded for this sample, %", "recorded, mean over samples, %"],
    [[name, f"{value:.1f}", f"{recorded[name]:.1f}", f"{np.mean(curves['rotten_tomatoes'][name][50]):.1f}"] for name, value in live.items()],
)  # fmt: skip

# %% [markdown] name="head-first-question"
# **The head first?** Chapter 3 fitted the head on the frozen model's features before anything else was trained, as is often
# advised (arXiv:2202.10054): a head that knows nothing sends the first gradients astray. MiniLM was trained to compare
# sentences by what they are about.
#
# **Predict.** With 100 labelled sentences, does it help to fit MiniLM's head first?

# %% name="predict-head-first" jupyter={"source_hidden": true}
head_guess = guess(
    "A head fitted first, against one that starts at zero with the rest", ["helps", "hurts", "no clear difference"]
)
display(head_guess)

# %% name="run-head-first"
HEAD_FIRST = replace(LIVE, head_first=True, head_strength=0.005)  # the strength is scikit-learn's C of that fit
first = is_right(on_minilm(hundred, HEAD_FIRST), to_try)
together = by_head["mean"]
pair = paired_comparison(first, together)
table(
    ["head", "accuracy on 300 sentences, %"],
    [["fitted first", f"{100 * first.mean():.1f}"], ["trained with the rest", f"{100 * together.mean():.1f}"]],
)

# %% name="compare-head-first" jupyter={"source_hidden": true}
difference = pair.difference
settled = not difference.holds(0.0)
compare(
    head_guess,
    f"Fitted first, less trained with the rest: {100 * difference.value:+.1f} points, 95% interval {100 * difference.low:+.1f} to "
    f"{100 * difference.high:+.1f} for this one sample. "
    + ("" if settled else "The interval holds zero: 300 sentences and one sample do not settle it. ")
    + "The advice rests on frozen features that already tell the classes apart. Where they do not, one reason why it could hurt is that the "
    "fitted head ties the model to what little they say. Advice has conditions, and this one is measured in one cell.",
    "no clear difference" if not settled else "helps" if difference.value > 0 else "hurts",
)

# %% [markdown] name="read-first-question"
# **Let it read first?** MiniLM has read nothing about films in particular. Reviews without labels are cheap: here it was
# given the training reviews, with words masked to be filled in, as in chapter 1, before it saw a label (arXiv:2004.10964).
# The result is shipped as a LoRA adapter (`course record reader` makes it again).
#
# **Predict.** The same 100 labels, the head fitted first: is MiniLM that has read reviews better than MiniLM as it was?

# %% name="predict-read-first" jupyter={"source_hidden": true}
read_guess = guess("MiniLM that has read reviews, against MiniLM as it was", ["better", "worse", "no clear difference"])
display(read_guess)

# %% name="run-read-first"
reader = PartlyFrozen(load_reader()[0], partly_frozen.n_frozen)
has_read = is_right(on_minilm(hundred, HEAD_FIRST, base=reader), to_try)
table(
    ["fine-tuned on 100 sentences, head first", "accuracy on 300 sentences"],
    [
        [name, f"{share_interval(right):.1%}"]
        for name, right in (("MiniLM", first), ("MiniLM that has read reviews", has_read))
    ],
)

# %% name="compare-read-first" jupyter={"source_hidden": true}
reading_gains = paired_comparison(has_read, first).difference
read_on, as_published = (curves["imdb"][name] for name in ("MiniLM, read on", "MiniLM"))
gains_on_reviews = "; ".join(
    f"{mean_interval([read_on[n][k] - as_published[n][k] for k in range(min(len(read_on[n]), len(as_published[n])))]):+.1f} with {n:,} labels"
    for n in sorted(read_on.keys() & as_published.keys())
)
compare(
    read_guess,
    f"Having read, less not having read: {100 * reading_gains.value:+.1f} points, 95% interval {100 * reading_gains.low:+.1f} to "
    f"{100 * reading_gains.high:+.1f} on the same sentences, for one sample of labels. "
    + (
        "These sentences do not show that it helps. What it read was mostly whole reviews; how near to the task such text must be is a "
        "question for a measurement. "
        if reading_gains.holds(0.0)
        else "In this sample it helps. "
        if reading_gains.value > 0
        else "In this sample it hurts: what it read was mostly whole reviews, and to fill in words is another task than to compare "
        "sentences, for which MiniLM was made. "
    )
    + "The idea is that of pre-training, on less text and nearer to the task. "
    + f"On whole reviews the record has, read on less as it was, in points, with 95% intervals over samples: {gains_on_reviews}.",
    "no clear difference" if reading_gains.holds(0.0) else "better" if reading_gains.value > 0 else "worse",
)

# %% [markdown] name="forgetting"
# ## 4 The learning rate, and what is forgotten
#
# Fine-tuning overwrites what pre-training wrote. The course's encoder can show it, since it still has its pre-training task:
# filling in masked words.
#
# **Predict.** 100 labelled sentences, three epochs, at a learning rate of 1e-3. What happens to the loss on masked words?

# %% name="predict-forgetting" jupyter={"source_hidden": true}
forget_guess = guess(
    "At a learning rate of 1e-3 the loss on masked words",
    ["stays the same", "rises by less than 1 nat", "rises by more than 1 nat"],
)
display(forget_guess)

# %% name="run-rates"
dev_rows = PretrainingDataset(
    training_rows(128, split="dev", documents=100),
    tokenizer.vocabulary,
    "masked",
    batch_size=16,
    options={"mask_prob": 0.3},
)
masked_batches = [dev_rows.batch(0)]
RATES = (1e-4, 1e-3, 3e-3)
ENCODER = FineTuning(epochs=3, head_strength=0.005, length_grouped=True)
forgotten, right_at, tuned = {}, {}, {}
with_head = load_checkpoint("encoder").to(device)
before = held_out_loss(with_head, masked_batches)
for rate in tqdm(RATES):
    tuned[rate] = Classifier(load_checkpoint("encoder")).to(device)
    fine_tune(tuned[rate], texts_of(hundred), labels_of(hundred), tokenizer, replace(ENCODER, rate=rate))
    forgotten[rate] = held_out_loss(tuned[rate].body, masked_batches)
    given = predictions(tuned[rate], texts_of(to_try), tokenizer).argmax(1)
    right_at[rate] = accuracy(labels_of(to_try), given)
plots.show(
    plots.draw_curves(
        {"after fine-tuning": (list(forgotten), list(forgotten.values()))},
        references={"before": before},
        xlabel="peak learning rate (log scale)",
        ylabel="loss, nats per target",
        log_x=True,
        kinds=None,
    ),
    alt="Loss on masked words after fine-tuning at three learning rates, and before.",
)

# %% name="compare-forgetting" jupyter={"source_hidden": true}
rise = {rate: value - before for rate, value in forgotten.items()}
best_rate, kept = max(right_at, key=right_at.get), min(rise, key=rise.get)
shares_at = lambda rate: proportion_interval(round(right_at[rate] * len(to_try)), len(to_try))
display(
    table(
        ["learning rate", "accuracy on 300 sentences", "loss on masked words, nats per target", "rise"],
        [[f"{r:.0e}", f"{shares_at(r):.1%}", f"{forgotten[r]:.2f}", f"{rise[r]:+.2f}"] for r in RATES],
    )
)
compare(
    forget_guess,
    f"It rises by {rise[1e-3]:.2f} nats, from {before:.2f} to {forgotten[1e-3]:.2f}. At the smallest rate it rises by {rise[min(RATES)]:.2f}, at "
    f"the largest by {rise[max(RATES)]:.2f}. The best accuracy of these rates is that of {best_rate:.0e}: {shares_at(best_rate):.1%}. "
    + (
        f"It is also the rate that forgets least, {rise[best_rate]:.2f} nats: here both fall together. "
        if best_rate == kept
        else f"The lowest loss on masked words is that of {kept:.0e}: the task prefers another rate, which costs {rise[best_rate]:.2f} nats of what the "
        "model knew, and its accuracy does not show that price. "
    )
    + f"At 1e-3 the model still does its task in {shares_at(1e-3):.1%}, with {rise[1e-3]:.2f} nats less of what it knew: measure both.",
    "stays the same"
    if rise[1e-3] < 0.1
    else "rises by less than 1 nat"
    if rise[1e-3] < 1
    else "rises by more than 1 nat",
)

# %% [markdown] name="forget-nothing"
# A strategy that keeps the base forgets nothing for good: switch LoRA off, and the pre-training loss is what it was, to the bit.

# %% name="switch-off"
lora_model = Classifier(load_checkpoint("encoder")).to(device)
apply(lora_model, LoRA(rank=8, alpha=16), modules_to_save=["head"])
fine_tune(lora_model, texts_of(hundred), labels_of(hundred), tokenizer, replace(ENCODER, rate=2e-3))
while_on = held_out_loss(lora_model.body, masked_batches)
switch(lora_model, None)
switched_off = held_out_loss(lora_model.body, masked_batches)
switch(lora_model, "default")
lora_right = int((predictions(lora_model, texts_of(to_try), tokenizer).argmax(1) == labels_of(to_try)).sum())
Markdown(
    f"Before {before:.6f} nats, with the update {while_on:.6f}, switched off {switched_off:.6f}: "
    f"{'the same to the bit' if switched_off == before else 'not the same'}. With the update it is right on "
    f"{proportion_interval(lora_right, len(to_try)):.1%} of the 300 sentences."
)

# %% [markdown] name="beyond-accuracy"
# ## 5 Beyond accuracy
#
# Now the test, on which nothing about this classifier was chosen: the one of section 2, on all test sentences. Beside it a bag of words that has learned from the same 300.

# %% name="test-once"
tests = SENTENCES["test"]
probabilities = predictions(classifier, texts_of(tests), minilm_tokenizer)
wanted, given = labels_of(tests), probabilities.argmax(1)
words_model = fit_bag_of_words(texts_of(learned), labels_of(learned))
words_probabilities = words_model.predict_proba(texts_of(tests))
words_given = words_probabilities.argmax(1)
generator = np.random.default_rng(0)
f1_of = lambda labels, answers: macro_f1(labels, answers, 2)
scores = {}
for name, answers, shares in (("MiniLM", given, probabilities), ("bag of words", words_given, words_probabilities)):
    scores[name] = [
        share_interval(answers == wanted),
        bootstrap_interval(f1_of, wanted, answers, generator=generator),
        calibration_error(shares, wanted),
    ]
display(
    table(
        ["", "accuracy", "macro F1 (bootstrap)", "ECE"],
        [[name, f"{a:.3f}", f"{f:.3f}", f"{e:.3f}"] for name, (a, f, e) in scores.items()],
    )
)
counts = confusion(wanted, given, 2)
table(["MiniLM", "says negative", "says positive"], [["is negative", *counts[0]], ["is positive", *counts[1]]])

# %% [markdown] name="paired"
# **Is the difference real?** Whether two intervals overlap does not answer that: both models judged *the same* sentences. What counts is
# on which of them they disagree.

# %% name="compare-paired"
pair = paired_comparison(given == wanted, words_given == wanted)
Markdown(
    f"MiniLM alone is right on {pair.only_a} sentences, the bag of words alone on {pair.only_b}. The difference is "
    f"{100 * pair.difference.value:.1f} points, 95% interval {100 * pair.difference.low:.1f} to {100 * pair.difference.high:.1f}. If neither was "
    f"better, a split at least as uneven would come up with probability {pair.p_value:.1g} (McNemar's exact test)."
)

# %% [markdown] name="calibration-question"
# **How sure is it?** Of the answers that a model gives with 90% confidence, nine in ten should be right. Section 2 went
# back to the best epoch.
#
# **Predict.** Suppose it had not: MiniLM as it was after its *last* epoch. Is it right more often than it claims, or less
# often?

# %% name="predict-calibration" jupyter={"source_hidden": true}
sure_guess = guess(
    "Over all its answers, MiniLM after its last epoch is right",
    ["more often than it claims", "less often than it claims", "as often as it claims"],
)
display(sure_guess)


# %% name="draw-reliability" jupyter={"source_hidden": true}
def by_confidence(shares, parts=5):
    """Fifths of the answers, from the least sure to the surest: mean confidence, and the share that is right."""
    sureness, right = shares.max(1), shares.argmax(1) == wanted
    fifths = np.array_split(sureness.argsort(kind="stable"), parts)
    found = [share_interval(right[fifth]) for fifth in fifths]
    return plots.Series(
        [float(sureness[fifth].mean()) for fifth in fifths],
        *columns(found),
    )


on_tests = {
    "MiniLM, best epoch": probabilities,
    "MiniLM, last epoch": predictions(at_last, texts_of(tests), minilm_tokenizer),
    "bag of words": words_probabilities,
}
plots.show(
    plots.draw_curves(
        {name: by_confidence(shares) for name, shares in on_tests.items()}
        | {"perfectly calibrated": ([0.5, 1.0], [0.5, 1.0])},
        xlabel="confidence of the answer, mean over a fifth of the test sentences",
        ylabel="share of right answers",
        kinds=None,
    ),
    alt="Share of right answers against confidence, for MiniLM and a bag of words, beside the line of perfect calibration.",
)


# %% name="compare-calibration" jupyter={"source_hidden": true}
def claimed_and_right(shares):
    """Mean confidence, the share of right answers, and what that says."""
    claims, right = float(shares.max(1).mean()), shares.argmax(1) == wanted
    interval = share_interval(right)
    if interval.holds(claims):
        return claims, interval, "as often as it claims"
    return claims, interval, "more often than it claims" if interval.value > claims else "less often than it claims"


found = {name: claimed_and_right(shares) for name, shares in on_tests.items()}
compare(
    sure_guess,
    "; ".join(f"{name}: claims {claims:.1%}, is right in {right:.1%}" for name, (claims, right, _) in found.items())
    + ". Training goes on pushing the probabilities of texts that the model knows by heart, and those of new texts go with them. The "
    "confidence of a fine-tuned model is an output of training, not a frequency that anybody has counted.",
    found["MiniLM, last epoch"][2],
)

# %% [markdown] name="temperature-scaling"
# **Can it be repaired?** One number can repair a model that is too sure everywhere: divide its logits by a temperature, fitted on dev
# sentences (arXiv:1706.04599). No answer changes, only how sure it is. Where nothing is wrong, it has nothing to repair.

# %% name="scale-by-temperature"
on_dev = {
    "MiniLM, best epoch": predictions(classifier, held_out[0], minilm_tokenizer),
    "MiniLM, last epoch": predictions(at_last, held_out[0], minilm_tokenizer),
    "bag of words": words_model.predict_proba(held_out[0]),
}
TEMPERATURES = np.geomspace(0.05, 10, 200)


def softened(shares, temperature):
    """Probabilities [N, C] after the logits were divided by a temperature."""
    powered = np.maximum(shares, 1e-12).astype(np.float64) ** (1 / temperature)
    return powered / powered.sum(1, keepdims=True)


def fitted_temperature(shares, labels):
    """The one with the lowest loss on these labels."""
    rows = np.arange(len(labels))
    return min(TEMPERATURES, key=lambda t: -np.log(softened(shares, t)[rows, labels]).mean())


rows = []
for name, shares in on_tests.items():
    temperature = fitted_temperature(on_dev[name], held_out[1])
    after = softened(shares, temperature)
    rows.append(
        [
            name,
            f"{temperature:.2f}",
            f"{calibration_error(shares, wanted):.3f}",
            f"{calibration_error(after, wanted):.3f}",
            f"{(after.argmax(1) != shares.argmax(1)).sum()}",
        ]
    )
display(table(["", "temperature", "ECE before", "ECE after", "answers that change"], rows))
helped = [name for name, _, ece_before, ece_after, _ in rows if float(ece_after) < float(ece_before)]
others = [name for name, *_ in rows if name not in helped]
Markdown(
    (f"It helped: {', '.join(helped)}. " if helped else "")
    + (f"It did not: {', '.join(others)}. " if others else "")
    + f"A temperature that was fitted on {len(held_out[0])} sentences is itself uncertain, and a model that is right as often as it says shows an ECE "
    "above 0 on a few hundred texts too."
)

# %% [markdown] name="mistakes"
# **Read the mistakes.** The five that it was most sure of. For each: is the model wrong, is the label, or can nobody tell?

# %% name="show-mistakes"
table(
    ["says", "confidence", "label", "the sentence"],
    [["positive" if given[n] else "negative", f"{probabilities[n].max():.1%}", "positive" if wanted[n] else "negative", tests[n].text]
     for n in most_confident_mistakes(probabilities, wanted, 5)],
)  # fmt: skip

# %% [markdown] name="threshold"
# **Move.** To answer *positive* from a probability of one half on is to say that both errors cost the same. Suppose you
# print only good reviews on a poster, and a bad one by mistake costs five times as much as a good one left out. Set that
# cost, and move the threshold until the cost is lowest. What happens to the good reviews that are left out?

# %% name="explore-threshold"
threshold_box = threshold_explorer(probabilities[:, 1], wanted)
display(threshold_box)

# %% name="where-the-threshold-lies" jupyter={"source_hidden": true}
steps = np.linspace(0, 1, 201)
called = probabilities[:, 1] >= steps[:, None]
costs = (5 * (called & (wanted == 0)) + (~called & (wanted == 1))).mean(1)
best_step = steps[costs.argmin()]
left_out = lambda threshold: (probabilities[wanted == 1, 1] < threshold).mean()
Markdown(
    f"<details><summary>Moved it? Compare</summary>\n\nAt 5 to 1 the lowest cost on these sentences is {costs.min():.3f} per sentence, at a "
    f"threshold of {best_step:.3f}; one half costs {costs[100]:.3f}. There {left_out(best_step):.0%} of the good reviews are left out, at one half "
    f"{left_out(0.5):.0%}. If the probabilities were frequencies, the threshold would be 5/6: a sentence belongs on the poster where five times "
    "the probability that it is negative is less than the probability that it is positive. How far the two lie apart is calibration once more, "
    f"and the luck of a minimum on {len(tests)} sentences. To print nothing costs {(wanted == 1).mean():.3f}. "
    "(This was chosen on the test sentences, to play with; a product would choose on dev sentences.)\n\n</details>"
)

# %% [markdown] name="own-review"
# ## 6 Your own text
#
# Write a review of your own, and let every model judge it. The colours say which tokens moved its score: integrated gradients
# (arXiv:1703.01365) divide the difference between this text's score and that of a text of padding among its tokens, so that the parts
# add up to it. *Starts at* is the score of the padding, in log-odds (0 is a probability of one half): where it lies far from 0, the
# colours explain how this text moved away from there, and not the verdict alone.
#
# **Move.** Change the review until every reader understands it as positive and every model as negative. Which kind of
# sentence does it, and which tokens are to blame?

# %% name="explore-own-review"
encoder_classifier = Classifier(load_checkpoint("encoder")).to(device)
fine_tune(
    encoder_classifier,
    texts_of(learned),
    labels_of(learned),
    tokenizer,
    replace(ENCODER, rate=3e-4, epochs=2),
)
whole = Classifier(classifier.body.body)  # all layers compute: the reasons lie in the words, below the frozen ones
whole.head = classifier.head
MODELS = {  # all three have learned from the same 300 sentences
    "bag of words": judge_with_bag_of_words(words_model, tokenizer),
    "encoder": judge_with(encoder_classifier, tokenizer),
    "MiniLM": judge_with(whole.eval(), minilm_tokenizer),
}
OWN = "I expected a dull film, and it was anything but that: not one boring minute."
own_box = review_explorer(MODELS, OWN)
display(own_box)

# %% name="own-review-without-a-kernel" jupyter={"source_hidden": true}
plots.show(
    draw_judged(own_box.value),
    alt="One review as three models judge it, each token coloured by how it moved the score.",
)

# %% name="own-review-answer" jupyter={"source_hidden": true}
WITHOUT_REASONS = {  # the same three, asked only how likely texts are to be positive
    "bag of words": lambda texts: words_model.predict_proba(texts)[:, 1],
    "encoder": lambda texts: predictions(encoder_classifier, texts, tokenizer)[:, 1],
    "MiniLM": lambda texts: predictions(classifier, texts, minilm_tokenizer)[:, 1],
}
TRICKY = {
    "Not one boring minute.": 1,
    "It is anything but a masterpiece.": 0,
    "I have seen worse films, but not many.": 0,
    "Nobody who hates good films should see it.": 1,
}
answers = {name: positive(list(TRICKY)) for name, positive in WITHOUT_REASONS.items()}
tricked = table(
    ["sentence", "meant", *(f"{name}: positive" for name in MODELS)],
    [
        [text, "positive" if label else "negative", *(f"{answers[name][n]:.0%}" for name in MODELS)]
        for n, (text, label) in enumerate(TRICKY.items())
    ],
)
understood = {
    name: sum((p >= 0.5) == label for p, label in zip(given_p, TRICKY.values(), strict=True))
    for name, given_p in answers.items()
}
surest = max(
    (abs(p - label), name, text, p)
    for name, given_p in answers.items()
    for p, (text, label) in zip(given_p, TRICKY.items(), strict=True)
)
Markdown(
    f"<details><summary>Moved it? Compare</summary>\n\nFour sentences that turn on a negation or a comparison:\n\n{tricked.data}\n\n"
    "Understood as meant: "
    + ", ".join(f"{name} {n} of {len(TRICKY)}" for name, n in understood.items())
    + f". The surest wrong answer: {surest[1]} gives “{surest[2]}” {surest[3]:.0%} positive. A word counts for what it says in most reviews, "
    "unless a model has learned what turns it round.\n\n</details>"
)

# %% [markdown] name="six-sentences"
# **Other subjects.** The source tries its models on sentences about food and shopping. These six are of that kind, and no
# model here was trained on such.

# %% name="judge-six" jupyter={"source_hidden": true}
SIX = {
    "The soup was hot and the waiter kind.": 1,
    "My parcel came a week late and the box was torn.": 0,
    "These shoes fit so well that I bought a second pair.": 1,
    "The bread was stale and they still charged me for it.": 0,
    "Great, another charger that dies after two days.": 0,
    "I could not find anything to complain about.": 1,
}
of_six = {name: positive(list(SIX)) for name, positive in WITHOUT_REASONS.items()}
rows = [
    [
        text,
        "good" if label else "bad",
        *(f"{p[n]:.0%}{' ✓' if (p[n] >= 0.5) == bool(label) else ' ✗'}" for p in of_six.values()),
    ]
    for n, (text, label) in enumerate(SIX.items())
]
display(table(["sentence", "meant", *(f"{name}: positive" for name in MODELS)], rows))
hits = {name: sum(row[2 + k].endswith("✓") for row in rows) for k, name in enumerate(MODELS)}
Markdown(
    "Right: "
    + ", ".join(f"{name} {n} of 6" for name, n in hits.items())
    + ". Read how sure the wrong ones are: nothing in a probability says that a text is about something else. And six sentences prove "
    f"little: with six of six, the 95% interval still begins at {proportion_interval(6, 6).low:.0%}."
)

# %% [markdown] name="own-csv"
# **Your own labelled texts**, a `.csv` or `.jsonl` with the columns `text` and `label`, need one command. It checks the
# file, splits it by a hash of each text, fine-tunes, and writes a report with intervals, curves and the most confident
# mistakes:
#
# ```
# course finetune --data my_reviews.csv --base minilm --strategy lora --out work/my_model
# course predict work/my_model "A film that nobody needs."
# ```
#
# The cell does the same from Python, with the course's encoder and a file made for the purpose.

# %% name="finetune-own-csv"
folder = Path(tempfile.mkdtemp())
with (folder / "mine.csv").open("w", encoding="utf-8", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["text", "label"])
    writer.writerows([r.text, "positive" if r.label else "negative"] for r in labelled_sample(to_learn, 400, seed=3))
own_run = FineTune(data=str(folder / "mine.csv"), base="encoder", epochs=2)
own_report = finetune(own_run, folder / "model", progress=lambda line: None)
(answer,) = load_tuned(folder / "model").predict(["A film that nobody needs."])
Markdown(
    f"**From the report.** {own_report.text.split('## ')[1]}\n\n(The class that is most frequent in training can be the rarer one in a test. Where the "
    "interval of the difference holds 0, these texts do not show which of the two is better.) And one sentence, *A film that nobody needs*: "
    f"{answer.label}, {answer.probability:.0%}, which is {'right' if answer.label == 'negative' else 'wrong'}, and says little about the next one."
)

# %% [markdown] name="sequence-to-sequence"
# ## 7 The same loop, text to text
#
# A class can be written as a word. T5 (arXiv:1910.10683) does all tasks so: one text goes in, another comes out, and one loss serves
# them all. An encoder-decoder that starts from random weights would have to learn to read first; here both sides start from the
# course's encoder (arXiv:1907.12461), and only the attention from one side to the other is new. The collator makes `labels` and what
# the decoder reads, which is one token behind; the loop is `train` of chapter 2.


# %% name="build-encoder-decoder"
def text_to_text(encoder):
    """An encoder-decoder whose two sides begin as an encoder; attention to the source begins random."""
    torch.manual_seed(0)
    model = EncoderDecoder(encoder.config)
    weights = encoder.state_dict()
    model.encoder.load_state_dict({n: w for n, w in weights.items() if not n.startswith("cls.")})
    model.decoder_embeddings.load_state_dict(
        {n.removeprefix("embeddings."): w for n, w in weights.items() if n.startswith("embeddings.")}
    )
    model.predictions.load_state_dict(
        {n.removeprefix("cls.predictions."): w for n, w in weights.items() if n.startswith("cls.")}
    )
    for number, block in enumerate(model.decoder):
        block.load_state_dict(encoder.encoder["layer"][number].state_dict(), strict=False)
    return model.to(device)


collate_pairs = Seq2SeqCollator(tokenizer.vocabulary)
ANSWERS = {0: tokenizer.encode("negative"), 1: tokenizer.encode("positive")}
pairs = [
    {"source": ids, "target": ANSWERS[review.label]}
    for ids, review in zip(tokenizer.encode_all(texts_of(learned)), learned, strict=True)
]
example = collate_pairs(pairs[:2])
table(
    ["field", "shape", "of the first pair"],
    [
        ["input_ids", tuple(example["input_ids"].shape), tokenizer.decode(example["input_ids"][0])],
        [
            "decoder_input_ids",
            tuple(example["decoder_input_ids"].shape),
            tokenizer.decode(example["decoder_input_ids"][0]),
        ],
        ["labels", tuple(example["labels"].shape), tokenizer.decode(i for i in example["labels"][0] if i >= 0)],
    ],
)

# %% name="train-text-to-text"
PASSES, SIZE = 2, 16
pair_model = text_to_text(load_checkpoint("encoder"))


def pair_batches():
    for number in range(PASSES):
        yield from grouped_batches(pairs, collate_pairs, SIZE, generator=seeded(number))


n_steps = PASSES * -(-len(pairs) // SIZE)
curve_of_pairs = [row.loss for row in tqdm(train(pair_model, pair_batches(), steps=n_steps, rate=3e-4), total=n_steps)]
pair_model.eval()


@torch.no_grad()
def written_class(texts):
    """[N]: the class whose word is the likelier first token of the target."""
    answers = []
    for start in range(0, len(texts), 64):
        sources = [{"source": ids, "target": []} for ids in tokenizer.encode_all(texts[start : start + 64])]
        batch = as_batch(collate_pairs(sources)).to(device)
        logits_BV = pair_model(batch.input_ids_BT, batch.decoder_input_ids_BS, batch.may_attend_BQK).logits[:, 0]
        answers.append((logits_BV[:, ANSWERS[1][0]] > logits_BV[:, ANSWERS[0][0]]).long().cpu())
    return torch.cat(answers).numpy()


as_text = written_class(texts_of(to_try)) == labels_of(to_try)
as_class = predictions(encoder_classifier, texts_of(to_try), tokenizer).argmax(1) == labels_of(to_try)
display(
    plots.show(
        plots.draw_curves(
            {"training": (range(1, n_steps + 1), curve_of_pairs)},
            xlabel="step",
            ylabel="loss, nats per target",
            kinds=None,
        ),
        alt="Training loss of the encoder-decoder, step by step.",
    )
)
word_or_class = paired_comparison(as_text, as_class)
unsettled = ", which does not settle it" if word_or_class.difference.holds(0.0) else ""
Markdown(
    f"On the same 300 sentences: an answer in a word (encoder-decoder) is right in {as_text.mean():.1%}, one in a class (a head on the encoder, from "
    f"section 6) in {as_class.mean():.1%}. The difference is {100 * word_or_class.difference.value:+.1f} points, 95% interval "
    f"{100 * word_or_class.difference.low:+.1f} to {100 * word_or_class.difference.high:+.1f}{unsettled}. "
    f"(Two passes over the {len(learned)} labelled sentences of section 2 here; the head was fitted first, and had two epochs.)"
)

# %% [markdown] name="text-to-text-cost"
# The word takes more than the class: a second stack of layers, and a way from one side to the other that has to be learned
# from the same few labels. Where it pays is with many tasks, since a word needs no head of its own: the rest of this chapter has
# six of them in one model, without an encoder.

# %% [markdown] name="instructions"
# ## 8 Instructions: what is read, what is learned
#
# The course's decoder continues reviews. It does not answer: ask it for a positive review, and it goes on as reviews go on.
# Instruction tuning shows it pairs of a request and an answer, in a fixed form, the *template*. The same template is filled
# in when the model is used.

# %% name="show-template"
follower_examples = [
    Instruction("Translate to French.", "I liked the film.", "J'ai aimé le film."),
    Instruction("Summarise the text.", "The film is long, slow and beautiful to look at.", "Slow, but beautiful."),
    Instruction("Write a function that computes n factorial.", "", "def f(n): return 1 if n < 2 else n * f(n - 1)"),
]
assert all(parse(render(one)) == one for one in follower_examples)
Markdown("\n\n".join(f"```\n{render(one)}\n```" for one in follower_examples))

# %% [markdown] name="template-remark"
# These three are the kind of request that is often shown. They are here for their form, which `parse` reads back without
# loss. **A small model that has read film reviews can do none of them**, and no fine-tuning on three examples changes that:
# it knows no French and has seen no code. What it can learn is to do with *reviews* what it is told.
#
# **What carries loss?** The model reads the whole row, and is trained on a part of it.


# %% name="draw-response-mask"
def tokens_and_roles(encoded):
    """An encoded example's tokens, and what each is for."""
    special = (tokenizer.vocabulary.bos, tokenizer.vocabulary.eos)
    pairs = zip(encoded.input_ids, encoded.completion_mask, strict=True)
    roles = ["target" if is_learned else "special" if i in special else "context" for i, is_learned in pairs]
    return [tokenizer.token(i).replace("\n", "⏎") for i in encoded.input_ids], roles


shown = encode(Instruction("Classify the review.", "a tender, funny film", "positive"), tokenizer)
plots.show(
    plots.draw_token_rows([plots.TokenRow("row", *tokens_and_roles(shown))]),
    alt="The tokens of an instruction: only those of the answer and the end of the text are to be predicted.",
)  # fmt: skip

# %% [markdown] name="chat-remark"
# **Several turns.** A conversation is the same template, repeated: every answer of the assistant carries loss, with the end
# of text behind it, and all that others said is read only. Chat models ship such a form of their own, a *chat template*, and
# understand no other: to fine-tune one, use it to the letter.

# %% name="draw-chat-mask"
chat = encode_chat(
    [
        Turn("user", "Classify the review.\na tender, funny film"),
        Turn("assistant", "positive"),
        Turn("user", "And this?\ndull"),
        Turn("assistant", "negative"),
    ],
    tokenizer,
)
plots.show(
    plots.draw_token_rows([plots.TokenRow("row", *tokens_and_roles(chat))]),
    alt="The tokens of a conversation of four turns: both answers are to be predicted, with the end of text behind each.",
)

# %% [markdown] name="loss-on-question"
# The prompt could be learned too: it is text.
#
# **Predict.** Two decoders are tuned for the same number of steps on the same examples, one with loss on the answer alone,
# the other on everything. Which of them predicts *answers* better afterwards?

# %% name="predict-loss-on" jupyter={"source_hidden": true}
loss_guess = guess("Better at answers is the one trained on", ["the answer alone", "everything", "no difference"])
display(loss_guess)

# %% name="train-both-losses"
SHORT = Following(
    examples={"positive": 40, "negative": 40, "classify": 40, "begin": 40},
    batch_size=16,
    epochs=1,
    clear=0.0,  # sentences of any sentiment that their reviews have; above 0 a bag of words chooses the clear ones
)
STEPS = 10
answer_rows = [
    encode(one, tokenizer, max_len=MAX_LEN)
    for name, task in TASKS.items()
    if name in SHORT.examples
    for one in make_examples(task, 12, split="dev", clear=0.0)
]
collate_answers = GenerationCollator(tokenizer.vocabulary)
dev_answers = [as_batch(collate_answers([e.as_example() for e in answer_rows[n::4]])) for n in range(4)]
short_runs, on_answers, followers = {}, {}, {}
on_answers["before tuning"] = held_out_loss(load_checkpoint("decoder").to(device), dev_answers)
for learn in ("response", "all"):
    followers[learn] = load_checkpoint("decoder").to(device)
    steps = follow(followers[learn], replace(SHORT, learn=learn), steps=STEPS)
    short_runs[learn] = [row.loss for row in tqdm(steps, total=STEPS, desc=f"loss on {learn}")]
    on_answers[f"loss on {learn}"] = held_out_loss(followers[learn], dev_answers)
table(
    ["decoder", "loss on answers to dev prompts, nats per target"],
    [[name, f"{loss:.3f}"] for name, loss in on_answers.items()],
)

# %% name="compare-loss-on" jupyter={"source_hidden": true}
gap = on_answers["loss on all"] - on_answers["loss on response"]
prompts_share = np.mean([1 - np.mean(e.completion_mask) for e in answer_rows])
compare(
    loss_guess,
    f"On answers, everything less answer alone: {gap:+.3f} nats per target after {STEPS} steps each. On average {prompts_share:.0%} of a row is prompt: "
    "with loss on everything most of each step goes into predicting requests, which nobody will ask the model to write. How much it matters "
    "depends on that share: where prompts are short and answers long, it hardly does (arXiv:2401.13586 finds cases where the prompt's loss even helps).",
    "no difference" if abs(gap) < 0.02 else "the answer alone" if gap > 0 else "everything",
)

# %% [markdown] name="following"
# ## 9 Does it do what it is told?
#
# Six tasks, made of real reviews, have answers that can be checked: write a positive review, write a negative one, classify,
# begin with given words, go on in one sentence, repeat. Each is asked for in many wordings, and every fifth wording is kept
# for the test. A seventh is in no training example at all: *write a positive (or a negative) review that begins with these
# words*, two requests at once.
#
# The shipped adapter was tuned in two stages. In the first it learned from real reviews. They are a poor teacher of *write a
# positive review*: many of their sentences say little, and the model copies what it has read often. So in the second stage it wrote
# many reviews itself, a bag of words kept those that clearly are what was asked for, those with a run of eight
# copied words were thrown away, and it learned from the rest (rejection sampling, arXiv:2308.01825). Methods that learn from
# people's preferences go on from here (arXiv:2203.02155, arXiv:2305.18290); this course stops before them.
#
# Two kinds of judge: **rules** (does it begin with these words? is it one sentence? is the answer one of the two words?), and for the
# sentiment **a classifier**, MiniLM with an adapter, tuned on reviews that were kept for it from the start: no model of this course
# has read them. It errs too, and its error is a part of every figure below.

# %% name="judge-the-judge" jupyter={"source_hidden": true}
judge = load_judge()
tests = SENTENCES["test"][:400]
judged_right = judge.is_right(texts_of(tests), labels_of(tests))
cut_out, cut_labels = (part[-200:] for part in labelled_sentences("test"))
cut_right = judge.is_right(cut_out, cut_labels)
table(
    ["what the judge reads", "texts", "judged as the label says"],
    [
        [
            "Rotten Tomatoes test sentences",
            len(tests),
            f"{share_interval(judged_right):.3f}",
        ],
        [
            "first and last sentences of reviews",
            len(cut_out),
            f"{share_interval(cut_right):.3f}",
        ],
    ],
)

# %% [markdown] name="following-question"
# The record below holds 100 prompts of each task, in wordings that no model has been tuned on, about test reviews. No sentence that is
# asked about there stands in a training review. Reviews and continuations are drawn at random; where the prompt settles the answer, or
# how it begins, the model gives its likeliest tokens.
#
# **Predict.** Before tuning, the decoder is asked for a positive or a negative review, half each. In what share of cases does it write
# what it was asked for?

# %% name="predict-following" jupyter={"source_hidden": true}
before_guess = guess_number("As asked before tuning", low=0, high=100, step=1, unit="%")
display(before_guess)

# %% name="draw-following" jupyter={"source_hidden": true}
follow_record = Record(RECORDS_FOLDER / "following.jsonl")
asked_for = {
    "positive": "as asked",
    "negative": "as asked",
    "classify": "as asked",
    "positive, begun": "as asked",
    "negative, begun": "as asked",
}
STAGES = {"before": "before tuning", "first stage": "after the first stage", "after": "after both"}
TASK_NAMES = {
    "positive": "positive review: judged positive",
    "negative": "negative review: judged negative",
    "classify": "classify: right",
    "begin": "begins with the words",
    "continue": "one sentence",
    "repeat": "repeated exactly",
    "positive, begun": "held out, positive and begun: judged positive",
    "negative, begun": "held out, negative and begun: judged negative",
}


def share_of(when, task):
    metric = asked_for.get(task, "obeyed")
    ((count, share),) = follow_record.values(metric, name=f"{when}, {task}")
    i = proportion_interval(round(count * share), count)
    return 100 * i.value, 100 * i.low, 100 * i.high


plots.show(
    plots.draw_dots(
        {
            title: {shown_as: share_of(when, task) for when, shown_as in STAGES.items()}
            for task, title in TASK_NAMES.items()
        },
        xlabel="share of prompts answered as asked, %, with 95% confidence intervals",
        number="{:.0f}",
    ),
    alt="For each task the share of prompts answered as asked, before tuning and after each stage, with intervals.",
)

# %% name="compare-following" jupyter={"source_hidden": true}
by_request = {task: share_of("before", task)[0] for task in ("positive", "negative")}
asked_before = np.mean(list(by_request.values()))
asked_after = {task: share_of("after", task) for task in ("positive", "negative")}
facts = {
    (when, metric): follow_record.values(metric, name=f"{when}, reviews")[0][1]
    for when in STAGES
    for metric in ("distinct", "median words", "copied", "copied by people")
}
display(
    table(
        [
            "200 reviews written on demand",
            "distinct",
            "words, median",
            "runs of eight words that stand in the text of tuning",
        ],
        [
            [
                shown_as,
                f"{facts[when, 'distinct']:.1%}",
                f"{facts[when, 'median words']:.0f}",
                f"{facts[when, 'copied']:.1%}",
            ]
            for when, shown_as in STAGES.items()
        ]
        + [["sentences that people wrote, and no model has read", "", "", f"{facts['after', 'copied by people']:.1%}"]],
    )
)
compare(
    before_guess,
    f"{asked_before:.0f}%, the mean of {by_request['positive']:.0f}% where praise was asked for and {by_request['negative']:.0f}% where a complaint was: it "
    "writes much the same whatever is asked, and one of the two is met by that. After tuning "
    f"{asked_after['positive'][0]:.0f}% of the reviews that were to be positive are judged so, and {asked_after['negative'][0]:.0f}% of the others. "
    + (
        "The judge agrees with the model more often than with people: what a small model writes on demand is plain praise or plain complaint, "
        "and people's sentences often are neither. "
        if min(low for _, low, _ in asked_after.values()) > 100 * share_interval(judged_right).value
        else ""
    )
    + f"The second stage was for writing; classification went from {share_of('first stage', 'classify')[0]:.0f} to "
    f"{share_of('after', 'classify')[0]:.0f}% in it. "
    + f"Of its runs of eight words {facts['after', 'copied']:.1%} stand in the text of tuning, of people's {facts['after', 'copied by people']:.1%}: "
    + (
        "more than people have in common, so a part of what it writes is learned by heart."
        if facts["after", "copied"] > 2 * facts["after", "copied by people"]
        else "it copies little more than people have in common."
    ),
    asked_before,
    near=8,
)

# %% [markdown] name="held-out-task"
# **Two requests at once.** The task that no model has been tuned on has a catch: words from a positive review lead to a positive one,
# request or not. So the same words were given with the opposite request too. If the request counts, the sentiment follows it.


# %% name="read-held-out-task" jupyter={"source_hidden": true}
def on_held_out(when, metric):
    """The mean over the positive and the negative task."""
    names = (f"{when}, {task}, begun" for task in ("positive", "negative"))
    return np.mean([follow_record.values(metric, name=name)[0][1] for name in names])


METRICS = {
    "begins as asked": "obeyed",
    "sentiment as asked": "as asked",
    "both at once": "both",
    "sentiment as asked, words from the other side": "as asked, words exchanged",
}
display(
    table(
        ["200 prompts of the held-out task", *METRICS],
        [
            [shown_as, *(f"{on_held_out(when, metric):.0%}" for metric in METRICS.values())]
            for when, shown_as in STAGES.items()
        ],
    )
)
against = {}
for task in ("positive", "negative"):
    ((count, share),) = follow_record.values("as asked, words exchanged", name=f"after, {task}, begun")
    against[task] = proportion_interval(round(count * share), count)
counts_for = [task for task, heard in against.items() if heard.low > 0.5]
Markdown(
    f"The words that it was to begin with came from the other side in the last column. Asked for praise behind words of a complaint, it obeys in "
    f"{against['positive']:.0%}; asked for a complaint behind words of praise, in {against['negative']:.0%}. "
    + (
        "The request counts for more than the words, both ways."
        if len(counts_for) == 2
        else f"The request counts for more than the words where it is {counts_for[0]}; the other way round they weigh as much."
        if counts_for
        else "That is not more than chance: the words decide, and the request hardly counts."
    )
)

# %% [markdown] name="live-following"
# **Live.** The same on your machine, with few prompts, so look at the intervals: the decoder, the short run of section 8,
# and the shipped adapter (`course record following` makes it again). Then a few of the answers, to read.

# %% name="run-following"
DECODERS = {
    "before tuning": load_checkpoint("decoder").to(device),
    f"{STEPS} steps": merge_and_unload(copy.deepcopy(followers["response"])),  # merged, LoRA costs nothing
    "shipped adapter": merge_and_unload(load_follower()),
}
PROMPTS = 10
live_follow = {
    name: {
        task: assess(model, TASKS[task], held_out_prompts(TASKS[task], PROMPTS), judge=judge)
        for task in ("positive", "negative", "classify", "begin")
    }
    for name, model in tqdm(DECODERS.items())
}
table(
    ["decoder", "positive, as asked", "negative, as asked", "classified rightly", "begins as asked"],
    [
        [
            name,
            *(f"{done[task].share_as_asked():.0%}" for task in ("positive", "negative", "classify")),
            f"{done['begin'].share_obeyed():.0%}",
        ]
        for name, done in live_follow.items()
    ],
)

# %% name="read-answers" jupyter={"source_hidden": true}
table(
    ["asked", "about", "written by the tuned decoder"],
    [
        [one.instruction, one.input[:60], text]
        for task in ("positive", "negative", "classify", "begin")
        for one, text in list(
            zip(live_follow["shipped adapter"][task].asked, live_follow["shipped adapter"][task].written, strict=True)
        )[:3]
        if not holds_slur(text)
    ],
)

# %% [markdown] name="read-answers-remark"
# Read them as a reader. Is the tone right? How long does the grammar hold? Is there a film behind the sentences? A judge of sentiment
# sees none of that, and a high share above says nothing about it: **what is measured is what was asked for, and no more.**

# %% [markdown] name="generation"
# ## 10 From scores to words
#
# At each step the model gives every token of its vocabulary a probability, and one is drawn. Temperature sharpens or flattens the
# distribution before that; top-k keeps the k likeliest tokens, top-p the fewest that together have probability p. *Entropy* says how
# open the draw is: x bits are as open as 2ˣ equally likely tokens.
#
# **Move.** Lower the temperature until *another draw* always writes the same review; then raise it until the decoder no
# longer keeps to the request. What happens to the entropy, and to the number of tokens that may still come? Can top-p bring
# the request back?

# %% name="explore-generation"
follower = DECODERS["shipped adapter"]
GENERATION_PROMPTS = {
    "write a positive review": prompt_of(Instruction("Write a positive review.")),
    "write a negative review": prompt_of(Instruction("Write a negative review.")),
    "begin with these words": prompt_of(Instruction("Write a review that begins with these words.", "the first half")),
    "no request, a review begun": "this film is",
}
generation_box = generation_explorer(follower, tokenizer, GENERATION_PROMPTS)
display(generation_box)

# %% name="generation-answer" jupyter={"source_hidden": true}
generation_bench = GenerationBench(follower, tokenizer, {"positive": GENERATION_PROMPTS["write a positive review"]})
rows = []
for temperature, top_p in ((0.0, 1.0), (0.7, 1.0), (1.0, 1.0), (2.0, 1.0), (2.0, 0.5)):
    draws = [generation_bench.compute("positive", 0, temperature, top_p=top_p, seed=seed) for seed in range(2)]
    same, written = draws[0].continuation == draws[1].continuation, "".join(draws[0].continuation)
    rows.append(
        [
            f"{temperature:g}",
            f"{top_p:g}",
            f"{draws[0].entropy:.1f}",
            f"{draws[0].n_possible:,}",
            "the same" if same else "different",
            "left out" if holds_slur(written) else f"{written.strip()[:60]} …",
        ]
    )
settings_tried = table(
    ["temperature", "top-p", "entropy, bits", "first tokens that may come", "two draws are", "one of them begins"], rows
)
Markdown(
    f"<details><summary>Moved it? Compare</summary>\n\nThe first token of a positive review:\n\n{settings_tried.data}\n\n"
    "A high temperature gives the long tail of unlikely tokens a real share, and a single one of them can lead the text away. Top-p "
    "takes a part of that tail off again.\n\n</details>"
)

# %% [markdown] name="exercises"
# ## Exercises
#
# Four parts of this chapter to write. The checks work as in chapter 1: they say what is wrong, and you can go on either way.

# %% [markdown] name="exercise-collate" tags=["exercise"]
# ### Exercise 1: a collator for classification
#
# `examples` is a list of dicts, each with `"input_ids"` (a list of whole numbers) and `"label"` (one whole number). Return a dict of int64 tensors:
# `"input_ids"` [B, T], filled up at the end with `pad_id` to the longest of *this* batch; `"attention_mask"` [B, T], 1 for real tokens and 0
# for padding; `"labels"` [B].
#
# <details><summary>Hint 1</summary>

# The mask is known from the lengths. Can you be sure that <code>pad_id</code> never occurs in a text?</details>
# <details><summary>Hint 2</summary>

# <code>[pad_id] * (longest - len(ids))</code> is what a row lacks. The lists belong to the caller.</details>


# %% name="exercise-collate-code" tags=["exercise"]
def my_collate(examples, pad_id):
    ### BEGIN SOLUTION
    longest = max(len(example["input_ids"]) for example in examples)
    gaps = [longest - len(example["input_ids"]) for example in examples]
    return {
        "input_ids": torch.tensor([[*e["input_ids"], *[pad_id] * gap] for e, gap in zip(examples, gaps, strict=True)]),
        "attention_mask": torch.tensor([[1] * (longest - gap) + [0] * gap for gap in gaps]),
        "labels": torch.tensor([example["label"] for example in examples]),
    }
    ### END SOLUTION


# %% name="exercise-collate-check" tags=["check"]
collate_reviews = checks.collate_reviews(my_collate)

# %% [markdown] name="exercise-labels" tags=["exercise"]
# ### Exercise 2: the response mask
#
# `input_ids_BT` holds a prompt, its response and `[EOS]`, then padding. `prompt_length_B` says how many tokens of each row are prompt,
# `attention_mask_BT` which tokens are real. Return the labels, [B, T]: the token itself where it belongs to the response (its `[EOS]` does),
# -100 elsewhere. The model moves labels by itself: a label stands where its token stands.
#
# <details><summary>Hint 1</summary>

# <code>torch.arange(T)</code> gives every position its number, to be compared with <code>prompt_length_B[:, None]</code>.</details>
# <details><summary>Hint 2</summary>

# <code>masked_fill</code> returns a new tensor; <code>labels[...] = -100</code> on the tensor that you were given does not.</details>


# %% name="exercise-labels-code" tags=["exercise"]
def my_labels(input_ids_BT, prompt_length_B, attention_mask_BT):
    ### BEGIN SOLUTION
    is_response_BT = torch.arange(input_ids_BT.shape[1]) >= prompt_length_B[:, None]
    return input_ids_BT.masked_fill(~(is_response_BT & attention_mask_BT.bool()), -100)
    ### END SOLUTION


# %% name="exercise-labels-check" tags=["check"]
response_labels = checks.response_labels(my_labels)

# %% [markdown] name="exercise-f1" tags=["exercise"]
# ### Exercise 3: macro F1
#
# For each class, precision is the share of the answers of this class that are right, recall the share of its texts that are
# found, and F1 their harmonic mean. Macro F1 is the mean of F1 over *all* `n_classes` classes; one that never occurs and is
# never given counts as 0. `labels` and `given` are arrays of whole numbers.
#
# <details><summary>Hint 1</summary>

# F1 of a class is 2 TP / (2 TP + FP + FN): one division in place of three.</details>
# <details><summary>Hint 2</summary>

# When is that denominator zero?</details>


# %% name="exercise-f1-code" tags=["exercise"]
def my_macro_f1(labels, given, n_classes):
    ### BEGIN SOLUTION
    scores = []
    for k in range(n_classes):
        hits = np.sum((labels == k) & (given == k))
        total = np.sum(labels == k) + np.sum(given == k)
        scores.append(2 * hits / total if total else 0.0)
    return float(np.mean(scores))
    ### END SOLUTION


# %% name="exercise-f1-check" tags=["check"]
own_macro_f1 = checks.macro_f1(my_macro_f1)

# %% [markdown] name="exercise-split" tags=["exercise"]
# ### Exercise 4: a split that does not leak
#
# Return a list with one bool for each text: True where it belongs to the test. About `test_share` of the distinct texts are
# to be test. Texts that a reader would call the same (capitals, spaces, Unicode forms) go to one side, and where a text goes
# depends on nothing but itself: not on its place, not on the other texts, not on the run of Python. (The texts of
# `reviews_of("train")` are on one side of the bare hash already, since that is how the corpus was split. To split them once
# more, hash them together with a word of your own.)
#
# <details><summary>Hint 1</summary>

# <code>normalize</code> from <code>course_lib.data</code> is yours to use. So is <code>hashlib</code>.</details>
# <details><summary>Hint 2</summary>

# A hash read as a number, divided by the largest that it can be, lies between 0 and 1 for every text, and evenly.</details>


# %% name="exercise-split-code" tags=["exercise"]
def my_split(texts, test_share):
    ### BEGIN SOLUTION
    shares = [int(hashlib.sha256(f"mine {normalize(text)}".encode()).hexdigest(), 16) / 2**256 for text in texts]
    return [share < test_share for share in shares]
    ### END SOLUTION


# %% name="exercise-split-check" tags=["check"]
leak_free_split = checks.leak_free_split(my_split)

# %% [markdown] name="yours-at-work"
# **In use.** What the checks gave back, on this chapter's own texts.

# %% name="use-your-own" jupyter={"source_hidden": true}
sides = leak_free_split([review.text for review in load_reviews()], 0.2)
batch = collate_reviews(
    [
        {"input_ids": i, "label": r.label}
        for i, r in zip(tokenizer.encode_all(texts_of(learned[:16])), learned, strict=False)
    ],
    tokenizer.vocabulary.pad,
)
rows_of_two = Padding().pad([shown.input_ids, shown.input_ids[:3]], tokenizer.vocabulary.pad)
labels_of_two = response_labels(
    rows_of_two,
    torch.tensor([len(shown.input_ids) - sum(shown.completion_mask), 3]),
    (rows_of_two != tokenizer.vocabulary.pad).long(),
)
table(
    ["your function", "on", "gives"],
    [
        ["split", f"{len(sides):,} texts, a fifth to be test", f"{np.mean(sides):.1%}"],
        [
            "collator",
            "16 sentences",
            f"{tuple(batch['input_ids'].shape)}, {1 - batch['attention_mask'].float().mean():.0%} padding",
        ],
        ["response mask", "the row of section 8", tokenizer.decode(i for i in labels_of_two[0].tolist() if i >= 0)],
        ["macro F1", "MiniLM on the test sentences of section 5", f"{own_macro_f1(wanted, given, 2):.3f}"],
    ],
)

# %% [markdown] name="clinic"
# ## Bug clinic
#
# Eight more patients: code that looks right and runs, each with a classic mistake. As in chapter 1, run the experiment
# first, decide from its numbers what must be wrong, then unfold the diagnosis. The models are the course's own, on real
# reviews.

# %% name="clinic-models" tags=["clinic"] jupyter={"source_hidden": true}
decoder = load_checkpoint("decoder")
vocabulary = tokenizer.vocabulary
clinic_reviews = labelled_sample(SENTENCES["train"], 400, seed=5)
clinic_examples = make_examples(TASKS["begin"], 96)
clinic_dev_examples = make_examples(TASKS["begin"], 32, split="dev")

# %% [markdown] name="clinic-split-story"
# ### Patient 1: a split
#
# “The file was scraped from two pages, so shuffle the rows well before the last fifth becomes the test.”

# %% name="clinic-split" tags=["clinic"]


def patient_split(texts):
    order = torch.randperm(len(texts), generator=seeded(0)).tolist()
    cut = len(texts) * 4 // 5
    return [texts[n] for n in order[:cut]], [texts[n] for n in order[cut:]]


def tests_known(split):
    """The share of test texts that a reader would recognise from the training texts, in a file of two pages."""
    texts = texts_of(clinic_reviews)
    train_texts, test_texts = split(texts + [text.title() for text in texts[: len(texts) // 2]])
    known = {normalize(text) for text in train_texts}
    return sum(normalize(text) in known for text in test_texts) / len(test_texts)


# %% name="clinic-split-experiment"
Markdown(f"{tests_known(patient_split):.0%} of the test texts are known from training.")

# %% [markdown] name="clinic-split-diagnosis"
# <details><summary>Diagnosis</summary>
#
# Shuffling rows does not help a text that has two rows: one of them goes left, the other right. The score will be a mixture
# of knowledge and memory (section 1). Let the normalised text decide. (The cure hashes it together with a word of its own:
# the corpus's split has read the bare hash already, and all texts here are from one side of it.)
# </details>

# %% name="clinic-split-cure" tags=["clinic"]


def cured_split(texts):
    shares = [int(hashlib.sha256(f"clinic {normalize(text)}".encode()).hexdigest(), 16) / 2**256 for text in texts]
    sides = list(zip(texts, shares, strict=True))
    return [text for text, share in sides if share >= 0.2], [text for text, share in sides if share < 0.2]


# %% [markdown] name="clinic-padding-story"
# ### Patient 2: labels of a batch
#
# “For a causal model the labels are the input ids.”

# %% name="clinic-padding" tags=["clinic"]


def patient_batch(examples):
    collated = GenerationCollator(vocabulary, Padding(fill_to=96))(examples)
    return collated | {"labels": collated["input_ids"].clone()}


@cache
def losses_of_tuning(make_batch, steps=8):
    """The loss that is reported at the end of some steps, and that of answers to other prompts, in nats per token."""
    model = copy.deepcopy(decoder)
    rows = [encode(one, tokenizer, max_len=96).as_example() for one in clinic_examples]
    batches = (as_batch(make_batch(rows[8 * n : 8 * n + 8])) for n in range(steps))
    reported = [row.loss for row in train(model, batches, steps=steps, rate=1e-3)][-1]
    others = [encode(one, tokenizer, max_len=96).as_example() for one in clinic_dev_examples]
    answers_alone = as_batch(GenerationCollator(vocabulary)(others))
    return reported, held_out_loss(model.eval(), [answers_alone])


# %% name="clinic-padding-experiment"
reported_loss, answer_loss = losses_of_tuning(patient_batch)
Markdown(f"The run reports {reported_loss:.2f} nats per token at its end. Its answers cost {answer_loss:.2f}.")

# %% [markdown] name="clinic-padding-diagnosis"
# <details><summary>Diagnosis</summary>
#
# Most of the targets are padding, which is easy to predict, and prompt. The reported loss is an average over tokens that nobody needs,
# and falls nicely. Padding must carry -100 in the labels, whatever its id is, and here the prompt too.
# </details>

# %% name="clinic-padding-cure" tags=["clinic"]


def cured_batch(examples):
    return GenerationCollator(vocabulary, Padding(fill_to=96))(examples)


# %% [markdown] name="clinic-shift-story"
# ### Patient 3: the next token
#
# “A causal model predicts the next token, so move the labels by one before they go in.”

# %% name="clinic-shift" tags=["clinic"]


def patient_labels(input_ids_BT):
    moved_BT = input_ids_BT.roll(-1, dims=1)
    moved_BT[:, -1] = -100
    return moved_BT


def loss_on_a_review(make_labels):
    """What the shipped decoder pays for a token of a review, in nats, with labels that stand where `as_batch` (and any model of
    `transformers`) expects them to."""
    ids_BT = torch.tensor([[vocabulary.bos, *tokenizer.encode(reviews_of("dev", "imdb")[1].text)[:120]]])
    collated = {"input_ids": ids_BT, "attention_mask": torch.ones_like(ids_BT), "labels": make_labels(ids_BT)}
    return held_out_loss(decoder, [as_batch(collated)])


# %% name="clinic-shift-experiment"
Markdown(
    f"On a review the decoder pays {loss_on_a_review(patient_labels):.2f} nats per token; on all dev reviews together it paid about "
    f"{Record(RECORDS_FOLDER / 'pretraining_decoder.jsonl').values('held_out')[-1][1]:.2f} when it was trained."
)

# %% [markdown] name="clinic-shift-diagnosis"
# <details><summary>Diagnosis</summary>
#
# Moved here, and moved again inside: each position is asked for the token after the next. Tuned like this, a model learns to
# leave out every second token. Who moves the labels is a convention, and it must be done once: in the libraries of Hugging
# Face by the model.
# </details>

# %% name="clinic-shift-cure" tags=["clinic"]


def cured_labels(input_ids_BT):
    return input_ids_BT.clone()


# %% [markdown] name="clinic-truncation-story"
# ### Patient 4: too long
#
# “Rows longer than the model are cut at the end, as every tokenizer does.”

# %% name="clinic-truncation" tags=["clinic"]


def patient_encode(example, max_len=96):
    whole = encode(example, tokenizer, max_len=10_000)
    return whole.completion_mask[:max_len]


def without_an_answer(encode_row):
    """The share of examples of classification of which no token is left to be learned."""
    return np.mean([not any(encode_row(one)) for one in make_examples(TASKS["classify"], 200, split="dev")])


# %% name="clinic-truncation-experiment"
Markdown(f"{without_an_answer(patient_encode):.0%} of the examples have nothing to learn from.")

# %% [markdown] name="clinic-truncation-diagnosis"
# <details><summary>Diagnosis</summary>
#
# The answer stands at the end, so it is what the cut takes away: silently, and from the long reviews only. The model is tuned on short
# reviews, and nothing says so. Only the review may give way: <code>encode</code> cuts the input, and refuses what does not fit then.
# </details>

# %% name="clinic-truncation-cure" tags=["clinic"]


def cured_encode(example, max_len=96):
    return encode(example, tokenizer, max_len=max_len).completion_mask


# %% [markdown] name="clinic-side-story"
# ### Patient 5: a batch of prompts
#
# “Pad the prompts to one length, and read the next token off the last position.”

# %% name="clinic-side" tags=["clinic"]


def patient_next_tokens(prompts):
    padding = Padding()
    ids_BT = padding.pad(prompts, vocabulary.pad)
    is_real_BT = padding.pad([[1] * len(prompt) for prompt in prompts], 0).bool()
    with torch.no_grad():
        return (
            decoder(ids_BT, masks.causal(ids_BT.shape[1]) & masks.padding(is_real_BT)).logits[:, -1].argmax(-1).tolist()
        )


def same_as_alone(next_tokens):
    """The share of prompts whose likeliest next token in a batch is the one that it is when the prompt comes alone."""
    prompts = [
        [vocabulary.bos, *tokenizer.encode(text)[: 4 + n]] for n, text in enumerate(texts_of(clinic_reviews[:16]))
    ]
    alone = [next_tokens([prompt])[0] for prompt in prompts]
    return np.mean([a == b for a, b in zip(next_tokens(prompts), alone, strict=True)])


# %% name="clinic-side-experiment"
Markdown(f"In a batch, {same_as_alone(patient_next_tokens):.0%} of the prompts get the token that they get alone.")

# %% [markdown] name="clinic-side-diagnosis"
# <details><summary>Diagnosis</summary>
#
# The last position of a short prompt is padding, and the model is asked what follows *that*. To train and to classify,
# padding may stand on the right; to generate it must stand on the left, unseen and without a place in the count of
# positions: <code>generate</code> does that.
# </details>

# %% name="clinic-side-cure" tags=["clinic"]


def cured_next_tokens(prompts):
    return [
        row[0]
        for row in generate(
            decoder, prompts, vocabulary, max_new_tokens=1, temperature=0, stop_ids=(), allow_special=True
        )
    ]


# %% [markdown] name="clinic-epoch-story"
# ### Patient 6: the best one
#
# “Thirty runs, each with its own sample. Report the one that does best on the test.”

# %% name="clinic-epoch" tags=["clinic"]
pool_of_runs = labelled_sample(SENTENCES["train"], 1800, seed=7)
runs_given = np.stack([
    fit_bag_of_words(texts_of(part), labels_of(part)).predict(texts_of(SENTENCES["test"]))
    for part in (pool_of_runs[60 * n : 60 * n + 60] for n in range(30))
    if len(set(labels_of(part))) == 2
])  # fmt: skip
runs_right = runs_given == labels_of(SENTENCES["test"])


def patient_report(on_dev, on_test):
    best = on_test.mean(1).argmax()
    return on_test[best].mean(), best


def promised_and_kept(report, small=50):
    """What is reported on 50 test sentences less what the same run scores on all the others, in points, averaged over many such
    tests."""
    order, gaps = np.random.default_rng(0), []
    for _ in range(200):
        chosen = order.permutation(runs_right.shape[1])
        promised, run = report(runs_right[:, chosen[:small]], runs_right[:, chosen[small : 2 * small]])
        gaps.append(promised - runs_right[run, chosen[2 * small :]].mean())
    return 100 * np.mean(gaps)


# %% name="clinic-epoch-experiment"
Markdown(
    f"What is reported lies {promised_and_kept(patient_report):+.1f} points from what the same run scores on all other test sentences."
)

# %% [markdown] name="clinic-epoch-diagnosis"
# <details><summary>Diagnosis</summary>
#
# The best of thirty on fifty sentences is mostly the luckiest. It is the same with the best epoch, the best rate, the best
# prompt: to choose on the test is to report the luck. Choose on dev sentences, and look at the test once.
# </details>

# %% name="clinic-epoch-cure" tags=["clinic"]


def cured_report(on_dev, on_test):
    best = on_dev.mean(1).argmax()
    return on_test[best].mean(), best


# %% [markdown] name="clinic-unbalanced-story"
# ### Patient 7: a report
#
# “Nineteen of twenty reviews in our shop are positive. The model is right in 95%.”

# %% name="clinic-unbalanced" tags=["clinic"]


def patient_score(wanted, answers):
    return np.mean(wanted == answers)


def two_models(score):
    """The score of a bag of words, and of a model that praises everything, on an unbalanced test."""
    both = [[r for r in SENTENCES["test"] if r.label == label] for label in (1, 0)]
    unbalanced = both[0][:285] + both[1][:15]
    answers = fit_bag_of_words(texts_of(clinic_reviews), labels_of(clinic_reviews)).predict(texts_of(unbalanced))
    return score(labels_of(unbalanced), answers), score(labels_of(unbalanced), np.ones(300, dtype=int))


# %% name="clinic-unbalanced-experiment"
Markdown("A bag of words scores {:.1%}, and a model that praises everything {:.1%}.".format(*two_models(patient_score)))

# %% [markdown] name="clinic-unbalanced-diagnosis"
# <details><summary>Diagnosis</summary>
#
# Accuracy asks how often, not whether anything was learned: a model that never finds a complaint wins. Ask of each class what
# share of its texts is found, and average these: praising everything then scores one half. (Macro F1 depends on precision
# too, and with this few complaints it may still prefer the model that finds none: try `two_models(lambda wanted, answers:
# macro_f1(wanted, answers, 2))`.) The confusion table shows the empty column.
# </details>

# %% name="clinic-unbalanced-cure" tags=["clinic"]


def cured_score(wanted, answers):
    return np.mean([np.mean(answers[wanted == label] == label) for label in (0, 1)])


# %% [markdown] name="clinic-collapse-story"
# ### Patient 8: a learning rate
#
# “LoRA trains few parameters, so it tolerates a high learning rate.”

# %% name="clinic-collapse" tags=["clinic"]
PATIENT_RATE, CURED_RATE = 3e-2, 2e-3


@cache
def share_of_praise(rate, n_seeds=2):
    """The share of dev sentences that is called positive after fine-tuning at this rate, and the accuracy, on several samples."""
    shares = []
    for seed in range(n_seeds):
        part = labelled_sample(SENTENCES["train"], 32, seed=seed)
        model = Classifier(load_checkpoint("encoder"))
        apply(model, LoRA(rank=8, alpha=16), modules_to_save=["head"], seed=seed)
        fine_tune(
            model,
            texts_of(part),
            labels_of(part),
            tokenizer,
            FineTuning(rate=rate, epochs=6, head_first=False, seed=seed, length_grouped=True),
        )
        answers = predictions(model, texts_of(SENTENCES["dev"]), tokenizer).argmax(1)
        shares.append((float(answers.mean()), float((answers == labels_of(SENTENCES["dev"])).mean())))
    return shares


# %% name="clinic-collapse-experiment"
display(
    table(
        ["sample", "called positive", "right"],
        [[n + 1, f"{share:.0%}", f"{right:.0%}"] for n, (share, right) in enumerate(share_of_praise(PATIENT_RATE))],
    )
)
Markdown(f"Of these dev sentences {labels_of(SENTENCES['dev']).mean():.0%} are positive.")

# %% [markdown] name="clinic-collapse-diagnosis"
# <details><summary>Diagnosis</summary>
#
# It gives the same answer to nearly everything. A step too large has driven the features to where all texts look alike, and
# no gradient leads back. An accuracy near one half does not show it; the share of each answer does. Look at more than one
# sample: near the largest rate that works, some runs collapse and some do not, and the mean of both describes neither.
# </details>

# %% name="clinic-collapse-cure" tags=["clinic"]
# the rate: CURED_RATE

# %% [markdown] name="cures"
# Each patient's cure stands in a cell beside its diagnosis. Here is every experiment once more, on patient and cure.


# %% name="clinic-after" jupyter={"source_hidden": true}
def praise_and_right(rate):
    """Both, sample by sample."""
    return "; ".join(f"{share:.0%}, {right:.0%}" for share, right in share_of_praise(rate))


cases = [
    ["tests known from training", *(f"{tests_known(f):.0%}" for f in (patient_split, cured_split))],
    [
        "reported loss, and that of the answers",
        *("{:.2f}, {:.2f}".format(*losses_of_tuning(f)) for f in (patient_batch, cured_batch)),
    ],
    ["nats per token of a review", *(f"{loss_on_a_review(f):.2f}" for f in (patient_labels, cured_labels))],
    ["examples without an answer", *(f"{without_an_answer(f):.0%}" for f in (patient_encode, cured_encode))],
    [
        "prompts that get the same token as alone",
        *(f"{same_as_alone(f):.0%}" for f in (patient_next_tokens, cured_next_tokens)),
    ],
    ["points promised and not kept", *(f"{promised_and_kept(f):+.1f}" for f in (patient_report, cured_report))],
    ["score of praising everything", *(f"{two_models(f)[1]:.2f}" for f in (patient_score, cured_score))],
    [
        "called positive, and right, for each sample",
        *(praise_and_right(rate) for rate in (PATIENT_RATE, CURED_RATE)),
    ],
]
after_table = table(["experiment", "patient", "cure"], cases)
Markdown(f"<details><summary>Patients and cures</summary>\n\n{after_table.data}\n\n</details>")

# %% [markdown] name="claims"
# ## What is usually said
#
# The source is the text that this course grew out of; its curves were drawn, not measured. The verdicts are computed from the figures
# above.

# %% name="claims-table" jupyter={"source_hidden": true}
halfway = {source: max(by, key=by.get) for source, by in ahead.items()}


def measured_beside_mean(name):
    """The mean pooling with a plain head, less another head, and what that says."""
    d = beside_mean[name].difference
    said = (
        "no difference that 300 sentences show"
        if d.holds(0.0)
        else "not in this sample"
        if d.value > 0
        else "in this sample"
    )
    return (
        f"mean and plain less this: {100 * d.value:+.1f} points ({100 * d.low:+.1f} to {100 * d.high:+.1f}), one sample of labels",
        said,
    )


scratch_behind = [
    n for n, v in curves["imdb"]["scratch"].items() if np.mean(v) < np.mean(curves["imdb"]["bag of words"][n])
]
claims = [
    [
        "Fine-tuning a pre-trained model beats classical methods.",
        "no baseline",
        "; ".join(
            f"{SOURCE_NAMES[s]}: {by[halfway[s]]:+.1f} points at most, {by[max(by)]:+.1f} with {max(by):,} labels"
            for s, by in ahead.items()
        ),
        "holds at every number of labels recorded"
        if all(v > 0 for by in ahead.values() for v in by.values())
        else "depends on the number of labels",
    ],
    [
        "So does a transformer trained from scratch.",
        "smooth curves",
        f"behind the bag of words at {', '.join(f'{n:,}' for n in scratch_behind) or 'none of the recorded numbers of'} labels (IMDB)",
        "not with this few labels" if scratch_behind else "holds here" if curves["imdb"]["scratch"] else "not recorded",
    ],
    [
        "[CLS] is the vector of a text.",
        "used",
        *measured_beside_mean("[CLS]"),
    ],
    [
        "A dense layer with tanh belongs before the output.",
        "used",
        *measured_beside_mean("mean, dense and tanh"),
    ],
    [
        "Fit the head first.",
        "not said",
        f"{100 * difference.value:+.1f} points ({100 * difference.low:+.1f} to {100 * difference.high:+.1f})",
        "not settled here" if not settled else "not in this sample" if difference.value < 0 else "in this sample",
    ],
    [
        "Loss on the answer alone is better.",
        "done",
        f"{gap:+.3f} nats per target on answers without it",
        "holds here" if gap > 0.02 else "no difference here",
    ],
    [
        "A fine-tuned model follows instructions.",
        "three examples",
        f"positive {asked_after['positive'][0]:.0f}%, negative {asked_after['negative'][0]:.0f}% as asked, before {asked_before:.0f}%",
        "measured for the requests that it was tuned on, in other words too",
    ],
]
table(["usually said", "the source", "measured here", "verdict"], claims)

# %% [markdown] name="summary"
# ## What to take along
#
# - Before the model: which texts are the same text, and which side are they on? A split by a hash of the normalised text answers once and
#   for all.
# - Beside the model: a bag of words on the same stretch of text, with the same labels. A transformer from random weights is usually behind it.
# - Padding is computed. Put texts of like length together.
# - A head, a pooling, a rate, fitting the head first: advice has conditions. Each can be measured in one cell, and one sample settles none.
# - Text without labels is cheap. Whether it pays to let a model read it first depends on what it has read already: measure it.
# - Choose on dev texts, look at the test once. Report an interval, and compare two models on the texts on which they disagree.
# - Confidence is no frequency until somebody has counted. Read the answers that the model was most sure of and wrong.
# - Fine-tuning forgets. A strategy that keeps the base can be switched off.
# - A model that follows instructions has learned a form, and to do what it was shown. Measure the request, on wordings that it has not seen, by
#   a judge that shares no text with it, and state the judge's own error.
#
# Everything so far ran in one process, on models that fit into memory with ease. What can be saved in time and memory,
# and does the result stay the same? That is the next chapter.
#
# ## Sources
#
# - Lee et al. 2021, duplicates in training text, [arXiv:2107.06499](https://arxiv.org/abs/2107.06499)
# - Maas et al. 2011, *Learning word vectors for sentiment analysis* (the IMDB reviews); Pang and Lee 2005,
#   [arXiv:cs/0506075](https://arxiv.org/abs/cs/0506075) (the Rotten Tomatoes sentences)
# - Wang et al. 2020, MiniLM, [arXiv:2002.10957](https://arxiv.org/abs/2002.10957); Reimers and Gurevych 2019, Sentence-BERT,
#   [arXiv:1908.10084](https://arxiv.org/abs/1908.10084)
# - Kumar et al. 2022, the head first, then the rest, [arXiv:2202.10054](https://arxiv.org/abs/2202.10054); Hu et al. 2021, LoRA,
#   [arXiv:2106.09685](https://arxiv.org/abs/2106.09685); Gururangan et al. 2020, pre-training on the task's own texts,
#   [arXiv:2004.10964](https://arxiv.org/abs/2004.10964)
# - Guo et al. 2017, calibration and ECE, [arXiv:1706.04599](https://arxiv.org/abs/1706.04599); Sundararajan et al. 2017, integrated
#   gradients, [arXiv:1703.01365](https://arxiv.org/abs/1703.01365)
# - Raffel et al. 2019, T5, [arXiv:1910.10683](https://arxiv.org/abs/1910.10683); Rothe et al. 2019, warm-started encoder-decoders,
#   [arXiv:1907.12461](https://arxiv.org/abs/1907.12461)
# - Wei et al. 2021, instruction tuning, [arXiv:2109.01652](https://arxiv.org/abs/2109.01652); Sanh et al. 2021, T0,
#   [arXiv:2110.08207](https://arxiv.org/abs/2110.08207); Taori et al. 2023, *Stanford Alpaca* (the template); Huerta-Enochian and Ko 2024,
#   loss on instructions, [arXiv:2401.13586](https://arxiv.org/abs/2401.13586)
# - Yuan et al. 2023, rejection sampling, [arXiv:2308.01825](https://arxiv.org/abs/2308.01825); Ouyang et al. 2022, learning from
#   preferences, [arXiv:2203.02155](https://arxiv.org/abs/2203.02155); Rafailov et al. 2023, DPO,
#   [arXiv:2305.18290](https://arxiv.org/abs/2305.18290)
# - Holtzman et al. 2019, nucleus sampling (top-p), [arXiv:1904.09751](https://arxiv.org/abs/1904.09751)
#
# In the library: `course_lib/finetuning/`, and `course_lib/evaluation/` for all that judges.
#
# **Next:** [05 Efficient training](05_efficient_training.ipynb)

# %% name="sweep-controls" tags=["remove-cell"] jupyter={"source_hidden": true}
for box in (threshold_box, generation_box):
    sweep(box)  # every control to its ends: fails if one of them shows an error
