# ---
# jupyter:
#   jupytext: {text_representation: {extension: .py, format_name: percent}}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown] name="title"
# # 00 Start here
#
# **A hundred labelled sentences: what can a computer learn from them?** Very little, if it starts from nothing. Much more, if it
# has read before. This course is about how a model gets its reading (*pre-training*), and what you then do with it
# (*fine-tuning*). Within five minutes you see the whole story once, small, with real models on real text.
#
# You will
#
# - check this machine, and see what each chapter will cost on it;
# - bet on whether pre-training pays with 100 labels, and find out;
# - see how much of a result is luck;
# - let every model read a sentence of yours;
# - solve one small exercise, to see how the checks talk;
# - find your way through the other chapters, and feed the library a text of your own.
#
# You need Python, and a little PyTorch. Everything runs on a laptop, without a network and without an account.

# %% name="progress" jupyter={"source_hidden": true}
from course_lib.lab import progress

progress("00")

# %% [markdown] name="how-to-read"
# ## How to read this course
#
# - **Run** a cell with Shift+Enter, from top to bottom, or all of them with *Run → Run All Cells*. What you see before you run anything is
#   from the machine that built the course; run it, and the numbers are yours.
# - **Predict.** Commit to a guess before you run on. A wrong guess that you made teaches more than a right answer that you read. The
#   answer is folded; click on its line to unfold it. Figures are not, so guess before you scroll.
# - **Move.** A figure with controls, and a question to answer with it. With the keyboard: Tab goes from control to control, the arrow keys
#   move a slider, Home and End take it to its ends.
# - **Code that only draws is folded**: click on the three dots to read it. Anything that you should read is open.
# - **Exercises** are functions to write, where it says `raise NotImplementedError`. The cell below runs a *check*, which says what is wrong
#   and why. You may leave an exercise for later: the chapter goes on with the library's function. Hints are folded.
# - **Bug clinics** show plausible code with a classic mistake. Find it with the experiment, then unfold the diagnosis.
# - **Your copy.** `make lab` opens copies of the chapters in the folder `work/`: change what you like, it breaks nothing. `course lab --reset 00`
#   starts this one over and keeps yours beside it. The solved exercises lie in `work/solutions/`.
# - **Records.** No result in the prose is typed by hand: a cell computed it, here, or it comes from a *recorded* run that took hours. Then
#   the text says so, and names the command that makes it again.
# - **Intervals.** "68 (65 to 71)" is an estimate and its 95% interval: in 95 of 100 such measurements the true value lies inside. Where two
#   intervals overlap widely, the difference may be luck; and an interval *of a difference* that holds zero does not say who is ahead.

# %% [markdown] name="words"
# <details><summary><b>Words used below</b> (unfold when you meet one)</summary>
#
# - **Label**: the right answer for a text, here 1 for praise and 0 for blame. **Sample**: a set of labelled texts, drawn at
#   random, to learn from. **Test**: texts that nothing was learned from, to measure on. **Accuracy**: the share of them that is right.
# - **Model**: a function with many numbers in it (its *weights*). **Random weights**: nothing has been learned yet.
# - **Pre-training**: a model learns from text without labels, by filling in words. **Fine-tuning**: its weights go on changing, on a
#   labelled task.
# - **Token**: a word or a part of one; a **tokenizer** cuts text into them. **Encoder**: a model that reads a whole text at once and
#   gives a vector for each token.
# - **Transformer**: the kind of network that all models here are. Layer by layer, each token's vector is computed from those of the others.
# - **Logistic regression**: a weighted sum of the numbers that describe a text, squeezed to a probability. **TF-IDF**: word counts in which
#   a word weighs less, the more texts have it.
# - **Frozen features**: a text's vectors, averaged, from a model that is left as it is. A **probe** is a simple classifier (logistic regression)
#   that reads them. **Live**: computed just now, on this machine.
# - **Bag of words**: a classifier that knows which words and pairs of words a text has, and not their order: TF-IDF and logistic regression.
# - **Names in the code** end in their axes: `ids_BT` has a row for each text of a batch (B) and a column for each position (T).
#
# Every term of the course: [the glossary](../docs/glossary.md).
# </details>

# %% name="setup" tags=["setup"] jupyter={"source_hidden": true}
import itertools
import tempfile
from pathlib import Path

import numpy as np
import torch
from IPython.display import Markdown, display
from tqdm.auto import tqdm

