# ---
# jupyter:
#   jupytext: {text_representation: {extension: .py, format_name: percent}}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown] name="title"
# # 02 The pre-training loop
#
# **What happens between a batch of text and a model that is good for something?** Chapter 1 trained five models by a loop
# that stayed out of sight: read, be wrong, be told how, move a little. It fits on one screen. Nearly everything that goes
# wrong in pre-training goes wrong in one of its lines, and without an error message.
#
# You will
#
# - read the whole loop, and see the library's do the same to the bit;
# - make three measurements that should come before any long run;
# - move a schedule, and find the step that it wastes;
# - train from sliders, watch, stop, and lay runs over each other;
# - measure whether a language model is any good, and predict from the beginning of a run how good it will become;
# - kill a training process without warning, and lose nothing.
#
# **How to read it.** As [00 Start here](00_start_here.ipynb) explains. Section 9 starts training processes and kills one of
# them; it writes to a temporary folder only.
#
# **If you build compilers:** pre-training is the bootstrap. It runs once, it takes long, and everybody afterwards lives off its
# output, so it must be reproducible and must survive a power cut. The analogy breaks where a bootstrap either reaches its fixed
# point or fails: a training run that is subtly wrong ends just as quietly as one that is right, with a model that is a little worse.

# %% name="progress" jupyter={"source_hidden": true}
from course_lib.lab import progress

progress("02")

# %% [markdown] name="words"
# <details><summary><b>Words used below</b> (unfold when you meet one)</summary>
#
# - **Step**: one change of the weights. **Batch**: the rows of text that it is computed from; **micro-batch**: a part of them
#   that fits into memory. **Epoch**: once through the text. **Target**: a token that the model is asked for; its **label** is
#   the right answer.
# - **Loss**: minus the natural logarithm of the probability given to the right token, averaged over the targets, in *nats per
#   target*. A causal model is asked for every token, so there it is *nats per token* as well.
# - **Gradient**: for each weight, how the loss changes with it. Its **norm** is its length as one long vector; **clipping**
#   shortens it to a largest length.
# - **Learning rate**, *rate* for short: how far a step goes. **Schedule**: the rate as a function of the step. **Warm-up**: its
#   rise at the beginning. **Weight decay**: pulling weights towards 0 at each step.
# - **Optimiser**: turns gradients into steps. AdamW divides each by its usual size, and remembers two *moments* to do so.
#   **Dropout**: setting some values to 0 at random while training.
# - **Held out**: text that no model of this course is trained on. **Seed**: what a random generator starts from.
# - **Checkpoint**: everything that it takes to go on with a run, or only the model as it was at some step.
# - **Probe**: a logistic regression on a model's *frozen* features. **Bag of words**: a classifier that knows which words
#   and pairs of words a text has, and not in what order.
# - **Names in the code** end in their axes: `logits_NV` has a row for each target (N), a column for each token of the
#   vocabulary (V).
#
# Every term of the course: [the glossary](../docs/glossary.md).
# </details>

# %% name="setup" tags=["setup"] jupyter={"source_hidden": true}
import copy
import itertools
import math
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from IPython.display import Markdown, display
from torch import nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from course_lib import checks, optimizers, plots, runs
from course_lib.checkpoint import Checkpoints, restore_random_states
from course_lib.data import (
    Packed,
    PretrainingDataset,
    as_stream,
    course_tokenizer,
    holds_slur,
    normalize,
    reviews_of,
    training_rows,
)
from course_lib.evaluation import Bigram, PowerLaw, bits_per_byte, stream_nats, uniform_loss, unigram_loss
from course_lib.generation import complete
from course_lib.layers import TransformerConfig
from course_lib.losses import token_loss
from course_lib.model import Decoder, Encoder
from course_lib.optimizers import make_optimizer
from course_lib.pretrained import load_checkpoint, load_minilm, load_model
from course_lib.records import Record
from course_lib.runtime import autocast, pick_device, seeded, threads
from course_lib.schedules import Schedule, cosine, linear
from course_lib.training import batch_loss, held_out_loss, new_model, train
from course_lib.vocabulary import IGNORE_INDEX
from course_lib.widgets.binder import compare, guess, guess_number, sweep, table
from course_lib.widgets.schedules import compute_schedule, describe_schedule, draw_schedule, schedule_explorer
from course_lib.widgets.training_lab import TrainingLab

tokenizer = course_tokenizer()
vocabulary = tokenizer.vocabulary
device = pick_device()

# %% [markdown] name="text"
# The text is that of chapter 1: film reviews, cut into rows of tokens, and others held out. The model of the experiments is
# small, so that a step takes a moment; the course's own two models, which took much longer, come in sections 7 and 8.

# %% name="read-text"
ROW = 64
packed, held_out = (training_rows(ROW, split=s) for s in tqdm(["train", "dev"], desc="reading and tokenising"))
small = TransformerConfig(vocabulary.size, d_model=128, n_layers=2, n_heads=4, d_ff=512, max_len=ROW)
dataset = PretrainingDataset(packed, vocabulary, "causal", batch_size=8)
dev_batches = [PretrainingDataset(held_out, vocabulary, "causal", batch_size=16).batch(k) for k in range(8)]
Markdown(
    f"{packed.ids_NT.numel():,} tokens to train on, {held_out.ids_NT.numel():,} held out; a batch has {dataset.batch_size} "
    f"rows of {ROW}; the small model has {new_model(Decoder, small).n_parameters():,} parameters."
)

# %% [markdown] name="loop"
# ## 1 The loop, whole
#
# Here it is. Every line has one reason to be there, and the comment beside it says which.

# %% name="loop-by-hand"
STEPS = 30


def warm_up(number):
    return 1e-3 * min(1.0, (number + 1) / 10)


model = new_model(Decoder, small, seed=0)
groups = [
    {"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": 0.05},  # matrices decay
    {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},  # biases and norms don't
]
optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), fused=True)
by_hand = []
model.train()
for number in range(STEPS):
    batch = dataset.batch(number).to(device)  # text becomes a question
    with autocast(device):  # in bf16 where that is quicker
        logits_NV = model.target_logits(batch)  # an answer for each target
        total, n_targets = token_loss(logits_NV, batch.labels_BL[batch.is_target_BL])
    loss = total / n_targets  # summed over tokens, divided once
    loss.backward()  # for each weight: which way is better
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # no step is led by one odd batch
    for group in optimizer.param_groups:
        group["lr"] = warm_up(number)  # how far to go
    optimizer.step()  # go
    optimizer.zero_grad()  # and forget this gradient
    by_hand.append(loss.item())

# %% [markdown] name="loop-library-question"
# The library has the same loop as a *generator*: it takes a step, hands you a record of it, and waits. You print, plot, save
# or stop. `course_lib/training.py` is short enough to be read whole.
#
# **Predict.** Same seed, same batches, same schedule, another implementation. By how much will the weights differ after
# the last step?

# %% name="predict-bits" jupyter={"source_hidden": true}
bits_guess = guess(
    "How far apart are the weights?", ["not one bit", "in the last digits", "visibly, and the losses agree"]
)
display(bits_guess)

# %% name="loop-by-the-library"
twin = new_model(Decoder, small, seed=0)
records = list(train(twin, dataset, steps=STEPS, rate=warm_up))
plots.show(
    plots.draw_curves(
        {"loss": (range(1, STEPS + 1), by_hand)},
        {"loss": ([r.step for r in records], [r.loss for r in records])},
        kinds=("by hand", "library"),
        xlabel="step",
        ylabel="loss, nats per target",
    ),
    alt="Loss over the first steps: the loop by hand as a line, the library's as markers that lie on it.",
)

