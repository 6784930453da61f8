# ---
# jupyter:
#   jupytext: {text_representation: {extension: .py, format_name: percent}}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown] name="title"
# # 05 Efficient training
#
# **Half the memory, three times the speed, four devices that do the work of four: when is that true?** Chapters 1 to 4
# trained in one process, on models that fit. Guides to training larger ones promise such figures. They were true of some
# model, in some shape, on some machine. This chapter measures them on yours: bytes are counted, what is timed takes turns with
# what it is compared with where it can, and the parallel part is done by real processes that talk to each other.
#
# You will
#
# - measure where a coarser number format pays, and where it does not;
# - look at the gradients of a real step close up, and choose the scale at which fp16 can hold them;
# - cut a batch into micro-batches without changing the result, and see what a common way of doing it changes;
# - trade time for memory by computing things twice;
# - start two processes from this notebook that train one model, prove that they train the same one, and count what each holds and sends;
# - plan the training of models that will never fit this machine, with a planner that has been checked on those that do;
# - kill one of the processes, and see what is lost.
#
# **How to read it.** As [00 Start here](00_start_here.ipynb) explains. Timings on a machine that does other things as well
# differ from run to run; bytes of tensors do not. Sections 5 and 7 and the bug clinic start processes that talk to each other on
# this machine alone, and section 7 kills one.
#
# **If you build compilers:** these are the optimisation passes. The program computes the same function, so each pass is
# checked against the unoptimised one: to the bit where it only moves work, to rounding where it changes the order of sums.
# Precision is the pass that changes results, as <code>-ffast-math</code> does: sections 1 and 2 are about when that is allowed.

# %% name="progress" jupyter={"source_hidden": true}
from course_lib.lab import progress

progress("05")

# %% [markdown] name="words"
# <details><summary><b>Words used below</b> (unfold when you meet one)</summary>
#
# - **fp32, bf16, fp16**: number formats of 32, 16 and 16 bits. bf16 has fp32's range and 8 bits of precision; fp16 has 11 bits and a
#   narrow range. **Subnormal**: below the smallest number that has full precision, where digits get lost one by one.
# - **Autocast**, or mixed precision: weights stay fp32, matrix products are computed in a shorter format.
# - **Kept for the backward pass**: what the forward pass stores so that gradients can be computed (activations).
# - **Step**: one change of the weights. **Micro-batch**: a part of a step's batch that fits into memory. **Accumulation**: the gradients
#   of several micro-batches add up to that of one step. **Target**: a token that the model is asked for; the loss is in nats per target.
# - **Activation checkpointing**: keep only what enters each block and compute the block again on the way back. (A *checkpoint of a run*
#   is something else: a file.)
# - **Rank**: one of the processes that train together (LoRA's rank, in chapter 3, is something else). **torchrun**: starts them, and
#   starts them again after one has died.
#   **gloo, nccl**: what they talk by, on CPUs and on GPUs. **Loopback**: the network by which a machine talks to itself.
# - **DDP**, distributed data parallel: every rank holds the model and reads other rows. **FSDP**, fully sharded: every rank holds a part
#   of every weight, gradient and moment, and borrows the rest for the time of a block (FSDP2 is PyTorch's second way of doing it).
# - **Optimiser state**: AdamW keeps two moments for each parameter that it trains.
# - **MiB, GiB**: 2²⁰ and 2³⁰ bytes. **The source**: the text that this course grew out of. **Names in the code** end in their axes:
#   `ids_BT` has a row for each text of the batch (B) and a column for each position (T).
#
# Every term of the course: [the glossary](../docs/glossary.md).
# </details>

# %% name="setup" tags=["setup"] jupyter={"source_hidden": true}
import contextlib
import copy
import math
import os
import re
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import torch
from IPython.display import Markdown, display
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler
from tqdm.auto import tqdm

from course_lib import checks, plots
from course_lib.architectures import ARCHITECTURES, QUERY_AND_VALUE, dimensions_of
from course_lib.checkpoint import Checkpoints
from course_lib.data import PretrainingDataset, course_tokenizer, pad, reviews_of, training_rows
from course_lib.evaluation import mean_interval
from course_lib.layers import TransformerConfig
from course_lib.model import Decoder, Encoder
from course_lib.objectives import causal
from course_lib.optimizers import make_optimizer
from course_lib.parallel import run_on_ranks, torchrun
from course_lib.peft import Full, LoRA
from course_lib.planner import PRECISIONS, Bytes, Plan, state_memory, trained_parameters
from course_lib.precision import LossScale, fate
from course_lib.pretrained import load_checkpoint
from course_lib.recomputation import recomputed_blocks
from course_lib.records import Record
from course_lib.runs.shared_steps import SharedSteps, alone, distance, on_ranks
from course_lib.runtime import (
    autocast,
    bytes_here,
    kept_for_backward,
    matmul_rate,
    pick_device,
    seeded,
    threads,
    wait_for,
)
from course_lib.training import batch_loss, held_out_loss, new_model, train
from course_lib.widgets.binder import compare, guess, guess_number, sweep, table
from course_lib.widgets.loss_scale import ScaleBench, draw_microscope, microscope
from course_lib.widgets.planning import PlanBench, draw_plan, planner_explorer
from course_lib.widgets.scale_life import draw_scale_life, replay_scale, scale_life

tokenizer = course_tokenizer()
vocabulary = tokenizer.vocabulary
if pick_device().type == "mps":
    os.environ["COURSE_DEVICE"] = "cpu"  # mps has no numbers of 64 bits, by which this chapter judges
device = pick_device()
MIB = 2**20

# %% name="read-text"
ROW = 128
packed = training_rows(ROW, documents=2000)
dataset = PretrainingDataset(packed, vocabulary, "causal", batch_size=8)
decoder = load_checkpoint("decoder").to(device).train()
Markdown(
    f"The text is film reviews, {packed.ids_NT.numel():,} tokens in rows of {ROW}. The model of most experiments is the decoder "
    f"of chapter 2: {decoder.n_parameters():,} parameters in {decoder.config.n_layers} layers, {decoder.config.d_model} wide."
)

# %% [markdown] name="precision"
# ## 1 Where a shorter format pays
#
# In mixed precision the weights stay in fp32, and matrix products read copies in 16 bits. bf16 has the range of fp32, so
# nothing else need change. *Half the memory, two to three times the speed*, it is said. Half of which memory, and at what
# size of model?
#
# **Predict.** One training step of a masked encoder of two layers, on the same rows, in fp32 and in bf16. How many times
# as fast is bf16 at a width of 1,024?

# %% name="predict-precision" jupyter={"source_hidden": true}
speed_guess = guess(
    "At width 1,024, bf16 is", ["slower", "1 to 2 times as fast", "2 to 3 times as fast", "more than 3 times"]
)
display(speed_guess)

# %% name="one-step"
WIDTHS, REPEATS = (64, 128, 256, 512, 1024), 3
PATIENCE = 3  # seconds: some processors compute 16 bits so slowly that the widest models would take minutes a step
FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16}
masked = (
    PretrainingDataset(packed, vocabulary, "masked", batch_size=4 if device.type == "cpu" else 64).batch(0).to(device)
)


def forward_and_backward(model, batch, dtype):
    """Seconds, bytes kept for the backward pass, and the gradient of one step."""
    model.zero_grad()
    wait_for(device)
    began = time.perf_counter()
    with autocast(device, dtype), kept_for_backward(model) as kept:
        logits_NV = model.target_logits(batch)
        loss = F.cross_entropy(
            logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32)), batch.labels_BL[batch.is_target_BL]
        )
    loss.backward()
    wait_for(device)
    return time.perf_counter() - began, kept.bytes, torch.cat([p.grad.flatten() for p in model.parameters()])


def relative_error(gradient, truth):
    return float((gradient.double() - truth).norm() / truth.norm())


# %% name="measure-precision"
def compare_formats(width):
    """For each format: the median seconds, bytes kept, and how far its gradient lies from that in 64 bits."""
    config = TransformerConfig(
        vocabulary.size, d_model=width, n_layers=2, n_heads=width // 32, d_ff=4 * width, max_len=ROW
    )
    model = new_model(Encoder, config.with_(positions="rotary"))
    truth = forward_and_backward(copy.deepcopy(model).double(), masked, torch.float32)[2]
    found = {name: [] for name in FORMATS}
    began = time.perf_counter()
    for _ in range(REPEATS):  # the formats take turns, so that a busy moment hits both
        if time.perf_counter() - began > PATIENCE:
            break
        for name, dtype in FORMATS.items():
            found[name].append(forward_and_backward(model, masked, dtype))
    return {
        name: (float(np.median([f[0] for f in all_found])), all_found[0][1], relative_error(all_found[0][2], truth))
        for name, all_found in found.items()
    }


def compare_products(width):
    """How many times as fast bf16 is in the largest product of a block, for all tokens of the batch."""
    factors = [
        torch.randn(shape, generator=seeded(0)).to(device)
        for shape in ((masked.input_ids_BT.numel(), width), (width, 4 * width))
    ]
    pairs = {dtype: [factor.to(dtype) for factor in factors] for dtype in FORMATS.values()}
    took = {dtype: [] for dtype in pairs}
    for _ in range(5 * REPEATS):
        if sum(map(sum, took.values())) > PATIENCE / 2:
            break
        for dtype, (left, right) in pairs.items():
            wait_for(device)
            began = time.perf_counter()
            left @ right
            wait_for(device)
            took[dtype].append(time.perf_counter() - began)
    return float(np.median(took[torch.float32]) / np.median(took[torch.bfloat16]))


by_width = {}
for width in tqdm(WIDTHS, desc="widths"):
    by_width[width] = compare_formats(width)
    if width > WIDTHS[0] and 4 * max(seconds for seconds, *_ in by_width[width].values()) > PATIENCE:
        break  # twice the width is four times the work
speedup = {width: found["fp32"][0] / found["bf16"][0] for width, found in by_width.items()}
product_speedup = {width: compare_products(width) for width in tqdm(by_width, desc="products alone")}
display(
    plots.show(
        plots.draw_curves(
            {
                "a step of training": (list(by_width), list(speedup.values())),
                "its largest product alone": (list(by_width), list(product_speedup.values())),
            },
            references={"equally fast": 1.0},
            xlabel="width of the model (log scale)",
            ylabel="speed-up of bf16: fp32's time / bf16's",
            kinds=None,
            log_x=True,
        ),
        alt="Speed-up of bf16 over fp32 against the width of the model, for a whole training step and for the largest product of a block alone.",
    )
)
display(
    table(
        ["width", "bf16: time of a step", "kept for backward", "error of the gradient in fp32", "in bf16"],
        [
            [width, f"{found['bf16'][0] / found['fp32'][0]:.2f} of fp32's", f"{found['bf16'][1] / found['fp32'][1]:.0%} of fp32's",
             f"{found['fp32'][2]:.1e}", f"{found['bf16'][2]:.1e}"]
            for width, found in by_width.items()
        ],
    )
)  # fmt: skip