from course_lib import checks, doctor, plots, runs
from course_lib.data import PretrainingDataset, course_tokenizer, pack, read_own_texts, reviews_of
from course_lib.evaluation import (
    frozen_features,
    majority_baseline,
    mean_interval,
    paired_comparison,
    probe_accuracy,
    proportion_interval,
)
from course_lib.lab import CourseFolder, exercises
from course_lib.lab.costs import costs_path, rate_of, read_costs, title_and_words
from course_lib.model import Encoder
from course_lib.pretrained import load_checkpoint, load_minilm
from course_lib.records import Record
from course_lib.runs import RECORDS_FOLDER
from course_lib.runtime import matmul_rate, pick_device
from course_lib.training import new_model
from course_lib.widgets.binder import compare, guess, sweep, table
from course_lib.widgets.own_sentence import compute_opinions, draw_opinions, sentence_explorer

device = pick_device()
tokenizer = course_tokenizer()

# %% [markdown] name="machine"
# ## 1 Is this machine fit?
#
# The same checks as `course doctor` in a terminal. "note" means that something is slower or skipped, "missing" comes with what to do.

# %% name="check-machine" jupyter={"source_hidden": true}
findings = list(doctor.examine())
display(table(["subject", "", "found"], [[f.subject, f.mark, f.words] for f in findings]))
missing = [f.subject for f in findings if f.mark == "missing"]
Markdown(
    f"**Missing: {', '.join(missing)}.** Mend this first: the table says how." if missing else "Nothing is missing."
)

# %% [markdown] name="costs"
# What will the chapters cost here? Each was timed when its notebook was built. The estimate scales that time by how fast the two
# machines multiply matrices, which is most of what a model does; what else your machine is busy with, it cannot know.

# %% name="estimate-costs" jupyter={"source_hidden": true}
folder = CourseFolder.here()
recorded_costs = read_costs(costs_path(folder))
rate_there = rate_of(recorded_costs.values())
rate = matmul_rate(torch.float32, torch.device("cpu"))
chapters = {path: title_and_words(path) for path in folder.chapters()}
seconds_here = {name: cost.seconds * rate_there / rate for name, cost in recorded_costs.items()}
cost_rows = []
for path, (title, _) in chapters.items():
    cost = recorded_costs.get(path.stem)
    cost_rows.append(
        [
            title,
            f"{cost.seconds:.0f}" if cost else "not measured yet",
            f"{seconds_here[path.stem]:.0f}" if cost else "",
            f"{cost.peak_mib:,.0f}" if cost and cost.peak_mib else "",
        ]
    )
display(table(["chapter", "seconds, recorded", "seconds here, estimated", "memory, MiB"], cost_rows))
timed = [seconds_here[path.stem] for path in chapters if path.stem in recorded_costs]
Markdown(
    f"This machine does {rate / 1e9:,.0f} billion operations a second in a matrix product (measured just now, on the CPU), {rate / rate_there:.2f} times what was measured when the chapters were timed"
    + (
        f"; the chapters that are measured would take about {sum(timed) / 60:.1f} minutes together, if nothing else runs."
        if timed
        else "."
    )
    + (f" On {device.type} much of it is faster." if device.type != "cpu" else "")
)

# %% [markdown] name="task"
# ## 2 The task
#
# Sentences from film reviews, each with a label: does it praise the film (1) or blame it (0)? Here are two of them as they are.

# %% name="show-task"
sentences = [r for r in reviews_of("dev", "rotten_tomatoes") if 50 < len(r.text) < 130]
first, second, third = sentences[0], sentences[1], sentences[10]
table(["sentence", "label"], [[r.text, f"{r.label} ({['blames', 'praises'][r.label]})"] for r in (first, second)])

# %% [markdown] name="quiz"
# **Predict.** Now you are the model. Which label does this one have?

# %% name="quiz-guess"
display(Markdown(f"> {third.text}"))
quiz = guess("The label of this sentence", [("1, it praises", 1), ("0, it blames", 0)])
display(quiz)

# %% name="quiz-answer" jupyter={"source_hidden": true}
compare(
    quiz,
    f"The label is {third.label}: it {['blames', 'praises'][third.label]}. You have read for years, and needed no example of this task to answer. "
    "A model that begins with random numbers does not even know that “sad” and “uplifting” are words.",
    third.label,
)

# %% [markdown] name="price"
# **What does a label cost?** Somebody has to read the text, and decide. The cell counts the reading alone, at 238 words a minute
# (Brysbaert 2019, the average of many studies of silent reading in English).

# %% name="price-of-labels"
WORDS_A_MINUTE = 238
in_words = lambda minutes: f"{minutes:.0f} minutes" if minutes < 90 else f"{minutes / 60:,.0f} hours"
minutes = {}
for source in ("rotten_tomatoes", "imdb"):
    texts = [r.text for r in reviews_of("train", source)[:1000]]
    minutes[source] = np.mean([len(text.split()) for text in texts]) / WORDS_A_MINUTE
table(
    ["labels", "sentences", "whole reviews"],
    [[f"{n:,}", *(in_words(n * each) for each in minutes.values())] for n in (100, 500, 3000)],
)

