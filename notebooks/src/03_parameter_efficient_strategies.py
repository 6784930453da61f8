# ---
# jupyter:
#   jupytext: {text_representation: {extension: .py, format_name: percent}}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown] name="title"
# # 03 Parameter-efficient strategies
#
# **You have a pre-trained model and a few dozen labelled sentences. What do you change?** Chapter 2 ended with a model that was
# fine-tuned whole. Everything can be changed, as in a program that one owns; or a small part, with the rest left as it was
# published, so that it can be shared, switched and taken back.
#
# You will
#
# - fine-tune one real model in five ways, on the same sentences, and see what each costs and what it buys;
# - measure which of them begin as the model that they change, and prove that its weights stay to the bit;
# - move the rank and the scale of a low-rank update, beside the change that full fine-tuning really made;
# - put two tasks on one model and switch between them;
# - see where the heads look when a trained prefix stands before the text;
# - carry an adapter over to another library, and back.
#
# **How to read it.** As [00 Start here](00_start_here.ipynb) explains. Section 8 uses `peft` and `transformers` where they are
# installed, and says so where they are not.
#
# **If you build compilers:** full fine-tuning is a fork: everything can be changed, and you maintain all of it. The strategies of
# this chapter are patches: small, with a name, applied to an unchanged release, one for each customer. The analogy breaks where
# patches of source code can conflict line by line: two low-rank updates always add up, and only a measurement tells whether the sum
# makes sense.

# %% name="progress" jupyter={"source_hidden": true}
from course_lib.lab import progress

progress("03")

# %% [markdown] name="words"
# <details><summary><b>Words used below</b> (unfold when you meet one)</summary>
#
# - **Base**: the pre-trained model, as it was published. **Frozen**: not trained. **Head**: the small layer on top that turns a
#   text's features into a decision; its outputs are **logits**. (An attention head is something else: one of several parallel looks.)
# - **Encoder**: sees the whole text at once. **Decoder**: writes from left to right.
# - **Label**: the answer that belongs to a text, here 1 for positive and 0 for negative. **Sample**: the labelled sentences that a run
#   learns from, drawn at random. **Seed**: here, which sample is drawn, and in what order it is read.
# - **The source**: the text that this course grew out of.
# - **KV cache**: keys and values of what was read before, kept so that they need not be computed again.
# - **Adapter**, in the wide sense: what a strategy adds to a base, and what is saved of it. *Adapter layers* are one such strategy,
#   *prefix tuning* another.
# - **Rank** of a matrix: how many directions it can write to. A matrix of rank r is a product of an [out, r] and an [r, in] matrix.
# - **Singular values**: how strongly a matrix acts along its own directions, sorted. **Energy**: the sum of their squares.
# - **Optimiser state**: AdamW remembers two numbers for each parameter that it trains.
# - **Interval**: a 95% confidence interval. Of 100 such intervals about 95 hold the true value.
# - **Bag of words**: a classifier that knows which words and pairs of words a text has, and not in what order. **Chance**: what guessing would score.
# - **Names in the code** end in their axes: `weight_OI` has a row for each channel out (O), a column for each channel in (I).
#
# Every term of the course: [the glossary](../docs/glossary.md).
# </details>

# %% name="setup" tags=["setup"] jupyter={"source_hidden": true}
import copy
import importlib.util
import itertools
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from IPython.display import Markdown, display
from torch import nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from course_lib import checks, plots, runs
from course_lib.architectures import ARCHITECTURES, QUERY_AND_VALUE
from course_lib.data import course_tokenizer, pad, reviews_of
from course_lib.evaluation import attention_weights, bag_of_words_accuracy, mean_interval
from course_lib.finetuning import fine_tune, predictions
from course_lib.layers import Conv1D, attend
from course_lib.model import Decoder
from course_lib.optimizers import make_optimizer
from course_lib.peft import (
    Adapter,
    BitFit,
    LoRA,
    Prefix,
    adapter_state,
    apply,
    combine,
    fold,
    load_adapter,
    merge,
    remove,
    save_adapter,
    switch,
    unmerge,
)
from course_lib.peft.prefix import prefix_cache
from course_lib.peft.spectrum import changes, cut_changes, spectrum, weights_of
from course_lib.planner import trained_parameters
from course_lib.pretrained import load_checkpoint, minilm, save_model
from course_lib.records import Record
from course_lib.runs.strategies import (
    BASELINES,
    TRIALS,
    Comparison,
    adapted,
    baseline_is_right,
    fresh_classifier,
    is_right,
)
from course_lib.runtime import bytes_here, kept_for_backward, largest_difference, pick_device, seeded, wait_for
from course_lib.widgets.binder import compare, guess, guess_number, sweep, table
from course_lib.widgets.low_rank import LowRankBench, draw_low_rank, low_rank_explorer
from course_lib.widgets.prefixes import PrefixBench, draw_prefix, prefix_explorer

device = pick_device()
base, tokenizer = minilm()
comparison = Comparison()
live_tests = comparison.tests[: comparison.first_tests]
NAMES = {
    "bag of words": "bag of words",
    "head alone": "head alone",
    "full": "full",
    "lora": "LoRA",
    "prefix": "prefix tuning",
    "adapter": "adapter layers",
    "bitfit": "BitFit",
}

# %% [markdown] name="model-and-task"
# The model is the real all-MiniLM-L6-v2: a small BERT, distilled (arXiv:2002.10957) and then trained to compare sentences
# (arXiv:1908.10084). The task is to say of one sentence from a film review whether it is positive or negative. Each run learns from
# some labelled sentences and is tested on others, on which nothing in this course has been trained.

# %% name="read-sentences"
LABELS, SEED = 50, 0
sample = comparison.sample(LABELS, SEED)
n_base = sum(p.numel() for p in base.parameters())
Markdown(
    f"MiniLM has {n_base:,} parameters in {base.config.n_layers} layers, {base.config.d_model} channels wide. "
    f"{len(comparison.pool):,} sentences to learn from, {len(comparison.tests)} to test on. Two of them:\n\n"
    + "\n".join(f"- {'positive' if r.label else 'negative'}: *{r.text}*" for r in (sample[0], sample[3]))
)

# %% [markdown] name="five"
# ## 1 Five ways to change a model
#
# | strategy | what trains | the idea |
# |---|---|---|
# | **full** fine-tuning | everything | the model is yours |
# | **LoRA** (arXiv:2106.09685) | two thin matrices beside a weight: W x + (alpha / r) B (A x) | the change that a task needs has a low rank |
# | **prefix tuning** (arXiv:2101.00190) | keys and values before those of the text, in every layer | tell the model something that no words say |
# | **adapter layers** (arXiv:1902.00751) | two small bottlenecks in every block | let each half of a block be followed by a correction |
# | **BitFit** (arXiv:2106.10199) | the biases | shift, but do not turn |
#
# In each of them a new head trains too. It is first fitted by itself on the frozen model's features, so that the rest is not
# led by a head that knows nothing (arXiv:2202.10054). One verb adds any of them to a model, from outside: the model's own
# code knows nothing of it.

# %% name="apply-each"
tried = {name: apply(fresh_classifier(), trial.strategy, modules_to_save=["head"]) for name, trial in TRIALS.items()}
SETTINGS_IN_WORDS = {
    "full": "",
    "lora": f"rank {TRIALS['lora'].strategy.rank}, alpha {TRIALS['lora'].strategy.alpha}, every linear layer",
    "prefix": f"{TRIALS['prefix'].strategy.length} positions, made by a network while training",
    "adapter": f"{TRIALS['adapter'].strategy.bottleneck} channels wide",
    "bitfit": "",
}
table(
    ["strategy", "settings", "modules changed", "trained parameters, head included", "share of all"],
    [
        [NAMES[name], SETTINGS_IN_WORDS[name], len(a.places), f"{a.n_trained:,}", f"{a.share:.2%}"]
        for name, a in tried.items()
    ],
)

# %% [markdown] name="share-question"
# A course on the subject may tell you shares such as *LoRA 0.1%, prefix 0.1%, adapters 1 to 5%, BitFit 0.05%* (these are
# the source's), as if they belonged to the strategies. The chart counts them with common settings: LoRA on queries and
# values alone (in GPT-2's layout one layer holds the keys too), a prefix without the network that makes it.
#
# **Predict.** How does LoRA's share change from BERT-base to Llama-2-7B, a far larger model?

# %% name="predict-share" jupyter={"source_hidden": true}
share_guess = guess(
    "From BERT-base to Llama-2-7B, LoRA's share",
    ["stays the same", "falls to about a quarter", "rises to about four times as much"],
)
display(share_guess)

# %% name="count-shares"
SETTINGS = {
    "LoRA, rank 8": lambda layout: LoRA(rank=8, targets=QUERY_AND_VALUE[layout]),
    "prefix of 16": lambda layout: Prefix(length=16, hidden=None),
    "adapter, 64 wide": lambda layout: Adapter(bottleneck=64),
    "BitFit": lambda layout: BitFit(),
}
own_models = {"our encoder": load_checkpoint("encoder"), "our decoder": load_checkpoint("decoder"), "MiniLM": base}
published = {name: ARCHITECTURES[name] for name in ("BERT-base", "GPT-2", "Llama-2-7B")}
shares = {name: {} for name in [*own_models, *published]}
without = []
for setting, make in SETTINGS.items():
    for name, model in own_models.items():
        layout = "gpt2" if isinstance(model, Decoder) else "bert"
        shares[name][setting] = 100 * apply(copy.deepcopy(model), make(layout)).share
    for name, architecture in published.items():
        try:
            trained, total = trained_parameters(architecture, make(architecture.layout))
            shares[name][setting] = 100 * trained / total
        except ValueError:  # nothing to train
            without.append(f"{setting} in {name}, which has no biases")
SAID = {"LoRA, rank 8": 0.1, "prefix of 16": 0.1, "adapter, 64 wide": (1.0, 5.0), "BitFit": 0.05}
plots.show(
    plots.draw_dots(
        shares | {"the source says": SAID},
        log_x=True,
        number="{:.2g}",
        xlabel="share of all parameters that trains, % (log scale)",
    ),
    alt="Shares of trained parameters on a logarithmic axis, four strategies on six models, and what the source says.",
)

# %% name="compare-share" jupyter={"source_hidden": true}
lora_shares = {name: row["LoRA, rank 8"] for name, row in shares.items()}
factor = lora_shares["BERT-base"] / lora_shares["Llama-2-7B"]
options = {1.0: "stays the same", 4.0: "falls to about a quarter", 0.25: "rises to about four times as much"}
compare(
    share_guess,
    f"From {lora_shares['BERT-base']:.2f}% to {lora_shares['Llama-2-7B']:.3f}%: a factor of {factor:.1f} less. An update of rank r "
    "beside a d x d weight has 2 r d parameters and the weight d², so the share falls as models get wider. Shares belong to a strategy, its "
    f"settings *and* a model: for LoRA they reach from {min(lora_shares.values()):.2g} to {max(lora_shares.values()):.2g}% here. "
    + (f"Not in the chart: {'; '.join(without)}." if without else ""),
    options[min(options, key=lambda f: abs(np.log(factor / f)))],
)

# %% [markdown] name="costs"
# **What it costs.** A step needs memory for the weights, for gradients, for the optimiser's state, and for what the forward
# pass keeps for the backward pass.
#
# **Predict.** LoRA trains a small share of the parameters. What does it save of *all* that memory, in a step on a few
# sentences?