# %% name="compare-precision" jupyter={"source_hidden": true}
widest, narrowest = max(by_width), min(by_width)
at_widest = speedup[widest]
bands = {
    "slower": (0, 1),
    "1 to 2 times as fast": (1, 2),
    "2 to 3 times as fast": (2, 3),
    "more than 3 times": (3, math.inf),
}
paying = [width for width, times in speedup.items() if times > 1.1]
compare(
    speed_guess,
    (
        ""
        if widest == WIDTHS[-1]
        else f"No step was run above width {widest:,}: it would have taken longer than {PATIENCE} seconds in one of the formats. "
    )
    + f"{at_widest:.2g} times as fast at width {widest:,}, {speedup[narrowest]:.2g} times at {narrowest}. "
    + (
        f"It pays at width {', '.join(map(str, paying))} here. "
        if paying
        else "It pays at none of these widths on this machine. "
    )
    + f"The largest product of a block, alone, is {product_speedup[widest]:.2g} times as fast at that width"
    + (
        ": what is not a product (normalisations, the loss) takes what it took before, and copying the weights into 16 bits comes on top. "
        if product_speedup[widest] > at_widest
        else ". "
    )
    + (
        f"This device seems to have no instructions for bf16: even a product alone takes {1 / product_speedup[widest]:.0f} times as long. "
        if product_speedup[widest] < 0.5
        else ""
    )
    + f"Of what is kept for the backward pass, bf16 keeps {by_width[widest]['bf16'][1] / by_width[widest]['fp32'][1]:.0%} "
    "there: copies of the weights in 16 bits are among it, which weigh the more, the wider the model and the smaller the batch. "
    f"The price is a gradient that is off by {by_width[widest]['bf16'][2]:.1%}; fp32's is off by {by_width[widest]['fp32'][2]:.0e}.",
    next(words for words, (low, high) in bands.items() if low <= at_widest < high),
)

# %% [markdown] name="microscope"
# ## 2 The gradients of a real step, close up
#
# fp16 has more digits than bf16, and a narrow range: what is not larger than 2⁻²⁵ becomes 0, and from 65,520 on everything
# becomes infinite. The next cell computes the gradients of one step of the course's decoder, in fp32, on real reviews. They
# spread over many powers of two.
#
# **Predict.** How many per cent of the gradient's values other than 0 would fp16 turn into 0?

# %% name="predict-lost" jupyter={"source_hidden": true}
lost_guess = guess_number("Rounded to 0 in fp16", low=0, high=100, step=1, unit="% of the gradient's values")
display(lost_guess)

# %% name="gradients-of-a-step"
KINDS_OF_WEIGHTS = {
    "embeddings": ("wte", "wpe"),
    "attention": ("attn.c_attn.weight", "attn.c_proj.weight"),
    "feed-forward": ("mlp.c_fc.weight", "mlp.c_proj.weight"),
    "normalisations and biases": ("ln_", "bias"),
}


def kind_of(name):
    return next(kind for kind, parts in KINDS_OF_WEIGHTS.items() if any(part in name for part in parts))


forward_and_backward(decoder, dataset.batch(0).to(device), torch.float32)
gradients = {kind: [] for kind in KINDS_OF_WEIGHTS}
for name, parameter in decoder.named_parameters():
    gradients[kind_of(name)].append(parameter.grad.flatten().cpu())
gradients = {kind: torch.cat(parts) for kind, parts in gradients.items()}
all_gradients = torch.cat(list(gradients.values()))
bench = ScaleBench(gradients)
plots.show(
    draw_microscope(bench.compute(0)),
    alt="Sizes of a step's gradients on a logarithmic axis, over the ranges of fp16, unscaled.",
)

# %% name="compare-lost" jupyter={"source_hidden": true}
unscaled, LARGE_STEP = fate(all_gradients), 512
in_large_step = fate(all_gradients, scale=1 / LARGE_STEP)
by_kind = {kind: fate(values) for kind, values in gradients.items()}
most_lost = max(gradients, key=lambda kind: by_kind[kind].lost * int((gradients[kind] != 0).sum()))
is_read_V = torch.zeros(vocabulary.size, dtype=torch.bool)
is_read_V[dataset.batch(0).input_ids_BT.flatten()] = True
table_VE = decoder.transformer["wte"].weight.grad.cpu()
is_lost_VE = (table_VE != 0) & (table_VE.half() == 0)
absent = float(is_lost_VE[~is_read_V].sum() / is_lost_VE.sum().clamp(min=1))
compare(
    lost_guess,
    f"{unscaled.lost:.1%} become 0, and {unscaled.subnormal:.0%} are subnormal: some of their digits are gone. Most of the lost values are "
    f"among the {most_lost}, and of those in the embedding table {absent:.0%} belong to tokens that do not occur in the batch (the table is also the "
    f"output layer, where the only gradient of a token says that it was not the next one). This step has {int(dataset.batch(0).is_target_BL.sum()):,} targets. In a step of "
    f"{LARGE_STEP} such micro-batches each loss is divided by {LARGE_STEP} times as many targets, so the gradients of each are {LARGE_STEP} "
    f"times smaller: then {in_large_step.lost:.0%} are lost and {in_large_step.subnormal:.0%} subnormal. The remedy: multiply the loss by a number, "
    "let the gradients be computed, and divide them by it in fp32. That is **loss scaling** (arXiv:1710.03740).",
    100 * unscaled.lost,
    near=2,
)

# %% [markdown] name="scale-question"
# **Move.** Raise the scale until next to nothing is lost, and go on until the first value overflows: one infinite value is
# enough to spoil a step. What happens to the subnormal ones meanwhile?

# %% name="explore-scale"
scope = microscope(gradients)
display(scope)

# %% name="best-scale" jupyter={"source_hidden": true}
views = {k: bench.compute(k) for k in range(-8, 33)}
safe = [k for k, view in views.items() if not view.is_left_out]
display(
    plots.show(
        draw_microscope(views[max(safe)]),
        alt="The same gradients, at the largest scale that none of them overflows at.",
    )
)
Markdown(
    "<details><summary>Moved it? Compare</summary>\n\n"
    f"The largest scale without overflow, drawn above, is 2^{max(safe)}; there {views[max(safe)].fate.lost:.2%} are lost and "
    f"{views[max(safe)].fate.subnormal:.1%} subnormal. Nobody knows this number before the step, and gradients change as training goes "
    "on.\n\n</details>"
)

# %% [markdown] name="dynamic"
# **Dynamic scaling** finds it by trial: begin too high, halve after a step that overflowed (and leave that step out), double
# after some good steps in a row. PyTorch's `GradScaler` begins at 2¹⁶ and doubles after 2,000 good steps. The next cell
# trains in real fp16. CPUs compute it slowly, so the model is tiny, and so that something happens in 60 steps, it begins at
# 2²⁸ and doubles after 8. Beside it stand three runs whose scale stays as it is: fp16 without a scale; fp16 at 2⁻⁸, which is
# what every micro-batch of a step of 256 has without scaling; and fp32.
#
# **Predict.** How many of the 60 steps does dynamic scaling leave out? (The tiny model's gradients first fit at a scale some
# thousand times smaller than the one it begins with.)

# %% name="predict-skipped" jupyter={"source_hidden": true}
skipped_guess = guess_number("Steps left out", low=0, high=60, step=1, unit="of 60 steps")
display(skipped_guess)

# %% name="train-in-fp16"
tiny_rows = replace(packed, ids_NT=packed.ids_NT[:, :32], document_ids_NT=packed.document_ids_NT[:, :32])
tiny_data = PretrainingDataset(tiny_rows, vocabulary, "causal", batch_size=2)
tiny = TransformerConfig(vocabulary.size, d_model=32, n_layers=2, n_heads=2, d_ff=128, max_len=32)
START, INTERVAL, STEPS = 2.0**28, 8, 60


def tiny_run(**how):
    """A run without clipping: its records, and the largest gradient at each update."""
    model, largest = new_model(Decoder, tiny), []
    optimizer = make_optimizer(model)
    optimizer.register_step_pre_hook(
        lambda *_: largest.append(max(float(p.grad.abs().max()) for p in model.parameters()))
    )
    batches = tqdm(tiny_data, total=STEPS, leave=False)
    how |= {"steps": STEPS, "rate": 2e-3, "optimizer": optimizer, "clip": math.inf}
    return list(train(model, batches, **how)), largest


plain, largest = tiny_run(dtype=torch.float32)
unscaled_run, _ = tiny_run(dtype=torch.float16, scale=LossScale(1.0, interval=10**9))
starved, _ = tiny_run(dtype=torch.float16, scale=LossScale(2.0**-8, interval=10**9))
life, _ = tiny_run(dtype=torch.float16, scale=LossScale(START, interval=INTERVAL))
scales, norms = [row.scale for row in life], [row.gradient_norm for row in life]
display(
    plots.show(
        draw_scale_life(scales, norms),
        alt="The loss scale at each step of a run in fp16: halved where a step overflowed, doubled after some good ones.",
    )
)

# %% name="compare-skipped" jupyter={"source_hidden": true}
left_out = [row.step for row in life if not math.isfinite(row.gradient_norm)]
after_a_rise = [n for n in left_out if any(life[k].scale > life[k - 1].scale for k in range(max(1, n - INTERVAL), n))]
tiny_loss = {
    "fp32": plain,
    "fp16 without a scale": unscaled_run,
    "fp16 at 2⁻⁸, as in a step of 256 micro-batches without a scale": starved,
    "fp16, dynamic": life,
}
tail_loss = {name: float(np.mean([row.loss for row in rows[-10:]])) for name, rows in tiny_loss.items()}
harmed = tail_loss["fp16 at 2⁻⁸, as in a step of 256 micro-batches without a scale"] - tail_loss["fp32"]
compare(
    skipped_guess,
    f"{len(left_out)} steps were left out, {len(left_out) - len(after_a_rise)} until a scale was found that fits, {len(after_a_rise)} soon "
    "after a doubling. Loss per target, over the last ten steps: "
    + "; ".join(f"{name} {loss:.3f}" for name, loss in tail_loss.items())
    + (
        ". So this small step needs no scale"
        if tail_loss["fp16 without a scale"] - tail_loss["fp32"] < 0.02
        else ". Without a scale it is behind"
    )
    + (
        f", a large one does ({harmed:+.2f} nats without), and what dynamic scaling costs here is probably the batches that it did not learn from: with "
        "the usual interval that is one in some thousands."
        if harmed > 0.05
        else "; whether a large one does, this run is too short to show."
    ),
    len(left_out),
    near=2,
)

# %% [markdown] name="life-question"
# **Move.** Here the scale is replayed on the largest gradient of each step of the run in fp32, for another start and another
# number of good steps before it doubles. Raise the start to 2²⁸, then lower it until no step is lost at the beginning; what
# happens to the steps lost later when the scale doubles more often?

# %% name="explore-life"
life_box = scale_life(largest)
display(life_box)