# %% [markdown] name="bet"
# ## 3 Does pre-training pay?
#
# Four ways to read a sentence:
#
# - **bag of words**: counts words and pairs of words, and has never seen a text before;
# - **random weights**: a transformer, untrained: its features are a random function of the text;
# - **our encoder**: the same transformer, pre-trained for this course on film reviews *without their labels*;
# - **MiniLM**: a published encoder, larger, that has read far more text of all kinds, and nothing about films in particular.
#
# None of the test sentences was among what our encoder has read. All four get the same labelled sentences, and the same simple classifier (a logistic regression) on top. The transformers stay *frozen*: nothing in
# them changes.
#
# **Predict.** With 100 labels, which one is right most often on sentences that it has not seen?

# %% name="bet-guess"
bet = guess("The best of the four with 100 labels", ["bag of words", "random weights", "our encoder", "MiniLM"])
display(bet)

# %% [markdown] name="first-three"
# **Run.** The first three. Each learns from 20 to 500 labels, from five samples of each size, and is tested on 500 other sentences.

# %% name="teach-three"
encoder = load_checkpoint("encoder").to(device)
untrained = new_model(Encoder, encoder.config, seed=0).to(device)
probe = runs.SentenceProbe(labels=(20, 50, 100, 200, 500), seeds=5, tests=500)
WAYS = {
    "bag of words": runs.bag_of_words(),
    "random weights": runs.frozen(untrained, tokenizer),
    "our encoder": runs.frozen(encoder, tokenizer),
}
taught = {name: runs.teach(way, probe) for name, way in tqdm(WAYS.items())}

# %% name="draw-three" jupyter={"source_hidden": true}
wanted = [r.label for r in probe.test_reviews]
one_answer = 100 * np.mean(
    [majority_baseline([r.label for r in probe.sample(100, seed)], wanted) for seed in range(probe.seeds)]
)


def draw_taught(taught):
    """Mean accuracy over the samples, with 95% intervals of the mean, against the number of labels."""
    series = {}
    for name, one in taught.items():
        spread = [mean_interval([100 * value for value in one.accuracies(n)]) for n in probe.labels]
        series[name] = plots.Series(probe.labels, *zip(*((s.value, s.low, s.high) for s in spread), strict=True))
    return plots.draw_curves(
        series,
        references={"one answer for all": one_answer},
        xlabel="labels (log scale)",
        ylabel="accuracy, %",
        log_x=True,
        kinds=None,
    )


plots.show(draw_taught(taught), alt="Accuracy against the number of labels for three ways of reading a sentence.")

# %% name="read-three" jupyter={"source_hidden": true}


def mean_of(name, labels=100):
    return 100 * np.mean(taught[name].accuracies(labels))


def leads(first, second, labels):
    """Points by which the first is ahead, sample by sample."""
    return 100 * (np.array(taught[first].accuracies(labels)) - np.array(taught[second].accuracies(labels)))


def lead(first, second, labels=100):
    """Their mean, with its interval."""
    return mean_interval(leads(first, second, labels))


pays = lead("our encoder", "random weights")
Markdown(
    "Lines are means over the five samples, bands their 95% intervals: the luck of the sample alone, that of the tests comes below. (And "
    "one draw of random weights, not five.) The thin black line is what one and the same answer for every sentence scores. "
    f"With 100 labels the pre-trained encoder leads the same network with random weights by **{pays:+.1f} points**. "
    + (
        "Nothing else differs between the two: the lead is what it has read."
        if pays.low > 0
        else "The interval holds zero: on this machine the lead is not settled."
    )
)

# %% [markdown] name="then-minilm"
# **Run.** And MiniLM, on the same sentences. It is the largest of the four.

# %% name="teach-minilm"
minilm, minilm_tokenizer = load_minilm()
minilm = minilm.to(device)
taught["MiniLM"] = runs.teach(runs.frozen(minilm, minilm_tokenizer), probe)

# %% name="draw-four" jupyter={"source_hidden": true}
plots.show(draw_taught(taught), alt="Accuracy against the number of labels for all four ways of reading a sentence.")

# %% name="compare-bet" jupyter={"source_hidden": true}
means = {name: mean_of(name) for name in taught}
sizes = {"our encoder": encoder.n_parameters() / 1e6, "MiniLM": minilm.n_parameters() / 1e6}
best, next_best, *_ = sorted(means, key=means.get, reverse=True)
ahead = lead(best, next_best)
compare(
    bet,
    f"With 100 labels: {', '.join(f'{name} {value:.1f}%' for name, value in means.items())}. {best[0].upper() + best[1:]} leads {next_best} by "
    f"{ahead:+.1f} points"
    + (
        ". "
        if ahead.low > 0
        else ", an interval that holds zero: five samples do not settle which of these two is better. "
    )
    + (
        "Both have read before, and both are ahead of the two that have not. "
        if {best, next_best} == {"our encoder", "MiniLM"}
        else ""
    )
    + (
        f"The smaller of them ({sizes['our encoder']:.1f} million numbers against {sizes['MiniLM']:.1f}) has read *film reviews*: that may be "
        "why it is not behind one several times its size."
        if means["our encoder"] > means["MiniLM"]
        else "The larger of them has read far more: that makes up for not having read film reviews in particular."
    ),
    best if ahead.low > 0 else {best, next_best},
)