# %% name="predict-costs" jupyter={"source_hidden": true}
cost_guess = guess(
    "Of the memory of a step of full fine-tuning, LoRA saves", ["nearly all of it", "a part of it", "nearly nothing"]
)
display(cost_guess)

# %% name="measure-costs"
ROUNDS = 3  # the first, in which memory is fetched for the first time, is not timed


def one_batch(reviews):
    ids_BT = pad(tokenizer.encode_all([r.text for r in reviews]), tokenizer.vocabulary).to(device)
    return ids_BT, ids_BT != tokenizer.vocabulary.pad, torch.tensor([r.label for r in reviews]).to(device)


few = sample[:8]
ids_BT, is_real_BT, labels_B = one_batch(few)


def one_step(classifier, optimizer):
    """One step of training, in fp32: seconds, and the bytes that its forward pass keeps for its backward pass."""
    began = time.perf_counter()
    with kept_for_backward(classifier) as kept:
        loss = F.cross_entropy(classifier(ids_BT, is_real_BT), labels_B)
    loss.backward()
    optimizer.step()
    wait_for(device)
    return time.perf_counter() - began, kept.bytes


benches = {}
for name, trial in TRIALS.items():
    classifier = fresh_classifier().train()
    apply(classifier, trial.strategy, modules_to_save=["head"])
    benches[name] = (classifier, make_optimizer(classifier))
steps = {name: [] for name in TRIALS}
for _ in range(ROUNDS):  # the strategies take turns, so that a busy moment hits all of them
    for name, bench in benches.items():
        steps[name].append(one_step(*bench))
costs = {}
for name, (classifier, optimizer) in benches.items():
    state = itertools.chain.from_iterable(s.values() for s in optimizer.state.values())
    costs[name] = {
        "weights": bytes_here(classifier.parameters()),
        "gradients": bytes_here(p.grad for p in classifier.parameters()),
        "optimiser": bytes_here(t for t in state if t.dim()),
        "kept for backward": steps[name][0][1],
    }
del benches, bench, classifier, optimizer, state  # their memory is needed for what follows
MIB = 2**20
step_time = {name: float(np.median([took for took, _ in timed[1:]])) for name, timed in steps.items()}
table(
    ["strategy", *(f"{part}, MiB" for part in costs["full"]), "in all, MiB", "time of a step, as a share of full"],
    [
        [NAMES[name], *(f"{b / MIB:.1f}" for b in parts.values()), f"{sum(parts.values()) / MIB:.0f}",
         f"{step_time[name] / step_time['full']:.0%}"]
        for name, parts in costs.items()
    ],
)  # fmt: skip

# %% name="compare-costs" jupyter={"source_hidden": true}
in_all = {name: sum(parts.values()) for name, parts in costs.items()}
saved = 1 - in_all["lora"] / in_all["full"]
grads_and_state = {n: parts["gradients"] + parts["optimiser"] for n, parts in costs.items()}
compare(
    cost_guess,
    f"In a step on {len(few)} sentences it saves {saved:.0%} of the memory. Gradients and optimiser state shrink from {grads_and_state['full'] / MIB:.0f} to "
    f"{grads_and_state['lora'] / MIB:.1f} MiB, for they go with the trained parameters. The weights must be there all the same, and what "
    f"is kept for the backward pass is {costs['lora']['kept for backward'] / costs['full']['kept for backward']:.0%} of full's: to "
    "know how the loss changes with a thin matrix in the first layer, the way back leads through all the others, and the gradient of A "
    f"needs each layer's input. A bias's gradient does not: BitFit keeps {costs['bitfit']['kept for backward'] / costs['full']['kept for backward']:.0%}. "
    "The more of a step's "
    "memory is activations (long texts, large batches), the less any of these strategies saves.",
    "nearly all of it" if saved > 0.8 else "nearly nothing" if saved < 0.1 else "a part of it",
)

# %% [markdown] name="accuracy-question"
# **What it buys.** Now the comparison itself, on one sample of labelled sentences. Beside the five strategies stand a bag of words, and a
# head alone on the frozen model. Each strategy has its own learning rate: the better of two with 100 labels, judged on sentences that
# are not tested on here.

# %% name="train-one-sample"
models, losses, right = {}, {}, {}


def compare_on(names, seed):
    """Train strategies and baselines on one sample, test them, and keep the models of the first sample."""
    learned = comparison.sample(LABELS, seed)
    for name in tqdm(names, desc=f"sample {seed}"):
        if name in BASELINES:
            right[name, seed] = baseline_is_right(name, learned, live_tests)
        else:
            done = adapted(TRIALS[name], learned, seed=seed)
            if seed == SEED:
                models[name], losses[name] = done.classifier, done.losses
            right[name, seed] = is_right(done.classifier, live_tests)


compare_on([*BASELINES, "full", "lora"], SEED)

# %% name="train-the-others"
compare_on(["prefix", "adapter", "bitfit"], SEED)
live = {name: 100 * right[name, SEED].mean() for name in NAMES}
plots.show(
    plots.draw_dots(
        {NAMES[name]: {"accuracy": value} for name, value in live.items()},
        number="{:.1f}",
        xlabel=f"accuracy on {len(live_tests)} sentences, %, one sample of {LABELS}",
        references={"chance": 50.0},
    ),
    alt="Accuracy of two baselines and five strategies on one sample.",
)

# %% [markdown] name="winner-question"
# There is a ranking. A recorded run (`data/records/strategies.jsonl`; `course record strategies` makes it again) has tested the same
# seven on the same sentences, after your sample and after others of the same size.
#
# **Predict.** Over all of these samples, which strategy is ahead of the next best by more than luck explains?

# %% name="predict-winner" jupyter={"source_hidden": true}
winner_guess = guess("Clearly ahead of all other strategies is", [*(NAMES[name] for name in TRIALS), "none of them"])
display(winner_guess)

# %% name="more-samples"
record = Record(runs.RECORDS_FOLDER / "strategies.jsonl")
first_tests = {  # {name: accuracy on the live test sentences after each sample, in %}
    name: [100 * v for v in record.by_step("accuracy_first", name=name)[LABELS].values()] for name in NAMES
}
n_samples = len(first_tests["full"])
winners = [max(TRIALS, key=lambda name: first_tests[name][seed]) for seed in range(n_samples)]
table(
    ["sample", "first", "second", "points between the two"],
    [
        [seed + 1, NAMES[first], NAMES[second], f"{first_tests[first][seed] - first_tests[second][seed]:.1f}"]
        for seed in range(n_samples)
        for first, second, *_ in [sorted(TRIALS, key=lambda name: -first_tests[name][seed])]
    ],
)

# %% name="show-samples" jupyter={"source_hidden": true}
intervals = {name: mean_interval(values) for name, values in first_tests.items()}
plots.show(
    plots.draw_dots(
        {NAMES[name]: {"accuracy": (i.value, max(0, i.low), min(100, i.high))} for name, i in intervals.items()},
        number="{:.1f}",
        xlabel=f"accuracy on {len(live_tests)} sentences, %: mean over {n_samples} samples of {LABELS}, with its 95% interval",
        references={"chance": 50.0},
    ),
    alt="Accuracy of two baselines and five strategies, each with its interval over the recorded samples.",
)

# %% name="compare-winner" jupyter={"source_hidden": true}
ranked = sorted(TRIALS, key=lambda name: -intervals[name].value)
lead = mean_interval([a - b for a, b in zip(first_tests[ranked[0]], first_tests[ranked[1]], strict=True)])
clear = NAMES[ranked[0]] if lead.low > 0 else "none of them"
compare(
    winner_guess,
    f"First is {NAMES[ranked[0]]} with {intervals[ranked[0]].value:.1f}%, then {NAMES[ranked[1]]} with {intervals[ranked[1]].value:.1f}%. Sample by sample "
    f"the first leads by {lead:+.1f} points, "
    + ("more than luck would easily explain." if lead.low > 0 else "which luck alone could explain.")
    + f" The first place of single samples goes to {len(set(winners))} different strategies. "
    f"All five lie between {intervals[ranked[-1]].value:.1f} and {intervals[ranked[0]].value:.1f}%; the head alone has "
    f"{intervals['head alone'].value:.1f}%, a bag of words {intervals['bag of words'].value:.1f}%. {n_samples} samples make wide intervals, and the "
    "leader was picked after the race, which makes its lead look larger than it is.",
    clear,
)

# %% [markdown] name="record-question"
# The record goes further: fewer labels and more, and all of the test sentences. The learning rates are those chosen at 100 labels
# throughout.

# %% name="show-record" jupyter={"source_hidden": true}
by_labels = {  # {name: {labels: accuracy of each sample, in %}}
    name: {n: [100 * v for v in samples.values()] for n, samples in record.by_step("accuracy", name=name).items()}
    for name in NAMES
}
plots.show(
    plots.draw_curves(
        {NAMES[name]: (list(means), [float(np.mean(v)) for v in means.values()]) for name, means in by_labels.items()},
        xlabel="labelled sentences (log scale)",
        ylabel=f"accuracy on {len(comparison.tests)} sentences, %",
        log_x=True,
        size=(7.4, 4.4),
    ),
    alt="Recorded accuracy of two baselines and five strategies against the number of labels, mean over samples.",
)


# %% name="explain-record" jupyter={"source_hidden": true}
def paired_lead(first, second, labels):
    """How far one is ahead of the other on the same samples, in points, with its interval."""
    return mean_interval([a - b for a, b in zip(by_labels[first][labels], by_labels[second][labels], strict=True)])


lines = []
for n in comparison.labels:
    order = sorted(TRIALS, key=lambda name: -np.mean(by_labels[name][n]))
    over_next, over_head = paired_lead(order[0], order[1], n), paired_lead(order[0], "head alone", n)
    lines.append([
        n, NAMES[order[0]], f"{np.mean(by_labels[order[0]][n]):.1f}%", f"{over_next:+.1f}", f"{over_head:+.1f}",
        f"{np.mean(by_labels[order[-1]][n]):.1f}%", f"{np.mean(by_labels['bag of words'][n]):.1f}%",
    ])  # fmt: skip
display(
    table(
        [
            "labels",
            "first of the five",
            "its accuracy",
            "points ahead of the second (95% interval)",
            "points ahead of the head alone (95% interval)",
            "accuracy of the last",
            "bag of words",
        ],
        lines,
    )
)
most = comparison.labels[-1]
full_over_lora = paired_lead("full", "lora", most)
Markdown(
    f"With {most:,} labels full fine-tuning is ahead of LoRA by {full_over_lora:+.1f} points"
    + (
        ", an interval that holds 0: not settled by these samples."
        if full_over_lora.holds(0)
        else ", more than luck would easily explain."
    )
    + f" Over all sizes it is the first of the five at {sum(line[1] == NAMES['full'] for line in lines)} of {len(lines)}. Read the intervals in the "
    "table before the names."
)

# %% [markdown] name="live-over-record"
# Can the record be trusted? Your live runs used its first sample, and the first of its test sentences: here both stand side by side.