# %% name="compare-loops" jupyter={"source_hidden": true}
differing = sum(int((a != b).sum()) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
said = "not one bit" if differing == 0 else "in the last digits"
compare(
    bits_guess,
    f"Of {model.n_parameters():,} weights, {differing:,} differ"
    + (
        ": the two are the same to the bit. On one machine, with one number of threads, that is the right thing to ask for, "
        "and it makes bugs easy to find: whatever changes a bit has changed the computation."
        if differing == 0
        else ". On a CPU with a fixed number of threads none should; a GPU may add in another order."
    ),
    said,
)

# %% name="record-of-a-step" jupyter={"source_hidden": true}
last = records[-1]
table(
    ["what a record says", "of the last step"],
    [
        ["step, tokens read so far", f"{last.step}, {last.tokens:,}"],
        ["targets, loss", f"{last.targets:,}, {last.loss:.3f} nats"],
        ["learning rate, gradient norm before clipping", f"{last.rate:g}, {last.gradient_norm:.2f}"],
        ["tokens a second", f"{last.tokens_per_second:,.0f}"],
        ["most memory so far", f"{last.memory / 2**20:,.0f} MiB"],
    ],
)

# %% [markdown] name="before"
# ## 2 Before you train
#
# A long run is expensive, so spend a minute first. Three measurements find most wiring mistakes.
#
# **First: the loss of a model that has learned nothing.** It spreads its bets evenly over the vocabulary.
#
# **Predict.** How many nats does an even bet on this vocabulary cost?

# %% name="predict-start" jupyter={"source_hidden": true}
start_guess = guess_number("Loss before the first step", low=0, high=20, step=0.01, unit="nats per target")
display(start_guess)

# %% name="loss-at-start"
fresh = {
    "decoder": held_out_loss(new_model(Decoder, small), dev_batches),
    "encoder": held_out_loss(
        new_model(Encoder, small.with_(positions="rotary")),
        [PretrainingDataset(held_out, vocabulary, "masked", batch_size=16).batch(k) for k in range(8)],
    ),
}
compare(
    start_guess,
    f"ln {vocabulary.size:,} is {uniform_loss(vocabulary):.3f}. Measured: "
    + ", ".join(f"{name} {loss:.3f}" for name, loss in fresh.items())
    + ". A start far above says that the initialisation is too large; one far below, that the weights are not fresh.",
    uniform_loss(vocabulary),
    near=0.3,
)

# %% [markdown] name="overfit"
# **Second: overfit one batch.** A model with many more weights than a batch has tokens can learn it by heart. If the loss on
# one batch, shown again and again, does not fall to nearly nothing, then something is broken: a graph cut in two, a rate of
# zero, a part that is frozen.

# %% name="overfit-one-batch"
one = PretrainingDataset(packed, vocabulary, "causal", batch_size=4).batch(0)
by_heart = [r.loss for r in train(new_model(Decoder, small), itertools.repeat(one), steps=45, rate=3e-3)]
shifted = replace(one, labels_BL=one.labels_BL.roll(1, dims=0))  # the labels of another row: out of step
out_of_step = [r.loss for r in train(new_model(Decoder, small), itertools.repeat(shifted), steps=45, rate=3e-3)]
plots.show(
    plots.draw_curves(
        {"one batch": (range(1, 46), by_heart), "one batch, labels of another row": (range(1, 46), out_of_step)},
        references={"ln V": uniform_loss(vocabulary)},
        xlabel="step",
        ylabel="loss on that batch, nats per target",
    ),
    alt="Loss on one batch that is shown again and again: it falls to nearly nothing.",
)

# %% name="explain-overfit" jupyter={"source_hidden": true}
Markdown(
    f"After {len(by_heart)} steps on one batch the loss is {by_heart[-1]:.3f} nats"
    + (", it is known by heart." if by_heart[-1] < 0.3 else ": **not learned by heart, something is wrong.**")
    + f" With the labels of another row it is {out_of_step[-1]:.3f}"
    + (
        ": nonsense can be learned by heart as well. The test finds what is disconnected, not what is wrong. For that you "
        "need held-out text."
        if out_of_step[-1] < 0.5
        else ": harder to learn by heart, in these steps."
    )
)

# %% [markdown] name="range-test"
# **Third: which learning rate?** Raise it a little at every step, from far too small to far too large, and watch the loss
# (arXiv:1506.01186). Below some rate nothing moves, above some rate it gets worse. Say that a rate helps where it has brought the
# loss down by 0.3 nats, and hurts where it has brought it up again by as much.
#
# **Predict.** By what factor do these two rates differ?

# %% name="predict-range" jupyter={"source_hidden": true}
range_guess = guess(
    "From the rate that begins to help to the one that begins to hurt",
    [("about 3", 3), ("about 30", 30), ("about 300", 300)],
)
display(range_guess)

# %% name="rate-range-test"
LOW, HIGH, TRIALS, NOTICEABLE = 1e-5, 1.0, 60, 0.3
climbing = new_model(Decoder, small)
tried = []
try:
    for row in train(climbing, dataset, steps=TRIALS, rate=lambda n: LOW * (HIGH / LOW) ** (n / (TRIALS - 1))):
        tried.append(row)
        if row.loss > 1.5 * uniform_loss(vocabulary):
            break
except FloatingPointError as error:
    print("the loop stopped by itself:", error)
rates = [row.rate for row in tried]
losses = [float(np.median([r.loss for r in tried[max(0, i - 2) : i + 3]])) for i in range(len(tried))]
helps = next((r for r, loss in zip(rates, losses, strict=True) if loss < losses[0] - NOTICEABLE), rates[-1])
lowest = int(np.argmin(losses))
hurts = next(
    (r for r, loss in zip(rates[lowest:], losses[lowest:], strict=True) if loss > losses[lowest] + NOTICEABLE),
    rates[-1],
)
plots.show(
    plots.draw_curves(
        {"loss while the rate rises": (rates, losses)},
        references={"ln V": uniform_loss(vocabulary)},
        xlabel="learning rate (log scale)",
        ylabel="loss, nats per target",
        log_x=True,
    ),
    alt="Loss against a rising learning rate: flat, then falling, then rising steeply.",
)

# %% name="explain-range" jupyter={"source_hidden": true}
options = {3: "about 3", 30: "about 30", 300: "about 300"}
nearest = min(options, key=lambda factor: abs(math.log(hurts / helps / factor)))
compare(
    range_guess,
    f"It begins to help at {helps:.1e} and to hurt at {hurts:.1e} (each by {NOTICEABLE} nats, in a rise of {TRIALS} steps: a slower rise would move "
    f"both): a factor of {hurts / helps:.0f}. The lowest point is at {rates[lowest]:.1e}. A peak several times lower is a first choice: this chapter takes "
    f"{warm_up(STEPS):g} for this model, and the course's own ones, larger and trained with another optimiser (section 8), use {runs.RECIPES['decoder'].peak_rate:g} and "
    f"{runs.RECIPES['encoder'].peak_rate:g}.",
    nearest,
)

# %% [markdown] name="schedule"
# ## 3 A rate that changes
#
# Far away from the goal long steps pay, near it short ones; and at the very beginning the optimiser does not know yet how large
# gradients are, so it should not go far. Hence warm-up, plateau, decay. The explorer shows the shapes, and two common mistakes.
#
# **Predict.** Many loops set the rate to `peak * step / warmup` with steps counted from 0. What does their first step do?

# %% name="predict-first-step" jupyter={"source_hidden": true}
first_guess = guess(
    "The first step of peak * step / warmup",
    ["it is very small", "nothing: its batch is read for nothing", "it is as large as the last"],
)
display(first_guess)

# %% [markdown] name="move-schedule"
# **Move.** Lengthen the warm-up until the run no longer reaches its peak. What happens to the highest rate of the run? Then
# choose the settings of the source (the text that this course grew out of) under *begin with*: how far does its fine-tuning get?

# %% name="explore-schedules"
schedules_box = schedule_explorer()
schedules_box

# %% name="schedule-without-a-kernel" jupyter={"source_hidden": true}
shown = compute_schedule(shape="cosine", warmup=100, total=1000, peak=1e-3, floor=0.1)
plots.show(draw_schedule(shown), alt=describe_schedule(shown))

# %% name="first-step" jupyter={"source_hidden": true}
wasted = new_model(Decoder, small)
before = copy.deepcopy(wasted.state_dict())
list(train(wasted, dataset, steps=1, rate=lambda number: 1e-3 * number / 10))
moved_wrong = sum(int((wasted.state_dict()[name] != tensor).sum()) for name, tensor in before.items())
list(train(wasted, dataset, steps=1, rate=Schedule("constant", peak=1e-3, warmup=10, total=100)))
moved_right = sum(int((wasted.state_dict()[name] != tensor).sum()) for name, tensor in before.items())
compare(
    first_guess,
    f"From 0, the first step moves {moved_wrong:,} weights; a warm-up that begins at 1 / warmup moves {moved_right:,}. In a run "
    "of a million steps nobody notices. In a fine-tuning of a few dozen steps it is a part of the whole.",
    "nothing: its batch is read for nothing" if moved_wrong == 0 else "it is very small",
)

# %% name="source-schedules" jupyter={"source_hidden": true}
SENTENCES, EPOCHS, BATCH = 6, 3, 2
source_steps = EPOCHS * math.ceil(SENTENCES / BATCH)
reached = linear(source_steps - 1, warmup=100, total=max(source_steps, 101))
Markdown(
    "<details><summary>Moved it? Compare</summary>\n\nA warm-up that outlasts the run never reaches the peak: the highest rate is "
    "the share of the warm-up that fits. The source's *pre-training, warm-up 10,000 of 1,000,000 steps*, peaks after "
    f"{10_000 / 1_000_000:.0%} of the run. Its *fine-tuning with 100 warm-up steps* on {SENTENCES} sentences, in batches of "
    f"{BATCH} and {EPOCHS} epochs, has {source_steps} steps, and takes its last one at {reached:.0%} of the peak: the peak rate in "
    "its table was never used.\n\n</details>\n\n`Schedule` refuses such a run, and says why:"
)

# %% name="refused-schedule"
try:
    Schedule("linear", peak=2e-5, warmup=100, total=source_steps)
except ValueError as error:
    print(error)

# %% [markdown] name="decay"
# ## 4 What decays
#
# Weight decay pulls weights towards 0 so that large ones must earn their size. That makes sense for matrices, and none for the
# scale of a normalisation, whose neutral value is 1; biases are spared as well. A widespread rule decides by *name*: what has
# "bias", "norm" or "embedding" in it does not decay. Another decides by *shape*: matrices decay, vectors do not.
#
# **Predict.** Apply the rule by name to a decoder laid out as GPT-2, where the normalisations are called `ln_1`, `ln_2`,
# `ln_f` and the embeddings `wte`, `wpe`. What goes wrong?

# %% name="predict-decay" jupyter={"source_hidden": true}
decay_guess = guess(
    "By name, on GPT-2's layout",
    ["nothing", "scales of normalisations decay", "biases of normalisations decay", "embeddings do not decay"],
)
display(decay_guess)

# %% name="decay-by-name-and-shape"
SPARED = ("bias", "norm", "embedding")
rows = []
for name, real in {
    "our decoder (GPT-2's layout)": load_checkpoint("decoder"),
    "MiniLM (BERT's layout)": load_minilm()[0],
}.items():
    names = {id(p): n for n, p in real.named_parameters()}
    by_shape, by_name = (
        [{names[id(p)] for p in group["params"]} for group in optimizers.decay_groups(real, 0.1, spared_names=rule)]
        for rule in (None, SPARED)
    )
    only_by_name, only_by_shape = sorted(by_name[0] - by_shape[0]), sorted(by_shape[0] - by_name[0])
    rows.append([name, len(by_shape[0]), len(by_name[0]), len(only_by_name), ", ".join(only_by_name[:2]) or "none",
                 ", ".join(only_by_shape) or "none"])  # fmt: skip
table(
    ["model", "tensors that decay, by shape", "by name", "only by name", "such as", "only by shape"],
    rows,
)

# %% name="explain-decay" jupyter={"source_hidden": true}
missed = rows[0][3]
compare(
    decay_guess,
    f"In GPT-2's layout the rule by name lets {missed} normalisation scales decay, because nothing in `ln_1.weight` says norm. "
    + (
        f"In BERT's layout it finds every normalisation, and spares tables besides: {rows[1][5]}. "
        if rows[1][3] == 0
        else f"In BERT's layout it lets {rows[1][3]} more decay. "
    )
    + "Whether embeddings should decay is a choice; it should not depend on what somebody called them.",
    "scales of normalisations decay" if missed else "nothing",
)

# %% [markdown] name="clipping"
# ## 5 Clipping
#
# Not all batches pull equally hard. At the beginning of a run many pull hard, for everything is wrong; later now and then one does, such
# as rows that are one word repeated. Clipping keeps the direction and cuts the length.

# %% name="gradient-norms" jupyter={"source_hidden": true}
CALM = 60
norms = [r.gradient_norm for r in train(new_model(Decoder, small), dataset, steps=CALM, rate=warm_up)]
plots.show(
    plots.draw_histogram(
        {"as computed": norms, "as used, clipped at 1": [min(1.0, norm) for norm in norms]},
        references={"clip": 1.0},
        xlabel="norm of the gradient, one count per step",
    ),
    alt="Histogram of gradient norms over the first steps, before and after clipping at 1.",
)

# %% name="explain-norms" jupyter={"source_hidden": true}
clipped = sum(norm > 1 for norm in norms)
own_norms = [
    v for _, v in Record(runs.RECORDS_FOLDER / "pretraining_decoder.jsonl").values("gradient_norm", name="decoder")
]
early, late = own_norms[: len(own_norms) // 20], own_norms[len(own_norms) // 20 :]
Markdown(
    f"{clipped} of the first {CALM} steps are clipped, the longest gradient is {max(norms):.2f}, the median "
    f"{float(np.median(norms)):.2f}. "
    + f"In the long run of the course's decoder {np.mean(np.array(early) > 1):.0%} of the recorded steps were clipped in the first "
    f"twentieth of the run, and {np.mean(np.array(late) > 1):.1%} after it"
    + (": by then a clipped step is worth a look." if np.mean(np.array(late) > 1) < 0.05 else ".")
)

# %% [markdown] name="poison"
# Now poison one batch: every row is a single token, repeated, as when a page of rubbish slips through. Two optimisers meet it,
# each with clipping and without: SGD with momentum, whose step grows with the gradient, and AdamW, which divides by the usual size.
# Two more runs get an ordinary batch in its place.
#
# **Predict.** Which run is hurt most?

# %% name="predict-poison" jupyter={"source_hidden": true}
poison_guess = guess("Hurt most by one bad batch", ["SGD without clipping", "AdamW without clipping", "nobody"])
display(poison_guess)

# %% name="poisoned-batch"
AT, LATER, SGD_RATE = 15, 10, 0.3
LAST = AT + 1 + LATER
rubbish = torch.full_like(dataset.packed.ids_NT[: dataset.batch_size], int(vocabulary.ordinary_ids[-1]))
bad = dataset.corrupt(rubbish, seeded(0))


def with_poison(batches):
    return (bad if number == AT else batch for number, batch in enumerate(batches))


def run_with(kind, clip, batches):
    """Held-out loss before the bad batch, right after it, and some steps later; and the bad batch's gradient norm."""
    model = new_model(Decoder, small)
    sgd = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
    rate = 1e-3 if kind == "AdamW" else SGD_RATE
    loop = train(
        model, batches, steps=LAST, clip=clip, optimizer=make_optimizer(model) if kind == "AdamW" else sgd,
        rate=lambda number: rate * min(1.0, (number + 1) / 10),
    )  # fmt: skip
    found = {}
    try:
        for row in loop:
            if row.step in (AT, AT + 1, LAST):
                found[row.step] = held_out_loss(model, dev_batches[:3])
            if row.step == AT + 1:
                found["norm"] = row.gradient_norm
    except FloatingPointError:
        pass
    return found


harm, ordinary = {}, {}
for kind, clip in tqdm(list(itertools.product(("SGD", "AdamW"), (math.inf, 1.0))), desc="four runs"):
    harm[kind, clip] = run_with(kind, clip, with_poison(dataset))
for kind in tqdm(("SGD", "AdamW"), desc="without the bad batch"):
    ordinary[kind, math.inf] = run_with(kind, math.inf, dataset)
say = lambda found, step: f"{found[step]:.2f}" if step in found else "diverged"
table(
    ["batch", "optimiser", "clip", "held-out loss before", "right after", f"{LATER} steps later", "norm of its gradient"],
    [
        [batch, kind, "none" if clip == math.inf else clip, *(say(found, s) for s in (AT, AT + 1, LAST)), say(found, "norm")]
        for batch, runs_of in (("bad", harm), ("ordinary", ordinary))
        for (kind, clip), found in runs_of.items()
    ],
)  # fmt: skip

# %% name="explain-poison" jupyter={"source_hidden": true}
change = lambda found: found.get(AT + 1, math.inf) - found.get(AT, 0.0)
damage = {key: change(found) for key, found in harm.items()}
worst = max(damage, key=damage.get)
SGD, ADAMW = damage["SGD", math.inf], damage["AdamW", math.inf]
usual = {kind: change(found) for (kind, _), found in ordinary.items()}
compare(
    poison_guess,
    f"Right after the batch the held-out loss has changed by {SGD:+.2f} with SGD and no clipping, "
    f"{damage['SGD', 1.0]:+.2f} with SGD and clipping, {ADAMW:+.2f} with AdamW, {damage['AdamW', 1.0]:+.2f} with AdamW and "
    f"clipping. An ordinary batch in its place changes it by {usual['SGD']:+.2f} with SGD and {usual['AdamW']:+.2f} with "
    "AdamW, neither clipped. "
    + f"{LATER} steps later SGD stands at {say(harm['SGD', math.inf], LAST)} without clipping and at {say(harm['SGD', 1.0], LAST)} with it. "
    + "(Clipping acts on every step, so the two SGD runs differ before the bad batch already.) "
    + f"AdamW met a gradient of norm {say(harm['AdamW', math.inf], 'norm')} without clipping, SGD one of {say(harm['SGD', math.inf], 'norm')}. "
    + "AdamW bounds each step by its memory of usual sizes, so one batch counts for little"
    + (": the bad batch did it no more harm than an ordinary one." if ADAMW - usual["AdamW"] < 0.05 else "."),
    "SGD without clipping"
    if worst == ("SGD", math.inf)
    else "AdamW without clipping"
    if worst[1] == math.inf
    else "nobody",
)

# %% [markdown] name="lab"
# ## 6 The training lab
#
# Your turn. The model is a small encoder that fills in masks. Start a run, stop it when you have seen enough, change one slider,
# start again: the curves stay. Runs go on in a thread of their own, so *Stop* answers at once.
#
# **Move.** Raise the peak rate until a run no longer learns; what does a longer warm-up do at that rate? Does twice the batch
# get as far with the same number of *tokens*? And what happens to the loss when 60% of the tokens are to be guessed? (That is a
# harder question: its loss can only be compared with that of other runs at 60%.)

# %% name="training-lab"
lab = TrainingLab(packed, vocabulary)
lab

# %% name="training-lab-without-a-kernel" jupyter={"source_hidden": true}
for peak in (2e-4, 2e-3):
    lab.train_now(peak_rate=peak, steps=24)
lab.picture()

# %% name="training-lab-answer" jupyter={"source_hidden": true}
runs_so_far = table(
    ["run", "peak rate", "warm-up", "batch", "mask probability", "steps", "tokens read", "loss at its end, nats per target"],
    [
        [run.number, f"{run.settings.peak_rate:.1e}", run.settings.warmup, run.settings.batch_size, f"{run.settings.mask_prob:.0%}",
         len(run.records), f"{run.records[-1].tokens:,}", f"{run.loss:.2f}"]
        for run in lab.runs if run.records
    ],
)  # fmt: skip
Markdown(
    f"<details><summary>Moved it? Compare</summary>\n\nAll runs of the lab so far (run this cell again after yours):\n\n{runs_so_far.data}\n\n"
    "Runs that differ in one setting alone, and read equally many tokens, can be compared; runs at other mask probabilities have "
    f"other questions. A run that has learned nothing stays near ln V, {uniform_loss(vocabulary):.2f}.\n\n</details>"
)

# %% [markdown] name="any-good"
# ## 7 Is it any good?
#
# A loss in nats per token can only be compared with models that cut text into the same tokens. Divide what a model spends on a
# text by the number of its *bytes*, and it can be compared with anything that predicts text, a compressor included: a
# compressor is a language model with another interface.
#
# The course's own decoder was pre-trained by `course pretrain decoder`, a run that took longer than a chapter can wait. Three of
# its checkpoints are in `data/checkpoints`, each with a card. Your machine measures them now, on held-out reviews.
#
# **Predict.** A smoothed bigram knows, for each token, which token tends to follow. How does the better of two general compressors,
# which has read all of the training text, compare with it?

# %% name="predict-compressor" jupyter={"source_hidden": true}
compressor_guess = guess("Bits per byte, fewest wins", ["the compressor", "the bigram", "about equal"])
display(compressor_guess)

# %% name="bits-per-byte"
MEASURED = 30  # reviews
quality = Record(runs.RECORDS_FOLDER / "language.jsonl")
texts = [normalize(review.text) for review in reviews_of("dev", "imdb")[:MEASURED]]
n_bytes = sum(len(text.encode()) for text in texts)
stream = as_stream(texts, tokenizer)
training_stream = packed.ids_NT.flatten()

bits = {
    "knows nothing: ln V": bits_per_byte(uniform_loss(vocabulary) * (len(stream) - 1), n_bytes),
    "unigram": bits_per_byte(unigram_loss(training_stream, stream[1:], vocabulary) * (len(stream) - 1), n_bytes),
    "bigram, smoothed": bits_per_byte(Bigram.fit(training_stream, vocabulary).nats(stream).sum(), n_bytes),
}
decoders = {}
for name in tqdm(["decoder_early", "decoder_middle", "decoder"], desc="checkpoints"):
    decoders[name] = load_checkpoint(name).to(device)
    bits[name] = bits_per_byte(stream_nats(decoders[name], stream).sum(), n_bytes)
compressors = {name: quality.values("bits_per_byte", name=name)[-1][1] for name in ("xz", "bzip2")}
best_compressor = min(compressors, key=compressors.get)
plots.show(
    plots.draw_bars(
        list(bits), list(bits.values()), references={f"{best_compressor} (recorded)": compressors[best_compressor]},
        xlabel="bits per byte of held-out reviews",
    ),
    alt="Bits per byte of held-out reviews for counting models and three checkpoints of the decoder, beside a compressor.",
)  # fmt: skip

# %% name="explain-bits" jupyter={"source_hidden": true}
bigram, best_bits = bits["bigram, smoothed"], bits["decoder"]
gap = compressors[best_compressor] - bigram
compare(
    compressor_guess,
    f"The best compressor tried, {best_compressor}, needs {compressors[best_compressor]:.2f} bits per byte (recorded on all dev reviews, with all of the training text read "
    f"first), the bigram {bigram:.2f}, and the decoder {best_bits:.2f}, down from {bits['decoder_early']:.2f} at its early checkpoint"
    + (", where counting pairs was still ahead of it. " if bits["decoder_early"] > bigram else ". ")
    + (
        "A compressor finds what was there before word for word, and reviews seldom repeat each other; knowing what *kind* of "
        "word comes next is worth more."
        if gap > 0
        else "The compressor has more memory than the bigram, which sees one token back."
    )
    + f" In the loop's own unit the decoder stands at {stream_nats(decoders['decoder'], stream).mean():.2f} nats per token on these {MEASURED} reviews.",
    "about equal" if abs(gap) < 0.05 else "the bigram" if gap > 0 else "the compressor",
)

# %% [markdown] name="samples"
# Here is how each checkpoint goes on from the same words, with the same random numbers. Change the beginning and run the cell
# again.

# %% name="samples-of-each-rung"
beginning = "i expected very little of this film , but"


def sample(model, text, seed):
    """What the model writes behind a text; drawn again where it holds a word that the course keeps out of its training."""
    generator = seeded(seed)
    while True:
        written = complete(model, tokenizer, text, max_new_tokens=40, temperature=0.8, top_p=0.95, generator=generator)
        if not holds_slur(written):
            return written


table(
    ["checkpoint", "and it goes on"],
    [[name, f"… {sample(model, beginning, seed=4)}"] for name, model in decoders.items()],
)

# %% [markdown] name="ladder"
# ## 8 The long run
#
# Here is that run itself: the record of `course pretrain decoder`. The rate is constant for most of the run and then falls to
# zero. Losses of language models, each trained to its end, have been found to follow a power law in the number of tokens, over many
# orders of magnitude (arXiv:2001.08361): `loss = floor + scale · tokens^-exponent`. If that holds, the beginning of a run predicts the rest.
#
# The law below is fitted on the first quarter of the run, and the rest is hidden.
#
# **Predict.** What is the held-out loss at the end of the constant phase?

# %% name="fit-the-beginning"
curve = Record(runs.RECORDS_FOLDER / "pretraining_decoder.jsonl")
recipe = runs.RECIPES["decoder"]
points = [(step * recipe.tokens_per_step, loss) for step, loss in curve.values("held_out", name="decoder") if step]
constant_until = (1 - recipe.decay_share) * recipe.tokens
beginning_of_run = [(t, loss) for t, loss in points if 1e6 <= t <= recipe.tokens / 4]
later = [(t, loss) for t, loss in points if recipe.tokens / 4 < t <= constant_until]
law = PowerLaw.fit(*zip(*beginning_of_run, strict=True))


def in_millions(pairs):
    """Tokens in millions, and losses: what a figure takes."""
    return [t / 1e6 for t, _ in pairs], [loss for _, loss in pairs]


plots.show(
    plots.draw_curves(
        {"held-out loss": ([t / 1e6 for t, _ in beginning_of_run], [law(t) for t, _ in beginning_of_run])},
        {"held-out loss": in_millions(beginning_of_run)},
        kinds=("law, fitted", "recorded"), xlabel="tokens read, millions", ylabel="held-out loss, nats per token",
    ),
    alt="Held-out loss over the first quarter of the run, with the power law fitted to it.",
)  # fmt: skip

# %% name="predict-ladder" jupyter={"source_hidden": true}
ladder_guess = guess_number(
    f"Held-out loss after {constant_until / 1e6:.0f} M tokens, at the end of the constant phase",
    low=3.5,
    high=5.5,
    step=0.01,
    unit="nats per token",
)
display(ladder_guess)

# %% name="rest-of-the-run" jupyter={"source_hidden": true}
final_tokens, final_loss = points[-1]
plateau_tokens, plateau_loss = later[-1]
foretold = law(plateau_tokens)
compare(
    ladder_guess,
    f"It is {plateau_loss:.3f}. The law, fitted on the first {recipe.tokens / 4e6:.0f} M tokens, says {foretold:.3f}: the loss came out "
    f"{plateau_loss - foretold:+.3f} from there. A simple rival, that the loss stays where the fit ended, {beginning_of_run[-1][1]:.3f}, misses by "
    f"{plateau_loss - beginning_of_run[-1][1]:+.3f}. At the very end, after the rate has fallen, it is {final_loss:.3f}: over the last "
    f"{recipe.decay_share:.0%} of the run it has come down by {plateau_loss - final_loss:.3f}, of which the law, which knows one rate "
    f"only, expected {foretold - law(final_tokens):.3f}."
    + (
        f" When the constant phase ended the model had read its text {plateau_tokens / packed.ids_NT.numel():.1f} times. That text was no longer "
        "fresh is one suspect for a law too hopeful; that the fit saw less than one power of ten of tokens is another. Neither is tested here."
        if plateau_loss > foretold
        else ""
    ),
    plateau_loss,
    near=0.05,
)

# %% name="draw-ladder" jupyter={"source_hidden": true}
marks = [
    (t, loss)
    for t, loss in points
    if any(abs(t - share * recipe.tokens) < recipe.tokens_per_step for share in recipe.rungs)
]
grid = [t for t, _ in points if t >= 1e6]
plots.show(
    plots.draw_curves(
        {"held-out loss": in_millions(points), "law of the first quarter": in_millions([(t, law(t)) for t in grid])},
        {"held-out loss": in_millions(marks)},
        kinds=("whole run", "checkpoints kept"), log_x=True,
        xlabel="tokens read, millions (log scale)", ylabel="held-out loss, nats per token",
    ),
    alt="The whole run: held-out loss against tokens, the law fitted on its first quarter, and the checkpoints that were kept.",
)  # fmt: skip

# %% [markdown] name="live-ladder"
# Is the record to be believed? The next cell begins the same run here: same seed, same rows, same recipe.

# %% name="first-steps-live" jupyter={"source_hidden": true}
LIVE_STEPS = 2
whole = len(packed.ids_NT) // 4 * 4  # four rows of this chapter make one of the recipe's
long_rows = Packed(*(ids[:whole].reshape(-1, 4 * ROW) for ids in (packed.ids_NT, packed.document_ids_NT)))
again = recipe.model().to(device)
optimizer = make_optimizer(again, recipe.optimizer, weight_decay=recipe.weight_decay)
live = list(
    train(
        again, recipe.dataset(long_rows), steps=LIVE_STEPS, rate=recipe.schedule, optimizer=optimizer, clip=recipe.clip
    )
)
recorded = dict(curve.values("loss", name="decoder"))
table(
    ["step", "loss of the recorded run, nats per token", "on this machine, just now"],
    [[row.step, f"{recorded[row.step]:.5f}", f"{row.loss:.5f}"] for row in live],
)

# %% name="live-against-record" jupyter={"source_hidden": true}
off = max(abs(row.loss - recorded[row.step]) for row in live)
one_update = abs(recorded[LIVE_STEPS] - recorded[1])
Markdown(
    f"The largest distance from the record is {off:.5f} nats; the update between these steps moves the loss by {one_update:.5f}"
    + (
        ". So the run begins as recorded: the same weights, the same rows, the same first update, up to rounding, for another machine, or another "
        "number of threads, adds in another order. What came later, this cannot show."
        if off < one_update
        else ": **too far. Treat the record with suspicion.**"
    )
)

# %% [markdown] name="pays"
# Does a lower loss make better features? At each checkpoint a probe read the frozen features, as in chapter 1: logistic
# regression on few labelled reviews, tested on others. The dashed line is a bag of words that learns from the same labels.

# %% name="draw-probes" jupyter={"source_hidden": true}
LABELS = 500
words = Record(runs.RECORDS_FOLDER / "objectives.jsonl").values(f"probe_{LABELS}", name="bag of words")
lines = {}
for name in ("encoder", "decoder"):
    found, own = Record(runs.RECORDS_FOLDER / f"pretraining_{name}.jsonl"), runs.RECIPES[name]
    probed = found.by_step(f"probe_{LABELS}", name=name)
    means = [100 * float(np.mean(list(right.values()))) for right in probed.values()]
    lines[name] = ([max(step * own.tokens_per_step / 1e6, 0.5) for step in probed], means)
plots.show(
    plots.draw_curves(
        lines, references={"bag of words": 100 * float(np.mean([v for _, v in words]))}, log_x=True,
        xlabel="tokens read, millions (log scale; the first point stands for none)",
        ylabel=f"accuracy of the probe, %, from {LABELS} labels",
    ),
    alt="Accuracy of a probe on frozen features against tokens read, for encoder and decoder, beside a bag of words.",
)  # fmt: skip

# %% name="explain-probes" jupyter={"source_hidden": true}
bag = 100 * float(np.mean([v for _, v in words]))
crossing = {name: next((t for t, v in zip(*line, strict=True) if v > bag), None) for name, line in lines.items()}
at_an_eighth = {
    name: line[1][next(i for i, t in enumerate(line[0]) if t >= line[0][-1] / 8.1)] for name, line in lines.items()
}
Markdown(
    f"From {LABELS} labels: "
    + "; ".join(
        f"the {name} begins at {line[1][0]:.1f}% and ends at {line[1][-1]:.1f}%"
        + (
            f", first measured ahead of the bag of words at {crossing[name]:.0f} M tokens"
            if crossing[name]
            else ", behind the bag of words"
        )
        for name, line in lines.items()
    )
    + f". After an eighth of the run they stood at {' and '.join(f'{value:.1f}%' for value in at_an_eighth.values())}, against "
    f"{bag:.1f}% for the bag of words"
    + (
        f" ({len(words)} samples, from {100 * min(v for _, v in words):.1f} to {100 * max(v for _, v in words):.1f}%): a run that "
        "had stopped there would not have shown that pre-training pays."
        if max(at_an_eighth.values()) < bag
        else "."
    )
)

# %% [markdown] name="transfer"
# And fine-tuned? The encoder that the course ships went on for a while, with other masks and another order of the text
# (`course pretrain encoder_longer`). Below, all of it is trained on few labelled reviews, beside a probe on it as it is, the same
# model from random weights ("scratch"), and the bag of words. Every method reads the same stretch of the same reviews, and each
# point is a mean over samples of labelled reviews (`data/records/transfer.jsonl`; `course record transfer` makes it again).
#
# **Predict.** With how many labels does fine-tuning win most over the bag of words?

# %% name="predict-transfer" jupyter={"source_hidden": true}
transfer_guess = guess("The largest lead", ["100 labels", "500 labels", "3000 labels"])
display(transfer_guess)

# %% name="draw-transfer" jupyter={"source_hidden": true}
tuned = Record(runs.RECORDS_FOLDER / "transfer.jsonl")
accuracy = {}  # {method: {labels: mean, in %}}
for method in ("fine-tuned", "probe", "bag of words", "scratch"):
    samples = tuned.by_step("accuracy", name=method)
    accuracy[method] = {labels: 100 * float(np.mean(list(right.values()))) for labels, right in samples.items()}
picture = plots.show(
    plots.draw_curves(
        {method: (list(means), list(means.values())) for method, means in accuracy.items()}, log_x=True,
        xlabel="labelled reviews (log scale)", ylabel="accuracy on other reviews, %",
    ),
    alt="Accuracy against the number of labels: the fine-tuned encoder, a probe on it, a bag of words, and the same model "
    "from random weights.",
)  # fmt: skip
display(picture)
lead = {n: accuracy["fine-tuned"][n] - accuracy["bag of words"][n] for n in accuracy["fine-tuned"]}
over_scratch = {n: accuracy["fine-tuned"][n] - value for n, value in accuracy["scratch"].items()}
most = max(over_scratch)
fallen = sum(v < 0.55 for n, v in tuned.values("accuracy", name="scratch") if n == most)  # near a constant answer
compare(
    transfer_guess,
    "Over the bag of words the fine-tuned encoder leads by "
    + ", ".join(f"{points:+.1f} points with {n:,} labels" for n, points in lead.items())
    + "; over the same model from random weights by "
    + ", ".join(f"{points:+.1f} with {n:,}" for n, points in over_scratch.items())
    + (
        f" (where {fallen} of the samples from random weights ended near a constant answer, which drags that mean down)"
        if fallen
        else ""
    )
    + (
        ". Beside counting words, what was learned without labels is worth most where labels are few, and counting catches up as they become many. "
        "Without that baseline in the comparison nobody would have seen it."
        if max(lead, key=lead.get) == min(lead) and min(lead, key=lead.get) == max(lead)
        else "."
    ),
    f"{max(lead, key=lead.get)} labels",
)

# %% [markdown] name="decisions"
# Two decisions shaped these models. Each was tried on a pair of short runs that differ in nothing else
# (`data/records/variants.jsonl`; `course record variants` makes it again).
#
# - **Positions.** A masked encoder can learn a vector for each position, as BERT does, or turn its vectors by an angle that grows
#   with the position, as RoFormer does.
# - **Optimiser.** AdamW divides each weight's gradient by its usual size. Muon (arXiv:2502.16982) looks at a matrix as a whole and
#   makes its step equally long in every direction, so that a few loud directions cannot drown the others.
#
# **Predict.** How far apart are the held-out losses of each pair at the end of the short runs, and of which pair further?

# %% name="predict-decisions" jupyter={"source_hidden": true}
decisions_guess = guess("What matters more here", ["positions", "optimiser", "neither, by less than 0.1 nats"])
display(decisions_guess)

# %% name="draw-decisions" jupyter={"source_hidden": true}
pairs = {"positions": ("learned positions", "rotary positions"), "optimiser": ("AdamW", "Muon")}
tried_out = Record(runs.RECORDS_FOLDER / "variants.jsonl")
ends, lines = {}, {}
for names in pairs.values():
    for name in names:
        steps, values = zip(*tried_out.values("held_out", name=name), strict=True)
        lines[name] = ([step * recipe.tokens_per_step / 1e6 for step in steps if step], values[1:])
        ends[name] = values[-1]
gained = {what: ends[usual] - ends[chosen] for what, (usual, chosen) in pairs.items()}
larger = max(gained, key=gained.get)
picture = plots.show(
    plots.draw_curves(
        lines, references={"ln V": uniform_loss(vocabulary)}, xlabel="tokens read, millions", ylabel="held-out loss, nats per target",
    ),
    alt="Held-out loss of four short runs: a masked encoder with learned and with rotary positions, a decoder with AdamW "
    "and with Muon.",
)  # fmt: skip
display(picture)
compare(
    decisions_guess,
    "; ".join(
        f"{chosen} instead of {usual}: {ends[usual]:.3f} becomes {ends[chosen]:.3f}, {gained[what]:.3f} nats better"
        for what, (usual, chosen) in pairs.items()
    )
    + ". Each gap is in nats of its own question, masked tokens or next ones, and from one run of each: both are reasons to decide as the course did, and "
    "no ranking of positions against optimisers. Why a plateau? A masked model with learned positions must first find out where its neighbours "
    "are, is a likely reason, which no cell here has tested.",
    larger if gained[larger] >= 0.1 else "neither, by less than 0.1 nats",
)

# %% [markdown] name="kill"
# ## 9 Survive kill -9
#
# Long runs are interrupted: a laptop closes, a machine is taken away. `kill -9` gives a process no chance to save anything, so
# whatever it will need must be on the disk already, whole. The cell starts a real process, `course pretrain`, on some
# reviews, kills it while it trains, and starts it again with `--resume`. Beside it an undisturbed run does the same work. (It saves
# every 20 steps, and at some early shares of the run, 1/32 and its doubles.)
#
# **Predict.** Dropout is on, the order of the rows is random, the rate is on a schedule. How close are the weights in the end?

# %% name="predict-kill" jupyter={"source_hidden": true}
kill_guess = guess("After kill -9 and resume", ["equal to the bit", "close", "another model, equally good"])
display(kill_guess)

# %% name="kill-and-resume"
folder = Path(tempfile.mkdtemp())
(folder / "reviews.txt").write_text("\n\n".join(review.text for review in reviews_of("train", "imdb")[:200]), "utf-8")
settings = {
    "tokens": 40 * 8 * 64, "row_length": 64, "batch_size": 8, "save_every": 10, "width": 64, "layers": 2, "dropout": 0.1,
    "optimizer": "adamw", "dtype": "float32", "text": str(folder / "reviews.txt"),
}  # fmt: skip
command = [sys.executable, "-m", "course_lib.cli", "pretrain", "decoder", "--device", "cpu", "--keep", "9"]
for option, value in settings.items():
    command += [f"--{option.replace('_', '-')}", str(value)]


def start(out, *more):
    """A process on one thread, for two of them share this machine."""
    return subprocess.Popen(
        [*command, "--out", folder / out, *more],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


undisturbed, doomed = start("undisturbed"), start("killed")
saved = Checkpoints(folder / "killed", keep=9)
while 20 not in saved.steps() and doomed.poll() is None:
    time.sleep(0.05)
doomed.kill()
print(
    "killed; exit code",
    doomed.wait(),
    "; whole checkpoints on the disk: steps",
    saved.steps(),
)
resumed = start("killed", "--resume")
print(resumed.communicate()[0].decode().splitlines()[-1].replace(str(folder), "FOLDER"))
_ = undisturbed.communicate()

# %% name="compare-after-kill" jupyter={"source_hidden": true}
one, two = ((folder / out / "model" / "model.safetensors").read_bytes() for out in ("undisturbed", "killed"))
compare(
    kill_guess,
    f"The two weight files, {len(one):,} bytes each, are "
    + ("equal to the bit." if one == two else "**not equal: a piece of state was lost.**"),
    "equal to the bit" if one == two else "close",
)

# %% [markdown] name="forget"
# Does every piece of state count? Take a checkpoint of the undisturbed run and go on from it here, each time forgetting one
# piece. The drift is the distance of the final weights from those of the undisturbed run, as a share of how far that run
# travelled from that checkpoint to its end.

# %% name="forget-one-piece" jupyter={"source_hidden": true}
run = runs.recipe("decoder", **settings)
undisturbed_run = Checkpoints(folder / "undisturbed", keep=9)
begun = undisturbed_run.load(20)
goal, there = load_model(undisturbed_run.load(run.steps).folder), load_model(begun.folder)
train_rows, own_held_out = run.rows()
own_dataset, own_dev = run.dataset(train_rows), run.dataset(own_held_out, batch_size=len(own_held_out.ids_NT)).batch(0)


def go_on(forget=None):
    """The undisturbed run from step 20 on, in this process, without one piece of its state."""
    model = load_model(begun.folder).train()
    optimizer = make_optimizer(model, run.optimizer, weight_decay=run.weight_decay)
    if forget != "optimiser's moments":
        optimizer.load_state_dict(begun.state["optimizer"])
    restore_random_states(begun.state["random"])
    if forget == "random state":
        torch.manual_seed(1)
    at = 0 if forget == "position in the data" else begun.step
    rate = (lambda n: run.schedule(n - begun.step)) if forget == "position in the schedule" else run.schedule
    batches = (own_dataset.batch(k) for k in itertools.count(at))
    list(train(model, batches, steps=run.steps - begun.step, rate=rate, optimizer=optimizer, start=begun.step,
               dtype=torch.float32))  # fmt: skip
    return model


def distance(some, other):
    pairs = zip(some.parameters(), other.parameters(), strict=True)
    return math.sqrt(sum(float((a - b).detach().double().pow(2).sum()) for a, b in pairs))


travelled = distance(there, goal)
drift, own_loss = {}, {}
pieces = [None, "optimiser's moments", "position in the schedule", "random state", "position in the data"]
for piece in tqdm(pieces, desc="going on"):
    with threads(1):  # as the process had: sums in another order round otherwise
        ended = go_on(piece)
    drift[piece], own_loss[piece] = distance(ended, goal) / travelled, held_out_loss(ended, [own_dev])
table(
    ["forgotten", "drift of the weights", "held-out loss differs by"],
    [[p or "nothing", f"{100 * drift[p]:.1f}%" if drift[p] else "0, to the bit",
      f"{own_loss[p] - own_loss[None]:+.4f}"] for p in pieces],
)  # fmt: skip

# %% name="explain-forget" jupyter={"source_hidden": true}
quiet = min((p for p in pieces if p), key=lambda p: abs(own_loss[p] - own_loss[None]))
luckier = [piece for piece in pieces if piece and own_loss[piece] < own_loss[None]]
Markdown(
    f"Every forgotten piece leads to other weights, {100 * min(drift[p] for p in pieces if p):.0f}% of the way elsewhere or more. The losses differ by "
    f"{max(abs(own_loss[p] - own_loss[None]) for p in pieces):.4f} nats at most, and {len(luckier)} of the {len(pieces) - 1} forgetful runs end lower. These "
    "are single runs on little text, so do not rank the pieces by them: the point is that nobody would notice. So compare weights, and to the bit."
)

# %% [markdown] name="exercises"
# ## Exercises
#
# Five parts of a training run to write. The checks work as in chapter 1: they say what is wrong, and you can go on either way.

# %% [markdown] name="exercise-schedule" tags=["exercise"]
# ### Exercise 1: warm-up and cosine
#
# Write the factor by which the peak rate is multiplied at a step. Steps count from 0. Over the first `warmup` steps it climbs
# in equal steps to 1, and the very first step is above 0 already; `warmup` may be 0. From step `warmup` on it follows half a
# wave of a cosine, from 1 down to `floor`, which it reaches at step `total`. After that it stays there (so steps `warmup - 1` and
# `warmup` both have factor 1). Give back a plain number.
#
# <details><summary>Hint 1</summary>

# Three stretches, three cases: before <code>warmup</code>, from there to <code>total</code>, behind it.</details>
# <details><summary>Hint 2</summary>

# What share of the way from <code>warmup</code> to <code>total</code> has been gone? Half a turn is <code>math.pi</code>.</details>
# <details><summary>Hint 3</summary>

# First make a wave that falls from 1 to 0. Only what lies above the floor may fall with it.</details>


# %% name="exercise-schedule-code" tags=["exercise"]
def my_warmup_cosine(step, *, warmup, total, floor=0.0):
    ### BEGIN SOLUTION
    if step < warmup:
        return (step + 1) / warmup
    if step >= total:
        return floor
    progress = (step - warmup) / (total - warmup)
    return floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2
    ### END SOLUTION


# %% name="exercise-schedule-check" tags=["check"]
warmup_cosine = checks.warmup_cosine(my_warmup_cosine)

# %% [markdown] name="exercise-decay" tags=["exercise"]
# ### Exercise 2: decay groups
#
# Weight decay pulls parameters towards 0. Here all that have two axes or more get it, tables of embeddings among them; those with fewer
# (biases, and the gains of a normalisation) do not. Return two lists of parameters: those that decay, and those that are spared. Every parameter that is
# trained stands in one of them, once; what is frozen (`requires_grad` is False) stands in neither. Your function must work on
# models whose names you have never seen.
#
# <details><summary>Hint 1</summary>

# A list of names that are spared is never finished. What do all vectors have in common?</details>
# <details><summary>Hint 2</summary>

# <code>model.parameters()</code> gives each parameter once, also one that stands in two places.</details>


# %% name="exercise-decay-code" tags=["exercise"]
def my_decay_groups(model):
    ### BEGIN SOLUTION
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [p for p in trained if p.dim() >= 2], [p for p in trained if p.dim() < 2]
    ### END SOLUTION


# %% name="exercise-decay-check" tags=["check"]
decay_groups = checks.decay_groups(my_decay_groups)

# %% [markdown] name="exercise-loss" tags=["exercise"]
# ### Exercise 3: the loss of a step
#
# A step is cut into micro-batches because memory is short; its loss must not depend on how it is cut. `micro_batches` is a list
# of pairs `(logits_NV, labels_N)` with any number of rows each. A row whose label is `-100` (`IGNORE_INDEX`) is padding and
# counts nowhere; some micro-batches are padding alone, the whole step holds at least one target. Return the loss per target of
# the whole step, in nats: a tensor that `backward()` can be called on.
#
# <details><summary>Hint 1</summary>

# The mean of 2 numbers and the mean of 100 numbers: what is the mean of all 102?</details>
# <details><summary>Hint 2</summary>

# <code>F.cross_entropy</code> averages unless you tell it otherwise by <code>reduction</code>. It skips -100 by itself.</details>


# %% name="exercise-loss-code" tags=["exercise"]
def my_step_loss(micro_batches):
    ### BEGIN SOLUTION
    total, targets = 0.0, 0
    for logits_NV, labels_N in micro_batches:
        total = total + F.cross_entropy(logits_NV, labels_N, ignore_index=IGNORE_INDEX, reduction="sum")
        targets += int((labels_N != IGNORE_INDEX).sum())
    return total / targets
    ### END SOLUTION


# %% name="exercise-loss-check" tags=["check"]
step_loss = checks.step_loss(my_step_loss)

# %% [markdown] name="exercise-step" tags=["exercise"]
# ### Exercise 4: one full step
#
# Put it together: one update of the model from all the micro-batches in `batches`. The gradient is that of exercise 3's loss,
# shortened to the norm `clip` where it is longer. The optimizer has several groups of parameters, and each takes this step's
# `rate`. The next step calls your function again, on the same model. Return the loss and the norm of the gradient before
# clipping, both as plain numbers.
#
# `batches` is a list. No gradient is left over before the first call, and none may be left from one call to the next.
# `batch_loss(model, batch)` gives the summed loss of a batch and the number of its targets; `batch.is_target_BL` says which
# positions are targets, before any model runs.
#
# <details><summary>Hint 1</summary>

# <code>backward()</code> adds to the gradients that are there. That is what you want within a step, and not across two.</details>
# <details><summary>Hint 2</summary>

# Count the targets of all batches first. Then each batch's part of the loss can be sent back by itself, and its memory is free
# again.</details>
# <details><summary>Hint 3</summary>

# <code>nn.utils.clip_grad_norm_</code> gives back a norm: which one? A group of <code>optimizer.param_groups</code> is a dict
# with a key <code>"lr"</code>.</details>


# %% name="exercise-step-code" tags=["exercise"]
def my_training_step(model, optimizer, batches, *, rate, clip):
    ### BEGIN SOLUTION
    targets = sum(int(batch.is_target_BL.sum()) for batch in batches)
    optimizer.zero_grad()
    loss = 0.0
    for batch in batches:
        total, _ = batch_loss(model, batch)
        (total / targets).backward()
        loss += total.item() / targets
    norm = nn.utils.clip_grad_norm_(model.parameters(), clip).item()
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    return loss, norm
    ### END SOLUTION


# %% name="exercise-step-check" tags=["check"]
training_step = checks.training_step(my_training_step)

# %% [markdown] name="exercise-checkpoint" tags=["exercise"]
# ### Exercise 5: what a checkpoint must hold
#
# A run is stopped before step `step` and must go on as if nothing had happened: in another process, with a fresh model and a
# fresh optimizer of the same make, and to the bit. Its batches and its rate are functions of the step; its model has dropout,
# which draws from torch's global generator.
#
# Write `take`, which returns all that has to be saved, as a dict, and `restore`, which puts it back and returns the step to go on
# with. The dict is written with `torch.save` at once and read with `torch.load(..., weights_only=True)`, which accepts tensors,
# numbers, text, lists and dicts, and nothing that could run code. `take` only looks: the run that is saved goes on undisturbed.
#
# <details><summary>Hint 1</summary>

# What does the next step read that this one has written? Four things.</details>
# <details><summary>Hint 2</summary>

# Models and optimizers have <code>state_dict()</code> and <code>load_state_dict()</code>.</details>
# <details><summary>Hint 3</summary>

# Where torch's generator stands (a seed only says where it began): <code>torch.get_rng_state()</code>, and
# <code>torch.set_rng_state()</code>.</details>


# %% name="exercise-checkpoint-code" tags=["exercise"]
def my_take(model, optimizer, step):
    ### BEGIN SOLUTION
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
        "random": torch.get_rng_state(),
    }
    ### END SOLUTION


def my_restore(state, model, optimizer):
    ### BEGIN SOLUTION
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["random"])
    return state["step"]
    ### END SOLUTION


# %% name="exercise-checkpoint-check" tags=["check"]
take, restore = checks.checkpoint_state(my_take, my_restore)

# %% [markdown] name="clinic"
# ## Bug clinic
#
# Eight more patients: code that looks right and runs, each with a mistake that real training scripts make. As in chapter 1,
# run the experiment first, decide from its numbers what must be wrong, then unfold the diagnosis.

# %% [markdown] name="clinic-warmup-story"
# ### Patient 1: a warm-up
#
# “Warm up linearly over the first steps.”

# %% name="clinic-warmup" tags=["clinic"]


def patient_warmup(step, warmup):
    return min(1.0, step / warmup)


def weights_moved(factor, steps=1):
    """How many weights of a fresh model have changed after some steps at factor(step, 10) of the peak rate."""
    model = new_model(Decoder, small)
    before = [p.detach().clone() for p in model.parameters()]
    list(train(model, dataset, steps=steps, rate=lambda step: 1e-3 * factor(step, 10)))
    return sum(int((p != old).sum()) for p, old in zip(model.parameters(), before, strict=True))


# %% name="clinic-warmup-experiment"
table(
    ["after", "weights that have moved"],
    [[f"{n} step" + "s" * (n > 1), f"{weights_moved(patient_warmup, n):,}"] for n in (1, 2, 3)],
)

# %% [markdown] name="clinic-warmup-diagnosis"
# <details><summary>Diagnosis</summary>
#
# Steps count from 0, so the first is taken at rate 0: a forward and a backward pass for nothing. AdamW's moments are updated all the
# same. Count the step that is being taken: <code>(step + 1) / warmup</code>.
# </details>

# %% name="clinic-warmup-cure" tags=["clinic"]


def cured_warmup(step, warmup):
    return min(1.0, (step + 1) / warmup)


# %% [markdown] name="clinic-means-story"
# ### Patient 2: accumulation
#
# “The batch does not fit, so take the mean loss of each micro-batch and average.”

# %% name="clinic-means" tags=["clinic"]


def patient_accumulation(model, micro_batches):
    for batch in micro_batches:
        total, n_targets = token_loss(model.target_logits(batch), batch.labels_BL[batch.is_target_BL])
        (total / n_targets / len(micro_batches)).backward()


def ragged(n_first=2, kept=0.1):
    """One batch of 8 rows, and the same rows as two micro-batches; in the first rows most tokens are not asked for."""
    batch = dataset.corrupt(dataset.packed.ids_NT[:8], seeded(0))
    labels_BL = batch.labels_BL.clone()
    labels_BL[:n_first][torch.rand(labels_BL[:n_first].shape, generator=seeded(1)) > kept] = IGNORE_INDEX
    whole = replace(batch, labels_BL=labels_BL)
    parts = [
        replace(
            whole,
            input_ids_BT=whole.input_ids_BT[rows],
            labels_BL=labels_BL[rows],
            may_attend_BQK=whole.may_attend_BQK[rows],
        )
        for rows in (slice(None, n_first), slice(n_first, None))
    ]
    return whole, parts


def gradient_error(accumulate):
    """How far the gradient of the two micro-batches lies from that of the whole batch, as a share of its length."""
    whole, parts = ragged()
    gradients = []
    for batches, way in (([whole], cured_accumulation), (parts, accumulate)):
        model = new_model(Decoder, small, device="cpu")
        way(model, batches)
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    return float((gradients[0] - gradients[1]).norm() / gradients[0].norm())


# %% name="clinic-means-cure" tags=["clinic"] jupyter={"source_hidden": true}


def cured_accumulation(model, micro_batches):
    all_targets = sum(int(batch.is_target_BL.sum()) for batch in micro_batches)
    for batch in micro_batches:
        total, _ = token_loss(model.target_logits(batch), batch.labels_BL[batch.is_target_BL])
        (total / all_targets).backward()


# %% name="clinic-means-experiment"
targets = [int(batch.is_target_BL.sum()) for batch in ragged()[1]]
Markdown(
    f"Two micro-batches with {targets[0]} and {targets[1]} targets. The patient's gradient is off by "
    f"{gradient_error(patient_accumulation):.0%} of the whole batch's."
)

# %% [markdown] name="clinic-means-diagnosis"
# <details><summary>Diagnosis</summary>
#
# A mean of means weighs each micro-batch the same, so a target among few counts for more than one among many. Losses hardly show
# it; gradients do. Sum over targets, and divide once by all targets of the step (the folded cell above; libraries shipped this
# mistake for years).
# </details>

# %% [markdown] name="clinic-padding-story"
# ### Patient 3: a loss over padded rows
#
# “Pad the rows to one length, and take the cross-entropy.”

# %% name="clinic-padding" tags=["clinic"]


def patient_loss(logits_BTV, labels_BT):
    return F.cross_entropy(logits_BTV.flatten(0, 1), labels_BT.flatten())


def loss_when_padded(loss, extra, text="a film that takes its time, and is worth it"):
    """The loss of one sentence under a model that knows padding when it sees it, with `extra` tokens of padding."""
    ids = tokenizer.encode(text)
    labels_BT = torch.tensor([ids + [vocabulary.pad] * extra])
    logits_BTV = torch.randn(1, labels_BT.shape[1], vocabulary.size, generator=seeded(2))
    logits_BTV[..., vocabulary.pad] += 8 * (labels_BT == vocabulary.pad)
    return float(loss(logits_BTV, labels_BT))


# %% name="clinic-padding-experiment"
table(
    ["tokens of padding behind the sentence", "its loss, nats per target"],
    [[extra, f"{loss_when_padded(patient_loss, extra):.2f}"] for extra in (0, 10, 50, 200)],
)

# %% [markdown] name="clinic-padding-diagnosis"
# <details><summary>Diagnosis</summary>
#
# The sentence is the same, and its loss falls with the padding behind it: padding is being predicted, it is easy, and it is
# averaged in. Labels at padding must be <code>-100</code> (<code>IGNORE_INDEX</code>), so that they are neither summed nor counted.
# </details>

# %% name="clinic-padding-cure" tags=["clinic"]


def cured_loss(logits_BTV, labels_BT):
    labels_BT = labels_BT.masked_fill(labels_BT == vocabulary.pad, IGNORE_INDEX)
    return F.cross_entropy(logits_BTV.flatten(0, 1), labels_BT.flatten(), ignore_index=IGNORE_INDEX)


# %% [markdown] name="clinic-decay-story"
# ### Patient 4: who decays
#
# “No decay for biases and norms.”

# %% name="clinic-decay" tags=["clinic"]


def patient_groups(model):
    spared = [p for name, p in model.named_parameters() if any(part in name for part in ("bias", "norm"))]
    decayed = [p for name, p in model.named_parameters() if not any(part in name for part in ("bias", "norm"))]
    return [{"params": decayed, "weight_decay": 1.0}, {"params": spared, "weight_decay": 0.0}]


def scales_after(groups, steps=100):
    """The mean scale of the normalisations of a decoder after some steps without any gradient: decay alone."""
    model = new_model(Decoder, small)
    optimizer = torch.optim.AdamW(groups(model), lr=1e-2)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for _ in range(steps):
        optimizer.step()
    return torch.cat([m.weight for m in model.modules() if isinstance(m, nn.LayerNorm)]).mean().item()


# %% name="clinic-decay-experiment"
Markdown(
    f"Scales of the normalisations: 1 at first, {scales_after(patient_groups):.2f} after decay without a gradient."
)

# %% [markdown] name="clinic-decay-diagnosis"
# <details><summary>Diagnosis</summary>
#
# In GPT-2's layout they are called <code>ln_1</code>, <code>ln_2</code>, <code>ln_f</code>: the name holds no "norm". Decide by shape.
# </details>

# %% name="clinic-decay-cure" tags=["clinic"]


def cured_groups(model):
    return optimizers.decay_groups(model, 1.0)


# %% [markdown] name="clinic-cosine-story"
# ### Patient 5: a cosine
#
# “Let the rate fall along half a cosine.” Somebody has then extended the run by half.

# %% name="clinic-cosine" tags=["clinic"]


def patient_cosine(step, total):
    return 0.5 * (1 + math.cos(math.pi * step / total))


# %% name="clinic-cosine-experiment"
table(["step", "factor"], [[step, f"{patient_cosine(step, 100):.2f}"] for step in (0, 50, 99, 100, 125, 150)])

# %% [markdown] name="clinic-cosine-diagnosis"
# <details><summary>Diagnosis</summary>
#
# A cosine goes on: after its end the rate rises again, and a model that has settled is shaken up. Hold the progress at 1.
# </details>

# %% name="clinic-cosine-cure" tags=["clinic"]


def cured_cosine(step, total):
    return cosine(step, total=total)


# %% [markdown] name="clinic-zero-story"
# ### Patient 6: a step
#
# “Forward, backward, clip, step.”

# %% name="clinic-zero" tags=["clinic"]


def patient_step(model, optimizer, batch):
    total, n_targets = token_loss(model.target_logits(batch), batch.labels_BL[batch.is_target_BL])
    (total / n_targets).backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), math.inf)
    optimizer.step()
    return float(norm)