# %% [markdown] name="luck"
# **How much of it is luck?** A hundred labels are a small sample, and another hundred would have taught something else. Below is each
# of the five samples by itself, with the interval that its 500 test sentences leave.

# %% name="draw-luck" jupyter={"source_hidden": true}
dots = {
    name: {
        f"sample {sample + 1}": tuple(100 * bound for bound in (share.value, share.low, share.high))
        for sample in range(probe.seeds)
        for share in [proportion_interval(int(one.right[100, sample].sum()), len(one.right[100, sample]))]
    }
    for name, one in taught.items()
}
plots.show(
    plots.draw_dots(dots, one_colour=True, xlabel="accuracy with 100 labels, %", number="{:.1f}", references={"one answer for all": one_answer}),
    alt="Accuracy of each of five samples of 100 labels, with its interval, for four ways of reading a sentence.",
)  # fmt: skip

# %% name="read-luck" jupyter={"source_hidden": true}
spans = {name: 100 * np.ptp(one.accuracies(100)) for name, one in taught.items()}
widest = max(spans, key=spans.get)
reach = np.mean([high - low for series in dots.values() for _, low, high in series.values()]) / 2
Markdown(
    f"Same model, same number of labels, and {widest} moves by {spans[widest]:.1f} points from sample to sample. Besides, 500 tests leave about "
    f"±{reach:.0f} points to each dot. **One run is no result**: this course shows several, with their spread, and so should whoever wants to convince "
    "you."
)

# %% [markdown] name="which-ones"
# **Which ones?** A share hides the sentences. Here are some on which our encoder and the bag of words disagree, after the first sample of 100. Can you see why?

# %% name="show-disagreement" jupyter={"source_hidden": true}
TWO = ("our encoder", "bag of words")
rows = []
for knows, misses in itertools.permutations(TWO):
    apart_N = taught[knows].right[100, 0] & ~taught[misses].right[100, 0]
    short = [probe.test_reviews[n] for n in np.flatnonzero(apart_N) if len(probe.test_reviews[n].text) < 100]
    rows += [[review.text, review.label, knows, misses, int(apart_N.sum())] for review in short[:2]]
table(["sentence", "label", "right", "wrong", f"such sentences, of {len(wanted)}"], rows)

# %% [markdown] name="recorded"
# **And fine-tuned?** So far nothing inside the models has changed. The record has the same four with all their weights trained further (the bag
# of words as it is), judged on more sentences. It took hours, so it is shown and not run.

# %% name="compare-with-record" jupyter={"source_hidden": true}
efficiency = Record(RECORDS_FOLDER / "efficiency.jsonl")
NAMES = {"bag of words": "bag of words", "random weights": "scratch", "our encoder": "encoder", "MiniLM": "MiniLM"}


def tuned_by_sample(name, labels):
    """{sample: recorded accuracy in %}"""
    found = efficiency.by_step("accuracy", name=f"rotten_tomatoes, {NAMES[name]}")
    return {sample: 100 * value for sample, value in found[labels].items()}


def tuned(name, labels):
    return np.mean(list(tuned_by_sample(name, labels).values()))


def tuned_lead(first, second, labels):
    """Points by which the first is ahead in the record, sample by sample."""
    one, other = tuned_by_sample(first, labels), tuned_by_sample(second, labels)
    return mean_interval([one[sample] - other[sample] for sample in one.keys() & other.keys()])


display(
    table(
        ["", "100 labels, frozen, live", "100, fine-tuned, recorded", "500, frozen, live", "500, fine-tuned, recorded"],
        [
            [name, *(f"{value:.1f}" for n in (100, 500) for value in (mean_of(name, n), tuned(name, n)))]
            for name in taught
        ],
    )
)
on_reviews = {name: [] for name in ("scratch", "fine-tuned")}
for row in Record(RECORDS_FOLDER / "transfer.jsonl").rows():
    if row["name"] in on_reviews and row["step"] == 100:
        on_reviews[row["name"]].append(100 * row["value"])