# %% name="show-live-over-record" jupyter={"source_hidden": true}
recorded = {name: first_tests[name][SEED] for name in TRIALS}
far = [abs(recorded[name] - live[name]) for name in TRIALS]
plots.show(
    plots.draw_dots(
        {NAMES[name]: {"recorded": recorded[name], "live": live[name]} for name in TRIALS},
        number="{:.1f}",
        xlabel=f"accuracy on {len(live_tests)} sentences, %, one sample of {LABELS}",
    ),
    alt="For each strategy the recorded accuracy and the live one on the same sample and sentences.",
)

# %% name="explain-live-over-record" jupyter={"source_hidden": true}
Markdown(
    f"Run by run they lie {np.mean(far):.1f} points apart on average, {max(far):.1f} at most. "
    + (
        "On this machine they are the same."
        if max(far) == 0
        else "That is what rounding in another order does: training carries the last digits on, and a sentence near the border may change sides."
        if np.mean(far) < 2
        else "**That is more than rounding explains: something on this machine differs from the recorded runs.**"
    )
)

# %% [markdown] name="identity"
# ## 2 Where they begin, and what they leave alone
#
# A strategy that begins by damaging the model must first learn to undo that.
#
# **Predict.** Right after `apply`, before any training: for which of the five has the model's output changed?

# %% name="predict-identity" jupyter={"source_hidden": true}
identity_guess = guess(
    "Changed right after apply",
    ["none", "the prefix, and a little the adapter layers", "LoRA and the adapter layers", "all but full"],
)
display(identity_guess)

# %% name="measure-identity"
ids_BT, is_real_BT, _ = one_batch(sample[:8])
with torch.no_grad():
    before_BE = fresh_classifier().eval().body.features(ids_BT, is_real_BT)
largest = float(before_BE.abs().max())
moved_at_start = {}
for name, trial in TRIALS.items():
    classifier = fresh_classifier().eval()
    apply(classifier, trial.strategy, modules_to_save=["head"])
    with torch.no_grad():
        after_BE = classifier.body.features(ids_BT, is_real_BT)
    moved_at_start[name] = float((after_BE - before_BE).abs().max()) / largest
    if name == "prefix":
        classifier_with_prefix = classifier
shifted = [
    tuple(part.expand(len(ids_BT), -1, -1, -1) for part in layer) for layer in prefix_cache(classifier_with_prefix)
]
nobody_looks_BQK = F.pad(is_real_BT[:, None, :], (TRIALS["prefix"].strategy.length, 0), value=False)
with torch.no_grad():
    states_BTE = base.to(device)(ids_BT, nobody_looks_BQK, cache=shifted).hidden_states[-1]
weight_BT1 = is_real_BT[..., None].float()
shifted_BE = (states_BTE * weight_BT1).sum(1) / weight_BT1.sum(1)
moved_by_positions = float((shifted_BE - before_BE).abs().max()) / largest
table(
    ["strategy", "largest change of a feature, as a share of the largest feature", "equal to the bit"],
    [[NAMES[name], f"{far:.1e}", "yes" if far == 0 else "no"] for name, far in moved_at_start.items()],
)

# %% name="compare-identity" jupyter={"source_hidden": true}
unequal = {name for name, far in moved_at_start.items() if far > 0}
compare(
    identity_guess,
    "LoRA begins with B = 0, so its update is exactly 0 whatever A is; a bias or a weight that has not moved changes nothing. The adapter "
    f"layers begin with small random weights, near the identity: {moved_at_start['adapter']:.1e}. A prefix begins "
    f"elsewhere ({moved_at_start['prefix']:.2f}), for two reasons. The text's positions begin behind it: that alone, with a prefix that "
    f"nobody may look at, moves features by {moved_by_positions:.2f}. And attention is a softmax, whose shares sum to 1, so whatever the "
    "prefix gets is taken from the text. (Both are the largest move of any feature; they do not add up.)",
    "the prefix, and a little the adapter layers" if unequal == {"prefix", "adapter"} else None,
)

# %% [markdown] name="frozen-question"
# And after training? Here are the models that you trained in section 1. How many of the base's weights has each changed, even in
# one bit?

# %% name="count-changed-weights"
originals = {name: parameter.detach().cpu() for name, parameter in base.named_parameters()}
changed = {}
for name in TRIALS:
    own = {k.removeprefix("body."): p for k, p in models[name].named_parameters() if k.startswith("body.")}
    own = {k: p for k, p in own.items() if k in originals}
    changed[name] = {
        "all": sum(int((p.cpu() != originals[k]).sum()) for k, p in own.items()),
        "outside biases": sum(int((p.cpu() != originals[k]).sum()) for k, p in own.items() if not k.endswith("bias")),
        "of": sum(p.numel() for p in own.values()),
    }
words = models["full"].body.embeddings.word_embeddings.weight.detach().cpu()
seen = {i for review in sample for i in tokenizer.encode(review.text)} | {
    tokenizer.vocabulary.cls,
    tokenizer.vocabulary.sep,
}
is_changed_V = (words != originals["embeddings.word_embeddings.weight"]).any(1)
is_unseen_V = torch.tensor([i not in seen for i in range(len(words))])
table(
    ["strategy", "parameters of the base", "changed", "changed, biases left out"],
    [[NAMES[name], f"{c['of']:,}", f"{c['all']:,}", f"{c['outside biases']:,}"] for name, c in changed.items()],
)

# %% name="frozen-why" jupyter={"source_hidden": true}
Markdown(
    "Nobody checks this at run time; it follows from two lines, which are the whole of freezing:\n\n"
    "```python\n"
    "parameter.requires_grad_(name in trained)  # in apply\n"
    "optimizer = AdamW([p for p in model.parameters() if p.requires_grad])  # in training\n"
    "```\n\n"
    "A parameter that requires no gradient gets none, and the optimiser is handed only those that require one. The first line saves "
    "work too: for a frozen weight the backward pass computes the gradient of its input and skips that of the weight itself. (Full "
    f"fine-tuning has changed the embeddings of {int((is_changed_V & is_unseen_V).sum()):,} of {int(is_unseen_V.sum()):,} tokens that "
    "stand in none of its sentences: they have no gradient to follow, but weight decay moves them all the same.)"
)

# %% [markdown] name="lora"
# ## 3 LoRA close up
#
# **Predict.** A weight of 768 x 768, as in BERT-base. How many parameters has an update of rank 16, in per cent of the weight's?

# %% name="predict-rank-16" jupyter={"source_hidden": true}
rank_guess = guess_number(
    "An update of rank 16 beside 768 x 768", low=0, high=100, step=0.1, unit="% of the weight's parameters"
)
display(rank_guess)

# %% name="count-rank-16"
wide = nn.Linear(768, 768, bias=False)
update = apply(wide, LoRA(rank=16))
compare(
    rank_guess,
    f"The weight has {768 * 768:,} parameters, the update {update.n_trained:,}: 16 x 768 in A and 768 x 16 in B, "
    f"{update.n_trained / (768 * 768):.2%}. Twice the rank, twice the parameters; twice the width, half the share.",
    100 * update.n_trained / (768 * 768),
    near=0.5,
)

# %% [markdown] name="lora-explorer-question"
# The left picture is what *full fine-tuning* really changed in one layer of the model that you trained above (blocks of the matrix,
# red up and blue down). Beside it is the best approximation of that change by a matrix of the chosen rank.
#
# **Move.** Raise the rank until half of the energy is kept; does that rank depend on the layer? Then double alpha and read the last
# line: what else would you have to change with it? Then move the rank alone: what happens to the first step, and why is alpha divided
# by the rank?

# %% name="explore-lora"
tuned = models["full"]
before_tuning = {f"body.{name}": w.to(device) for name, w in weights_of(base).items()}
after_tuning = weights_of(tuned, list(before_tuning))
deltas = {name: delta.cpu() for name, delta in changes(before_tuning, after_tuning).items()}
LOOKED_AT = [
    f"layer.{n}.{kind}"
    for n in (0, 2, 5)
    for kind in ("attention.self.query", "attention.self.value", "intermediate.dense")
]
looked_at = {name: delta for name, delta in deltas.items() if name.endswith(tuple(LOOKED_AT))}
lora_box = low_rank_explorer(base, looked_at)
lora_box

# %% name="lora-without-a-kernel" jupyter={"source_hidden": true}
bench = LowRankBench(base, deltas)
views = {rank: bench.compute(rank=rank) for rank in (1, 8, 64)}
plots.show(
    draw_low_rank(views[8]),
    alt="What full fine-tuning changed in one layer, its best approximation of rank 8, and the energy that each rank keeps.",
)

# %% name="lora-explorer-answers" jupyter={"source_hidden": true}
doubled = bench.compute(rank=8, alpha=32).moved / views[8].moved
half_of = {
    name: 1 + int((spectrum(d).energy_kept() < 0.5).sum()) for name, d in looked_at.items() if name.endswith("query")
}
Markdown(
    "<details><summary>Moved it? Compare</summary>\n\n"
    f"In the layer drawn above rank 1 keeps {views[1].kept[0]:.0%} of the change, rank 8 {views[8].kept[7]:.0%}, rank 64 {views[64].kept[63]:.0%}. "
    f"Half of the energy is kept from rank {min(half_of.values())} to {max(half_of.values())} on, depending on the layer (weights of the "
    "queries). "
    f"Twice the alpha moves the weight {doubled:.1f} times as far in the first step, at the same learning rate: Adam moves "
    "every number of B by the rate, whatever its gradient's size, and alpha multiplies what comes of it. So alpha acts as a factor on the "
    "learning rate of B: change one, and look at the other. At a fixed alpha "
    f"the first step has length {views[1].moved:.0f}, {views[8].moved:.0f} and {views[64].moved:.0f} at ranks 1, 8 and 64: the division by the rank "
    "keeps it from growing with the number of directions (it falls, roughly with the square root, which is why "
    "`rank_stabilized=True` divides by the root; arXiv:2312.03732).\n\n</details>"
)

# %% [markdown] name="rank"
# ## 4 What rank did full fine-tuning use?
#
# LoRA's bet is that the change a task needs has a low rank. You have a model that was free to use any rank, so look: take
# what training added to each of its weight matrices, keep only its best approximation of rank r, and ask the model again. Rank 0
# puts the matrices back altogether; biases, norms, embeddings and head keep what they have learned.
#
# What it answers is the probability of *positive*, one for each test sentence. Putting the matrices back moves these answers away
# from those of the trained model. Rank r brings them nearer again: of the squared distance, how much does it take away?
#
# **Predict.** Of the energy of those changes, how much does rank 8 keep (the full rank is MiniLM's width)? And how much of what they do to the answers?

# %% name="predict-energy" jupyter={"source_hidden": true}
energy_guess = guess(
    "Of the energy of the change, rank 8 keeps", [("nearly all", 0.95), ("about half", 0.5), ("about a tenth", 0.1)]
)
answers_guess = guess(
    "Of what the change does to the answers, rank 8 keeps",
    [("nearly all", 0.95), ("about half", 0.5), ("nearly nothing", 0.05)],
)
display(energy_guess, answers_guess)

# %% name="cut-to-rank"
CUT_RANKS = (0, 1, 2, 8, 32, 128)
asked_texts = [r.text for r in live_tests[:100]]
spectra = {name: spectrum(delta) for name, delta in deltas.items()}
energies = np.mean([s.energy_kept() for s in spectra.values()], axis=0)