def norms_on_one_batch(one_step, steps=12):
    """Gradient norms while one batch is shown again and again to a model that hardly moves."""
    model = new_model(Decoder, small)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    return [one_step(model, optimizer, dataset.batch(0).to(device)) for _ in range(steps)]


# %% name="clinic-zero-experiment"
table(
    ["step", "gradient norm"],
    [[n + 1, f"{norm:.2f}"] for n, norm in enumerate(norms_on_one_batch(patient_step)) if n % 3 == 0],
)

# %% [markdown] name="clinic-zero-diagnosis"
# <details><summary>Diagnosis</summary>
#
# The same batch and nearly the same weights must give nearly the same gradient; here it grows step by step. <code>backward</code>
# adds to what is there, and <code>optimizer.zero_grad()</code> was forgotten. Clipping would cut it back to
# its length, and hide that.
# </details>

# %% name="clinic-zero-cure" tags=["clinic"]


def cured_step(model, optimizer, batch):
    optimizer.zero_grad()
    return patient_step(model, optimizer, batch)


# %% [markdown] name="clinic-random-story"
# ### Patient 7: a checkpoint
#
# “Weights, optimiser, step: everything is there.” The model has dropout.

# %% name="clinic-random" tags=["clinic"]


def patient_take(model, optimizer, step):
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}