by_tuning = {name: tuned(name, 500) - mean_of(name, 500) for name in ("our encoder", "MiniLM")}
minilm_tuned = tuned_lead("MiniLM", "our encoder", 500)
Markdown(
    "Accuracy in %; `course record efficiency` makes the recorded part again. "
    f"Fine-tuning on 500 labels gives MiniLM {by_tuning['MiniLM']:+.1f} points over its frozen features, our encoder {by_tuning['our encoder']:+.1f} "
    f"(on other test sentences: the bag of words, which is as it was, differs by {tuned('bag of words', 500) - mean_of('bag of words', 500):+.1f} between the "
    f"two, so such a gain would mean nothing). With 500 labels, fine-tuned, MiniLM is ahead of our encoder by {minilm_tuned:+.1f}; frozen, "
    f"live, by {lead('MiniLM', 'our encoder', 500):+.1f}. "
    + (
        "What reads well frozen need not be what learns best: choose by the experiment that you will use. "
        if minilm_tuned.low > 0 and lead("MiniLM", "our encoder", 500).low <= 0
        else ""
    )
    + f"On whole reviews (`transfer`), 100 labels give our encoder {np.mean(on_reviews['fine-tuned']):.1f}% and random weights "
    f"{np.mean(on_reviews['scratch']):.1f}%."
)

# %% name="saved" jupyter={"source_hidden": true}
few = 100
spread_of = lambda name, labels: mean_interval([value / 100 for value in tuned_by_sample(name, labels).values()])
enough = next((n for n in (200, 500, 1000, 3000) if tuned("bag of words", n) >= tuned("our encoder", few)), None)
Markdown(
    f"In labels: fine-tuned, our encoder reaches {spread_of('our encoder', few):.1%} with {few}. The bag of words "
    + (
        f"on average first gets as far with {enough:,}, of the sizes that were tried ({spread_of('bag of words', enough):.1%}, from "
        f"{len(tuned_by_sample('bag of words', enough))} samples): {(enough - few) * minutes['rotten_tomatoes']:.0f} minutes of reading more."
        if enough
        else "needs more than the 3,000 that were tried."
    )
    + " **That is what pre-training buys**: it is paid once, and every task after it needs fewer labels."
)

# %% [markdown] name="own-sentence"
# ## 4 Your own sentence
#
# **Move.** Write a sentence of your own and press *Ask* (or Tab). Where do the models disagree? Find a sentence that our encoder gets right in
# *all five* samples; then put a *not* into it. A classifier always answers: try it with an emoji, or in another language.

# %% name="explore-own-sentence"
OWN = "Not a single dull minute, and I would gladly sit through it again."
own_box = sentence_explorer(taught, OWN)
display(own_box)

# %% name="own-sentence-without-a-kernel" jupyter={"source_hidden": true}
opinions = [compute_opinions(taught, OWN, 100, sample + 1) for sample in range(probe.seeds)]
display(Markdown(f"“{OWN}” from 100 labels, sample 1:"))
plots.show(draw_opinions(opinions[0]), alt="How probable four models hold that one sentence is positive.")

# %% name="read-own-sentence" jupyter={"source_hidden": true}
PLAIN, DENIED = "The film is good.", "The film is not good at all."


def over_samples(text, name):
    """The lowest and the highest probability over the samples, in words."""
    shares = [taught[name].positive(text, 100, sample) for sample in range(probe.seeds)]
    return f"{min(shares):.0%} to {max(shares):.0%}"


n_fooled = sum(taught["our encoder"].positive(DENIED, 100, sample) >= 0.5 for sample in range(probe.seeds))
Markdown(
    f"“{OWN}” over the five samples of 100 labels: {'; '.join(f'{name} {over_samples(OWN, name)}' for name in taught)}. Where a range has 50% inside, "
    "the verdict turns over with the sample alone; who is right with one sample may be so by luck. "
    f"“{PLAIN}”: our encoder {over_samples(PLAIN, 'our encoder')}; “{DENIED}”: {over_samples(DENIED, 'our encoder')}, so that after {n_fooled} of the "
    f"{probe.seeds} samples it takes the denial for praise. "
    "<details><summary>Why is such a sentence hard?</summary>“Dull” is a word of complaints. A sum over words and pairs of words does not see that “not a "
    "single” stands before it, and knows only the words of its 100 sentences. The encoders see every word beside the others, but "
    "nobody has told them yet that this task hangs on it, and 100 labels hold few such sentences.</details>"
)

# %% [markdown] name="exercises"
# ## Exercises
#
# Each chapter has a few. This one is a warm-up. First, see how a check talks, on a wrong answer: it gives every test the label 1.

# %% name="see-a-check"


def always_one(train_labels, test_labels):
    return sum(label == 1 for label in test_labels) / len(test_labels)


accepted = checks.majority_baseline(always_one)

# %% [markdown] name="what-a-check-returns"
# It says what it tried, what it wanted, what it was given, and the usual cause. A check gives a function back: yours if it is right, else the
# library's. So `accepted` is right, and the check must say so:

# %% name="see-a-right-answer"
accepted = checks.majority_baseline(accepted)

# %% [markdown] name="exercise-majority" tags=["exercise"]
# ### Warm-up: one answer for all
#
# What does a model score that has learned nothing but which label is frequent? It looks for the most frequent of `train_labels`, and gives it to
# every test. Give back the share of `test_labels` that is right then. Both are lists of whole numbers, not only of 0 and 1; no two labels are
# equally frequent in the check's lists. Whatever you build later has to beat this number first.
#
# <details><summary>Hint 1</summary>Two steps: find the label, then count where it is right.</details>
# <details><summary>Hint 2</summary><code>collections.Counter(train_labels).most_common(1)</code> gives a list with one pair: a label, and how
# often it occurs.</details>


# %% name="exercise-majority-code" tags=["exercise"]
def my_majority_baseline(train_labels, test_labels):
    """The share of test_labels that equals the most frequent of train_labels."""
    ### BEGIN SOLUTION
    most_frequent = max(set(train_labels), key=train_labels.count)
    return test_labels.count(most_frequent) / len(test_labels)
    ### END SOLUTION


# %% name="exercise-majority-check" tags=["check"]
baseline = checks.majority_baseline(my_majority_baseline)

# %% name="use-majority" jupyter={"source_hidden": true}
Markdown(
    f"Half of each sample of this chapter is praise, so no label is the frequent one, and either answer scores about half of the {len(wanted)} test "
    f"sentences: {baseline([1], wanted):.1%} or {baseline([0], wanted):.1%}. In a shop where nineteen of twenty reviews praise, the same function gives "
    f"{baseline([1] * 19 + [0], [1] * 19 + [0]):.0%}, so a model that is right in 95% there may have learned nothing."
)

# %% [markdown] name="clinic"
# ## Bug clinic
#
# Two patients, as this course calls faulty code. Both run without an error, and both are wrong. Find out why from the experiment before you unfold the diagnosis.

# %% [markdown] name="clinic-winner-story"
# ### Patient 1: the better model
#
# “We tested both on twenty sentences. This one got more of them right, so we ship it.”

# %% name="clinic-winner" tags=["clinic"]


def patient_winner(first_right_N, second_right_N):
    """'first', 'second' or None. first_right_N, second_right_N: which of the same test sentences each gets right."""
    difference = first_right_N.mean() - second_right_N.mean()
    return "first" if difference > 0 else "second" if difference < 0 else None


def disagreement(winner, pair, tests=20, trials=200):
    """{answer: its share} over many small tests, drawn at random from those of two models."""
    order, answers = np.random.default_rng(0), []
    for _ in range(trials):
        drawn_N = order.choice(len(pair[0]), tests, replace=False)
        answers.append(winner(pair[0][drawn_N], pair[1][drawn_N]))
    return {answer: answers.count(answer) / trials for answer in ("first", "second", None)}


# %% name="clinic-winner-experiment"
by_sample = [taught["our encoder"].right[100, sample] for sample in range(probe.seeds)]
alike = min(itertools.combinations(by_sample, 2), key=lambda pair: abs(pair[0].mean() - pair[1].mean()))
NAMED = {"first": "the first", "second": "the second", None: "neither"}
by_patient = disagreement(patient_winner, alike)
Markdown(
    f"The same model, taught by two samples of labels, gets {alike[0].mean():.1%} and {alike[1].mean():.1%} of {len(wanted)} sentences right: there is "
    "nothing to choose. Of many tests of twenty: "
    + ", ".join(f"{share:.1%} name {NAMED[answer]}" for answer, share in by_patient.items())
    + "."
)

# %% [markdown] name="clinic-winner-diagnosis"
# <details><summary>Diagnosis</summary>
#
# Twenty sentences can hardly tell two models apart, yet somebody is named in most draws: which one is decided by the draw. Compare on the sentences on which
# the two <em>disagree</em>, form an interval, and name nobody where it holds zero. The answer is then mostly “we do not know”; the cure for that is
# more tests, not a bolder sentence.
# </details>

# %% name="clinic-winner-cure" tags=["clinic"] jupyter={"source_hidden": true}


def cured_winner(first_right_N, second_right_N):
    difference = paired_comparison(first_right_N, second_right_N).difference
    return None if difference.holds(0.0) else "first" if difference.value > 0 else "second"


# %% [markdown] name="clinic-ids-story"
# ### Patient 2: the borrowed tokenizer
#
# “A tokenizer is a tokenizer. Ours is loaded already, so we feed MiniLM with it.”

# %% name="clinic-ids" tags=["clinic"]
to_learn, to_test = probe.sample(100, 0), probe.test_reviews[:200]


def patient_features(texts):
    return frozen_features(minilm, texts, tokenizer)