def answers(classifier):
    """The probability of "positive" for each of some test sentences."""
    return predictions(classifier, asked_texts, tokenizer)[:, 1]


trained_answers, cut_answers = answers(tuned), {}
cut = copy.deepcopy(tuned)
for rank in tqdm(CUT_RANKS, desc="truncating"):
    cut_changes(cut, before_tuning, spectra, rank)
    cut_answers[rank] = answers(cut)
del cut
distance = {rank: float(((given - trained_answers) ** 2).sum()) for rank, given in cut_answers.items()}
answers_kept = {rank: 1 - distance[rank] / distance[0] for rank in CUT_RANKS}
same = {rank: float(((given > 0.5) == (trained_answers > 0.5)).mean()) for rank, given in cut_answers.items()}
is_positive = np.array([bool(r.label) for r in live_tests[: len(asked_texts)]])
right_of = lambda given: float(((given > 0.5) == is_positive).mean())

# %% name="show-ranks" jupyter={"source_hidden": true}
ranks = CUT_RANKS[1:]
by_rank = {
    "what it does to the answers": (ranks, [100 * answers_kept[rank] for rank in ranks]),
    "its energy": (ranks, [100 * energies[rank - 1] for rank in ranks]),
}
plots.show(
    plots.draw_curves(
        by_rank,
        by_rank,  # lines with a marker at each rank
        kinds=None,
        xlabel="rank r (log scale)",
        ylabel="of the change, kept at rank r, %",
        log_x=True,
    ),
    alt="Of what full fine-tuning changed, the share of the energy that each rank keeps, and that of what it does to the answers.",
)

# %% name="measure-gradient-spectrum"
classifier = fresh_classifier()
classifier.head.load_state_dict(tuned.head.state_dict())  # with a head of zeros no gradient would reach the model
texts_BT, is_real_texts_BT, labels_B = one_batch(sample[:16])
F.cross_entropy(classifier(texts_BT, is_real_texts_BT), labels_B).backward()
attending = [name for name in deltas if name.endswith(("query", "value"))]
gradients = {name: classifier.get_submodule(name).weight.grad.cpu() for name in attending}
at_rank_8 = {
    "one batch's gradient": np.mean([spectrum(g).energy_kept()[7] for g in gradients.values()]),
    "its sign, as Adam's first step takes it": np.mean(
        [spectrum(g.sign()).energy_kept()[7] for g in gradients.values()]
    ),
    "the trained change": np.mean([spectra[name].energy_kept()[7] for name in attending]),
}
table(
    ["in queries and values", "energy that rank 8 keeps"], [[name, f"{share:.0%}"] for name, share in at_rank_8.items()]
)

# %% name="compare-energy" jupyter={"source_hidden": true}
kept_by_8 = float(energies[7])
display(
    compare(
        energy_guess,
        f"On average over {len(deltas)} matrices rank 8 keeps {kept_by_8:.0%} of the energy, rank 32 {energies[31]:.0%}, rank 128 "
        f"{energies[127]:.0%}. The table shows where the spread comes from: a gradient is far more concentrated than its sign, and Adam, which "
        "divides each number of a gradient by its usual size, walks along something like the sign.",
        min((0.95, 0.5, 0.1), key=lambda v: abs(v - kept_by_8)),
    )
)
compare(
    answers_guess,
    f"Rank 1 keeps {answers_kept[1]:.0%} of what the matrices do to the answers, rank 8 {answers_kept[8]:.0%}. With the matrices put back "
    f"the model decides as the trained one in {same[0]:.0%} of {len(asked_texts)} sentences, with rank 8 of their changes in {same[8]:.0%}. "
    f"It is right in {right_of(trained_answers):.0%} of them as trained, in {right_of(cut_answers[8]):.0%} cut to rank 8, in "
    f"{right_of(cut_answers[0]):.0%} with the matrices put back. "
    + (
        "Much of the energy does hardly anything to the answers."
        if answers_kept[8] > kept_by_8 + 0.2
        else "The answers go about as the energy goes."
    )
    + " This is one run on one sample: the next cell trains at a low rank from the start.",
    min((0.95, 0.5, 0.05), key=lambda v: abs(v - answers_kept[8])),
)

# %% [markdown] name="train-ranks-question"
# Need it have been free, then? Here is LoRA trained at rank 1, beside the one at rank 8 from section 1, with alpha twice the rank so
# that the scale stays the same.

# %% name="train-ranks"
lora = TRIALS["lora"]
thin = replace(lora, strategy=replace(lora.strategy, rank=1, alpha=2))
done = adapted(thin, sample)
right_at_1 = is_right(done.classifier, live_tests)
table(
    ["trained at rank", "trained parameters", f"accuracy on {len(live_tests)} sentences, %"],
    [
        [1, f"{done.applied.n_trained:,}", f"{100 * right_at_1.mean():.1f}"],
        [lora.strategy.rank, f"{tried['lora'].n_trained:,}", f"{live['lora']:.1f}"],
        ["full", f"{tried['full'].n_trained:,}", f"{live['full']:.1f}"],
    ],
)

# %% name="explain-ranks" jupyter={"source_hidden": true}
by_sentence = mean_interval(100 * (right["lora", SEED].astype(float) - right_at_1))
Markdown(
    f"Rank {lora.strategy.rank} is ahead of rank 1 by {by_sentence:+.1f} points, sentence by sentence: "
    + (
        "more than these sentences would show by luck."
        if by_sentence.low > 0 or by_sentence.high < 0
        else "the interval holds 0."
    )
    + f" The head has {2 * (base.config.d_model + 1):,} of the trained parameters in each row."
)

# %% [markdown] name="merge"
# ## 5 Merge, unmerge, switch
#
# A LoRA beside a weight costs a little at every call. But W x + s B (A x) = (W + s B A) x: add the update to the weight, and
# the model runs at the speed of the base.
#
# **Predict.** Subtract it again. Are the old weights back?

# %% name="predict-unmerge" jupyter={"source_hidden": true}
unmerge_guess = guess("W + update - update is", ["W, to the bit", "W, but for the last digits"])
display(unmerge_guess)

# %% name="merge-and-back"
adapted_model = models["lora"]
with torch.no_grad():
    wrapped_BC = adapted_model(ids_BT, is_real_BT)
    merge(adapted_model)
    merged_BC = adapted_model(ids_BT, is_real_BT)
    unmerge(adapted_model)
    unmerged_BC = adapted_model(ids_BT, is_real_BT)
layer = adapted_model.body.encoder["layer"][0].attention.self["query"]
delta = layer.adapters["default"].delta().detach()
back = (layer.weight + delta) - delta
table(
    ["the model", "largest difference from the wrapped model's logits, as a share of the largest"],
    [
        ["merged", f"{largest_difference(merged_BC, wrapped_BC):.1e}"],
        ["unmerged", f"{largest_difference(unmerged_BC, wrapped_BC):.1e}"],
    ],
)

# %% name="compare-unmerge" jupyter={"source_hidden": true}
off = int((back != layer.weight).sum())
compare(
    unmerge_guess,
    f"By subtraction, {off:,} of the {back.numel():,} weights of one layer come back changed in their last digits: a sum is rounded, and "
    "subtraction does not undo the rounding. Every other adapter that comes and goes leaves a rounding of its own. The library keeps the "
    "weights that it merged into, and puts *them* back: to the bit.",
    "W, but for the last digits" if off else "W, to the bit",
)

# %% [markdown] name="two-tasks"
# **Two tasks on one base.** A second task for the same model: did a critic write this sentence, or a viewer? (Critics'
# sentences come from Rotten Tomatoes, viewers' are first sentences from IMDB reviews. The full stop at the end is taken off:
# only one of the two sources keeps it, and a model would learn nothing else.) The base stays; each task has its own updates
# and its own head.


# %% name="read-second-task" jupyter={"source_hidden": true}
def bare(text):
    return text.replace("<br />", " ").lower().rstrip(" .!?\"'")


def first_sentences(split, count):
    """First sentences of viewers' reviews, as long as critics' sentences are."""
    found = (bare(r.text.split(". ")[0]) for r in reviews_of(split, "imdb"))
    return list(itertools.islice((text for text in found if 40 < len(text) < 200), count))