def patient_restore(state, model, optimizer):
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"]


def weights_that_differ(take, restore, steps=8):
    """Of a run that is taken up again in the middle: how many weights are not those of the undisturbed run."""
    config = small.with_(dropout=0.1)
    torch.manual_seed(0)
    model = new_model(Decoder, config)
    optimizer = make_optimizer(model)
    list(train(model, dataset, steps=steps // 2, rate=1e-3, optimizer=optimizer))
    state = copy.deepcopy(take(model, optimizer, steps // 2))
    batches = [dataset.batch(k) for k in range(steps // 2, steps)]
    list(train(model, batches, steps=steps // 2, rate=1e-3, optimizer=optimizer))
    torch.manual_seed(int(time.time()))  # another process, another day
    again = new_model(Decoder, config, seed=1)
    optimizer = make_optimizer(again)
    at = restore(state, again, optimizer)
    batches = (dataset.batch(k) for k in itertools.count(at))
    list(train(again, batches, steps=steps - at, rate=1e-3, optimizer=optimizer))
    return sum(int((a != b).sum()) for a, b in zip(model.parameters(), again.parameters(), strict=True))


# %% name="clinic-random-experiment"
Markdown(f"{weights_that_differ(patient_take, patient_restore):,} weights differ from those of the undisturbed run.")

# %% [markdown] name="clinic-random-diagnosis"
# <details><summary>Diagnosis</summary>
#
# Dropout draws from a global random generator, whose state is not in the checkpoint. Nothing breaks; the run is another one, and
# a bug that showed itself before the restart may not come back.
# </details>

# %% name="clinic-random-cure" tags=["clinic"]


def cured_take(model, optimizer, step):
    return patient_take(model, optimizer, step) | {"random": torch.get_rng_state()}


def cured_restore(state, model, optimizer):
    torch.set_rng_state(state["random"])
    return patient_restore(state, model, optimizer)


# %% [markdown] name="clinic-evaluation-story"
# ### Patient 8: an evaluation
#
# “Measure the held-out loss now and then.”

# %% name="clinic-evaluation" tags=["clinic"]


@torch.no_grad()
def patient_evaluation(model, batches):
    pairs = [token_loss(model.target_logits(b.to(device)), b.labels_BL[b.is_target_BL].to(device)) for b in batches]
    return float(sum(total for total, _ in pairs)) / sum(count for _, count in pairs)


briefly_trained = new_model(Decoder, small.with_(dropout=0.3))
_ = list(train(briefly_trained, dataset, steps=20, rate=1e-3))


def three_times(evaluate):
    """The same model, the same text, three times."""
    model = copy.deepcopy(briefly_trained).train()
    torch.manual_seed(0)
    return [evaluate(model, dev_batches[:2]) for _ in range(3)]


# %% name="clinic-evaluation-experiment"
table(
    ["time", "held-out loss"],
    [[n + 1, f"{loss:.4f}"] for n, loss in enumerate(three_times(patient_evaluation))]
    + [["in evaluation mode", f"{three_times(lambda m, batches: patient_evaluation(m.eval(), batches))[0]:.4f}"]],
)

# %% [markdown] name="clinic-evaluation-diagnosis"
# <details><summary>Diagnosis</summary>
#
# Same model, same text, another number each time: dropout is on. Every figure is too high, and models with more dropout
# look worse than they are. <code>model.eval()</code> before, and back to what it was after.
# </details>

# %% name="clinic-evaluation-cure" tags=["clinic"]


def cured_evaluation(model, batches):
    was_training = model.training
    model.eval()
    try:
        return patient_evaluation(model, batches)
    finally:
        model.train(was_training)


# %% [markdown] name="cures"
# Each patient's cure stands in a cell beside its diagnosis. Here is every experiment once more, on patient and cure.

# %% name="clinic-after" jupyter={"source_hidden": true}
spread = lambda losses: max(losses) - min(losses)
growth = lambda norms: norms[-1] / norms[0]
cases = [
    ["weights moved by the first step", f"{weights_moved(patient_warmup):,}", f"{weights_moved(cured_warmup):,}"],
    ["error of the gradient", f"{gradient_error(patient_accumulation):.1%}", f"{gradient_error(cured_accumulation):.1e}"],
    ["loss of a padded sentence, as a share of the loss without padding",
     *(f"{loss_when_padded(f, 200) / loss_when_padded(f, 0):.0%}" for f in (patient_loss, cured_loss))],
    ["scale of the normalisations after decay", *(f"{scales_after(f):.2f}" for f in (patient_groups, cured_groups))],
    ["rate half a run after the end", *(f"{f(150, 100):.2f}" for f in (patient_cosine, cured_cosine))],
    ["growth of the gradient on one batch", *(f"{growth(norms_on_one_batch(f)):.2f}x" for f in (patient_step, cured_step))],
    ["weights that differ after resuming",
     f"{weights_that_differ(patient_take, patient_restore):,}", f"{weights_that_differ(cured_take, cured_restore):,}"],
    ["spread of three evaluations", *(f"{spread(three_times(f)):.4f}" for f in (patient_evaluation, cured_evaluation))],
]  # fmt: skip
after_table = table(["experiment", "patient", "cure"], cases)
Markdown(f"<details><summary>Patients and cures</summary>\n\n{after_table.data}\n\n</details>")

# %% [markdown] name="claims"
# ## What is usually said
#
# The source is the text that this course grew out of, as in chapter 1. The verdicts are computed from the figures above.

# %% name="claims-table" jupyter={"source_hidden": true}
rows = [
    [
        "Warm up for 10,000 steps.",
        "10,000 of 1,000,000; and 100 steps for six sentences",
        f"the second run has {source_steps} steps and ends at {reached:.0%} of its peak",
        "a warm-up is a share of a run, not a number" if reached < 0.99 else "holds here",
    ],
    [
        "Exclude biases, norms and embeddings from decay by name.",
        "by name",
        f"on our decoder {missed} scales decay all the same",
        "does not hold in GPT-2's layout" if missed else "holds here",
    ],
    [
        "Clipping rescues a run from a bad batch.",
        "max_norm = 1.0, without a measurement",
        f"SGD {SGD:+.2f}"
        + (", then diverged," if LAST not in harm["SGD", math.inf] else "")
        + f" without and {damage['SGD', 1.0]:+.2f} with clipping; AdamW {ADAMW:+.2f} and {damage['AdamW', 1.0]:+.2f}",
        "for SGD" if damage["SGD", 1.0] + 0.05 < SGD and damage["AdamW", 1.0] + 0.05 > ADAMW else "see the figures",
    ],
    [
        "The loss shows whether a run was resumed rightly.",
        "checkpoints hold model and optimiser",
        f"a lost {quiet} changes the held-out loss by {own_loss[quiet] - own_loss[None]:+.4f}, the weights by {drift[quiet]:.0%}",
        "not reliably" if luckier or abs(own_loss[quiet] - own_loss[None]) < 0.02 else "here they did",
    ],
]
table(["usually said", "the source", "measured here", "verdict"], rows)

# %% [markdown] name="summary"
# ## What to take along
#
# - The loop is short. Sum over targets, divide once, clip, set the rate, step, forget the gradient.
# - Before a long run: loss at the start, one batch by heart, a range of rates.
# - A schedule is a function of the step. Look at its first value, its last, and the one after it.
# - Names are not a rule; shapes are.
# - Bits per byte let a model be compared with everything that predicts text. Count the simple rivals first.
# - The beginning of a run predicts its end roughly; expect it to be too hopeful where the text repeats.
# - Test a checkpoint by resuming from it: the weights must be equal to the bit.
#
# You now have a pre-trained model and know what went into it. What is the least that must change in it to learn a task? That is
# the next chapter.
#
# ## Sources
#
# - Loshchilov and Hutter 2017, AdamW, [arXiv:1711.05101](https://arxiv.org/abs/1711.05101); cosine decay,
#   [arXiv:1608.03983](https://arxiv.org/abs/1608.03983)
# - Hu et al. 2024, warm-up, stable, decay, [arXiv:2404.06395](https://arxiv.org/abs/2404.06395)
# - Smith 2015, the range test, [arXiv:1506.01186](https://arxiv.org/abs/1506.01186)
# - Jordan et al. 2024, *Muon*; Liu et al. 2025, [arXiv:2502.16982](https://arxiv.org/abs/2502.16982)
# - Kaplan et al. 2020, scaling laws, [arXiv:2001.08361](https://arxiv.org/abs/2001.08361); Hoffmann et al. 2022,
#   [arXiv:2203.15556](https://arxiv.org/abs/2203.15556)
# - Pascanu et al. 2012, clipping, [arXiv:1211.5063](https://arxiv.org/abs/1211.5063)
# - Chen and Goodman 1999, *An empirical study of smoothing techniques for language modeling*
# - Su et al. 2021, RoFormer (rotary positions), [arXiv:2104.09864](https://arxiv.org/abs/2104.09864)
#
# **Next:** [03 Parameter-efficient strategies](03_parameter_efficient_strategies.ipynb)

# %% name="sweep-controls" tags=["remove-cell"] jupyter={"source_hidden": true}
sweep(schedules_box)  # every control to its ends: fails if one of them shows an error
assert not schedules_box.banner.value and not lab.banner.value