# %% name="life-answer" jupyter={"source_hidden": true}
replays = {
    (start, patience): sum(math.isinf(norm) for norm in replay_scale(largest, start, patience).norms)
    for start in (16, 20, 28)
    for patience in (4, 16)
}
lives = table(
    ["begins at", "doubles after", "steps left out, of 60"],
    [[f"2^{start}", f"{patience} good steps", n_out] for (start, patience), n_out in replays.items()],
)
Markdown(
    f"<details><summary>Moved it? Compare</summary>\n\n{lives.data}\n\nA high start costs steps once, at the beginning; doubling often "
    "costs steps for as long as the run lasts.\n\n</details>"
)

# %% [markdown] name="accumulation"
# ## 3 The same step in micro-batches
#
# A batch does not fit, so it is cut: forward and backward for each micro-batch, gradients add up, one update. In this course
# the loss is *summed* over targets and divided once by all of the step's targets. A common way takes each micro-batch's
# mean, and the mean of those means (a patient of chapter 2 did). With equally many targets in each, both are the same.
# Sentences are not equally long.
#
# **Predict.** Sixteen sentences, sorted by length and cut into four micro-batches. How far is the gradient of the mean of
# means off, as a share of the true one's length? (Sorting is what one does to save padding: texts of like length share a
# micro-batch.)

# %% name="predict-means" jupyter={"source_hidden": true}
means_guess = guess("The gradient of the mean of means is off by", ["less than 1%", "1 to 10%", "more than 10%"])
display(means_guess)

# %% name="accumulate"
sentences = sorted(tokenizer.encode_all([r.text for r in reviews_of("train", "rotten_tomatoes")[:16]]), key=len)


def batch_of(sequences):
    return causal(pad(sequences, vocabulary, length=ROW, frame=("bos", "eos")), vocabulary).to(device)


whole, pieces = batch_of(sentences), [batch_of(sentences[n : n + 4]) for n in range(0, 16, 4)]


def gradient_of(pieces, *, means=False):
    """The gradient over all pieces, and the most bytes that one of them keeps for its backward pass."""
    decoder.zero_grad()
    targets, most = sum(int(piece.is_target_BL.sum()) for piece in pieces), 0
    for piece in pieces:
        with kept_for_backward(decoder) as kept:
            total, n_targets = batch_loss(decoder, piece)
        (total / n_targets / len(pieces) if means else total / targets).backward()
        most = max(most, kept.bytes)
    return torch.cat([p.grad.flatten() for p in decoder.parameters()]).double(), most


true_gradient, bytes_whole = gradient_of([whole])
summed_gradient, bytes_pieces = gradient_of(pieces)
means_gradient, _ = gradient_of(pieces, means=True)
off_summed, off_means = (relative_error(g, true_gradient) for g in (summed_gradient, means_gradient))
shuffled = [sentences[n] for n in torch.randperm(16, generator=seeded(0)).tolist()]
unsorted_gradient, _ = gradient_of([batch_of(shuffled[n : n + 4]) for n in range(0, 16, 4)], means=True)
off_unsorted = relative_error(unsorted_gradient, true_gradient)
next_sentences = tokenizer.encode_all([r.text for r in reviews_of("train", "rotten_tomatoes")[16:32]])
off_other = relative_error(gradient_of([batch_of(next_sentences)])[0], true_gradient)
table(
    ["step", "targets", "error of the gradient", "most kept for the backward pass, MiB"],
    [
        ["16 sentences at once", int(whole.is_target_BL.sum()), "", f"{bytes_whole / MIB:.1f}"],
        ["four micro-batches, summed and divided once", " + ".join(str(int(p.is_target_BL.sum())) for p in pieces), f"{off_summed:.1e}",
         f"{bytes_pieces / MIB:.1f}"],
        ["four micro-batches, the mean of their means", "the same", f"{off_means:.1%}", f"{bytes_pieces / MIB:.1f}"],
        ["the same, sentences in random order", "", f"{off_unsorted:.1%}", ""],
        ["for comparison: 16 other sentences at once", "", f"{off_other:.0%}", ""],
    ],
)  # fmt: skip

# %% name="compare-means" jupyter={"source_hidden": true}
compare(
    means_guess,
    f"Off by {off_means:.0%}; the sum, divided once, by {off_summed:.0e}, which is rounding. In a mean of means a target of the shortest "
    f"micro-batch weighs {int(pieces[-1].is_target_BL.sum()) / int(pieces[0].is_target_BL.sum()):.1f} times as much as one of the longest. "
    f"In memory, the micro-batch that keeps most keeps {bytes_pieces / bytes_whole:.0%} of what the whole batch keeps. "
    f"In random order instead of sorted it is {off_unsorted:.0%}. Two batches of 16 differ by {off_other:.0%}, but "
    "that is noise, which averages out, and this is a bias, which does not. A widely used library had this mistake until "
    "October 2024 (see the sources).",
    "less than 1%" if off_means < 0.01 else "1 to 10%" if off_means < 0.1 else "more than 10%",
)

# %% [markdown] name="means-cost-question"
# **What does it cost?** A gradient that is off need not lead to a worse model. So train both ways, from the same weights and
# on the same sentences, and look at the held-out loss.
#
# **Predict.** Will three starts tell which is better?

# %% name="predict-means-cost" jupyter={"source_hidden": true}
cost_guess = guess("After training, the mean of means is", ["better", "worse", "three starts cannot tell"])
display(cost_guess)

# %% name="train-with-means"
TRAINED_STEPS, SEEDS = 16, range(3)
pool = tokenizer.encode_all([r.text for r in reviews_of("train", "rotten_tomatoes")[: 16 * TRAINED_STEPS]])
others = [batch_of(tokenizer.encode_all([r.text for r in reviews_of("dev", "rotten_tomatoes")[:128]]))]
small = TransformerConfig(vocabulary.size, d_model=64, n_layers=2, n_heads=2, d_ff=256, max_len=ROW)


def trained_loss(seed, *, means):
    """Held-out loss of a small model after steps of 16 sentences in four pieces, sorted by length."""
    model = new_model(Decoder, small, seed=seed).train()
    optimizer = make_optimizer(model)
    for group in optimizer.param_groups:
        group["lr"] = 2e-3
    for at in torch.randperm(TRAINED_STEPS, generator=seeded(seed)).tolist():
        drawn = sorted(pool[16 * at : 16 * at + 16], key=len)
        parts = [batch_of(drawn[n : n + 4]) for n in range(0, 16, 4)]
        targets = sum(int(part.is_target_BL.sum()) for part in parts)
        for part in parts:
            total, n_targets = batch_loss(model, part)
            (total / n_targets / len(parts) if means else total / targets).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return held_out_loss(model, others, dtype=torch.float32)


ended = [
    [trained_loss(seed, means=means) for means in (False, True)] for seed in tqdm(SEEDS, desc="three starts, both ways")
]
worse_by = [means - right for right, means in ended]
cost = mean_interval(worse_by)
table(
    ["held-out loss, nats per target", "summed, divided once", "mean of means", "difference"],
    [
        [f"seed {seed}", f"{right:.3f}", f"{means:.3f}", f"{means - right:+.3f}"]
        for seed, (right, means) in zip(SEEDS, ended, strict=True)
    ],
)

# %% name="compare-means-cost" jupyter={"source_hidden": true}
compare(
    cost_guess,
    f"The mean of means ends {cost.value:+.3f} nats per target away, 95% interval {cost.low:+.3f} to {cost.high:+.3f} over {len(SEEDS)} "
    "starts. "
    + (
        "The interval holds 0: three starts cannot tell, and a smaller difference than it allows would need many more. "
        if cost.low <= 0 <= cost.high
        else f"Learning from short sentences above all {'costs' if cost.value > 0 else 'even gains'} something on these. "
    )
    + "With a mean of means, two runs that are cut differently have two different objectives.",
    "three starts cannot tell" if cost.low <= 0 <= cost.high else "worse" if cost.value > 0 else "better",
)

# %% [markdown] name="recomputation"
# ## 4 Compute it twice, keep less
#
# Most of a step's memory is often what the forward pass keeps. **Activation checkpointing** keeps what enters each block, and computes
# the block again when the backward pass comes to it. It moves work and changes no formula: gradients can be compared to the bit.
#
# **Predict.** How much longer do the two passes take?

# %% name="predict-recompute" jupyter={"source_hidden": true}
recompute_guess = guess_number("Forward and backward pass take longer by", low=0, high=200, step=5, unit="%")
display(recompute_guess)

# %% name="measure-recompute"
full_batch = dataset.batch(0).to(device).rows(slice(4))
quarters = [full_batch.rows(slice(n, n + 1)) for n in range(4)]
WAYS = {  # micro-batches, number format, whether blocks are computed again
    "as it is": ([full_batch], torch.float32, False),
    "bf16": ([full_batch], torch.bfloat16, False),
    "four micro-batches": (quarters, torch.float32, False),
    "checkpointing": ([full_batch], torch.float32, True),
    "all three": (quarters, torch.bfloat16, True),
}


def one_way(batches, dtype, again):
    """Seconds of a forward and backward pass, the most bytes kept at a time, and the gradient."""
    decoder.zero_grad()
    targets, most = sum(int(batch.is_target_BL.sum()) for batch in batches), 0
    wait_for(device)
    began = time.perf_counter()
    with recomputed_blocks(decoder) if again else contextlib.nullcontext():
        for batch in batches:
            with autocast(device, dtype), kept_for_backward(decoder) as kept:
                total, _ = batch_loss(decoder, batch)
            (total / targets).backward()
            most = max(most, kept.bytes)
    wait_for(device)
    return time.perf_counter() - began, most, torch.cat([p.grad.flatten() for p in decoder.parameters()])


def bytes_kept_by(batch, dtype):
    """The bytes that a forward pass keeps."""
    with autocast(device, dtype), kept_for_backward(decoder) as kept:
        batch_loss(decoder, batch)
    return kept.bytes


tried = {way: [] for way in WAYS}
for _ in tqdm(range(REPEATS), desc="taking turns"):
    for way, how in WAYS.items():
        if sum(seconds for seconds, *_ in tried[way]) < PATIENCE:  # else slow enough to be timed once
            tried[way].append(one_way(*how))
way_seconds = {way: float(np.median([t[0] for t in all_tried])) for way, all_tried in tried.items()}
optimizer = torch.optim.AdamW(decoder.parameters(), lr=0.0)  # a step that changes nothing and makes its state
optimizer.step()
states = {
    "weights": bytes_here(decoder.parameters()),
    "gradients": bytes_here(p.grad for p in decoder.parameters()),
    "optimiser state": bytes_here(t for state in optimizer.state.values() for t in state.values() if t.dim()),
}
step_memory = {way: states | {"kept for backward": all_tried[0][1]} for way, all_tried in tried.items()}
for way, (batches, dtype, again) in WAYS.items():
    if again:  # and what one block holds besides, while it is computed again
        without = bytes_kept_by(batches[0], dtype)
        kept = step_memory[way]["kept for backward"]
        step_memory[way]["inside a block"] = (without - kept) / decoder.config.n_layers