def writers(split, critics, count):
    """(text, 1 for a viewer and 0 for a critic), half of each."""
    pairs = [(text, 1) for text in first_sentences(split, count // 2)] + [
        (bare(r.text), 0) for r in critics[: count // 2]
    ]
    return [pairs[i] for i in torch.randperm(len(pairs), generator=seeded(5)).tolist()]


writer_train, writer_test = writers("train", comparison.pool, 60), writers("test", comparison.tests, 100)
words_alone = bag_of_words_accuracy(
    *(np.array(part) for part in (*zip(*writer_train, strict=True), *zip(*writer_test, strict=True)))
)
shown = [text for n in (0, 1) for kind in (0, 1) for text in [[t for t, label in writer_train if label == kind][n]]]
Markdown(
    "\n".join(f"- {who}: *{text}*" for who, text in zip(["critic", "viewer"] * 2, shown, strict=True))
    + f"\n\nA bag of words tells them apart in {words_alone:.1%} of {len(writer_test)} test sentences, after {len(writer_train)} labels."
)

# %% name="train-second-task"
two = fresh_classifier()
folder = Path(tempfile.mkdtemp())
save_adapter(models["lora"], folder / "sentiment")  # trained in section 1
load_adapter(two, folder / "sentiment", name="sentiment")
apply(two, lora.strategy, name="writer", modules_to_save=["head"])
fine_tune(two, [t for t, _ in writer_train], [label for _, label in writer_train], tokenizer, lora.training)
save_adapter(two, folder / "writer")


def skill(classifier, texts, labels):
    return 100 * float((predictions(classifier, texts, tokenizer).argmax(1) == np.array(labels)).mean())


asked = {
    "sentiment": ([r.text for r in live_tests[:100]], [r.label for r in live_tests[:100]]),
    "writer": ([t for t, _ in writer_test], [label for _, label in writer_test]),
}
skills = {}
for name in ("sentiment", "writer", None):
    switch(two, name)
    skills[name] = {task: skill(two, *texts) for task, texts in asked.items()}
table(
    ["switched on", "sentiment, %", "critic or viewer, %"],
    [
        [name or "none (a head that has learned nothing)", *(f"{v:.1f}" for v in row.values())]
        for name, row in skills.items()
    ],
)

# %% [markdown] name="combine-question"
# Off the diagonal a head for other classes was switched on, so read no skill into it: one half is chance, and such a head can lean to
# either side. Updates of one base can also
# be *added*: two products of rank r are one of rank 2 r. Does the sum do both tasks? Here is the sum of both updates, once
# under each head.

# %% name="combine-two"
summed = {}
for first, second in (("sentiment", "writer"), ("writer", "sentiment")):
    combine(two, {first: 1.0, second: 1.0}, name="both")  # the head is that of the first
    summed[first] = skill(two, *asked[first])
    remove(two, "both")
table(
    ["task", "its own update, %", "both updates, its own head, %"],
    [[task, f"{skills[task][task]:.1f}", f"{value:.1f}"] for task, value in summed.items()],
)

# %% [markdown] name="switch-question"
# **Predict.** Switch to and fro ten times. What does that leave in the outputs?

# %% name="predict-switch" jupyter={"source_hidden": true}
switch_guess = guess("After ten switches", ["exactly the same outputs", "a drift in the last digits"])
display(switch_guess)

# %% name="switch-ten-times"
with torch.no_grad():
    switch(two, "sentiment")
    first_BC = two(ids_BT, is_real_BT)
    for _ in range(10):
        switch(two, "writer")
        switch(two, "sentiment")
    last_BC = two(ids_BT, is_real_BT)
model_file = save_model(copy.deepcopy(base).cpu(), folder / "base") / "model.safetensors"
sizes = {"the base": model_file.stat().st_size} | {
    f"the adapter “{name}”": sum(f.stat().st_size for f in (folder / name).iterdir())
    for name in ("sentiment", "writer")
}
display(table(["on disk", "MiB"], [[name, f"{size / MIB:.2f}"] for name, size in sizes.items()]))
compare(
    switch_guess,
    f"{int((first_BC != last_BC).sum())} of {first_BC.numel()} logits differ. Nothing was added to the base and taken away again: switching "
    f"only chooses which update acts beside it. On disk an adapter takes {sizes['the adapter “sentiment”'] / sizes['the base']:.1%} of the base: a hundred customers are "
    f"{(sizes['the base'] + 100 * sizes['the adapter “sentiment”']) / sizes['the base']:.1f} bases, not a hundred and one.",
    "exactly the same outputs" if torch.equal(first_BC, last_BC) else "a drift in the last digits",
)

# %% [markdown] name="prefix"
# ## 6 A prefix that no words say
#
# A prefix is what a KV cache holds after reading some words, except that nobody wrote the words: keys and values in every
# layer, trained directly. All of the text may look at it.
#
# **Predict.** The prefix that you trained has 16 positions, and the next cell says how long the sentences are. How much of the
# attention goes to the prefix, averaged over layers, heads and tokens?

# %% name="predict-attention" jupyter={"source_hidden": true}
sentences = [r.text for r in live_tests[:12]]
n_tokens = [len(tokenizer.encode(text)) + 2 for text in sentences]
even = float(np.mean([16 / (16 + n) for n in n_tokens]))
display(Markdown(f"Twelve test sentences: {np.mean(n_tokens):.0f} tokens on average, two special ones among them."))
attention_guess = guess_number(
    "Share of the attention on the prefix", low=0, high=100, step=1, unit="% of all attention"
)
display(attention_guess)

# %% name="measure-attention"
with_prefix = models["prefix"]
cache = prefix_cache(with_prefix)


def attention_on_prefix(cache, texts):
    """[L, H]: each head's share of attention on the prefix, over texts."""
    shares = []
    for text in texts:
        ids = pad([tokenizer.encode(text)], tokenizer.vocabulary).to(device)
        shares.append(
            attention_weights(base.to(device), ids, cache)[:, 0, :, :, : cache[0][0].shape[2]].sum(-1).mean(-1)
        )
    return torch.stack(shares).mean(0).cpu().numpy()


on_prefix_LH = 100 * attention_on_prefix(cache, sentences)
untrained = fresh_classifier()
apply(untrained, TRIALS["prefix"].strategy)
at_start_LH = 100 * attention_on_prefix(prefix_cache(untrained), sentences)
compare(
    attention_guess,
    f"{on_prefix_LH.mean():.0f}% on average (before training it was {at_start_LH.mean():.0f}%; an even share would be {100 * even:.0f}%). By layer: "
    + ", ".join(f"{share:.0f}" for share in on_prefix_LH.mean(1))
    + f"%; single heads reach from {on_prefix_LH.min():.0f} to {on_prefix_LH.max():.0f}%.",
    float(on_prefix_LH.mean()),
    near=7,
)

# %% [markdown] name="prefix-explorer-question"
# **Move.** Choose the head that looks at the prefix most, and shorten the prefix until it is gone. What happens to its
# attention: where did that head look before? And at full length: do all tokens of the sentence look at the prefix alike, and
# do they prefer one of its positions?

# %% name="explore-prefix"
prefix_box = prefix_explorer(base, cache, sentences[:4], tokenizer)
prefix_box

# %% name="prefix-without-a-kernel" jupyter={"source_hidden": true}
prefix_bench = PrefixBench(base, cache, sentences[:4], tokenizer)
busiest = np.unravel_index(on_prefix_LH.argmax(), on_prefix_LH.shape)
plots.show(
    draw_prefix(prefix_bench.compute(length=16, layer=int(busiest[0]), head=int(busiest[1]))),
    alt="A head's attention as a map over prefix and sentence, and each head's share on the prefix as bars.",
)

# %% name="prefix-explorer-answers" jupyter={"source_hidden": true}
view = prefix_bench.compute(length=16, layer=int(busiest[0]), head=int(busiest[1]))
on_prefix_QP = view.weights_HQK[view.head][:, :16]
without_view = prefix_bench.compute(length=0, layer=int(busiest[0]), head=int(busiest[1]))
on_special = without_view.weights_HQK[without_view.head][:, [0, -1]].sum(1).mean()
Markdown(
    "<details><summary>Moved it? Compare</summary>\n\n"
    f"On this one sentence the head drawn above gives the prefix {view.on_prefix_H[view.head]:.0%} of its attention; its tokens do so between "
    f"{on_prefix_QP.sum(1).min():.0%} and {on_prefix_QP.sum(1).max():.0%}. The favourite position gets "
    f"{on_prefix_QP.sum(0).max() / on_prefix_QP.sum():.0%} of that, the least liked {on_prefix_QP.sum(0).min() / on_prefix_QP.sum():.0%}. Without the prefix the "
    f"same head spends {on_special:.0%} on the two special tokens at the ends of the sentence.\n\n</details>"
)

# %% [markdown] name="prefix-length-question"
# **How long should it be, and why is it made by a network?** While it trains, the library does not train keys and values
# directly: a small network makes them from a smaller table (section 4.3 of the paper). Afterwards only its output is kept.
#
# **Predict.** What happens without it, at the same learning rate?

# %% name="predict-network" jupyter={"source_hidden": true}
network_guess = guess(
    "Without the network, at the same learning rate, the loss after training is",
    ["about the same", "clearly higher", "clearly lower"],
)
display(network_guess)

# %% name="train-prefixes"
prefix_trial = TRIALS["prefix"]
variants = {
    f"length {n}": replace(prefix_trial, strategy=replace(prefix_trial.strategy, length=n)) for n in (1, 64)
} | {"length 16, no network": replace(prefix_trial, strategy=replace(prefix_trial.strategy, hidden=None))}
prefixes = {"length 16": (models["prefix"], tried["prefix"].n_trained, losses["prefix"][-1])}
for name, trial in tqdm(variants.items(), desc="prefixes"):
    done = adapted(trial, sample)
    prefixes[name] = (done.classifier, done.applied.n_trained, done.losses[-1])
for classifier, _, _ in prefixes.values():
    fold(classifier)

# %% name="measure-prefixes"
to_read = live_tests[:8]


def reading_times(classifiers, rounds=5):
    """Seconds to judge some sentences, several times; the models take turns, so that a busy moment hits all of them."""
    ids_BT, is_real_BT, _ = one_batch(to_read)
    took = {name: [] for name in classifiers}
    for _ in range(rounds):
        for name, classifier in classifiers.items():
            began = time.perf_counter()
            with torch.no_grad():
                classifier(ids_BT, is_real_BT)
            wait_for(device)
            took[name].append(time.perf_counter() - began)
    return {name: np.array(values[1:]) for name, values in took.items()}


times = reading_times({"base": fresh_classifier().eval()} | {name: row[0] for name, row in prefixes.items()})
order = ["length 1", "length 16", "length 64", "length 16, no network"]
prefix_accuracy = {"length 16": live["prefix"]} | {
    name: 100 * is_right(prefixes[name][0], live_tests).mean() for name in variants
}
table(
    [
        "prefix",
        "parameters while training",
        "parameters kept",
        "loss of the last epoch, nats per sentence",
        "accuracy, %",
        "time to read, base = 1",
    ],
    [
        [
            name,
            f"{trained:,}",
            f"{sum(t.numel() for k, t in adapter_state(classifier).items() if 'embedding' in k):,}",
            f"{loss:.3f}",
            f"{prefix_accuracy[name]:.1f}",
            f"{np.median(times[name] / times['base']):.2f}",
        ]
        for name in order
        for classifier, trained, loss in [prefixes[name]]
    ],
)

# %% name="compare-network" jupyter={"source_hidden": true}
with_network, without = (prefixes[name][2] for name in ("length 16", "length 16, no network"))
gap = without - with_network
compare(
    network_guess,
    f"With the network the loss of the last epoch is {with_network:.3f}, without it {without:.3f}. One run each, at a rate that was chosen for "
    "the network, so do not generalise from it. Trained directly, each number of a prefix moves by about the rate at a step; through the "
    "network one step moves all of them together. What is kept is the table of keys and values, so the network costs nothing later. A "
    f"prefix of 1 reaches a training loss of {prefixes['length 1'][2]:.3f}, one of 64 {prefixes['length 64'][2]:.3f}; look at the accuracies in the "
    "table before you call a longer one better.",
    "about the same" if abs(gap) < 0.03 else "clearly higher" if gap > 0 else "clearly lower",
)

# %% [markdown] name="moved"
# ## 7 What moved, and what it costs to run
#
# BitFit trains biases alone.
#
# **Predict.** Which kind of bias has it moved furthest, relative to the length of those biases before?

# %% name="predict-biases" jupyter={"source_hidden": true}
bias_guess = guess(
    "The largest relative change is in the biases of",
    ["queries", "keys", "values", "attention's output", "feed-forward layers", "normalisations"],
)
display(bias_guess)

# %% name="measure-biases"
KINDS = {
    "attention.self.query": "queries", "attention.self.key": "keys", "attention.self.value": "values",
    "attention.output.dense": "attention's output", "intermediate.dense": "feed-forward layers", "output.dense": "feed-forward layers",
    "LayerNorm": "normalisations",
}  # fmt: skip
by_kind = {}
for name, parameter in models["bitfit"].body.named_parameters():
    if name.endswith("bias"):
        kind = next(words for part, words in KINDS.items() if part in name)
        entry = by_kind.setdefault(kind, [0.0, 0.0])
        entry[0] += float((parameter.detach().cpu() - originals[name]).square().sum())
        entry[1] += float(originals[name].square().sum())
relative = {kind: 100 * (moved / was) ** 0.5 for kind, (moved, was) in by_kind.items()}
relative = dict(sorted(relative.items(), key=lambda item: -item[1]))


@torch.no_grad()
def after_a_shift(part):
    """How far the logits move, as a share of the largest, when 1 is added to these biases in every layer."""
    shifted = copy.deepcopy(models["bitfit"])
    before_BC = shifted(ids_BT, is_real_BT)
    for name, parameter in shifted.body.named_parameters():
        if name.endswith(f"{part}.bias"):
            parameter += 1
    return largest_difference(shifted(ids_BT, is_real_BT), before_BC)


table(
    ["biases of", "length before", "length of the change", "the change as a share"],
    [
        [kind, f"{by_kind[kind][1] ** 0.5:.2g}", f"{by_kind[kind][0] ** 0.5:.2g}", f"{share:.1f}%"]
        for kind, share in relative.items()
    ],
)

# %% name="compare-biases" jupyter={"source_hidden": true}
first_kind = next(iter(relative))
compare(
    bias_guess,
    f"{first_kind.capitalize()}: {relative[first_kind]:.0f}% of their length before, the least {list(relative)[-1]} ({relative[list(relative)[-1]]:.1f}%). "
    "The keys are a trap. A key's bias adds the same number to a query's scores for *all* keys, and softmax does not see what is common to all: "
    "the true gradient is 0, pre-training has left these biases near 0, and what moves them now is rounding, which Adam enlarges: they went "
    f"{(by_kind['values'][0] / by_kind['keys'][0]) ** 0.5:.0f} times less far than the values', and their share is what it is because they were so "
    f"short. Test: add 1 to every key's bias, and the logits change by {after_a_shift('key'):.0e} of the largest; to every value's, by "
    f"{after_a_shift('value'):.1g}.",
    first_kind,
)

# %% [markdown] name="inference"
# **And when it runs?** Merged LoRA, BitFit and full fine-tuning are the base with other values in its weights. Adapter layers and an
# unmerged LoRA do more arithmetic at every call, and so does a prefix, which every token may look at. Whether a clock shows it at this
# size, see below.


# %% name="measure-inference" jupyter={"source_hidden": true}
merged = copy.deepcopy(models["lora"])
merge(merged)
runners = {"base": fresh_classifier().eval()}
runners |= {NAMES[name]: models[name] for name in TRIALS} | {"LoRA, merged": merged}
times = reading_times(runners, rounds=7)
del runners, merged
ratios = {name: 100 * seconds / times["base"] for name, seconds in times.items()}
overhead = {name: float(np.median(r)) for name, r in ratios.items()}
plots.show(
    plots.draw_dots(
        {
            name: {"time": (overhead[name], *np.quantile(r, [0.25, 0.75]))}
            for name, r in ratios.items()
            if name != "base"
        },
        references={"base": 100.0},
        xlabel=f"time to read {len(to_read)} sentences, % of the base's (median and quartiles of the rounds)",
        number="{:.0f}",
    ),
    alt="Time to read a few sentences for every strategy, as a percentage of the base's, with the middle half of the rounds.",
)

# %% name="explain-inference" jupyter={"source_hidden": true}
the_same = ["full", "BitFit", "LoRA, merged"]
noise = max(abs(overhead[name] - 100) for name in the_same)
more = {name: overhead[name] - 100 for name in ("LoRA", "prefix tuning", "adapter layers")}
Markdown(
    f"Full fine-tuning, BitFit and a merged LoRA do the same operations as the base, so their distance from 100%, up to {noise:.0f} points, is this machine's noise. "
    + ", ".join(f"{name} {extra:+.0f}" for name, extra in more.items())
    + " points: "
    + (
        "beyond that noise for " + ", ".join(name for name, extra in more.items() if extra > noise) + "."
        if any(extra > noise for extra in more.values())
        else "none of them beyond that noise here."
    )
)

# %% [markdown] name="take"
# ## 8 Take it with you
#
# A LoRA that is saved here has the file layout of `peft`, the most widely used library for this, under the names that
# `transformers` gives the same layers. If both are installed (`pip install "course-lib[interop]"`), the next cell opens your
# adapter there, on the same MiniLM, and compares; then an adapter that was made there opens here. What travels is the
# adapter: your head, which `transformers` does not know, lies in a third file beside it.

# %% name="open-in-peft"
take_rows = [["saved here", ", ".join(sorted(f.name for f in (folder / "sentiment").iterdir()))]]
if importlib.util.find_spec("peft") and importlib.util.find_spec("transformers"):
    import peft
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)  # the two libraries rename things under each other
    theirs = transformers.AutoModel.from_pretrained(folder / "base")
    opened = peft.PeftModel.from_pretrained(theirs, folder / "sentiment").eval()
    attention_mask = is_real_BT.long().cpu()
    with torch.no_grad():
        hidden_there = opened(input_ids=ids_BT.cpu(), attention_mask=attention_mask).last_hidden_state[
            attention_mask.bool()
        ]
        switch(two, "sentiment")
        hidden_here = two.body.encode(ids_BT, is_real_BT).cpu()[attention_mask.bool()]
    gap = largest_difference(hidden_there, hidden_here)
    take_rows.append(["opened in peft: largest difference of a hidden state", f"{gap:.1e}"])
    made_there = peft.get_peft_model(
        transformers.AutoModel.from_pretrained(folder / "base"),
        peft.LoraConfig(r=4, lora_alpha=12, target_modules=["query", "value"], init_lora_weights=False),
    ).eval()
    made_there.save_pretrained(folder / "made_there")
    loaded = copy.deepcopy(base).cpu()
    load_adapter(loaded, folder / "made_there")
    with torch.no_grad():
        hidden_there = made_there(input_ids=ids_BT.cpu(), attention_mask=attention_mask).last_hidden_state[
            attention_mask.bool()
        ]
        hidden_here = loaded.encode(ids_BT.cpu(), is_real_BT.cpu())[attention_mask.bool()]
    gap = largest_difference(hidden_there, hidden_here)
    take_rows.append(["made in peft, opened here: the same", f"{gap:.1e}"])
else:
    take_rows.append(["peft is not installed here", "pip install 'course-lib[interop]'"])
table(["what", "result"], take_rows)

# %% [markdown] name="which-one"
# ## Which one, then?
#
# - **LoRA on every linear layer** is the usual first choice: it merges, it can be added and switched, and most tools read it. With a base
#   kept in four bits it is called QLoRA (arXiv:2305.14314).
# - **Full fine-tuning** when you have the memory, room to store a whole model for each task, and the table above says that it pays.
# - **BitFit** when the adapter must be tiny and the model has biases; many of today's large decoders have none.
# - **Adapter layers** and **prefix tuning** where you would not merge anyway; they cannot be merged, and add work at every call.
#
# Before any of them, try the head alone, and a bag of words. If those are good enough, you are done.

# %% [markdown] name="exercises"
# ## Exercises
#
# Five parts of this chapter to write. The checks work as in chapter 1: they say what is wrong, and you can go on either way.

# %% [markdown] name="exercise-lora" tags=["exercise"]
# ### Exercise 1: the forward pass of LoRA
#
# Write W x + b + (alpha / rank) B (A x) for every position of `x`, whose last axis is the channels in (there may be several axes
# before it). `A_RI` has one row for each rank, `B_OR` one column. The rank is not handed in: read it off.
#
# <details><summary>Hint 1</summary>

# <code>F.linear(x, weight, bias)</code> multiplies the last axis by <code>weight.T</code>, whatever stands before it.</details>
# <details><summary>Hint 2</summary>

# Two thin products, one after the other, cost less than one with B @ A. Which of the two matrices comes first?</details>


# %% name="exercise-lora-code" tags=["exercise"]
def my_lora_forward(x, weight_OI, bias_O, A_RI, B_OR, *, alpha):
    ### BEGIN SOLUTION
    rank = A_RI.shape[0]
    return F.linear(x, weight_OI, bias_O) + alpha / rank * F.linear(F.linear(x, A_RI), B_OR)
    ### END SOLUTION


# %% name="exercise-lora-check" tags=["check"]
lora_forward = checks.lora_forward(my_lora_forward)

# %% [markdown] name="exercise-merge" tags=["exercise"]
# ### Exercise 2: merge
#
# Return the one weight that does what the wrapped layer of exercise 1 does. The weight that you are given belongs to the base, which
# others use: leave it alone.
#
# <details><summary>Hint 1</summary>

# What shape must a change of <code>weight_OI</code> have, and which product of A and B has it?</details>
# <details><summary>Hint 2</summary>

# Only the update is scaled.</details>


# %% name="exercise-merge-code" tags=["exercise"]
def my_merge(weight_OI, A_RI, B_OR, *, alpha):
    ### BEGIN SOLUTION
    return weight_OI + alpha / A_RI.shape[0] * B_OR @ A_RI
    ### END SOLUTION


# %% name="exercise-merge-check" tags=["check"]
merge_lora = checks.merge_lora(my_merge)

# %% [markdown] name="exercise-count" tags=["exercise"]
# ### Exercise 3: count before you build
#
# How many parameters does each strategy train in an encoder with BERT's layout? Give a whole number, from the dimensions
# alone, head and embeddings' tables left out. `strategy` is one of
#
# - `"lora"`: updates of rank `rank` at query and value of every layer;
# - `"prefix"`: keys and values at `length` positions (no network);
# - `"adapter"`: two bottlenecks of width `bottleneck` in every block, each with two weights and two biases;
# - `"bitfit"`: every bias: of a block's six linear layers and its two normalisations, and of the normalisation behind the embeddings.
#
# <details><summary>Hint 1</summary>

# Draw one block: query, key, value and attention's output are <code>d_model</code> wide; the feed-forward layer goes to
# <code>d_ff</code> and back.</details>
# <details><summary>Hint 2</summary>

# A bottleneck has <code>d_model x bottleneck</code> weights down and as many up, and a bias for each channel that it writes.</details>
# <details><summary>Hint 3</summary>

# Do you want to see one? <code>apply(Encoder(config, head=False), BitFit())</code> prints its count; the check does just
# that.</details>


# %% name="exercise-count-code" tags=["exercise"]
def my_count(strategy, *, d_model, n_layers, d_ff, rank=8, length=16, bottleneck=32):
    ### BEGIN SOLUTION
    if strategy == "lora":
        return n_layers * 2 * (rank * d_model + d_model * rank)
    if strategy == "prefix":
        return length * n_layers * 2 * d_model
    if strategy == "adapter":
        return n_layers * 2 * (2 * d_model * bottleneck + bottleneck + d_model)
    per_block = 4 * d_model + d_model + d_ff + d_model + d_model
    return n_layers * per_block + d_model
    ### END SOLUTION


# %% name="exercise-count-check" tags=["check"]
count_trainable = checks.count_trainable(my_count)

# %% [markdown] name="exercise-prefix" tags=["exercise"]
# ### Exercise 4: attention with a prefix
#
# Queries `q_BHQD` look at the keys of the prefix and of the text, and mix the values of both. The prefix, `prefix_k_HPD` and
# `prefix_v_HPD`, is the same for every row of the batch, and every query may see all of it. `may_attend_BQK` says who may look at whom in
# the text alone (True where a query may look). Return the mixed values, [B, H, Q, D].
#
# <details><summary>Hint 1</summary>

# <code>prefix.expand(n_rows, -1, -1, -1)</code> gives every row the same prefix, and <code>torch.cat</code> joins along one axis: which?</details>
# <details><summary>Hint 2</summary>

# The mask must grow by as many columns as the keys did, and on the same side.</details>
# <details><summary>Hint 3</summary>

# <code>attend(q, k, v, may_attend)</code> from <code>course_lib.layers</code> is yours to use.</details>


# %% name="exercise-prefix-code" tags=["exercise"]
def my_prefix_attention(q_BHQD, k_BHKD, v_BHKD, prefix_k_HPD, prefix_v_HPD, may_attend_BQK):
    ### BEGIN SOLUTION
    n_rows = len(q_BHQD)
    k = torch.cat([prefix_k_HPD.expand(n_rows, -1, -1, -1), k_BHKD], dim=2)
    v = torch.cat([prefix_v_HPD.expand(n_rows, -1, -1, -1), v_BHKD], dim=2)
    may_attend = F.pad(may_attend_BQK, (prefix_k_HPD.shape[1], 0), value=True)
    return attend(q_BHQD, k, v, may_attend)
    ### END SOLUTION


# %% name="exercise-prefix-check" tags=["check"]
prefix_attention = checks.prefix_attention(my_prefix_attention)

# %% [markdown] name="exercise-biases" tags=["exercise"]
# ### Exercise 5: pick the biases
#
# BitFit trains the parameters called `bias`, those of normalisations among them, and nothing else. Return their full names, as
# `named_parameters` gives them. Your function must work on models whose layers you have never seen; only look, and change nothing.
#
# <details><summary>Hint 1</summary>

# <code>relative_attention_bias.weight</code> is no bias. Which part of a dotted name says what a parameter is?</details>
# <details><summary>Hint 2</summary>

# Neither the kind of layer nor the number of axes decides.</details>


# %% name="exercise-biases-code" tags=["exercise"]
def my_pick_biases(model):
    ### BEGIN SOLUTION
    return [name for name, _ in model.named_parameters() if name.split(".")[-1] == "bias"]
    ### END SOLUTION


# %% name="exercise-biases-check" tags=["check"]
pick_biases = checks.pick_biases(my_pick_biases)

# %% [markdown] name="clinic"
# ## Bug clinic
#
# Eight more patients: code that looks right and runs, each with a classic mistake. As in chapter 1, run the experiment
# first, decide from its numbers what must be wrong, then unfold the diagnosis. The models are the course's own decoder and
# encoder, on a real review.

# %% name="clinic-models" tags=["clinic"] jupyter={"source_hidden": true}
decoder, encoder = load_checkpoint("decoder"), load_checkpoint("encoder")
course_tokens = course_tokenizer()
review_BT = torch.tensor(
    [[course_tokens.vocabulary.bos, *course_tokens.encode(reviews_of("dev", "imdb")[0].text)[:40]]]
)


def a_few_steps(model, steps=3, rate=1e-3):
    """Train what is trainable of a decoder on the review."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate, weight_decay=0.0)
    for _ in range(steps):
        logits_BTV = model(review_BT).logits
        F.cross_entropy(logits_BTV[0, :-1], review_BT[0, 1:]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


# %% [markdown] name="clinic-scale-story"
# ### Patient 1: a merge
#
# “The update is scaled by alpha, divided by the dimension, so merge it that way.”

# %% name="clinic-scale" tags=["clinic"]


def patient_merged(weight_OI, update, alpha):
    return weight_OI + alpha / weight_OI.shape[1] * update.B @ update.A


def merged_and_wrapped(merge_weight, rank=4, alpha=8):
    """How far a merged layer's output lies from the wrapped one's."""
    torch.manual_seed(0)
    layer = copy.deepcopy(encoder.encoder["layer"][0].attention.self["query"])
    weight_OI = layer.weight.detach().clone()
    apply(layer, LoRA(rank=rank, alpha=alpha))
    update = layer.adapters["default"]
    nn.init.normal_(update.B, std=0.1)  # as if it had been trained
    x = torch.randn(20, weight_OI.shape[1])
    with torch.no_grad():
        return largest_difference(F.linear(x, merge_weight(weight_OI, update, alpha), layer.bias), layer(x))


# %% name="clinic-scale-experiment"
table(
    ["rank", "merged against wrapped"],
    [[rank, f"{merged_and_wrapped(patient_merged, rank):.1%}"] for rank in (2, 4, 16, 64)],
)

# %% [markdown] name="clinic-scale-diagnosis"
# <details><summary>Diagnosis</summary>
#
# The merged layer is another function than the one that was trained. The scale is <code>alpha / rank</code>, and here it was
# divided by the width of the weight: of the update only the share rank / width is left. No shape
# is wrong and nothing crashes; a model merged like this is nearly the base again, and looks as if fine-tuning had not
# worked.
# </details>

# %% name="clinic-scale-cure" tags=["clinic"]


def cured_merged(weight_OI, update, alpha):
    return weight_OI + alpha / len(update.A) * update.B @ update.A


# %% [markdown] name="clinic-zeros-story"
# ### Patient 2: a start from nothing
#
# “The update must be zero at first, so start both matrices at zero.”

# %% name="clinic-zeros" tags=["clinic"]


def patient_start(update):
    nn.init.zeros_(update.A)
    nn.init.zeros_(update.B)


def updates_after(start, steps):
    """The length of all updates of a decoder's attention after some steps."""
    model = copy.deepcopy(decoder)
    apply(model, LoRA(rank=4, targets=["attn.c_attn"]))
    updates = [m.adapters["default"] for m in model.modules() if isinstance(m, Conv1D) and hasattr(m, "adapters")]
    for update in updates:
        start(update)
    a_few_steps(model, steps)
    return float(sum(update.delta().detach().norm() for update in updates))


# %% name="clinic-zeros-experiment"
table(["steps", "length of the updates"], [[n, f"{updates_after(patient_start, n):.3f}"] for n in (1, 5, 20)])

# %% [markdown] name="clinic-zeros-diagnosis"
# <details><summary>Diagnosis</summary>
#
# It never leaves zero. The gradient of B holds A as a factor and the gradient of A holds B: with both at zero, both
# gradients are zero, for ever. One of the two must be random. (With B = 0 the first step moves B alone, and A from the
# second on.)
# </details>

# %% name="clinic-zeros-cure" tags=["clinic"]


def cured_start(update):
    nn.init.kaiming_uniform_(update.A, a=5**0.5)
    nn.init.zeros_(update.B)


# %% [markdown] name="clinic-frozen-story"
# ### Patient 3: what trains
#
# “Add the updates, make everything trainable that has to be, and hand it to the optimiser.”

# %% name="clinic-frozen" tags=["clinic"]


def patient_adapt(model):
    apply(model, LoRA(rank=4))
    for parameter in model.parameters():
        parameter.requires_grad = True
    return model


def base_weights_changed(adapt):
    """Of the base's weights, those that a few steps have changed."""
    model = a_few_steps(adapt(copy.deepcopy(decoder)))
    own = dict(model.named_parameters())
    return sum(int((own[name] != before).sum()) for name, before in decoder.named_parameters())


# %% name="clinic-frozen-experiment"
Markdown(f"{base_weights_changed(patient_adapt):,} weights of the base have changed after a few steps.")

# %% [markdown] name="clinic-frozen-diagnosis"
# <details><summary>Diagnosis</summary>
#
# This is full fine-tuning with a LoRA on top. It learns, even well; but the adapter that is saved afterwards holds only a part of what
# was learned, and on a fresh base it gives another model. Count what is trainable before you train: <code>print(apply(...))</code>.
# </details>

# %% name="clinic-frozen-cure" tags=["clinic"]


def cured_adapt(model):
    apply(model, LoRA(rank=4))
    return model


# %% [markdown] name="clinic-twice-story"
# ### Patient 4: a server
#
# “Merge when the model is loaded, so that it is fast.”

# %% name="clinic-twice" tags=["clinic"]


def patient_load(model):
    for layer in model.modules():
        if hasattr(layer, "adapters"):
            delta_OI = layer.adapters["default"].delta()
            layer.weight.data += delta_OI.T if isinstance(layer, Conv1D) else delta_OI
    return model


def a_trained_lora():
    model = copy.deepcopy(decoder)
    apply(model, LoRA(rank=4))
    return a_few_steps(model, steps=10)


def served_against_trained(load):
    """How far the logits of the loaded model lie from those of the one that was trained."""
    trained = a_trained_lora()
    with torch.no_grad():
        wanted = trained(review_BT).logits
        return largest_difference(load(copy.deepcopy(trained))(review_BT).logits, wanted)


def what_was_added(load):
    """What the first layer of the loaded model adds to the base's, in units of what the trained one adds."""
    trained = a_trained_lora()
    x = torch.randn(8, decoder.config.d_model, generator=seeded(3))
    with torch.no_grad():
        outputs = [m.transformer["h"][0].attn["c_attn"](x) for m in (load(copy.deepcopy(trained)), trained, decoder)]
    return float((outputs[0] - outputs[2]).norm() / (outputs[1] - outputs[2]).norm())


# %% name="clinic-twice-experiment"
Markdown(
    f"The served model's logits are off by {served_against_trained(patient_load):.1%} of the largest. In its first layer, what is added to the "
    f"base has {what_was_added(patient_load):.2f} times the length that it had in training."
)

# %% [markdown] name="clinic-twice-diagnosis"
# <details><summary>Diagnosis</summary>
#
# The update is in the weights now, and it still acts beside them: it counts twice. The same happens when a merged checkpoint
# is loaded and merged again. To merge
# is also to switch the update off and to remember it: <code>merge</code> does both, and refuses a second time.
# </details>

# %% name="clinic-twice-cure" tags=["clinic"]


def cured_load(model):
    merge(model)
    return model


# %% [markdown] name="clinic-masked-story"
# ### Patient 5: a prefix and its mask
#
# “The prefix makes the keys longer, so pad the mask to their length.”

# %% name="clinic-masked" tags=["clinic"]


def patient_mask(may_attend_BQK, length):
    return F.pad(may_attend_BQK, (length, 0))


def outputs_of_two_prefixes(pad_mask, length=6):
    """How far apart an encoder's states are under two quite different prefixes."""
    states = []
    for seed in (1, 2):
        shape = (encoder.config.n_layers, 2, 1, encoder.config.n_heads, length, encoder.config.d_head)
        prefix = torch.randn(shape, generator=seeded(seed))
        may_attend_BQK = torch.ones(1, 1, review_BT.shape[1], dtype=torch.bool)
        with torch.no_grad():
            states.append(
                encoder(review_BT, pad_mask(may_attend_BQK, length), cache=[tuple(p) for p in prefix]).hidden_states[-1]
            )
    return largest_difference(*states)


# %% name="clinic-masked-experiment"
Markdown(
    f"Two prefixes that have nothing in common: the outputs differ by {outputs_of_two_prefixes(patient_mask):.1%}."
)

# %% [markdown] name="clinic-masked-diagnosis"
# <details><summary>Diagnosis</summary>
#
# Padding a mask fills it with <code>False</code>: nobody may look at the prefix. It trains without an error and without a
# gradient, so neither its values nor its rate make a difference, and its length does only by the positions (section 2). <code>F.pad(..., value=True)</code>.
# </details>

# %% name="clinic-masked-cure" tags=["clinic"]


def cured_mask(may_attend_BQK, length):
    return F.pad(may_attend_BQK, (length, 0), value=True)


# %% [markdown] name="clinic-positions-story"
# ### Patient 6: generation with a prefix
#
# “With a cache, the next token stands where the text has come to.” In training, positions began behind the prefix.

# %% name="clinic-positions" tags=["clinic"]


def patient_position(n_read, prefix_length):
    return n_read


def loss_of_cached_reading(position, length=8):
    """Nats per token that the model gives the review when it reads token by token with a cache, less those that it gives
    when it reads all at once, as in training."""
    model = copy.deepcopy(decoder)
    apply(model, Prefix(length=length))
    prefix = prefix_cache(model)
    with torch.no_grad():
        at_once_TV = model(review_BT).logits[0, :-1]
        switch(model, None)  # the prefix comes in as the cache's first entries
        cache, rows = prefix, []
        for n in range(review_BT.shape[1] - 1):
            position_BT = torch.tensor([[position(n, length)]])
            output = model(review_BT[:, n : n + 1], position_BT=position_BT, cache=cache)
            cache = output.cache
            rows.append(output.logits[0])
    by_token, wanted = (F.cross_entropy(rows_TV, review_BT[0, 1:]) for rows_TV in (torch.cat(rows), at_once_TV))
    return float(by_token - wanted)


# %% name="clinic-positions-experiment"
table(
    ["length of the prefix", "loss when read token by token, less that when read at once, nats per token"],
    [[n, f"{loss_of_cached_reading(patient_position, n):+.4f}"] for n in (1, 4, 16, 64)],
)

# %% [markdown] name="clinic-positions-diagnosis"
# <details><summary>Diagnosis</summary>
#
# The same model, the same text, another loss: what it is asked in generation is not what it was trained for. In training the
# first token of the text stood at position <code>length</code>, here it stands at 0. Count positions from the cache, the
# prefix included.
# </details>

# %% name="clinic-positions-cure" tags=["clinic"]


def cured_position(n_read, prefix_length):
    return prefix_length + n_read


# %% [markdown] name="clinic-dropout-story"
# ### Patient 7: dropout in the update
#
# “LoRA has a dropout of its own, on the input of A.”

# %% name="clinic-dropout" tags=["clinic"]


def patient_update(x, update, dropout=0.2):
    return update.scale * F.linear(F.linear(F.dropout(x, dropout), update.A), update.B)


def three_evaluations(update_of):
    """The output of one layer's update for the same input, three times, in evaluation mode."""
    layer = copy.deepcopy(encoder.encoder["layer"][0].attention.self["query"]).eval()
    apply(layer, LoRA(rank=4))
    update = layer.adapters["default"].eval()
    nn.init.normal_(update.B, std=0.1, generator=seeded(1))
    torch.manual_seed(0)
    with torch.no_grad():
        return [float(update_of(torch.ones(1, layer.in_features), update).sum()) for _ in range(3)]


# %% name="clinic-dropout-experiment"
table(
    ["time", "sum of the update's outputs"],
    [[n + 1, f"{v:.4f}"] for n, v in enumerate(three_evaluations(patient_update))],
)

# %% [markdown] name="clinic-dropout-diagnosis"
# <details><summary>Diagnosis</summary>
#
# <code>F.dropout</code> drops unless it is told not to: <code>model.eval()</code> does not reach a function. And a merged model, which cannot
# drop anything, then differs from the wrapped one. Hand <code>training=self.training</code> on, or use <code>nn.Dropout</code>.
# </details>

# %% name="clinic-dropout-cure" tags=["clinic"]


def cured_update(x, update, dropout=0.2):
    return update.scale * F.linear(F.linear(F.dropout(x, dropout, update.training), update.A), update.B)


# %% [markdown] name="clinic-decay-story"
# ### Patient 8: decay of what is trained
#
# “BitFit trains few parameters, so regularise them with a weight decay.”

# %% name="clinic-decay" tags=["clinic"]


def patient_bitfit_optimizer(model):
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=1.0)