def accuracy_on_features(features):
    """Of a probe on 100 sentences, tested on 200, read by `features`."""
    read = [(features([r.text for r in part]), np.array([r.label for r in part])) for part in (to_learn, to_test)]
    return probe_accuracy(*read[0], *read[1])


# %% name="clinic-ids-experiment"
right_with_ours = accuracy_on_features(patient_features)
word = "film"
Markdown(
    f"MiniLM's features, read by a probe: {right_with_ours:.1%} right on {len(to_test)} sentences. “{word}” is number {tokenizer.encode(word)[0]} to our tokenizer, "
    f"and {minilm_tokenizer.encode(word)[0]} to MiniLM's own."
)

# %% [markdown] name="clinic-ids-diagnosis"
# <details><summary>Diagnosis</summary>
#
# A tokenizer numbers its tokens, and a model knows a token by its number alone. Our numbers all exist in MiniLM's larger vocabulary, so nothing
# complains: each word is simply taken for another one. A model and its tokenizer are one thing, and are saved and loaded together. What gives it
# away is a score near that of random weights.
# </details>

# %% name="clinic-ids-cure" tags=["clinic"] jupyter={"source_hidden": true}


def cured_features(texts):
    return frozen_features(minilm, texts, minilm_tokenizer)


# %% name="clinic-after" jupyter={"source_hidden": true}
by_cure = disagreement(cured_winner, alike)
after = [
    ["tests of twenty that name a winner", f"{1 - by_patient[None]:.1%}", f"{1 - by_cure[None]:.1%}"],
    [
        f"accuracy on MiniLM's features, {len(to_test)} tests",
        f"{right_with_ours:.1%}",
        f"{accuracy_on_features(cured_features):.1%}",
    ],
]
lines = table(["what was measured", "patient", "cured"], after).data
Markdown(f"<details><summary>Patients and cures</summary>\n\n{lines}\n\n</details>")

# %% [markdown] name="claims"
# ## What is usually said
#
# **The source** is the text that this course grew out of; its curves were drawn, not measured. The verdicts are computed from
# the figures above.

# %% name="claims-table" jupyter={"source_hidden": true}
gains = {n: lead("our encoder", "random weights", n) for n in probe.labels}
most, least = max(gains, key=lambda n: gains[n].value), min(gains, key=lambda n: gains[n].value)
pair = ("our encoder", "random weights")
gains_apart = mean_interval(leads(*pair, most) - leads(*pair, least))
no_reading = lead("random weights", "bag of words", 500)
size = lead("MiniLM", "our encoder")
claims = [
    [
        "Pre-training pays.",
        "drawn as a smooth curve",
        f"{pays:+.1f} points with 100 labels",
        "holds here" if pays.low > 0 else "not settled here",
    ],
    [
        "It pays most where labels are few.",
        "not measured",
        f"{gains[least]:+.1f} points with {least}, {gains[most]:+.1f} with {most}; the difference {gains_apart:.1f}",
        "not settled here: the difference may be zero"
        if gains_apart.low <= 0
        else "holds here"
        if most <= 50
        else "does not hold for frozen features"
        if least <= 50
        else "not settled here",
    ],
    [
        "A transformer beats counting words.",
        "no baseline",
        f"untrained, less bag of words, 500 labels: {no_reading:+.1f} points",
        "not by itself" if no_reading.high < 0 else "not settled here" if no_reading.low <= 0 else "holds here",
    ],
    [
        "The larger pre-trained model is the better one.",
        "not compared",
        f"MiniLM less our encoder, points: frozen, 100 labels {size:+.1f}, 500 {lead('MiniLM', 'our encoder', 500):+.1f}; fine-tuned on 500 (recorded) "
        f"{minilm_tuned:+.1f}",
        "of this pair"
        if size.low > 0 and minilm_tuned.low > 0
        else "of this pair, fine-tuned; frozen, not settled here"
        if minilm_tuned.low > 0
        else "not settled here",
    ],
]
table(["usually said", "the source", "measured here", "verdict"], claims)

# %% [markdown] name="map"
# ## Where the chapters lead
#
# What you have just seen raises the questions of the other chapters. They build on each other, and each begins by saying what it
# takes for granted. The reading time counts all words, those that cells write and the folded ones too, at the pace above; guessing, moving and exercises
# come on top: plan one to two hours for each of them.