display(
    plots.show(
        plots.draw_stacks(
            {way: {part: size / MIB for part, size in parts.items()} for way, parts in step_memory.items()},
            xlabel="memory of a training step, MiB",
        ),
        alt="Memory of a training step in five ways, as stacked bars of weights, gradients, optimiser state and what is kept for backward.",
    )
)
first_gradient = tried["as it is"][0][2]
kept_by = {way: parts["kept for backward"] for way, parts in step_memory.items()}
relative = {way: [took[0] / way_seconds["as it is"] for took in all_tried] for way, all_tried in tried.items()}
display(
    table(
        ["way", "memory, as a share", "time, as it is = 1 (range of the repeats)", "gradient"],
        [
            [way, f"{sum(step_memory[way].values()) / sum(step_memory['as it is'].values()):.0%}",
             f"{way_seconds[way] / way_seconds['as it is']:.2f} "
             + (f"({min(relative[way]):.2f} to {max(relative[way]):.2f})" if len(relative[way]) > 1 else "(once)"),
             "equal to the bit" if torch.equal(found[-1][2], first_gradient) else f"off by {relative_error(found[-1][2], first_gradient.double()):.0e}"]
            for way, found in tried.items()
        ],
    )
)  # fmt: skip

# %% name="compare-recompute" jupyter={"source_hidden": true}
longer = way_seconds["checkpointing"] / way_seconds["as it is"] - 1
compare(
    recompute_guess,
    f"{100 * longer:.0f}% longer in this measurement, for {kept_by['checkpointing'] / kept_by['as it is']:.0%} of what was kept. A "
    "forward pass is about a third of a step's arithmetic, so a third more is what to expect of the blocks; the output layer is not "
    "computed again. While a block is computed again its inside is there too, for a moment: that is the last part of its bar. (With dropout it "
    "must draw the same again, which PyTorch sees to.) bf16's error need not be that of section 1: this model is trained, and deeper.",
    100 * longer,
    near=10,
)

# %% [markdown] name="memory-chart"
# The source has a chart of this kind, with one bar for each technique; its figures were typed in. In the one above each byte
# was counted on this machine, in tensors (that inside a block is a difference of two counts, divided by the number of blocks);
# what the allocator of a device keeps in reserve comes on top. What it shows
# depends on the model and the batch. Where weights and moments are most of the memory, none of these techniques touches that
# part. The next one does.

# %% [markdown] name="parallel"
# ## 5 Two processes, one model
#
# Many guides begin with `nn.DataParallel`. Look at what it does on this machine:

# %% name="data-parallel" jupyter={"source_hidden": true}
wrapped = nn.DataParallel(decoder)
Markdown(
    f"`DataParallel` uses {len(wrapped.device_ids)} GPUs of this machine"
    + (": it passes everything through to the module inside, without a word. A speed-up measured like this is that of one device."
       if len(wrapped.device_ids) < 2 else ", from one process. It gathers all outputs on one of them; the engines below do not.")
)  # fmt: skip

# %% [markdown] name="ranks"
# So the work goes to several processes, the **ranks**. torchrun starts them; each runs the same program, and asks which one
# it is. Here is the smallest such program.
# `run_on_ranks` writes the function's source into a file (only the source travels, so its imports stand inside), starts torchrun on it, and
# hands back what each rank returned. What they print arrives while they run; the Stop button ends them all. In this notebook the
# ranks compute on the CPU, also where there are GPUs: of those each rank wants one of its own.
#
# Ranks talk in three ways above all. **All-reduce**: each has a tensor, and each gets the sum of all. **Reduce-scatter**: each gets
# another part of the sum. **All-gather**: each has a part, and each gets all parts. An all-reduce is the second followed by
# the third, so it needs as much as both: of two ranks each sends the other its half, twice. (A *broadcast* copies one rank's tensor to
# all, a *barrier* waits for all.) The program counts what each costs, on this machine's loopback, where other programs may talk a
# little too.

# %% name="first-ranks"


def share_out(numbers):
    """Each rank adds up its own numbers, then all learn the sum; and three ways of talking, in bytes sent per byte held."""
    import time
    import warnings

    import torch
    from torch import distributed

    from course_lib.parallel import barrier, rank, summed, world
    from course_lib.runs.shared_steps import bytes_on_loopback

    warnings.simplefilter("ignore", FutureWarning)  # newer versions of torch call two of the three otherwise
    mine = numbers[rank() :: world()]
    print(f"rank {rank()} of {world()} has {mine}", flush=True)
    found = {"sum": summed(sum(mine))}
    whole, part = torch.ones(world() * 1_000_000), torch.ones(1_000_000)
    ways = {
        "all-reduce": lambda: distributed.all_reduce(whole),
        "reduce-scatter": lambda: distributed.reduce_scatter_tensor(part, whole),
        "all-gather": lambda: distributed.all_gather_into_tensor(whole, part),
    }
    for name, talk in ways.items():
        barrier()
        before, began = bytes_on_loopback(), time.perf_counter()
        talk()
        barrier()
        seconds = time.perf_counter() - began
        if before is not None:
            found[name] = (bytes_on_loopback() - before) / world() / whole.nbytes
    found["bytes a second"] = (1 - 1 / world()) * whole.nbytes / seconds  # what a rank needs to send in an all-gather
    return found


began = time.perf_counter()
heard = run_on_ranks(share_out, numbers=[1, 2, 3, 4, 5])
start_seconds = time.perf_counter() - began
counted = "all-reduce" in heard[0]
told = f"Both ranks know the sum now: {heard[0]['sum']:g} and {heard[1]['sum']:g}. All of it took {start_seconds:.0f} s, starting Python three times."
if counted:
    rows = [
        [way, f"{heard[0][way]:.2f}", need]
        for way, need in (("all-reduce", 1.0), ("reduce-scatter", 0.5), ("all-gather", 0.5))
    ]
    display(Markdown(told), table(["two ranks", "sent by each, as a share of the whole tensor", "needed"], rows))
else:
    display(Markdown(told + " This machine does not count what ranks send."))

# %% [markdown] name="by-hand-question"
# Now train, by hand, with DDP and with FSDP. A data-parallel step needs four things, and their numbers stand in the code:
# (1) the same weights to begin with, (2) rows of its own, (3) one number of targets for all, (4) gradients that come together. Every
# rank builds its model from **another seed**, so that forgetting the first would show. At the end rank 0 takes the same steps
# alone, on whole batches, and compares.

# %% name="by-hand"