def biases_after(optimizer_of, steps=50):
    """The length of all biases after steps without any gradient, as a share of what it was."""
    model = copy.deepcopy(encoder)
    apply(model, BitFit())
    optimizer = optimizer_of(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    before = sum(float(p.detach().square().sum()) for p in trained)
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    for _ in range(steps):
        optimizer.step()
    return (sum(float(p.detach().square().sum()) for p in trained) / before) ** 0.5


# %% name="clinic-decay-experiment"
Markdown(
    f"After 50 steps without a gradient the biases have {biases_after(patient_bitfit_optimizer):.0%} of their length."
)

# %% [markdown] name="clinic-decay-diagnosis"
# <details><summary>Diagnosis</summary>
#
# Decay pulls towards 0, and what was pre-trained is not near 0: it pulls the model *away* from its base. For LoRA's matrices decay
# means "stay near the base", since their zero is the base; for biases and norms it means "forget". Vectors do not decay
# (chapter 2): <code>optimizers.make_optimizer</code> sees to it.
# </details>

# %% name="clinic-decay-cure" tags=["clinic"]


def cured_bitfit_optimizer(model):
    optimizer = make_optimizer(model, weight_decay=1.0)
    for group in optimizer.param_groups:
        group["lr"] = 1e-2
    return optimizer


# %% [markdown] name="cures"
# Each patient's cure stands in a cell beside its diagnosis. Here is every experiment once more, on patient and cure.

# %% name="clinic-after" jupyter={"source_hidden": true}
spread = lambda values: max(values) - min(values)
cases = [
    ["merged against wrapped", *(f"{merged_and_wrapped(f):.1e}" for f in (patient_merged, cured_merged))],
    ["length of the updates after 5 steps", *(f"{updates_after(f, 5):.3f}" for f in (patient_start, cured_start))],
    ["weights of the base that have changed", *(f"{base_weights_changed(f):,}" for f in (patient_adapt, cured_adapt))],
    ["served against trained", *(f"{served_against_trained(f):.1e}" for f in (patient_load, cured_load))],
    ["difference between two prefixes", *(f"{outputs_of_two_prefixes(f):.1%}" for f in (patient_mask, cured_mask))],
    ["nats per token, by token less at once", *(f"{loss_of_cached_reading(f):+.4f}" for f in (patient_position, cured_position))],
    ["spread of three evaluations", *(f"{spread(three_evaluations(f)):.4f}" for f in (patient_update, cured_update))],
    ["length of the biases without a gradient", *(f"{biases_after(f):.0%}" for f in (patient_bitfit_optimizer, cured_bitfit_optimizer))],
]  # fmt: skip
after_table = table(["experiment", "patient", "cure"], cases)
Markdown(f"<details><summary>Patients and cures</summary>\n\n{after_table.data}\n\n</details>")

# %% [markdown] name="claims"
# ## What is usually said
#
# The source is the text that this course grew out of; its figures were typed, not measured. The verdicts are computed from the figures
# above.

# %% name="claims-table" jupyter={"source_hidden": true}


def verdict_on_share(setting, low, high):
    hit = [name for name, row in shares.items() if setting in row and low / 1.5 <= row[setting] <= high * 1.5]
    return f"within a factor of 1.5 for {', '.join(hit) or 'none of these models'} with these settings"


def reach(setting):
    values = [row[setting] for row in shares.values() if setting in row]
    return f"{min(values):.2g} to {max(values):.2g}%"


claims = [
    ["LoRA trains about 0.1% of a model.", "0.1%", reach("LoRA, rank 8"), verdict_on_share("LoRA, rank 8", 0.1, 0.1)],
    ["A prefix is about 0.1% of a model.", "0.1%", reach("prefix of 16"), verdict_on_share("prefix of 16", 0.1, 0.1)],
    ["Adapter layers are 1 to 5%.", "1 to 5%", reach("adapter, 64 wide"), verdict_on_share("adapter, 64 wide", 1, 5)],
    ["BitFit trains about 0.05%.", "0.05%", reach("BitFit"), verdict_on_share("BitFit", 0.05, 0.05)],
    [
        "LoRA needs a fraction of the memory.",
        "as its share of parameters",
        f"{1 - saved:.0%} of a step of full fine-tuning, gradients and optimiser state {grads_and_state['lora'] / grads_and_state['full']:.1%}",
        "true of gradients and optimiser state, not of the whole" if saved < 0.9 else "holds here",
    ],
    [
        "LoRA is as good as full fine-tuning.",
        "equal curves",
        f"full is ahead by {full_over_lora:+.1f} points with {most:,} labels (recorded)",
        "not settled: the interval holds 0"
        if full_over_lora.holds(0)
        else "not with this many labels"
        if full_over_lora.low > 0
        else "holds",
    ],
    [
        "LoRA costs nothing at inference.",
        "no overhead",
        f"unmerged {overhead['LoRA']:.0f}% of the base's time, merged {overhead['LoRA, merged']:.0f}%, noise {noise:.0f}",
        "true once it is merged" if more["LoRA"] > noise else "no difference beyond this machine's noise",
    ],
    [
        "The change that a task needs has a low rank.",
        "stated",
        f"rank 8 keeps {kept_by_8:.0%} of the energy and {answers_kept[8]:.0%} of what the change does to the answers",
        "true of what it does, not of its energy" if answers_kept[8] > kept_by_8 + 0.2 else "see section 4",
    ],
]
table(["usually said", "the source", "measured here", "verdict"], claims)

# %% [markdown] name="summary"
# ## What to take along
#
# - A strategy is a patch on an unchanged base: small, with a name, reversible. Check three things: how far from the base it starts, what it
#   trains, and that it leaves the rest to the bit.
# - A share of parameters belongs to a strategy, its settings *and* a model. It says what an adapter takes on disk, and what gradients and
#   optimiser state take; not what a step takes.
# - Compare strategies over samples, pair by pair, beside the head alone; one sample makes a ranking out of anything.
# - alpha is a factor on the learning rate of B. Rank is capacity; look at how much of it is used before you buy more.
# - Merge by remembering, not by subtracting.
# - A prefix is a KV cache that nobody wrote: mask and positions must know of it, in training and in generation alike.
#
# A strategy is chosen, and a score looks good. Could you defend it: against leaked texts, against a bag of words, against
# luck? That is the next chapter.
#
# ## Sources
#
# - Hu et al. 2021, LoRA, [arXiv:2106.09685](https://arxiv.org/abs/2106.09685); Kalajdzievski 2023, rank-stabilised scale,
#   [arXiv:2312.03732](https://arxiv.org/abs/2312.03732); Aghajanyan et al. 2020, intrinsic dimension,
#   [arXiv:2012.13255](https://arxiv.org/abs/2012.13255); Dettmers et al. 2023, QLoRA,
#   [arXiv:2305.14314](https://arxiv.org/abs/2305.14314)
# - Li and Liang 2021, prefix tuning, [arXiv:2101.00190](https://arxiv.org/abs/2101.00190); Liu et al. 2021, P-tuning v2,
#   [arXiv:2110.07602](https://arxiv.org/abs/2110.07602)
# - Houlsby et al. 2019, adapter layers, [arXiv:1902.00751](https://arxiv.org/abs/1902.00751); Ben Zaken et al. 2021, BitFit,
#   [arXiv:2106.10199](https://arxiv.org/abs/2106.10199)
# - He et al. 2021, *Towards a unified view of parameter-efficient transfer learning*,
#   [arXiv:2110.04366](https://arxiv.org/abs/2110.04366)
# - Wang et al. 2020, MiniLM, [arXiv:2002.10957](https://arxiv.org/abs/2002.10957); Reimers and Gurevych 2019, Sentence-BERT,
#   [arXiv:1908.10084](https://arxiv.org/abs/1908.10084)
# - Kumar et al. 2022, the head first, then the rest, [arXiv:2202.10054](https://arxiv.org/abs/2202.10054)
#
# In the library: `course_lib/peft/`, one file for each strategy.
#
# **Next:** [04 Practical fine-tuning](04_practical_fine_tuning.ipynb)

# %% name="sweep-controls" tags=["remove-cell"] jupyter={"source_hidden": true}
for box in (lora_box, prefix_box):
    sweep(box)  # every control to its ends: fails if one of them shows an error