# %% name="draw-map" jupyter={"source_hidden": true}
QUESTIONS = {
    "00": "Does pre-training pay, and how would you know?",
    "01": "What is a model asked while it reads, and what may it look at meanwhile?",
    "02": "What happens between a batch of text and a better model, and what goes wrong silently?",
    "03": "Must all of a model be trained further, or is one part in a hundred enough?",
    "04": "Could you defend your result? And how does a model learn to do what it is told?",
    "05": "How do you train what does not fit, or does not get done?",
    "06": "Your own text, from the first token to a model that others can open: does it hold together?",
}
map_rows = []
for path, (title, words) in chapters.items():
    number = path.stem.split("_")[0]
    cost = recorded_costs.get(path.stem)
    map_rows.append(
        [
            title,
            QUESTIONS.get(number, ""),
            f"{words / WORDS_A_MINUTE:.0f}",
            f"{seconds_here[path.stem] / 60:.1f}" if cost else "not measured yet",
            len(exercises(path, None)),
        ]
    )
table(["chapter", "the question", "minutes to read", "minutes to run here", "exercises"], map_rows)

# %% [markdown] name="compilers"
# **If you build compilers:** pre-training is the parser generator and the reusable front end, built once, at great expense, by somebody; fine-tuning is
# your language on top, written in an afternoon. A bag of words is the lexer alone. The analogy carries far: what the front end cannot represent, no
# language on top of it can say. It breaks in two places. Nobody wrote the rules of this front end, they are whatever helped to guess the next
# word; and a program built on it is never correct or incorrect, it is right in so many cases of a hundred, and does not know in which.

# %% [markdown] name="own-text"
# ## Bring your own text
#
# Everything in this course also runs on a text of yours: a `.txt` with empty lines between documents, a `.csv` with a column `text`, or a folder of
# `.txt` files. The cell writes a small file into a temporary folder and makes a batch of it; put the path of your own in its place.

# %% name="read-own-text"
with tempfile.TemporaryDirectory() as temporary:
    path = Path(temporary) / "mine.txt"
    path.write_text("The lexer cuts a text into words.\n\nThe parser finds out how they belong together.", "utf-8")
    documents = read_own_texts(path)

ids = [tokenizer.encode(document.text) for document in documents]
packed = pack(ids, 10, vocabulary=tokenizer.vocabulary)
dataset = PretrainingDataset(packed, tokenizer.vocabulary, "masked", batch_size=2, options={"mask_prob": 0.3})
batch = dataset.batch(0)
table(
    ["row", "what the model reads"],
    [[n + 1, " ".join(plots.visible(tokenizer.token(i)) for i in row)] for n, row in enumerate(batch.input_ids_BT.tolist())],
)  # fmt: skip

# %% name="read-batch" jupyter={"source_hidden": true}
hidden = int((batch.input_ids_BT == tokenizer.vocabulary.mask).sum())
Markdown(
    f"{len(documents)} documents, {sum(map(len, ids))} tokens, and marks of beginning and end, [BOS] and [EOS], around each document; rows have to be full, so "
    f"{sum(map(len, ids)) + 2 * len(documents) - packed.ids_NT.numel()} at the end are left out here. {int(batch.is_target_BL.sum())} tokens are asked for: "
    f"{hidden} of them are hidden behind [MASK], the others show another token, or their own (chapter 1 says why). That is a batch of chapter 1's *masked* task. `course pretrain encoder --text mine.txt --out my-model` does the rest, and the last "
    "chapter walks you through it."
)

# %% [markdown] name="summary"
# ## What to take along
#
# - Labels are paid for in somebody's time. What a model has read before, it need not be told by labels.
# - Put something simple beside every result: one answer for all, a bag of words, random weights.
# - One run is no result. Which labels were drawn and which tests were asked both move it; several samples and an interval say how far.
# - A model and its tokenizer are one thing.
# - A small experiment says something about the small experiment. Look at the recorded one before you choose.
#
# And one question was left out: what *is* a model asked, while it reads for hours without a label? That is the next chapter.
#
# ## Sources
#
# - Devlin et al. 2018, BERT: pre-train, then fine-tune, [arXiv:1810.04805](https://arxiv.org/abs/1810.04805)
# - Wang et al. 2020, MiniLM, [arXiv:2002.10957](https://arxiv.org/abs/2002.10957); made to compare sentences: Reimers and Gurevych 2019,
#   [arXiv:1908.10084](https://arxiv.org/abs/1908.10084)
# - Pang and Lee 2005, the Rotten Tomatoes sentences, [arXiv:cs/0506075](https://arxiv.org/abs/cs/0506075); Maas et al. 2011, *Learning word
#   vectors for sentiment analysis* (the IMDB reviews)
# - Brysbaert 2019, *How many words do we read per minute?*, Journal of Memory and Language 109
# - Dodge et al. 2020, how much samples and seeds move a fine-tuned model, [arXiv:2002.06305](https://arxiv.org/abs/2002.06305)
#
# **Next:** [01 Pre-training objectives](01_pretraining_objectives.ipynb)

# %% name="sweep-controls" tags=["remove-cell"] jupyter={"source_hidden": true}
tried = sweep(own_box)  # every control to its ends: fails if one of them shows an error