def by_hand(kind, texts):
    """Ten steps of SGD on ranks: how far the weights end from those of one process."""
    import warnings

    import torch
    from torch import distributed
    from torch.distributed.fsdp import fully_shard
    from torch.nn import functional as F
    from torch.nn.parallel import DistributedDataParallel

    from course_lib.parallel import rank, whole_weights, world
    from course_lib.runs.shared_steps import RATE, SharedSteps, alone, distance

    warnings.filterwarnings("ignore", message="FSDP2-wrapped")  # of changes in place, which no block makes
    steps = SharedSteps("alone", "sgd", texts=texts)
    model = steps.model(seed=rank())
    if kind == "ddp":
        wrapped = DistributedDataParallel(model)  # 1: copies rank 0's weights; 4: averages gradients on the way back
    else:
        for tensor in model.state_dict().values():
            distributed.broadcast(tensor, src=0)  # 1: FSDP copies nothing by itself
        for block in model.transformer["h"]:
            fully_shard(block)  # gathered when it is this block's turn
        wrapped = fully_shard(model)  # what stands in no block
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=RATE["sgd"])  # of the parts: so after they were cut
    for batch in steps.batches():
        targets = int(batch.is_target_BL.sum())  # 3: of all ranks
        mine = batch.rows(slice(rank(), None, world()))  # 2
        logits_BTV = wrapped(mine.input_ids_BT, mine.may_attend_BQK).logits
        total = F.cross_entropy(logits_BTV[mine.is_target_BL], mine.labels_BL[mine.is_target_BL], reduction="sum")
        (total * world() / targets).backward()  # times the ranks, since gradients are averaged over them
        torch.nn.utils.clip_grad_norm_(wrapped.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    ended = whole_weights(model)
    return distance(ended, alone(steps)[1]) if rank() == 0 else None


def both_ways(texts):
    return {kind: by_hand(kind, texts) for kind in ("ddp", "fsdp")}


off_by_hand = run_on_ranks(both_ways, helpers=[by_hand], texts=SharedSteps("alone").sentences())[0]
Markdown(
    "Largest difference of a weight from one process, as a share of the largest weight: "
    + ", ".join(f"{kind.upper()} {value:.0e}" for kind, value in off_by_hand.items())
    + "."
)

# %% [markdown] name="same-model-question"
# In `course_lib.parallel` both are engines of one training loop, with clipping, accumulation and checkpoints. The next cell
# lets them take ten steps by each of three rules. Beside them stands a common mistake: every rank takes the mean of its own
# loss.
#
# **Predict.** In fp64, how do the weights after ten steps of AdamW on two ranks compare with those of one process?

# %% name="predict-same-model" jupyter={"source_hidden": true}
ranks_guess = guess("The weights are", ["equal to the bit", "equal up to rounding", "another model, equally good"])
display(ranks_guess)

# %% name="train-on-ranks"
ONE_PROCESS = {
    "SGD in fp32": {"optimizer": "sgd", "dtype": "float32"},
    "AdamW in fp64": {"optimizer": "adamw", "dtype": "float64"},
    "AdamW in fp32": {"optimizer": "adamw", "dtype": "float32"},
}
shared = {
    (engine, rule): SharedSteps(engine, **ONE_PROCESS[rule])
    for engine, rule in [
        *((engine, rule) for engine in ("ddp", "fsdp") for rule in ONE_PROCESS),
        ("mean of means", "AdamW in fp64"),
    ]
}
real = {engine: SharedSteps(engine, "adamw", steps=4, width=256, layers=4, batch_size=16) for engine in ("ddp", "fsdp")}
saw = dict(zip([*shared, *real], on_ranks([*shared.values(), *real.values()]), strict=True))
expected = {rule: alone(SharedSteps("alone", **how)) for rule, how in ONE_PROCESS.items()}
off = {case: distance(saw[case][1], expected[case[1]][1]) for case in shared}
ours, theirs = saw["ddp", "AdamW in fp32"][1], expected["AdamW in fp32"][1]
apart_by_name = {name: float((ours[name] - theirs[name]).abs().max()) for name in theirs}
farthest = max(apart_by_name, key=apart_by_name.get)
table(
    ["largest difference of a weight / largest weight", *ONE_PROCESS],
    [
        [engine, *(f"{off[engine, rule]:.0e}" if (engine, rule) in off else "" for rule in ONE_PROCESS)]
        for engine in ("ddp", "fsdp", "mean of means")
    ],
)

# %% name="compare-same-model" jupyter={"source_hidden": true}
proof = max(off[engine, "AdamW in fp64"] for engine in ("ddp", "fsdp"))
amplified = max(off[engine, "AdamW in fp32"] for engine in ("ddp", "fsdp"))
compare(
    ranks_guess,
    f"In fp64 DDP and FSDP end {proof:.0e} from one "
    f"process: sums in another order, nothing else. In fp32 AdamW ends {amplified:.0e} away, against SGD's "
    f"{max(off[e, 'SGD in fp32'] for e in ('ddp', 'fsdp')):.0e}. Under DDP the weight that is farthest off stands in `{farthest}`"
    + (
        ", where the biases of the keys are. Their gradient is 0 in truth, since a bias of all keys moves no attention, and rounding in "
        "practice; AdamW, which divides by a gradient's usual size, makes whole steps of it. "
        if farthest.endswith("c_attn.bias")
        else ". AdamW divides by a gradient's usual size, and so enlarges rounding where the gradient is nearly 0. "
    )
    + "So an equality is proved in fp64, or with SGD. "
    f"The mean of means of section 3, now over ranks, ends {off['mean of means', 'AdamW in fp64']:.0e} away: no rounding. It is what DDP "
    "does when every rank takes the mean of its own loss.",
    "equal up to rounding" if 0 < proof < 1e-9 else "equal to the bit" if proof == 0 else "another model, equally good",
)

# %% [markdown] name="held-question"
# In the same run both engines took some steps with a model of the decoder's size. **DDP** holds everything on every rank,
# **FSDP** a part of everything.
#
# **Predict.** What does FSDP pay for that, in bytes that a rank sends in a step?

# %% name="predict-sent" jupyter={"source_hidden": true}
sent_guess = guess(
    "Under FSDP a rank sends, compared with DDP,",
    ["less", "the same", "up to twice as much", "more than twice as much"],
)
display(sent_guess)

# %% name="held-and-sent" jupyter={"source_hidden": true}
PARTS = {"weights": "weights", "gradients": "gradients", "optimizer": "optimiser state"}
state_of = {engine: {words: getattr(saw[engine][0][0], part) / MIB for part, words in PARTS.items()} for engine in real}
display(
    plots.show(
        plots.draw_stacks(
            {f"{engine}, on rank 0": parts for engine, parts in state_of.items()}, xlabel="memory of a rank, MiB"
        ),
        alt="Bytes of weights, gradients and optimiser state on rank 0, under DDP and under FSDP.",
    )
)
real_model = real["ddp"].model()
plans = {
    engine: Plan(
        dimensions_of(real_model), Full(), "fp32", batch_size=8, length=real[engine].length, devices=2, engine=engine
    )
    for engine in real
}
sent = {engine: None if saw[engine][0][0].sent is None else saw[engine][0][0].sent / 2 for engine in real}
planned_sent = {engine: plan.bytes_sent_per_step() for engine, plan in plans.items()}
display(
    table(
        ["", "held on a rank, MiB", "planned", "sent by a rank in a step, MiB", "planned"],
        [
            [engine, f"{sum(state_of[engine].values()):.1f}",
             f"{plans[engine].memory().states / MIB:.1f}",
             "not counted here" if sent[engine] is None else f"{sent[engine] / MIB:.1f}", f"{planned_sent[engine] / MIB:.1f}"]
            for engine in real
        ],
    )
)  # fmt: skip

# %% name="compare-sent" jupyter={"source_hidden": true}
held_share = sum(state_of["fsdp"].values()) / sum(state_of["ddp"].values())
times_sent = sent["fsdp"] / sent["ddp"] if counted else planned_sent["fsdp"] / planned_sent["ddp"]
gradient_bytes = 4 * plans["fsdp"].adapted.n_trained
corrected = planned_sent["fsdp"] + (heard[0]["reduce-scatter"] - 0.5) * gradient_bytes if counted else 0
compare(
    sent_guess,
    f"A rank holds {held_share:.1%} and sends {times_sent:.2f} times as much"
    + (", as this machine counted. " if counted else ", by the plan: this machine does not count it. ")
    + "DDP all-reduces the gradients. FSDP gathers the weights of each block for the forward pass and again for the backward pass (those in no "
    "block stay together in between), and reduce-scatters the gradients. "
    + (
        f"The plan for FSDP is exceeded by {sent['fsdp'] / planned_sent['fsdp'] - 1:.0%}. Above, a reduce-scatter was seen to send "
        f"{heard[0]['reduce-scatter']:.2f} of its tensor where {0.5} is needed; with that the plan comes to {corrected / MIB:.1f} MiB, "
        f"{sent['fsdp'] / corrected - 1:+.0%} off the count. Plans are for the algorithm; gloo has its own."
        if counted
        else ""
    ),
    "less"
    if times_sent < 0.95
    else "the same"
    if times_sent < 1.05
    else "up to twice as much"
    if times_sent <= 2
    else "more than twice as much",
)

# %% [markdown] name="speed-question"
# **And how fast is it?** The same batches, on one process with one thread, on one process with all threads, and on two
# ranks, which share the cores of this machine.
#
# **Predict.** How many times as fast as one process with one thread are two ranks?

# %% name="predict-efficiency" jupyter={"source_hidden": true}
efficiency_guess = guess_number(
    "Two ranks are", low=0, high=4, step=0.1, unit="times as fast as one process with one thread"
)
display(efficiency_guess)

# %% name="measure-efficiency"
by_itself = replace(real["ddp"], engine="alone")
all_threads = torch.get_num_threads()
step_seconds = {"one process, one thread": [], f"one process, {all_threads} threads": []}
for _ in range(2):  # they take turns
    for took, count in zip(step_seconds.values(), (1, all_threads), strict=True):
        with threads(count):
            took += alone(by_itself)[0].seconds
for engine in real:
    of_ranks = saw[engine][0]
    step_seconds[f"two ranks, {engine}"] = [
        max(of_step) for of_step in zip(*(seen.seconds for seen in of_ranks), strict=True)
    ]
one_thread = float(np.median(step_seconds["one process, one thread"]))
speed = {name: [one_thread / t for t in took] for name, took in step_seconds.items()}
middle = {name: float(np.median(times)) for name, times in speed.items()}
table(
    ["", "speed, one process with one thread = 1", "half of the steps lie between"],
    [
        [name, f"{middle[name]:.2f}", "{:.2f} and {:.2f}".format(*np.quantile(times, (0.25, 0.75)))]
        for name, times in speed.items()
    ],
)

# %% name="compare-efficiency" jupyter={"source_hidden": true}
ddp_speed, fsdp_speed = middle["two ranks, ddp"], middle["two ranks, fsdp"]
threads_low, threads_high = np.quantile(speed[f"one process, {all_threads} threads"], (0.25, 0.75))
ranks_low, ranks_high = np.quantile(speed["two ranks, ddp"], (0.25, 0.75))
compare(
    efficiency_guess,
    f"{ddp_speed:.2f} times as fast under DDP, {fsdp_speed:.2f} under FSDP; one process with {all_threads} threads "
    f"{middle[f'one process, {all_threads} threads']:.2f}. "
    + f"Each rank has {max(1, (os.cpu_count() or 1) // 2)} of this machine's {os.cpu_count()} threads. "
    + (
        "Between two ranks and two threads no difference can be told from these steps. "
        if ranks_low <= threads_high and threads_low <= ranks_high
        else "Two ranks use these cores better than threads do. "
        if ranks_low > threads_high
        else "Two ranks gain less than threads: each takes the whole of the optimiser's step, and they have to talk. "
    )
    + "What ranks are for is the second machine and the second GPU. A figure such as *3.9 times on four GPUs* belongs to a model that computes "
    f"long and sends little: here a step sends {planned_sent['ddp'] / MIB:.0f} MiB and "
    f"takes {np.median(step_seconds['two ranks, ddp']):.2f} s, sending included. (The ranks' steps are those of the cell above, the first of them "
    "included; the others were timed just now.)",
    ddp_speed,
    near=0.2,
)

# %% [markdown] name="failing-rank"
# **When a rank fails**, the others would wait for it for ever. torchrun ends them, and the launcher hands on the traceback
# of the rank that failed, which is the one that says why.

# %% name="rank-that-fails"


def fails_on_one(limit):
    from course_lib.parallel import barrier, rank

    rows = list(range(limit))[rank() :: 2]
    if not rows:
        raise ValueError(f"rank {rank()} has no row: give a batch of at least 2")
    barrier()


try:
    run_on_ranks(fails_on_one, limit=1, show=lambda line: None)
except RuntimeError as error:
    said = str(error).splitlines()
    print(said[0], "...", said[-1], sep="\n")
    assert said[-1].startswith("ValueError: rank 1"), "the traceback of another rank"

# %% [markdown] name="planner"
# ## 6 Plan what will not fit
#
# A planner computes parameters, memory, arithmetic and bytes sent from a model's dimensions. Can it be trusted? First,
# compare it with what was measured above.

# %% name="planner-and-measurement" jupyter={"source_hidden": true}
a = dimensions_of(decoder)
plan_of = lambda way, **more: Plan(
    a, Full(), {torch.float32: "fp32", torch.bfloat16: "bf16 mixed"}[WAYS[way][1]], batch_size=len(WAYS[way][0][0].input_ids_BT),
    length=ROW, accumulate=len(WAYS[way][0]), **more
)  # fmt: skip


def planned_kept(way):
    """Bytes kept at the end of a forward pass."""
    kept = plan_of(way).activations()
    return kept.inputs_alone if WAYS[way][2] else kept.total


foretold = [
    [f"kept for backward: {way}", step_memory[way]["kept for backward"], planned_kept(way)] for way in WAYS
] + [[f"on a rank: {engine}", sum(state_of[engine].values()) * MIB, plans[engine].memory().states]
     for engine in real] + [
    [f"sent in a step: {engine}", sent[engine], planned_sent[engine]] for engine in real if counted
]  # fmt: skip
table(
    ["what", "measured, MiB", "planned, MiB", "measured / planned"],
    [
        [what, f"{measured / MIB:.1f}", f"{planned / MIB:.1f}", f"{measured / planned:.3f}"]
        for what, measured, planned in foretold
    ],
)

# %% name="planner-verdict" jupyter={"source_hidden": true}
product_rate = matmul_rate(torch.float32, device)
planned_time = plan_of("as it is").seconds_per_step(product_rate, 1e9).computing
missed = [what for what, measured, planned in foretold if abs(measured / planned - 1) > 0.1]
Markdown(
    f"{len(foretold) - len(missed)} of {len(foretold)} rows agree within 10%. "
    + (
        f"Not so: {'; '.join(missed)}"
        + (", which section 5 has explained." if missed == ["sent in a step: fsdp"] else ".")
        if missed
        else ""
    )
    + " Memory is that at the end of a forward pass. Time is another "
    f"matter: at the speed of a matrix product alone, {product_rate / 1e9:.0f} GFLOP/s, the step “as it is” would take {planned_time:.2f} s, and it "
    f"took {way_seconds['as it is']:.2f} s, {planned_time / way_seconds['as it is']:.0%} of that speed. So give a planner a speed that was reached."
)

# %% [markdown] name="planner-and-papers"
# Second, compare it with what papers report, with the bytes per parameter that each paper took. (Often 16 for each trained
# parameter: 2 + 2 for weight and gradient in 16 bits, and 12 for an exact copy of the weight and two moments in fp32, where
# the copy is what the optimiser changes; for LLaMA 65B 2 + 2 + 8, without that copy.) So these rows check sums, not memory. Papers
# leave out what their argument does not need, and so does the row.

# %% name="papers" jupyter={"source_hidden": true}
adam_16, gpt3 = PRECISIONS["bf16 with fp32 master"], ARCHITECTURES["GPT-3 175B"]
llama = ARCHITECTURES["LLaMA-65B"]
lora_gpt3 = Plan(gpt3, LoRA(rank=4, targets=QUERY_AND_VALUE["gpt2"]), adam_16, batch_size=1, length=2048)
whole_llama = Plan(llama, Full(), Bytes(2, 2, 8), batch_size=1, length=512, checkpointing=True).memory()
qlora = Plan(llama, LoRA(rank=64), "4-bit frozen", batch_size=1, length=512, checkpointing=True).memory()
flops = Plan(gpt3, Full(), "fp32", batch_size=1, length=2048).flops_per_token().total
attention_flops = 12 * gpt3.n_layers * gpt3.d_model * 2048
zero = lambda *sharded: state_memory(7_500_000_000, 0, adam_16, devices=64, sharded=sharded).total / 1e9
table(
    ["figure", "paper", "the paper says", "the planner says"],
    [
        ["weights of GPT-3 in 16 bits", "arXiv:2106.09685, 4.2", "350 GB", f"{2 * lora_gpt3.adapted.n_frozen / 1e9:.0f} GB"],
        ["parameters that LoRA trains there, rank 8 at queries and values", "arXiv:2106.09685, table 4", "37.7 M",
         f"{trained_parameters(gpt3, LoRA(rank=8, targets=QUERY_AND_VALUE['gpt2']))[0] / 1e6:.1f} M"],
        ["states of 7.5 billion parameters on each of 64 devices: all held", "arXiv:1910.02054, figure 1", "120 GB", f"{zero():.0f} GB"],
        ["moments divided", "same", "31.4 GB", f"{zero('optimizer'):.1f} GB"],
        ["gradients too", "same", "16.6 GB", f"{zero('optimizer', 'gradients'):.1f} GB"],
        ["weights too, which is FSDP", "same", "1.9 GB", f"{zero('optimizer', 'gradients', 'weights'):.1f} GB"],
        ["LLaMA 65B fine-tuned in 16 bits: weights, gradients, moments", "arXiv:2305.14314, abstract", "more than 780 GB",
         f"{whole_llama.states / 1e9:.0f} GB"],
        ["the same with 4-bit weights and LoRA, and a row of 512 tokens", "same", "below 48 GB", f"{qlora.total / 1e9:.1f} GB"],
        ["arithmetic of GPT-3's training, 300 billion tokens, without attention's own products", "arXiv:2005.14165, table D.1", "3.14e23",
         f"{300e9 * (flops - attention_flops):.2e}"],
    ],
)  # fmt: skip

# %% [markdown] name="plan-question"
# You have eight devices of 80 GiB and want to fine-tune Llama-2-7B in full, with the 16 bytes of above (the precision “bf16 with fp32
# master”), on one row of 2,048 tokens for each device.
#
# **Predict.** What makes it fit?

# %% name="predict-plan" jupyter={"source_hidden": true}
plan_guess = guess("It fits into 80 GiB", ["as it is, under DDP", "with checkpointing", "with FSDP", "only with both"])
display(plan_guess)

# %% [markdown] name="move-plans"
# **Move.** Set the explorer to that plan, and change engine, checkpointing and number of devices until it fits. What happens
# to the bytes that are sent? (The speeds of computing and sending begin at those of this machine.)

# %% name="explore-plans"
plan_box = planner_explorer(
    ARCHITECTURES, flops_per_second=matmul_rate(torch.float32, device), bytes_per_second=heard[0]["bytes a second"]
)
display(plan_box)

# %% name="plan-without-a-kernel" jupyter={"source_hidden": true}
bench_of_plans = PlanBench(ARCHITECTURES)
rates = {name: plan_box.controls[name].value for name in ("tera_flops", "giga_bytes")}
eight = {
    "architecture": "Llama-2-7B",
    "precision": "bf16 with fp32 master",
    "batch_size": 1,
    "length": 2048,
    "devices": 8,
}
plots.show(
    draw_plan(bench_of_plans.compute(**eight, engine="fsdp", checkpointing=True, **rates)),
    alt="The memory of one of eight devices that fine-tune Llama-2-7B under FSDP with checkpointing, beside one device without either.",
)

# %% name="compare-plan" jupyter={"source_hidden": true}
ways_to_fit = {
    "as it is, under DDP": {},
    "with checkpointing": {"checkpointing": True},
    "with FSDP": {"engine": "fsdp"},
    "only with both": {"engine": "fsdp", "checkpointing": True},
}
eight_plans = {words: bench_of_plans.compute(**eight, **how) for words, how in ways_to_fit.items()}
needs = {words: view.total / 2**30 for words, view in eight_plans.items()}
n_llama, *_ = trained_parameters(ARCHITECTURES["Llama-2-7B"], Full())
gib_sent = {words: view.plan.bytes_sent_per_step() / 2**30 for words, view in eight_plans.items()}
compare(
    plan_guess,
    "; ".join(f"{words.removeprefix('only ')}: {size:.0f} GiB" for words, size in needs.items())
    + f" on each device. Sixteen bytes for each of {n_llama / 1e9:.1f} billion parameters are more than one device has, so nothing that is saved on activations "
    "helps; dividing them by eight does. For that a device sends "
    f"{gib_sent['with FSDP']:.0f} GiB in a step, and {gib_sent['as it is, under DDP']:.0f} GiB under DDP. The figure shows the last of "
    "these, at the speeds of this machine, hence its time.",
    next((words for words, size in needs.items() if size < 80), None),
)

# %% [markdown] name="killed-rank"
# ## 7 A rank is killed
#
# On many machines something always fails. torchrun notices that a rank has died, ends the others and starts all of them
# again; they read the last checkpoint, which all of them wrote together, each its part. Here `course pretrain --ranks 2`
# trains a small model, with a checkpoint every 20 steps and at some shares of the run, such as its half; the notebook kills one of
# its ranks with `kill -9` at step 30, some steps after a checkpoint.
# Beside it the same run goes undisturbed. Dropout is on.
#
# **Predict.** How do the weights compare, in the end, with those of the undisturbed run?

# %% name="predict-killed" jupyter={"source_hidden": true}
killed_guess = guess("After kill -9 of a rank", ["equal to the bit", "close", "another model, equally good"])
display(killed_guess)

# %% name="kill-a-rank"
folder = Path(tempfile.mkdtemp())
(folder / "reviews.txt").write_text("\n\n".join(review.text for review in reviews_of("train", "imdb")[:100]), "utf-8")
settings = {
    "text": folder / "reviews.txt", "tokens": 48 * 64 * 4, "row_length": 64, "batch_size": 4, "save_every": 20, "width": 64, "layers": 2,
    "dropout": 0.1, "optimizer": "adamw", "dtype": "float32",
}  # fmt: skip
options = [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", value)]


def pretrain_on_two(name, show):
    command = [
        "-m",
        "course_lib.cli",
        "pretrain",
        "decoder",
        "--out",
        folder / name,
        "--ranks",
        2,
        "--device",
        "cpu",
        *options,
    ]
    torchrun(command, ranks=2, restarts=1, show=show)


rank_1, saved_then, steps_told, complaints = [], [], [], []


def kill_at_30(line):
    """Show the run's own lines, count what torch says of the dead rank; at step 30, kill rank 1."""
    if re.match(r"\[rank|[EW]\d{4} |\s", line):
        complaints.append(line)
        return
    print(line.replace(str(folder), "FOLDER"))
    if step := re.match(r"step (\d+) of", line):
        steps_told.append(int(step[1]))
    if steps_told == [1]:
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):  # one that has just ended
                if process.environ().get("RANK") == "1":
                    rank_1.append(process)
    if steps_told[-1:] == [30] and not saved_then:
        saved_then.extend(Checkpoints(folder / "killed").steps())
        rank_1[0].kill()
        print(f"--- kill -9 of rank 1; the last whole checkpoint is of step {saved_then[-1]} ---")


pretrain_on_two("undisturbed", lambda line: None)
pretrain_on_two("killed", kill_at_30)
print(f"(and {len(complaints)} lines in which the other rank and torchrun tell of the one that died)")

# %% name="compare-killed" jupyter={"source_hidden": true}
one, two = ((folder / name / "model" / "model.safetensors").read_bytes() for name in ("undisturbed", "killed"))
steps_done = [row["step"] for row in Record(folder / "killed" / "record.jsonl").rows() if row["metric"] == "loss"]
compare(
    killed_guess,
    (
        f"The ranks went on after step {saved_then[-1]} and took steps {saved_then[-1] + 1} to 30 twice: step 30 is told of "
        f"{steps_told.count(30)} times. "
        if steps_told.count(30) > 1
        else "The kill came too late to undo anything. "
    )
    + f"The two weight files of {len(one):,} bytes are "
    + ("equal to the bit. " if one == two else "**not equal: a piece of state was lost.** ")
    + f"The run writes its curve for its first steps and then every tenth, {len(steps_done)} in all: "
    + ("each is there once. " if len(steps_done) == len(set(steps_done)) else "**some are there twice.** ")
    + "A rank's place in the data is not stored anywhere: the batch of a step follows from the seed and the step's number, and a rank's "
    "rows from its own number; what dropout draws follows from all three. So the model learns from each row as often as without the kill. "
    "(It may also go on with another number of ranks; the tests of the repository do so.)",
    "equal to the bit" if one == two else "close",
)

# %% [markdown] name="more-machines"
# **More machines** need no other code: the same lines on each of them, and an address where they meet (rdzv is for *rendezvous*).
#
# ```
# export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1    # else ranks that start anew look for the addresses of the dead
# torchrun --nnodes 2 --nproc-per-node 8 --max-restarts 3 \
#     --rdzv-id mine --rdzv-backend c10d --rdzv-endpoint first-machine:29400 \
#     -m course_lib.cli pretrain decoder --out /shared/mine --engine fsdp --optimizer adamw
# ```
#
# `docs/several-machines.md` in the repository has the rest, with pages for Slurm and Kubernetes.

# %% [markdown] name="exercises"
# ## Exercises
#
# Three parts of this chapter to write. The checks work as in chapter 1: they say what is wrong, and you can go on either way.

# %% [markdown] name="exercise-accumulate" tags=["exercise"]
# ### Exercise 1: one rank's part of a step
#
# Several ranks share a step. Each runs this function on `micro_batches` of its own, which are ragged: one has many targets, another
# few, and a micro-batch or even a whole rank may have none. Leave gradients in the model, and return the loss per target of the whole
# step as a plain float, the same on every rank.
#
# - `batch_loss(model, batch)` gives the *summed* loss of a batch and its number of targets; `batch.is_target_BL` says where they are. Of a
#   micro-batch without targets the sum is 0, and may go backward.
# - `total(number)` gives the sum of a number over all ranks. It waits for the others, so every rank must call it equally often.
# - `world` is the number of ranks. When you are done, the caller *averages* the gradients over them (sum / `world`), as DDP does. After
#   that they must be those of the loss summed over all targets of all ranks and divided once by their number.
#
# The model comes without gradients. Change nothing else in it: the caller steps the optimizer. The check runs one, two and three
# ranks, each in a thread with its own copy of the model.
#
# <details><summary>Hint 1</summary>

# By which number must a target's loss be divided, so that it does not matter which micro-batch or rank the target lies in? Does a rank
# know that number by itself?</details>
# <details><summary>Hint 2</summary>

# You can count before you compute: the targets are in the batches. A call of <code>total</code> before the loop over micro-batches and
# one after it are as many on every rank.</details>
# <details><summary>Hint 3</summary>

# The caller's average divides by <code>world</code>, which nobody asked for. It concerns the gradient, and not the loss that
# you return.</details>


# %% name="exercise-accumulate-code" tags=["exercise"]
def my_accumulate(model, micro_batches, *, total, world):
    ### BEGIN SOLUTION
    targets = total(sum(int(batch.is_target_BL.sum()) for batch in micro_batches))
    loss = 0.0
    for batch in micro_batches:
        summed, _ = batch_loss(model, batch)
        (summed * world / targets).backward()
        loss += summed.item()
    return total(loss) / targets
    ### END SOLUTION


# %% name="exercise-accumulate-check" tags=["check"]
accumulate = checks.accumulate(my_accumulate)

# %% [markdown] name="exercise-loss-scale" tags=["exercise"]
# ### Exercise 2: the largest scale that fp16 can hold
#
# `gradients` is a list of float32 tensors of any shapes, in which at least one number is not 0. Return the largest power of two with
# which every number, multiplied by it, is still finite in fp16, that is after `.half()`. Return it as a plain float such as `2.0**21`.
#
# The power may be negative, since a gradient may be larger than all that fp16 has. It may also be huge, since gradients may
# be as small as fp32 allows: then the scale itself no longer fits into fp32, so form the product in 64 bits. Leave the
# gradients as they are.
#
# <details><summary>Hint 1</summary>

# One number of all the tensors decides. Which one, and does its sign matter?</details>
# <details><summary>Hint 2</summary>

# The largest number of fp16 is 65504, but that is not where infinity begins. Try <code>torch.tensor([65510.0, 65519.0,
# 65520.0]).half()</code>. If you let <code>.half()</code> decide, you need no limit at all.</details>
# <details><summary>Hint 3</summary>

# Double a scale while the double of it still fits; then halve it while it does not fit. A number taken out of a tensor by
# <code>.item()</code> has 64 bits, and so has <code>torch.tensor(number, dtype=torch.float64)</code>.</details>


# %% name="exercise-loss-scale-code" tags=["exercise"]
def my_loss_scale(gradients):
    ### BEGIN SOLUTION
    largest = max(gradient.abs().max().item() for gradient in gradients)

    def fits(scale):
        return torch.tensor(largest * scale, dtype=torch.float64).half().isfinite()

    scale = 1.0
    while fits(2 * scale):
        scale *= 2
    while not fits(scale):
        scale /= 2
    return scale
    ### END SOLUTION


# %% name="exercise-loss-scale-check" tags=["check"]
pick_loss_scale = checks.pick_loss_scale(my_loss_scale)

# %% [markdown] name="exercise-bytes" tags=["exercise"]
# ### Exercise 3: what a rank holds
#
# FSDP2 cuts every parameter along its first axis and gives each of `world` ranks one piece, of the weight and just so of its
# gradient and of AdamW's two moments. All four are in fp32. How many bytes does rank `rank` (counted from 0) hold between
# two steps? Give a whole number, from the shapes alone.
#
# `shapes` is a list of tuples, one for each parameter, each with at least one axis: `(50257, 768)` for a table, `(768,)` for a vector.
# The pieces are those of `torch.chunk`: each rank gets as many rows as it takes to be done in `world` pieces, until none are left, so
# that the last ranks may get fewer, or nothing. (While it works, FSDP2 also gathers a block's weights, and it pads short pieces;
# count only the numbers of the rank's own pieces.)
#
# <details><summary>Hint 1</summary>

# Look at <code>[len(piece) for piece in torch.empty(5, 3).chunk(4)]</code>. How many pieces are there, and how many rows has
# each?</details>
# <details><summary>Hint 2</summary>

# Rows are rounded up, for each parameter by itself. Which rows have been given away before it is this rank's turn, and what is left of
# them may not be negative.</details>
# <details><summary>Hint 3</summary>

# How many numbers has a row? <code>math.prod(shape[1:])</code> is 1 for a vector. And how many numbers of 4 bytes are kept for each
# number of a parameter?</details>


# %% name="exercise-bytes-code" tags=["exercise"]
def my_bytes_of_rank(shapes, *, world, rank):
    ### BEGIN SOLUTION
    numbers = 0
    for n_rows, *row in shapes:
        rows = math.ceil(n_rows / world)
        mine = max(0, min(rows, n_rows - rank * rows))
        numbers += mine * math.prod(row)
    return 16 * numbers
    ### END SOLUTION


# %% name="exercise-bytes-check" tags=["check"]
bytes_of_rank = checks.bytes_of_rank(my_bytes_of_rank)

# %% [markdown] name="clinic"
# ## Bug clinic
#
# Five more patients: code that looks right and runs, each with a classic mistake of training on several processes or in few
# bits. As in chapter 1, run the experiment first, decide from its numbers what must be wrong, then unfold the diagnosis.

# %% [markdown] name="clinic-start-story"
# ### Patient 1: sharding a model
#
# “Every rank builds the model and shards it.”

# %% name="clinic-start" tags=["clinic"]


def patient_start(model):
    from torch.distributed.fsdp import fully_shard

    return fully_shard(model)


# %% name="clinic-start-cure" tags=["clinic"] jupyter={"source_hidden": true}


def cured_start(model):
    from torch import distributed
    from torch.distributed.fsdp import fully_shard

    for tensor in model.state_dict().values():
        distributed.broadcast(tensor, src=0)
    return fully_shard(model)


# %% name="clinic-start-program" tags=["clinic"]
def whose_weights(name):
    """Of the sharded model's numbers, the shares that are those of seed 0 and of seed 1."""
    from course_lib.parallel import rank, whole_weights
    from course_lib.runs.shared_steps import SharedSteps

    steps = SharedSteps("alone", width=32, layers=1)
    whole = whole_weights(globals()[name](steps.model(seed=rank())))  # ranks start from different seeds
    shares = []
    for seed in (0, 1):
        own = steps.model(seed=seed).state_dict()
        matrices = [key for key in whole if whole[key].dim() == 2]
        equal = sum(int((whole[key] == own[key]).sum()) for key in matrices)
        shares.append(equal / max(1, sum(whole[key].numel() for key in matrices)))
    return shares


def of_rank_0(program, *patients):
    """{name: what rank 0 gave back}, for each of some patients, in one start of the ranks."""
    names = [patient.__name__ for patient in patients]

    def each(program, names):
        return {name: globals()[program](name) for name in names}

    return run_on_ranks(each, helpers=[*patients, program], program=program.__name__, names=names)[0]


# %% name="clinic-start-experiment"
starts = of_rank_0(whose_weights, patient_start, cured_start)
Markdown(
    f"Rank 0 began from seed 0, rank 1 from seed 1. Of the parameters in the sharded model's matrices, {starts['patient_start'][0]:.0%} are "
    f"those of seed 0 and {starts['patient_start'][1]:.0%} those of seed 1."
)

# %% [markdown] name="clinic-start-diagnosis"
# <details><summary>Diagnosis</summary>
#
# FSDP takes each rank's part from the model that this rank has built: a patchwork of two models. It trains all the same. DDP
# copies rank 0's weights when it is made, and repairs nothing that is changed afterwards. Give all ranks the same weights
# first: broadcast them, or read one checkpoint. The same seed helps only as long as nobody draws one number more on one
# rank.
# </details>

# %% [markdown] name="clinic-clip-story"
# ### Patient 2: clipping in fp16
#
# “In fp16 the loss is scaled, and gradients are clipped as always.”

# %% name="clinic-clip" tags=["clinic"]


def patient_clip(model, scale, limit):
    nn.utils.clip_grad_norm_(model.parameters(), limit)
    for parameter in model.parameters():
        parameter.grad /= scale


# %% name="clinic-clip-cure" tags=["clinic"] jupyter={"source_hidden": true}


def cured_clip(model, scale, limit):
    for parameter in model.parameters():
        parameter.grad /= scale
    nn.utils.clip_grad_norm_(model.parameters(), limit)


# %% name="clinic-clip-program" tags=["clinic"]
def length_after(clip, scale):
    """The length of the gradient that the optimiser sees, of a loss that was multiplied by a scale."""
    steps = SharedSteps("alone", width=32, layers=1)
    model = steps.model()
    total, n_targets = batch_loss(model, next(steps.batches()))
    (total * scale / n_targets).backward()
    clip(model, scale, 0.5)
    return float(torch.cat([p.grad.flatten() for p in model.parameters()]).norm())


# %% name="clinic-clip-experiment"
SCALES = (1.0, 2.0**8, 2.0**16)
table(
    ["scale of the loss", "length of the gradient at the optimiser, limit 0.5"],
    [[f"{scale:,.0f}", f"{length_after(patient_clip, scale):.2g}"] for scale in SCALES],
)

# %% [markdown] name="clinic-clip-diagnosis"
# <details><summary>Diagnosis</summary>
#
# The limit is applied to the scaled gradient, so what is left after unscaling is the limit divided by the scale: the step
# shrinks by the scale, and changes whenever the scale does. AdamW, which divides by a gradient's usual size, hides it until
# the scale changes. Unscale first (<code>GradScaler.unscale_</code>), then clip.
# </details>

# %% [markdown] name="clinic-sync-story"
# ### Patient 3: accumulation under DDP
#
# “Ranks need not talk while gradients add up.”

# %% name="clinic-sync" tags=["clinic"]


def patient_accumulation_on_ranks(ddp, batches):
    for batch in batches:
        with ddp.no_sync():
            ddp(batch).backward()


# %% name="clinic-sync-cure" tags=["clinic"] jupyter={"source_hidden": true}


def cured_accumulation_on_ranks(ddp, batches):
    import contextlib

    for number, batch in enumerate(batches, 1):
        with ddp.no_sync() if number < len(batches) else contextlib.nullcontext():
            ddp(batch).backward()


# %% name="clinic-sync-program" tags=["clinic"]
def gradients_apart(name):
    """How far rank 1's gradient lies from rank 0's, as a share of its length."""
    import torch
    from torch import distributed
    from torch.nn.parallel import DistributedDataParallel

    from course_lib.parallel import SummedLoss, rank, world
    from course_lib.runs.shared_steps import SharedSteps

    steps = SharedSteps("alone", width=32, layers=1, steps=2, texts=[f"a film about {n} friends" for n in range(16)])
    model = steps.model()
    mine = [batch.rows(slice(rank(), None, world())) for batch in steps.batches()]
    globals()[name](DistributedDataParallel(SummedLoss(model)), mine)
    gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
    others = [torch.empty_like(gradient) for _ in range(world())]
    distributed.all_gather(others, gradient)
    return float((others[1] - others[0]).norm() / others[0].norm())


# %% name="clinic-sync-experiment"
apart = of_rank_0(gradients_apart, patient_accumulation_on_ranks, cured_accumulation_on_ranks)
Markdown(
    f"After two micro-batches, the ranks' gradients are {apart['patient_accumulation_on_ranks']:.0%} of their length apart."
)

# %% [markdown] name="clinic-sync-diagnosis"
# <details><summary>Diagnosis</summary>
#
# <code>no_sync</code> is around the last micro-batch too: gradients are never summed, each rank takes steps of its own, and there are two
# models from the first step on. Rank 0's loss looks fine, and rank 0's is the one that is printed. Leave the last micro-batch outside.
# </details>

# %% [markdown] name="clinic-data-story"
# ### Patient 4: a loader on every rank
#
# “Every rank has a `DataLoader` that shuffles. The seed is fixed, so the run can be repeated.”

# %% name="clinic-data" tags=["clinic"]


def patient_loader(rows, batch_size, *, rank, world):
    return DataLoader(rows, batch_size, shuffle=True, generator=torch.Generator().manual_seed(0))


# %% name="clinic-data-cure" tags=["clinic"] jupyter={"source_hidden": true}


def cured_loader(rows, batch_size, *, rank, world):
    return DataLoader(rows, batch_size, sampler=DistributedSampler(rows, num_replicas=world, rank=rank, seed=0))


# %% name="clinic-data-program" tags=["clinic"]
def rows_of_a_step(loader):
    """Rows that two ranks read in their first step, and how many different ones they are."""
    rows = torch.arange(64)
    read = torch.cat([next(iter(loader(rows, 8, rank=rank, world=2))) for rank in (0, 1)])
    return len(read), len(read.unique())


# %% name="clinic-data-experiment"
Markdown(
    "In the first step two ranks read {} rows; different ones among them: {}.".format(*rows_of_a_step(patient_loader))
)

# %% [markdown] name="clinic-data-diagnosis"
# <details><summary>Diagnosis</summary>
#
# The same seed on all ranks means the same rows on all ranks: twice the work for the gradient of one batch, and a speed-up
# that exists in tokens per second alone. Each rank needs its own part of one common order: a <code>DistributedSampler</code>
# (whose
# <code>set_epoch</code> must be called, or every epoch has the same order), or every rank's rows computed from seed, step and rank.
# </details>

# %% [markdown] name="clinic-save-story"
# ### Patient 5: saving under FSDP
#
# “One file is enough.”

# %% name="clinic-save" tags=["clinic"]


def patient_save(model):
    from course_lib.parallel import rank

    if rank() == 0:
        return {name: p.to_local() if hasattr(p, "to_local") else p for name, p in model.state_dict().items()}
    return {}


# %% name="clinic-save-cure" tags=["clinic"] jupyter={"source_hidden": true}


def cured_save(model):
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


# %% name="clinic-save-program" tags=["clinic"]
def share_saved(name):
    """Of the model's numbers, the share that the file of rank 0 holds."""
    from torch.distributed.fsdp import fully_shard

    from course_lib.runs.shared_steps import SharedSteps

    model = SharedSteps("alone", width=32, layers=1).model()
    n_numbers = sum(tensor.numel() for tensor in model.state_dict().values())
    return sum(tensor.numel() for tensor in globals()[name](fully_shard(model)).values()) / n_numbers


# %% name="clinic-save-experiment"
saved_shares = of_rank_0(share_saved, patient_save, cured_save)
Markdown(f"The file of rank 0 holds {saved_shares['patient_save']:.0%} of the model's parameters.")

# %% [markdown] name="clinic-save-diagnosis"
# <details><summary>Diagnosis</summary>
#
# Under FSDP rank 0 has its own part of every weight, and nothing else. The file is written, has all names, and holds a part
# of the model; that shows on the day when somebody loads it. Gather first (every rank must take part in that, so outside of
# the <code>if</code>), or let every rank write its part (<code>torch.distributed.checkpoint</code>).
# </details>

# %% [markdown] name="cures"
# Each patient's cure stands in a folded cell beside it. Here is every experiment once more, on patient and cure.

# %% name="clinic-after" jupyter={"source_hidden": true}
cases = [
    [
        "parameters of seed 0 in the sharded model",
        *(f"{starts[f'{kind}_start'][0]:.0%}" for kind in ("patient", "cured")),
    ],
    [
        "length of the gradient at scale 65,536",
        *(f"{length_after(f, 2.0**16):.2g}" for f in (patient_clip, cured_clip)),
    ],
    [
        "distance of the ranks' gradients",
        *(f"{apart[f'{kind}_accumulation_on_ranks']:.1%}" for kind in ("patient", "cured")),
    ],
    [
        "different rows, of those read in a step",
        *("{1} of {0}".format(*rows_of_a_step(f)) for f in (patient_loader, cured_loader)),
    ],
    ["share of the model in the file", *(f"{saved_shares[f'{kind}_save']:.0%}" for kind in ("patient", "cured"))],
]
after_table = table(["experiment", "patient", "cure"], cases)
Markdown(f"<details><summary>Patients and cures</summary>\n\n{after_table.data}\n\n</details>")

# %% [markdown] name="claims"
# ## What is usually said
#
# The source is the text that this course grew out of; its figures were typed in. Here figures are computed from what was measured
# above, and so are the verdicts on the two about mixed precision and the one about fp16.

# %% name="claims-table" jupyter={"source_hidden": true}
in_bf16 = sum(step_memory["bf16"].values()) / sum(step_memory["as it is"].values())
claims = [
    [
        "Mixed precision halves the memory.",
        "halved",
        f"{in_bf16:.0%} of a step's memory, {kept_by['bf16'] / kept_by['as it is']:.0%} of what is kept for backward",
        "holds here" if in_bf16 < 0.55 else "not of weights, gradients and moments, which stay fp32",
    ],
    [
        "Mixed precision is two to three times as fast.",
        "2 to 3 times",
        ", ".join(f"{times:.2g} at width {width}" for width, times in speedup.items()),
        "slower here, at every width measured"
        if max(speedup.values()) < 1
        else "depends on the width"
        if max(speedup.values()) > 1.3 * min(speedup.values())
        else "see the figures",
    ],
    [
        "Four GPUs are nearly four times as fast.",
        "3.8, 3.95 and 3.9 times, by three kinds of data parallel",
        f"two ranks on this machine: {ddp_speed:.2f} (DDP) and {fsdp_speed:.2f} (FSDP) times one thread",
        "a property of the machine, the model and the batch",
    ],
    [
        "Accumulating gradients is the same as a larger batch.",
        "not said",
        f"off by {off_means:.0%} as a mean of means, by {off_summed:.0e} when summed and divided once",
        "only if divided by all targets, once",
    ],
    [
        "fp16 needs loss scaling.",
        "not said",
        f"without one {tail_loss['fp16 without a scale'] - tail_loss['fp32']:+.3f} nats in a small step, {harmed:+.2f} at 2⁻⁸, as in one of 256 micro-batches",
        "small steps do not, large ones do"
        if harmed > 0.05 and tail_loss["fp16 without a scale"] - tail_loss["fp32"] < 0.02
        else "see the figures",
    ],
]
table(["usually said", "the source", "measured here", "verdict"], claims)

# %% [markdown] name="summary"
# ## What to take along
#
# - Count bytes, take ratios in one run, and ask of every figure: of which model, on which machine?
# - bf16 pays where the machine has instructions for it and products are large. Measure it at your width; weights, gradients and
#   moments it does not touch.
# - fp16 has too little range for small gradients; a scale moves them into it, and is found by trial. bf16 needs none.
# - Sum over targets, divide once: over micro-batches, and over ranks.
# - Activation checkpointing saves memory for time, and is exact to the bit; micro-batches save it for smaller products, exact to rounding.
# - DDP holds everything everywhere and sends gradients; FSDP holds parts and sends more.
# - Prove that many processes do what one does: in fp64, from different seeds, on rows of different lengths.
# - Whatever runs long enough gets killed. What a step reads must follow from seed, step and rank.
#
# **What to try first**, when a model does not fit or does not get done: bf16 where a measurement says that it pays (a GPU
# without it takes fp16, with a scale); batches without padding; micro-batches; checkpointing; DDP for time, as long as one
# device holds everything; FSDP when it does not. The number of ranks need not change the batch: ranks share it, and the
# learning rate stays. Larger batches for more ranks are another decision, with another rate. What FSDP does not solve, a
# layer that is too large for one device, takes tensor or pipeline parallelism, which this course does not teach.
#
# Every part is now measured by itself. Do they work together, on a text that nobody prepared for you? That is the last chapter.
#
# ## Sources
#
# - Micikevicius et al. 2017, mixed precision and loss scaling, [arXiv:1710.03740](https://arxiv.org/abs/1710.03740)
# - Chen et al. 2016, activation checkpointing, [arXiv:1604.06174](https://arxiv.org/abs/1604.06174); Korthikanti et al. 2022,
#   [arXiv:2205.05198](https://arxiv.org/abs/2205.05198)
# - Li et al. 2020, PyTorch's DDP, [arXiv:2006.15704](https://arxiv.org/abs/2006.15704); Zhao et al. 2023, FSDP,
#   [arXiv:2304.11277](https://arxiv.org/abs/2304.11277)
# - Rajbhandari et al. 2019, ZeRO, [arXiv:1910.02054](https://arxiv.org/abs/1910.02054)
# - Hugging Face 2024, the mean of means in a widely used library, *Fixing Gradient Accumulation*,
#   [huggingface.co/blog/gradient_accumulation](https://huggingface.co/blog/gradient_accumulation)
# - Hu et al. 2021, LoRA, [arXiv:2106.09685](https://arxiv.org/abs/2106.09685); Dettmers et al. 2023, QLoRA,
#   [arXiv:2305.14314](https://arxiv.org/abs/2305.14314); Brown et al. 2020, GPT-3,
#   [arXiv:2005.14165](https://arxiv.org/abs/2005.14165)
#
# **Next:** [06 Capstone](06_capstone.ipynb)

# %% name="sweep-controls" tags=["remove-cell"] jupyter={"source_hidden": true}
for box in (scope, life_box, plan_box):
    sweep(box)  # every control to its ends: fails if one of them shows an error
