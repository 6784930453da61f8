# ---
# jupyter:
#   jupytext: {text_representation: {extension: .py, format_name: percent}}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown] name="title"
# # 06 Capstone
#
# **Now with your own text.** Every chapter so far worked on film reviews, where it was known what would come out. This one takes a text that
# no model of the course has read, yours if you give one, and goes the whole way: look at it, let a pre-trained model read it, adapt a model to a
# task on it by two strategies, hold the result against a baseline, export it, and write down what you may claim.
#
# You will
#
# - split a text so that nothing stands on two sides, and count how much of it is said twice all the same;
# - see what a tokenizer made for reviews does to another kind of text, and what that costs;
# - continue pre-training, in full and by LoRA, and measure what was learned and what was forgotten;
# - adapt a model to a task on that text, and find out honestly whether it beats a bag of words;
# - take the result to other libraries and to the command line, and write a report of one page;
# - tick a checklist that is computed, and can come out badly.
#
# **How to read it.** As [00 Start here](00_start_here.ipynb) says. A measured number comes from the cell above it, on your machine, or from a
# recorded run that the text names.
#
# **If you build compilers:** you have a front end, and you have written a language on top of it. This is the port to another platform, with the
# test suite, the packaging and the release notes that go with it. The analogy breaks where the front end itself changes: each port
# here rewrites a part of it, and what it understood before can get lost.

# %% name="progress" jupyter={"source_hidden": true}
from course_lib.lab import progress

progress("06")

# %% [markdown] name="words"
# <details><summary><b>Words used below</b> (unfold when you meet one)</summary>
#
# - **Continued pre-training**: the same task as in pre-training, on other text, from the weights that are there.
# - **Read, dev, test**: what a model is trained on, what is looked at on the way, and what is looked at once, at the end.
# - **Nats per token**: the loss of a language model, the surprise that it feels at each token on average. **Bits per byte**: the same
#   surprise, shared out over the bytes of the text instead of the tokens, so that models with different tokenizers can be compared.
#   Commands say *per target*: a target is a token that is asked for.
# - **n-gram**: n tokens in a row, so that a 12-gram is twelve. **Docstring**: the text with which a piece of Python code documents itself.
# - **Rung**: one of the numbers of tokens after which a run is measured, each twice the one before; together they are its ladder.
# - **LoRA**: thin matrices beside frozen ones. **Full**: everything trains. **BitFit**: the biases alone train.
# - **Bag of words**: a classifier that knows which words and pairs of words a text has, and not in what order.
# - **Macro F1**: the mean over the classes of each one's F1, so that a rare class weighs as much as a frequent one. **ECE**, expected calibration
#   error: how far a classifier's probabilities lie from how often it is right.
# - **Paired interval**: where the difference of two classifiers lies in 95 of 100 such tests, from the texts on which only one is right.
# - **The source**: the text that this course grew out of. **Names in the code** end in their axes:
#   `ids_BT` has a row for each text of the batch (B) and a column for each position (T).
#
# Every term of the course: [the glossary](../docs/glossary.md).
# </details>

# %% name="setup" tags=["setup"] jupyter={"source_hidden": true}
import ast
import contextlib
import copy
import csv
import html
import importlib.util
import io
import json
import math
import re
import tempfile
import textwrap
import warnings
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from IPython.display import HTML, Markdown, display
from safetensors.torch import load_file
from tqdm.auto import tqdm

from course_lib import checks, cli, plots
from course_lib.data import course_tokenizer, identity, normalize, pad, reviews_of
from course_lib.documentation import without_names
from course_lib.evaluation import (
    Bigram,
    Interval,
    bits_per_byte,
    bootstrap_interval,
    columns,
    compressed_bits_per_byte,
    copied_share,
    fit_bag_of_words,
    paired_comparison,
    share_interval,
    stream_nats,
    uniform_loss,
)
from course_lib.finetuning import Classifier, FineTuning, fine_tune, predictions
from course_lib.generation import complete, generate
from course_lib.objectives import causal, masked
from course_lib.optimizers import decay_groups, make_optimizer
from course_lib.peft import BitFit, LoRA, apply, load_adapter, merge_and_unload, save_adapter, switch
from course_lib.pretrained import CHECKPOINTS_FOLDER, load_checkpoint, load_model, minilm, save_model
from course_lib.records import Record
from course_lib.runs import RECORDS_FOLDER
from course_lib.runs.own_reading import HeldOut, Reading, held_out_of
from course_lib.runs.own_text import class_of, own_text, paragraphs
from course_lib.runtime import largest_difference, pick_device, seeded
from course_lib.schedules import Schedule
from course_lib.tokenizer import train_tokenizer
from course_lib.training import batch_loss, step
from course_lib.widgets.binder import compare, guess, guess_number, sweep, table
from course_lib.widgets.surprise import draw_surprise, surprise_explorer

device = pick_device()
tokenizer = course_tokenizer()


def words_of(texts):
    return [text.text for text in texts]


# %% [markdown] name="text"
# ## 1 The text
#
# Put your own text in the next cell: a folder of `.txt` files, one `.txt` (texts divided by empty lines), or a `.csv` with a column `text` and,
# if you have labels, a column `label` of their names. The path is relative to the folder of this notebook. Half a million characters in a few hundred
# paragraphs are enough to begin with, in UTF-8. Section 4 tells classes apart, which are the labels or, without them, the files of a folder: the four most
# frequent. It says how many paragraphs of each it wants, and with fewer, or a single file without labels, it falls back on the documentation. Where a text cannot carry the experiment, the error says what is missing.
#
# Without one, the chapter takes a text that you have already: the documentation of the Python packages that run this course, read from their
# source files. No code of theirs is executed. It is English of a kind, and as far from film reviews as one gets without leaving the machine.

# %% name="your-text" tags=["setup"]
OWN = None  # or "my_texts/", "my_notes.txt", "my_table.csv"
text = own_text(OWN)

# %% name="look-at-text"
by_class = {name: [t for t in text.texts if class_of(t) == name] for name in text.classes}
display(
    table(
        ["part", "texts", "tokens", *text.classes[:8]],
        [
            [
                part,
                f"{len(text.part(part)):,}",
                f"{text.n_tokens(part):,}",
                *(Counter(map(class_of, text.part(part)))[name] for name in text.classes[:8]),
            ]
            for part in ("read", "dev", "test")
        ],
    )
)
for name in text.classes[:3]:
    display(
        Markdown(f"**{name}**: {textwrap.shorten(min(by_class[name], key=lambda t: abs(len(t.text) - 250)).text, 300)}")
    )
sides = {part: {t.identity for t in text.part(part)} for part in ("read", "dev", "test")}
on_two_sides = sum(len(sides[a] & sides[b]) for a, b in (("read", "dev"), ("read", "test"), ("dev", "test")))
Markdown(
    f"{len(text.texts):,} distinct texts. The side of each follows from a hash of its normalised words, as in chapter 4, so that "
    f"{on_two_sides} of them stand on two sides."
)

# %% [markdown] name="repeats-question"
# No text stands on two sides. But documentation repeats itself: the same parameter is explained with the same words in many places.
#
# **Predict.** Take every stretch of twelve tokens in the dev texts. How many of these stretches stand, word for word, in the part that is read?

# %% name="predict-repeats" jupyter={"source_hidden": true}
repeats_guess = guess_number("12-grams of the dev texts that are in the read part", low=0, high=100, step=1, unit="%")
display(repeats_guess)

# %% name="count-repeats"
ids_of = {part: text.ids(part) for part in ("read", "dev", "test")}
read_stream = [i for ids in ids_of["read"] for i in [*ids, tokenizer.vocabulary.eos]]
lengths = (4, 8, 12, 24)
repeated = {n: copied_share([ids for ids in ids_of["dev"] if len(ids) >= n], read_stream, n) for n in lengths}
plots.show(
    plots.draw_bars(
        [f"{n} tokens" for n in lengths],
        [100 * repeated[n] for n in lengths],
        xlabel="stretches of the dev texts that stand in the read part too, %",
        number="{:.1f}",
    ),
    alt="Share of the dev texts' n-grams that stand in the part that is read, for four lengths.",
)

# %% name="compare-repeats" jupyter={"source_hidden": true}
compare(
    repeats_guess,
    f"{repeated[12]:.0%}. "
    + (
        "A split by text keeps whole texts apart, and not what they share. So a part of what looks like understanding below can be recall, and "
        "the figures below are for text of this kind, boilerplate included. If you want to know about new words only, split by "
        "package, or by author."
        if repeated[12] > 0.05
        else "Little: what is measured below is hardly recall."
    ),
    100 * repeated[12],
    near=5,
)

# %% [markdown] name="tokenizer"
# ## 2 Does the tokenizer fit?
#
# The course's tokenizer learned its pieces from film reviews. It can write any text in small letters: capitals are folded first, so that `TypeError` and
# `typeerror` become one. What it never met it cuts small, down to bytes. Then a row of 256 tokens holds less text, and every step reads less.
#
# **Predict.** Reviews take a little more than one token a word. And this text?

# %% name="predict-tokenizer" jupyter={"source_hidden": true}
pieces_guess = guess_number("Tokens per word of this text", low=1, high=6, step=0.1, unit="tokens")
display(pieces_guess)

# %% name="measure-tokenizer"
review_words = [review.text for review in reviews_of("dev", "imdb")[:300]]
trained_here = train_tokenizer(text.words("read"), vocab_size=tokenizer.vocabulary.size)
N_SPECIAL = max(tokenizer.vocabulary.sentinels) + 1  # of both; the 256 single bytes come behind them


def measured(a_tokenizer, texts):
    """Tokens per word, bytes per token, and the share of tokens that are one byte inside of a word or a sign."""
    ids = [i for one in a_tokenizer.encode_all(texts) for i in one]
    n_words, n_bytes = sum(len(t.split()) for t in texts), sum(len(normalize(t).encode()) for t in texts)
    single = sum(N_SPECIAL <= i < N_SPECIAL + 256 for i in ids)
    return {"words": len(ids) / n_words, "bytes": n_bytes / len(ids), "single": single / len(ids)}


fits = {
    "reviews, the course's tokenizer": measured(tokenizer, review_words),
    "this text, the course's tokenizer": measured(tokenizer, text.words("dev")),
    "this text, a tokenizer trained on it": measured(trained_here, text.words("dev")),
    "reviews, a tokenizer trained on this text": measured(trained_here, review_words),
}
display(
    table(
        ["text and tokenizer", "tokens per word", "bytes per token", "tokens of a single byte, punctuation among them"],
        [[name, f"{m['words']:.2f}", f"{m['bytes']:.2f}", f"{m['single']:.0%}"] for name, m in fits.items()],
    )
)
plots.show(
    plots.draw_bars(list(fits), [m["bytes"] for m in fits.values()], xlabel="bytes per token", width=8.0),
    alt="Bytes per token for two texts and two tokenizers.",
)

# %% name="show-tokens"
sentence = next((t.text for t in text.part("dev") if 80 <= len(t.text) <= 120), text.part("dev")[0].text[:100])
Markdown(
    "\n\n".join(
        f"{name}: " + " ".join(f"`{a_tokenizer.token(i).strip() or '␣'}`" for i in a_tokenizer.encode(sentence[:120]))
        for name, a_tokenizer in (("The course's tokenizer", tokenizer), ("One trained on this text", trained_here))
    )
)

# %% name="compare-tokenizer" jupyter={"source_hidden": true}
on_reviews, on_own, on_own_fitted = (fits[name] for name in list(fits)[:3])
saved = 1 - on_own["bytes"] / on_own_fitted["bytes"]
compare(
    pieces_guess,
    f"{on_own['words']:.2f} tokens a word, and {on_reviews['words']:.2f} on reviews; {on_own['single']:.0%} of its tokens are a single byte "
    f"({on_reviews['single']:.0%} on reviews). A tokenizer trained on this text would need {saved:.0%} fewer tokens. "
    "But its ids would mean other pieces than those that the shipped model has learned: every row of its embedding table would be about "
    "another piece of text, so a new tokenizer means to begin anew, or nearly so. The chapter keeps the pre-trained model, and with it "
    "its tokenizer. The clinic below shows what happens otherwise.",
    on_own["words"],
    near=0.2,
)

# %% [markdown] name="reading"
# ## 3 Let the model read it
#
# The shipped decoder continues its pre-training on the part to read: the same task, the next token, on other text. In two ways: in
# **full**, all weights training; and by **LoRA**, low-rank updates beside the frozen ones. For comparison, a decoder of the same shape begins
# **from nothing**. All read the same rows in the same order. The record (`course record own_text`) has them at a ladder of tokens;
# the cell below reads its first rungs once more, on your machine, in full and by LoRA. That takes the better part of a minute, and more
# where other work goes on beside it.
#
# **Predict.** At the last rung of the record, which has the lowest loss on dev texts, and which the highest?

# %% name="predict-reading" jupyter={"source_hidden": true}
ORDERS = ["full, LoRA, from nothing", "LoRA, full, from nothing", "full, from nothing, LoRA"]
reading_guess = guess("From the lowest loss to the highest", ORDERS)
display(reading_guess)

# %% name="read-live"
TOKENS = 32_768  # that each of the two reads here; 200_000 is a coffee, and shows more
reading = Reading()
rows, held_out = reading.rows(text), held_out_of(text, reading)
own = held_out["own"]  # as many dev tokens as the record is measured on
wide, wide_test = (
    HeldOut.of(text.words(part), 3 * reading.held_out_tokens) for part in ("dev", "test")
)  # begins with `own`
rungs = sorted(
    {reading.step_of(TOKENS >> halvings) for halvings in range(4)}
)  # of which models are kept for the explorer
snapshots = {0: load_checkpoint("decoder").to(device)}
wide_N = {"before": wide.nats(snapshots[0])}  # nats of each token
live, read_models = {}, {}


def recorded_part(nats_N):
    return own.loss_of(nats_N[: len(own.ids) - 1])


for name in ("full", "LoRA"):
    model, optimizer = reading.begin(name)
    live[name] = {0: recorded_part(wide_N["before"])}
    with tqdm(total=rungs[-1], desc=name, unit="step") as bar:
        for row in reading.read(name, model, optimizer, rows, end=rungs[-1]):
            bar.update()
            if row.step in rungs[-2:-1]:
                live[name][row.tokens] = own.loss(model)
            if name == "full" and row.step in rungs:
                snapshots[row.tokens] = copy.deepcopy(model)
    read_models[name] = model.eval()
    if name == "full":
        wide_N[name] = wide.nats(model)
    live[name][row.tokens] = recorded_part(wide_N[name]) if name in wide_N else own.loss(model)
display(
    table(
        ["", "tokens read", f"nats per token on {len(own.ids):,} dev tokens", "bits per byte"],
        [[n, f"{tokens:,}", f"{a:.2f}", f"{b:.2f}"] for n, found in live.items() for tokens, (a, b) in found.items()],
    )
)
Markdown(
    f"Measured on the first {len(own.ids):,} tokens of the dev part ({len(own.sizes)} whole texts), as in the record: enough to tell nats apart, not "
    f"hundredths, and other texts cost more or less than these. At the beginning and the end also on {len(wide.ids):,} tokens of {len(wide.sizes)} dev texts, with 95% intervals from drawing the texts "
    "anew: " + ", ".join(f"{name} {wide.interval(nats_N):.2f}" for name, nats_N in wide_N.items()) + "."
)

# %% name="draw-reading"
record = Record(RECORDS_FOLDER / "own_text.jsonl")  # or Path("my_record.jsonl"), once you have made it (see the end)
pairs_read = Bigram.fit(torch.tensor(read_stream), tokenizer.vocabulary)
bigram_nats = pairs_read.nats(torch.tensor(own.ids)).mean()
is_same_text = all(sitting["text_sha256"] == text.fingerprint for sitting in record.provenance())
of_record = "" if is_same_text else "Of the recorded text, and not of the one that you read: "
yours = "" if is_same_text else ", your text"


def recorded(name, metric):
    """{tokens: value} of a way of reading, as far as it is recorded."""
    return dict(record.values(metric, name=name))


curves = {name: recorded(name, "own_nats") for name in reading.methods}
last_rung = min(max(curve) for curve in curves.values())
display(
    plots.show(
        plots.draw_curves(
            {name: ([t for t in curve if t], [v for t, v in curve.items() if t]) for name, curve in curves.items()},
            {name: ([t for t in found if t], [nats for t, (nats, _) in found.items() if t]) for name, found in live.items()},
            references={"before": curves["full"][0], f"pairs counted{yours}": bigram_nats},
            xlabel="tokens read (log scale)",
            ylabel="nats per token, dev texts",
            kinds=None,
            log_x=True,
        ),
        alt="Loss on held-out text of the three ways of reading against the tokens read; the live runs drawn over the record.",
    )
)  # fmt: skip
sittings = {(s["machine"].get("device", "cpu"), s["date"]) for s in record.provenance()}
n_trained = sum(p.numel() for p in read_models["LoRA"].parameters() if p.requires_grad)
rates = {name: f"{method.rate:g}" for name, method in reading.methods.items()}
n_passes, falls_from = last_rung / rows.ids_NT.numel(), 0.8 * reading.tokens
Markdown(
    f"The lines are recorded, by `course record own_text` on {', '.join(f'{d} ({when})' for d, when in sorted(sittings))}, from the rung of "
    f"{min(t for t in curves['full'] if t):,} tokens to {last_rung:,}; the outlined marks are yours, and *from nothing* is recorded only. *Pairs counted* is a "
    f"model that has only counted which token follows which, in all of the part to read ({sum(map(len, ids_of['read'])):,} tokens). "
    + (
        f"You read the text that was recorded, so that marks and lines should agree; {last_rung:,} tokens are {n_passes:.1f} passes over it. "
        if is_same_text
        else "What you read is not the recorded text (packages of other versions are another one): expect marks beside the lines, and look "
        "whether the order of the methods is the same. "
    )
    + f"Full trains at a rate of {rates['full']}; LoRA of rank {reading.methods['LoRA'].strategy.rank} at {rates['LoRA']}, {n_trained:,} weights beside "
    f"{read_models['full'].n_parameters():,}; from nothing at {rates['from nothing']}: none of them was tuned further, and another rate could change the order. "
    f"The run is planned for {reading.tokens:,} tokens, over the last fifth of which the rate falls"
    + ("; that far the record does not reach." if last_rung <= falls_from else ".")
)

# %% name="compare-reading" jupyter={"source_hidden": true}
at_end = {name: curve[last_rung] for name, curve in curves.items()}
order = ", ".join(sorted(at_end, key=at_end.get))
bits_at_end = {name: recorded(name, "own_bits_per_byte")[last_rung] for name in curves}
before_nats = curves["full"][0]
compare(
    reading_guess,
    f"{of_record}After {last_rung:,} tokens: "
    + ", ".join(
        f"{name} {at_end[name]:.2f} nats per token ({bits_at_end[name]:.2f} bits per byte)"
        for name in sorted(at_end, key=at_end.get)
    )
    + f"; the shipped decoder begins at {before_nats:.2f}. "
    + (
        f"What the decoder from nothing has learned from the same text lies {at_end['from nothing'] - at_end['full']:.2f} nats behind the one that had "
        "read reviews first, "
        + (
            "and behind the shipped decoder before it had read a line of this text: so little text teaches next to nothing by itself. "
            if at_end["from nothing"] > before_nats
            else "though ahead of the shipped decoder before it read. "
        )
    )
    + (
        "LoRA lies between, probably because it cannot move the embeddings of this text's words and changes the rest in a few directions; nothing here "
        "tests that. "
        if at_end["full"] < at_end["LoRA"] < at_end["from nothing"]
        else "LoRA ends last: perhaps the text is so far from reviews that a few directions beside frozen embeddings do not reach it. "
        if at_end["LoRA"] == max(at_end.values())
        else ""
    )
    + "One run of each, on one order of the text: no interval is claimed, and a gap of a few hundredths would mean nothing.",
    order if order in ORDERS else None,
)

# %% [markdown] name="forgetting-question"
# **What was forgotten?** The model read other text, and no review.
#
# **Predict.** What has happened to its loss on held-out reviews, at the
# last rung, in full and by LoRA?

# %% name="predict-forgetting" jupyter={"source_hidden": true}
forgetting_guess = guess(
    "The loss on reviews has risen more",
    ["in full", "by LoRA", "about alike (within 0.1 nats)"],
)
display(forgetting_guess)

# %% name="measure-forgetting"
on_reviews_now = {"before": held_out["reviews"].loss(snapshots[0])[0]} | {
    name: held_out["reviews"].loss(model)[0] for name, model in read_models.items()
}
forgot = {name: recorded(name, "reviews_nats") for name in ("full", "LoRA")}
table(
    ["nats per token on dev reviews", f"here, after {TOKENS:,} tokens", f"recorded, after {last_rung:,} tokens"],
    [["before", f"{on_reviews_now['before']:.2f}", f"{forgot['full'][0]:.2f}"]]
    + [[name, f"{on_reviews_now[name]:.2f}", f"{forgot[name][last_rung]:.2f}"] for name in forgot],
)

# %% name="compare-forgetting" jupyter={"source_hidden": true}
lost = {name: curve[last_rung] - curve[0] for name, curve in forgot.items()}
gained = {name: before_nats - at_end[name] for name in lost}
ahead, behind = sorted(lost, key=at_end.get)  # of the two the one that got further, and the other
as_far = next(
    t for t in sorted(curves[ahead]) if curves[ahead][t] <= at_end[behind]
)  # tokens until it was where the other ends
lost_as_far = forgot[ahead][as_far] - forgot[ahead][0]
more = "neither" if abs(lost[behind] - lost_as_far) < 0.05 else behind if lost[behind] > lost_as_far else ahead
NAMED = {"full": "full training", "LoRA": "LoRA", "neither": "neither of the two"}
compare(
    forgetting_guess,
    f"{of_record}In full it rose by {lost['full']:.2f} nats, by LoRA by {lost['LoRA']:.2f}, while on the new text they gained {gained['full']:.2f} and "
    f"{gained['LoRA']:.2f}. So much for the same number of tokens. At the same gain: {NAMED[ahead]} was as far in the new text as {NAMED[behind]} at its end, or "
    f"a little farther, after {as_far:,} tokens already, and had then lost {lost_as_far:.2f} on reviews, against {lost[behind]:.2f}. So at the same gain "
    f"{NAMED[more]} forgot more here. "
    + (
        "At the same number of tokens it is as the title *LoRA Learns Less and Forgets Less* says (in the sources, on larger models); at the same gain it is "
        "not, here, from one run of each at rates that were not tuned. "
        if more == "LoRA" and lost["LoRA"] < lost["full"]
        else ""
    )
    + ("Freezing the weights does not keep what they knew: what LoRA adds acts on reviews as well. " if lost["LoRA"] > 0.05 else "")
    + "What it does keep is the way back: switch the adapter off, and the old model is there, to the bit.",
    "about alike (within 0.1 nats)"
    if abs(lost["full"] - lost["LoRA"]) <= 0.1
    else "in full"
    if lost["full"] > lost["LoRA"]
    else "by LoRA",
)  # fmt: skip

# %% [markdown] name="samples"
# **Hear the difference.** The same beginnings, continued before and after, at temperature 0.8 with the same random numbers. Look for brackets,
# backticks and names of parameters, and for sense: what has come first?

# %% name="write-samples"
STARTS = ["Returns", "The parameter", "This function"] if OWN is None else [" ".join(t.text.split()[:3]) for t in text.part("test")[:3]]  # fmt: skip
written = {
    name: complete(a_model, tokenizer, STARTS, max_new_tokens=30, temperature=0.8, generator=seeded(1))
    for name, a_model in {"before": snapshots[0], "after, full": read_models["full"], "after, LoRA": read_models["LoRA"]}.items()
}  # fmt: skip
for n, start in enumerate(STARTS):
    print(f"{start} ...")
    for name, continued in written.items():
        print(
            textwrap.fill(f"{name}: ... {continued[n].strip()}", 110, initial_indent="    ", subsequent_indent=" " * 8)
        )

# %% [markdown] name="explorer-question"
# **Where did the loss fall?** Below, each token of a dev text that nobody read, with the nats that it costs the decoder: the bar now, the grey mark before
# the reading.
#
# **Predict.** What made up most of the fall over the dev texts: signs and digits (tokens without a letter: brackets, dots, dashes, lone blanks), or words and
# parts of words?
#
# **Move.** Drag *tokens read* back to 0, then to the end. Which tokens become cheap first, and which stay dear?

# %% name="predict-tokens" jupyter={"source_hidden": true}
tokens_guess = guess("Most of the fall is due to", ["signs and digits", "words and parts of words", "about half each"])
display(tokens_guess)

# %% name="explore-surprise"
dev_texts = [textwrap.shorten(t.text, 300) for t in text.part("dev") if len(t.text) >= 80]
surprise_box = surprise_explorer(snapshots, dev_texts[:5], tokenizer)
display(surprise_box)

# %% name="static-surprise"
plots.show(
    draw_surprise(surprise_box.value),
    alt="Nats per token of one held-out text, before and after reading, as the explorer shows it at its beginning.",
)

# %% name="compare-tokens" jupyter={"source_hidden": true}
fall_N = wide_N["before"] - wide_N["full"]
fall = wide.interval(fall_N)
is_sign_N = np.array([not any(c.isalpha() for c in tokenizer.token(i)) for i in wide.ids[1:]])
fall_of_signs, fall_of_texts = wide.by_text(fall_N * is_sign_N), wide.by_text(fall_N)
from_signs, share_of_signs = Interval(fall_of_signs.sum() / fall_of_texts.sum(), -math.inf, math.inf), is_sign_N.mean()
if len(wide.sizes) > 1:
    from_signs = bootstrap_interval(
        lambda signs, all_of_it: signs.sum() / all_of_it.sum(),
        fall_of_signs,
        fall_of_texts,
        generator=np.random.default_rng(0),
    )
is_half = from_signs.holds(0.5)
compare(
    tokens_guess,
    f"{100 * from_signs.value:.0f}% of the fall (95% interval {100 * from_signs.low:.0f} to {100 * from_signs.high:.0f}%, drawing the texts anew) is due to "
    f"tokens without a letter, which are {share_of_signs:.0%} of all tokens here. "
    + (f"So much does it differ between {len(wide.sizes)} texts that half cannot be told from it. " if is_half else "")
    + (
        "For their number they fell by more than words: the form of a text is a part of what was learned first"
        + (", where brackets stand, how a parameter is listed." if OWN is None else ".")
        if from_signs.low > share_of_signs
        else "For their number they did not clearly become cheaper than words."
    ),
    "about half each" if is_half else "signs and digits" if from_signs.value > 0.5 else "words and parts of words",
)  # fmt: skip

# %% [markdown] name="adapt"
# ## 4 A task on this text, by two strategies
#
# Which package does a paragraph come from? (Of your own text: which file, or which label.) In the default text the names of the packages, and of a few
# of their best known things, are replaced by *it* first: whoever sees `torch.Tensor` need not read on. Rarer names stay, and some of them still
# give a package away. Few labels, and the same paragraphs for all: a bag of words, and MiniLM, which has read far more than the course's encoder, adapted by **LoRA** and by **BitFit**.
#
# **Predict.** In chapter 4, MiniLM was ahead of the bag of words with few labelled sentences about films. And here?

# %% name="predict-adapt" jupyter={"source_hidden": true}
adapt_guess = guess(
    "MiniLM by the better of the two strategies, against the bag of words", ["ahead", "behind", "no clear difference"]
)
display(adapt_guess)

# %% name="choose-paragraphs"
PER_CLASS, PER_CLASS_TESTS, FEWEST_TESTS, SEEDS = 32, 40, 20, (0, 1)
PACKAGES_TOLD_APART = ["matplotlib", "numpy", "sklearn", "torch"]


def task_of(a_text, classes, rewrite=str):
    """Paragraphs to draw samples from, and others to test on, up to 32 tokens of each; none of them twice."""
    how = {"tokens": (20, 32), "rewrite": rewrite}
    tests = paragraphs(a_text.part("test") + a_text.part("dev"), classes, PER_CLASS_TESTS, fewest=FEWEST_TESTS, **how)
    return paragraphs(a_text.part("read"), classes, len(SEEDS) * PER_CLASS, apart_from=tests, **how), tests


most_common = [name for name, _ in Counter(map(class_of, text.part("read"))).most_common(4)]
task_text, task_classes = text, PACKAGES_TOLD_APART if OWN is None else most_common
try:
    pool, tests = task_of(task_text, task_classes, without_names if OWN is None else str)
except ValueError as error:  # a text of one kind has no task in it
    share_held = len(text.part("test") + text.part("dev")) / len(text.texts)
    wanted = max(FEWEST_TESTS / share_held, len(SEEDS) * PER_CLASS / (1 - share_held))
    print(f"{error}.")
    if len(most_common) > 1:
        print(
            f"Lower FEWEST_TESTS or PER_CLASS in this cell; as they stand, some {wanted:.0f} paragraphs of each class are wanted."
        )
    print("This section goes on with the documentation.")
    task_text, task_classes = own_text(), PACKAGES_TOLD_APART
    pool, tests = task_of(task_text, task_classes, without_names)
number_of = {name: n for n, name in enumerate(task_classes)}


def labels_of(texts):
    return np.array([number_of[class_of(t)] for t in texts])


def sample(seed):
    """`PER_CLASS` paragraphs of each class, other ones for each seed."""
    mine = [[t for t in pool if class_of(t) == name][seed :: len(SEEDS)] for name in task_classes]
    return [t for of_class in zip(*mine, strict=True) for t in of_class]


display(table(["class", "a paragraph" + ", names taken out" * (task_classes is PACKAGES_TOLD_APART)], [[class_of(t), textwrap.shorten(t.text, 160)] for t in sample(0)[: len(task_classes)]]))  # fmt: skip
Markdown(f"{len(sample(0))} paragraphs to learn from in each sample, {len(tests)} to test on, the same for all.")

# %% name="adapt-both"
HOW = FineTuning(epochs=2, batch_size=8, head_first=False, max_tokens=48, length_grouped=True)
minilm_base, minilm_tokenizer = minilm()
STRATEGIES = {
    "LoRA": (LoRA(rank=8, alpha=16), 4e-3),
    "BitFit": (BitFit(), 1e-2),
}  # the rates are large: two epochs are few steps


def adapted(name, learned, seed):
    """A copy of MiniLM with a head for the classes, adapted by a strategy."""
    strategy, rate = STRATEGIES[name]
    classifier = Classifier(copy.deepcopy(minilm_base), n_classes=len(task_classes)).to(device)
    apply(classifier, strategy, modules_to_save=["head"], seed=seed)
    fine_tune(classifier, words_of(learned), labels_of(learned), minilm_tokenizer, replace(HOW, rate=rate, seed=seed))
    return classifier


right, classifiers = {"bag of words": []} | {name: [] for name in STRATEGIES}, {}
for seed in tqdm(SEEDS, desc="samples"):
    learned = sample(seed)
    bag = fit_bag_of_words(words_of(learned), labels_of(learned))
    right["bag of words"].append(bag.predict(words_of(tests)) == labels_of(tests))
    for name in STRATEGIES:
        classifiers[name] = adapted(name, learned, seed)
        given = predictions(classifiers[name], words_of(tests), minilm_tokenizer).argmax(1)
        right[name].append(given == labels_of(tests))
shares = {name: [share_interval(is_right) for is_right in runs] for name, runs in right.items()}
plots.show(
    plots.draw_bars(
        [f"{name}, sample {seed + 1}" for name in shares for seed in SEEDS],
        *columns((i for runs in shares.values() for i in runs), times=100),
        references={"chance": 100 / len(task_classes)},
        xlabel=f"accuracy on {len(tests)} test paragraphs, %, with 95% intervals",
        number="{:.1f}",
    ),
    alt="Accuracy of the bag of words and of two strategies on the same test paragraphs, for each sample.",
)

# %% name="compare-adapt" jupyter={"source_hidden": true}
better = max(STRATEGIES, key=lambda name: np.mean(right[name]))
pairs = {
    name: [paired_comparison(a, b).difference for a, b in zip(right[name], right["bag of words"], strict=True)]
    for name in STRATEGIES
}
settled = {
    name: {"ahead" if d.low > 0 else "behind" if d.high < 0 else "open" for d in ds} for name, ds in pairs.items()
}
verdict = next(iter(settled[better])) if len(settled[better]) == 1 else "open"
verdict = "no clear difference" if verdict == "open" else verdict
compare(
    adapt_guess,
    "Each strategy less the bag of words, in points, on the same test paragraphs, sample by sample: "
    + "; ".join(
        f"{name} " + ", ".join(f"{100 * d.value:+.1f} ({100 * d.low:+.1f} to {100 * d.high:+.1f})" for d in ds)
        for name, ds in pairs.items()
    )
    + ". "
    + {
        "ahead": "Here pre-training pays: what MiniLM learned from other text about which words go together holds for this text too.",
        "behind": "The bag of words wins, and that is a result. Which package a paragraph is about shows in single words, and single words are what a "
        "bag of words counts, while MiniLM was trained to say what sentences mean. In chapter 4 a verdict hid in many different words; here a "
        "few words give it away.",
        "no clear difference": f"The intervals do not settle it, or not in every sample: {len(tests)} paragraphs cannot tell these apart. Then the cheaper "
        "one is the better choice, and that is the bag of words.",
    }[verdict],
    verdict,
)  # fmt: skip

# %% [markdown] name="export"
# ## 5 Take it along
#
# What was trained here is not bound to this course. A decoder is laid out as GPT-2 and MiniLM as BERT, weight for weight, so
# `transformers` opens them by itself, `peft` opens the LoRA, and both without a network. The next cell saves the decoder that read
# your text in full, the LoRA that read it, the classifier, each with its base and tokenizer. The one after it opens them with the other libraries, and compares.
#
# **Predict.** The same weights, the same text, two programs. How far apart are the logits, relative to the largest?

# %% name="predict-export" jupyter={"source_hidden": true}
GAPS = ["exactly 0", "between 1e-8 and 1e-5", "about 1e-3", "more than 1e-2"]
export_guess = guess("The largest difference of a logit", GAPS)
display(export_guess)

# %% name="export-save"
exported = Path(tempfile.mkdtemp())  # or Path("my_capstone"), to keep what is saved
saved_here = {
    "the decoder that read in full": save_model(read_models["full"], exported / "decoder", tokenizer),
    "the shipped decoder": save_model(load_checkpoint("decoder"), exported / "base", tokenizer),
    "the LoRA that read, without its base": save_adapter(read_models["LoRA"], exported / "lora"),
    "MiniLM, with a tokenizer of its own": save_model(minilm_base, exported / "minilm", minilm_tokenizer),
    "the classifier's LoRA and head": save_adapter(classifiers["LoRA"], exported / "topics"),
}
sizes = {path: sum(file.stat().st_size for file in path.iterdir()) for path in saved_here.values()}
table(
    ["saved", "files", "megabytes"],
    [
        [name, ", ".join(sorted(f"`{file.name}`" for file in path.iterdir())), f"{sizes[path] / 1e6:.2f}"]
        for name, path in saved_here.items()
    ],
)

# %% name="export-open"
HAS_BOTH = all(importlib.util.find_spec(name) for name in ("transformers", "peft"))
if HAS_BOTH:
    import peft
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)  # the two libraries rename things under each other
    opened = lambda kind, name: (
        getattr(transformers, kind).from_pretrained(exported / name, local_files_only=True).eval()
    )
    their_decoder = opened("AutoModelForCausalLM", "decoder")
    their_lora = peft.PeftModel.from_pretrained(opened("AutoModelForCausalLM", "base"), exported / "lora").eval()
    their_minilm = opened("AutoModel", "minilm")
    their_topics = peft.PeftModel.from_pretrained(opened("AutoModel", "minilm"), exported / "topics").eval()
    their_head = load_file(exported / "topics" / "outside_the_base.safetensors")
    theirs = transformers.AutoTokenizer.from_pretrained(exported / "decoder", local_files_only=True)
else:
    print('transformers and peft are not installed here: pip install "course-lib[interop]", and this section runs.')

# %% name="export-compare"
decoder, lora = (copy.deepcopy(read_models[name]).cpu().eval() for name in ("full", "LoRA"))
topics = copy.deepcopy(classifiers["LoRA"]).cpu().eval()
some = words_of(tests[:4])
vocabulary = tokenizer.vocabulary
ids_BT = pad(tokenizer.encode_all(some), vocabulary, length=32, frame=("bos", "eos"))
is_real_BT = ids_BT != vocabulary.pad
words_BT = pad(minilm_tokenizer.encode_all(some), minilm_tokenizer.vocabulary, length=32)
is_word_BT = words_BT != minilm_tokenizer.vocabulary.pad
ODD = ["", "👍🏽 film", "a [MASK] b [EOS]", "Ünïcödé ﬁ ½", "日本語 x\u0301", "word " * 2000, *some]


def mean_of(hidden_BTE):
    """The mean over real tokens, which this course's classifiers read."""
    return (hidden_BTE * is_word_BT[..., None]).sum(1) / is_word_BT.sum(1, keepdim=True)


gaps = {}
if HAS_BOTH:
    with torch.no_grad():
        logits_there = their_decoder(ids_BT).logits
        gaps["decoder, opened by AutoModelForCausalLM"] = largest_difference(decoder(ids_BT).logits, logits_there)
        gaps["LoRA on the shipped decoder, opened by PeftModel"] = largest_difference(
            lora(ids_BT).logits, their_lora(ids_BT).logits
        )
        hidden = their_topics(words_BT, attention_mask=is_word_BT.long()).last_hidden_state
        logits_BC = mean_of(hidden) @ their_head["head.weight"].T + their_head["head.bias"]
        gaps["classifier: PeftModel, and the head from its file"] = largest_difference(
            topics(words_BT, is_word_BT), logits_BC
        )
        moved = copy.deepcopy(decoder)
        next(p for name, p in moved.named_parameters() if name.endswith("c_fc.bias"))[0] += 0.1
        gaps["for control: the decoder with one of its weights moved by 0.1"] = largest_difference(
            moved(ids_BT).logits, logits_there
        )
    same_ids = [theirs(t, split_special_tokens=True).input_ids == tokenizer.encode(t) for t in ODD]
    display(table(["what", "largest difference of a logit"], [[name, f"{size:.1e}"] for name, size in gaps.items()]))
    print(f"Tokens of {len(ODD)} texts, odd ones among them, are the same ids in {sum(same_ids)} cases.")

# %% name="compare-export" jupyter={"source_hidden": true}
worst = max([size for name, size in gaps.items() if "control" not in name], default=None)
compare(
    export_guess,
    "The other libraries are not installed here, so nothing was measured."
    if worst is None
    else f"At most {worst:.0e}. "
    + (
        "That is what the last digit of a 32-bit float is worth after a few layers: the two add the same numbers in another order. One weight of "
        f"millions moved a little gives {gaps['for control: the decoder with one of its weights moved by 0.1']:.0e}, so the comparison would see it. "
        if worst < 1e-5
        else "That is more than rounding: something differs between your versions and the course's. "
    )
    + (
        "Every text became the same tokens, also one that spells `[MASK]`: in a text that is six characters and no gap to fill, unless one asks for it."
        if all(same_ids)
        else "And not every text became the same tokens, which would spoil any comparison."
    )
    + " What `transformers` has no class for is a linear head on a mean of hidden states; so the head lies in a file of its own, of two tensors.",
    None if worst is None else GAPS[0] if worst == 0 else GAPS[1] if worst < 1e-5 else GAPS[2] if worst < 1e-2 else GAPS[3],
)  # fmt: skip

# %% [markdown] name="twins"
# ## 6 The same calls elsewhere
#
# You will meet the other libraries tomorrow, so here is the dictionary. Each row has the course's call, the call there that does the same, and what
# came of comparing the two **just now**: the code in the table is the code that ran, taken from the same strings. A row that disagrees would say so.
# One does, on purpose: find it.

# %% name="twins-calls" jupyter={"source_hidden": true}
TWINS = """
## text to ids
tokenizer.encode(some[0])
-- there
theirs(some[0]).input_ids
## ids to text
tokenizer.decode(ids_BT[0])
-- there
theirs.decode(ids_BT[0])
## a padded batch
pad(tokenizer.encode_all(some), vocabulary,
    frame=("bos", "eos"))
-- there
rows = [[theirs.bos_token_id, *row, theirs.eos_token_id]
    for row in theirs(some).input_ids]
theirs.pad({"input_ids": rows},
    return_tensors="pt").input_ids
## hide 15% of the tokens, 80/10/10
batch = masked(many_BT, vocabulary, generator=seeded(0))
asked_and_hidden(batch.input_ids_BT, batch.labels_BL)
-- there
collate = transformers.DataCollatorForLanguageModeling(
    theirs, mlm_probability=0.15, seed=0)
batch = collate([{"input_ids": row} for row in many_BT.tolist()])
asked_and_hidden(batch.input_ids, batch.labels)
## open a model
load_model(exported / "decoder").n_parameters()
-- there
transformers.AutoModelForCausalLM.from_pretrained(
    exported / "decoder").num_parameters()
## logits
decoder(ids_BT).logits
-- there
their_decoder(ids_BT).logits
## hidden states, padding unseen
minilm_base.encode(words_BT, is_word_BT)[is_word_BT]
-- there
their_minilm(words_BT, attention_mask=is_word_BT.long()
    ).last_hidden_state[is_word_BT]
## loss per token
total, count = batch_loss(decoder, causal(ids_BT, vocabulary))
(total / count).item()
-- there
labels = ids_BT.where(is_real_BT, -100)
their_decoder(ids_BT, labels=labels,
    attention_mask=is_real_BT.long()).loss.item()
## which weights decay
sum(p.numel() for p in decay_groups(decoder, 0.1)[0]["params"])
-- there
named = dict(their_decoder.named_parameters())
sum(named[name].numel() for name in get_parameter_names(
    their_decoder, [torch.nn.LayerNorm], ["bias"]) if name in named)
## one training step, and the loss behind it
model = copy.deepcopy(decoder)
batch = causal(ids_BT, vocabulary)
step(model, make_optimizer(model, weight_decay=0.0), [batch],
    rate=1e-3, dtype=torch.float32)
total, count = batch_loss(model, batch)
(total / count).item()
-- there
model = copy.deepcopy(their_decoder)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3,
    betas=(0.9, 0.98), weight_decay=0.0)
given = {"input_ids": ids_BT, "attention_mask": is_real_BT.long(),
    "labels": ids_BT.where(is_real_BT, -100)}
model(**given).loss.backward()
torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
optimizer.step()
model(**given).loss.item()
## learning rate behind the warm-up
rate = Schedule("cosine", peak=1e-3, warmup=10, total=100)
[rate(n) for n in range(10, 100)]
-- there
optimizer = torch.optim.SGD([torch.zeros(1)], lr=1e-3)
rate = transformers.get_cosine_schedule_with_warmup(
    optimizer, 10, 100).lr_lambdas[0]
[1e-3 * rate(n) for n in range(10, 100)]
## learning rate in the warm-up
rate = Schedule("cosine", peak=1e-3, warmup=10, total=100)
[rate(n) for n in range(10)]
-- there
optimizer = torch.optim.SGD([torch.zeros(1)], lr=1e-3)
rate = transformers.get_cosine_schedule_with_warmup(
    optimizer, 10, 100).lr_lambdas[0]
[1e-3 * rate(n) for n in range(10)]
## put a LoRA on, count what trains
apply(load_model(exported / "base"),
    LoRA(rank=8, alpha=16, targets=["c_attn"])).n_trained
-- there
config = peft.LoraConfig(r=8, lora_alpha=16,
    target_modules=["c_attn"], fan_in_fan_out=True)
model = opened("AutoModelForCausalLM", "base")
peft.get_peft_model(model, config).get_nb_trainable_parameters()[0]
## load an adapter
model = load_model(exported / "base")
load_adapter(model, exported / "lora")
model(ids_BT).logits
-- there
model = opened("AutoModelForCausalLM", "base")
peft.PeftModel.from_pretrained(model, exported / "lora")(ids_BT).logits
## merge it
merge_and_unload(copy.deepcopy(lora))(ids_BT).logits
-- there
copy.deepcopy(their_lora).merge_and_unload()(ids_BT).logits
## classify
topics(words_BT, is_word_BT)
-- there
hidden = their_topics(words_BT,
    attention_mask=is_word_BT.long()).last_hidden_state
mean_of(hidden) @ their_head["head.weight"].T + their_head["head.bias"]
## write on, the likeliest token each time
generate(decoder, [start], vocabulary, stop_ids=(),
    max_new_tokens=12, temperature=0)[0]
-- there
their_decoder.generate(torch.tensor([start]), do_sample=False,
    max_new_tokens=12, eos_token_id=None,
    suppress_tokens=list(vocabulary.special_ids))[0, len(start):].tolist()
## save there, open here
save_model(decoder, exported / "ours")
load_model(exported / "ours")(ids_BT).logits
-- there
their_decoder.save_pretrained(exported / "theirs")
load_model(exported / "theirs")(ids_BT).logits
"""  # of each: its name, the call here, the call there
CALLED = (
    batch_loss,
    causal,
    decay_groups,
    generate,
    load_adapter,
    make_optimizer,
    masked,
    merge_and_unload,
    Schedule,
    step,
)  # in the strings

# %% name="twins-run" jupyter={"source_hidden": true}
many_BT = pad(tokenizer.encode_all(words_of(text.part("dev")[:300])), vocabulary, length=96, frame=("bos", "eos"))
start = [vocabulary.bos, *tokenizer.encode(some[0])[:8]]
AGREE = 1e-5  # of two floats, relative to the largest


def asked_and_hidden(shown_BT, labels_BT):
    """Of the ordinary tokens the share that is asked for, and of these the shares that are hidden, kept and swapped."""
    is_asked_BT, is_kept_BT = labels_BT != -100, shown_BT == many_BT
    n_asked, n_hidden = int(is_asked_BT.sum()), int((is_asked_BT & (shown_BT == vocabulary.mask)).sum())
    n_kept = int((is_asked_BT & is_kept_BT).sum())
    asked = n_asked / int(vocabulary.is_ordinary_V[many_BT].sum())
    return {
        "asked": asked,
        "hidden": n_hidden / n_asked,
        "kept": n_kept / n_asked,
        "swapped": 1 - (n_hidden + n_kept) / n_asked,
    }


def value_of(code):
    """What the last line of some code comes to, all of it run on names of its own."""
    *before, last = ast.parse(code).body
    names = dict(globals())
    exec(compile(ast.Module(before, []), "<twin>", "exec"), names)
    return eval(compile(ast.Expression(last.value), "<twin>", "eval"), names)


def agreement(mine, other):
    """Whether two values agree, and how nearly, in words."""
    if isinstance(mine, dict):  # shares of draws that chance has made
        apart = max(abs(mine[name] - other[name]) for name in mine)
        words = "; ".join(f"{name} {100 * mine[name]:.1f} and {100 * other[name]:.1f}%" for name in mine)
        return apart < 0.03, f"other draws, the same shares: {words}" if apart < 0.03 else f"other shares: {words}"
    if isinstance(mine, str):
        return mine == other, "equal" if mine == other else "not equal"
    mine, other = torch.as_tensor(mine).detach(), torch.as_tensor(other).detach()
    if not mine.is_floating_point():
        return torch.equal(mine, other), "equal" if torch.equal(mine, other) else "not equal"
    if mine.shape != other.shape:
        return False, f"of shape {tuple(mine.shape)} and {tuple(other.shape)}"
    size = largest_difference(mine.double(), other.double())
    return size < AGREE, f"largest difference {size:.0e}"


def code_cell(code):
    style = "margin:0;font-size:11px;white-space:pre-wrap;word-break:normal;overflow-wrap:anywhere"
    return f'<td style="text-align:left;vertical-align:top"><pre style="{style}">{html.escape(code)}</pre></td>'


if HAS_BOTH:
    from transformers.trainer_pt_utils import get_parameter_names

    CALLED = (*CALLED, get_parameter_names)
    pairs_of_code = dict(re.findall(r"## (.+?)\n(.+?)(?=\n## |\Z)", TWINS.strip(), flags=re.DOTALL))
    pairs_of_code = {name: code.split("\n-- there\n") for name, code in pairs_of_code.items()}
    agreed = {name: agreement(*map(value_of, pair)) for name, pair in pairs_of_code.items()}
    mark = lambda agrees: "" if agrees else "<b>differs:</b> "
    twin_rows = [f'<tr><th style="text-align:left">{name}</th>{code_cell(here)}{code_cell(there)}<td style="text-align:left">{mark(agreed[name][0])}'
            f"{html.escape(agreed[name][1])}</td></tr>" for name, (here, there) in pairs_of_code.items()]  # fmt: skip
    widths = {"": 14, "here": 35, "there": 37, "compared": 14}  # %
    head = "".join(f'<th scope="col" style="text-align:left;width:{w}%">{name}</th>' for name, w in widths.items())
    display(
        HTML(
            f'<div style="overflow-x:auto"><table style="width:100%"><tr>{head}</tr>{"".join(twin_rows)}</table></div>'
        )
    )
    apart = [name for name, (agrees, _) in agreed.items() if not agrees]
    display(
        Markdown(
            f"{len(agreed)} pairs ran, {len(agreed) - len(apart)} agree"
            + (f"; not: {', '.join(apart)}." if apart else ".")
        )
    )

# %% name="compare-twins" jupyter={"source_hidden": true}
warmup_apart = HAS_BOTH and "learning rate in the warm-up" in apart
Markdown(
    "The other libraries are not installed here, so no row ran."
    if not HAS_BOTH
    else (
        "The warm-up differs: there the first step has a rate of 0 and is wasted; here the rise begins with it, so that each of its steps stands one "
        "ahead (chapter 2). "
        if warmup_apart
        else "Even the warm-up agrees here: `transformers` has changed it since this was written. "
    )
    + (
        "Beside it, not all is as expected: "
        + ", ".join(name for name in apart if name != "learning rate in the warm-up")
        + "."
        if set(apart) - {"learning rate in the warm-up"}
        else "Every other row agrees, to the rounding or, where chance decides, as nearly as such a sample can: what you learned here is what happens there."
    )
)

# %% [markdown] name="command-line"
# ## 7 The same from the command line
#
# Reading, adapting, predicting, reporting and exporting are also commands. These cells run them on a small part of the same text, in a temporary
# folder, with settings that are tiny: they show how it goes, not how well. They call what the command calls, within this notebook, so that Python need
# not start anew each time; in a shell, in the folder of the course, the line behind the `$` does the same with files of yours in place of `text.txt` and
# `paragraphs.csv`. First the reading: `--from` names the
# model to go on with, `--text` the text.

# %% name="command-pretrain"
folder = Path(tempfile.mkdtemp())
(folder / "text.txt").write_text("\n\n".join(words_of(text.part("read")[:150] + text.part("dev")[:30])), "utf-8")


def course(*arguments):
    """Run a command of the course in the folder, and print the line and what it says, its progress bars left out."""
    given, said = [str(argument) for argument in arguments], io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = cli.main(given)
    print("$ course", *(a.replace(str(CHECKPOINTS_FOLDER), "data/checkpoints") for a in given))
    print(
        "\n".join(
            line for line in said.getvalue().splitlines() if not any(bar in line for bar in ("%|", "it/s", "step/s"))
        ).strip()
    )
    if code:
        raise RuntimeError(f"the command ended with {code}: its last lines say why")


course(
    "pretrain", "decoder", "--from", CHECKPOINTS_FOLDER / "decoder", "--text", "text.txt", "--out", "reading",
    "--tokens", 4096, "--row-length", 64, "--batch-size", 8, "--optimizer", "adamw", "--rate", 5e-4, "--dtype", "float32",
)  # fmt: skip
print("(Other texts, and shorter rows, than those of section 3: the losses do not compare.)")

# %% [markdown] name="command-finetune-story"
# Then a task: paragraphs of section 4, those to test on too, with the names of their classes, in a `.csv`. MiniLM is adapted by LoRA, and tested on texts that the command itself
# keeps apart, by identity.

# %% name="command-finetune"
with (folder / "paragraphs.csv").open("w", encoding="utf-8", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["text", "label"])
    writer.writerows([t.text, class_of(t)] for t in [*sample(0)[: len(sample(0)) // 2], *tests])
course(
    "finetune", "--data", "paragraphs.csv", "--base", "minilm", "--epochs", 2, "--rate", 4e-3, "--max-tokens", 48,
    "--out", "run",
)  # fmt: skip

# %% name="command-predict"
unseen = sample(1)[0]  # of the second sample: not in the file
course("predict", "run", unseen.text)
Markdown(f"The class that it gives, and how probable it finds that. The paragraph is of *{class_of(unseen)}*.")

# %% name="command-export"
course("export", "run", "exported")

# %% [markdown] name="report"
# ## 8 The report
#
# A result that nobody can check is an anecdote. `course report FOLDER` writes a page about a run of `course finetune` or `course pretrain`: the
# command, the versions, the hash of the data, the split, every score with its interval beside the bag of words, the calibration, and the mistakes in
# full. It is made of what lies in the folder, and nothing on it was typed by hand. Here is the page of the run of section 7.

# %% name="report-run"
course("report", "run")
page = (folder / "run" / "report.html").read_text("utf-8")
display(HTML(f'<div><iframe title="The report of the run, as a page" srcdoc="{html.escape(page)}" '
             'style="width:100%;height:30em;border:1px solid #888"></iframe></div>'))  # fmt: skip

# %% name="report-check"
metrics = json.loads((folder / "run" / "metrics.json").read_text("utf-8"))
judged, simple = metrics["test"], metrics["test"]["bag_of_words"]
paired = simple["paired"]["difference"]
scripts, loads = page.count("<script"), page.count("src=") - page.count('src="data:')
Markdown(
    f"{len(page) / 1000:.0f} kB, {scripts} scripts, {loads} things loaded from elsewhere. It says an accuracy of {Interval(**judged['accuracy']):.2f} on "
    f"{metrics['sizes']['to test']} paragraphs, and of {Interval(**simple['accuracy']):.2f} for the bag of words on the same ones; guessing among "
    f"{len(task_classes)} classes is right in {1 / len(task_classes):.0%}. "
    + (
        "So this model is worth showing. "
        if paired["low"] > 0
        else "So this model is not worth showing, and the page says so itself. "
        if paired["high"] < 0
        else "Their paired difference does not settle which is better: so few paragraphs, and so short a training, are a demonstration and no result. "
    )
    + f"Always giving the class that was most frequent in learning would be right in {judged['most_frequent_class']:.0%} of these tests. Scroll down to the "
    "mistakes, and read them."
)  # fmt: skip

# %% [markdown] name="exercises"
# ## Exercises
#
# Three small functions that every report like this one stands on. Each check runs yours beside the library's, and says what is wrong in words; it
# hands your function back if it is right, and the library's otherwise.

# %% [markdown] name="exercise-bits" tags=["exercise"]
# ### Exercise 1: bits per byte
#
# A model spends `nats_per_token` on each of the `n_tokens` tokens of `text` that it was asked for, on average. How many bits is that for each byte of the text in
# UTF-8? Return a plain float. (The text is normalised already.)
#
# <details><summary>Hint 1</summary>

# What has the model spent on the whole text? That does not depend on how it was cut into tokens.</details>
# <details><summary>Hint 2</summary>

# A bit is <code>math.log(2)</code> nats. And <code>len("é")</code> is 1, while <code>len("é".encode())</code> is 2.</details>


# %% name="exercise-bits-code" tags=["exercise"]
def my_bits_per_byte(nats_per_token, n_tokens, text):
    ### BEGIN SOLUTION
    return nats_per_token * n_tokens / math.log(2) / len(text.encode())
    ### END SOLUTION


# %% name="exercise-bits-check" tags=["check"]
bits_of_a_byte = checks.bits_per_byte(my_bits_per_byte)

# %% [markdown] name="exercise-grams" tags=["exercise"]
# ### Exercise 2: how much of it was read?
#
# `held_out` and `read` are lists of texts, each a list of token ids. Of all stretches of `n` tokens in the held-out texts, which share stands, in that
# order, in some text that was read? Every stretch counts, also one that has been counted before. No stretch crosses the border of two texts. Where
# there is none at all, the share is 0.0.
#
# <details><summary>Hint 1</summary>

# A text of T tokens has T - n + 1 stretches of n, and none if it is shorter.</details>
# <details><summary>Hint 2</summary>

# A set of tuples answers at once whether a stretch has been read. Lists cannot be in a set.</details>


# %% name="exercise-grams-code" tags=["exercise"]
def my_share_read(held_out, read, n):
    ### BEGIN SOLUTION
    def grams(texts):
        return [tuple(ids[k : k + n]) for ids in texts for k in range(len(ids) - n + 1)]

    seen, asked = set(grams(read)), grams(held_out)
    return sum(gram in seen for gram in asked) / len(asked) if asked else 0.0
    ### END SOLUTION


# %% name="exercise-grams-check" tags=["check"]
share_read = checks.share_read(my_share_read)

# %% [markdown] name="exercise-better" tags=["exercise"]
# ### Exercise 3: the better one, or neither
#
# Two models judged the same texts: `is_right_a` and `is_right_b` are arrays of bools, one for each text. Return `"a"` or `"b"` where the 95% interval
# of the difference of their accuracies, a's less b's, leaves no doubt which is better, and `"neither"` where it holds 0.
#
# <details><summary>Hint 1</summary>

# Two intervals that overlap can still belong to models of which one is clearly better: on most texts both do the same. What do the others
# say?</details>
# <details><summary>Hint 2</summary>

# <code>paired_comparison</code> is imported above. Its <code>.difference</code> has <code>.low</code> and <code>.high</code>.</details>


# %% name="exercise-better-code" tags=["exercise"]
def my_pick_better(is_right_a, is_right_b):
    ### BEGIN SOLUTION
    difference = paired_comparison(is_right_a, is_right_b).difference
    return "a" if difference.low > 0 else "b" if difference.high < 0 else "neither"
    ### END SOLUTION


# %% name="exercise-better-check" tags=["check"]
pick_better = checks.pick_better(my_pick_better)

# %% name="use-exercises" jupyter={"source_hidden": true}
here, bag_here = right[better][0], right["bag of words"][0]
winner = {"a": better, "b": "the bag of words", "neither": "neither of the two"}[pick_better(here, bag_here)]
test_share = share_read(ids_of["test"], ids_of["read"], 12)
own_words = [normalize(t) for t in text.words("dev")[: len(own.sizes)]]  # the texts behind `own`
bits = {
    "the shipped decoder": bits_of_a_byte(live["full"][0][0], len(own.ids) - 1, "".join(own_words)),
    f"the one that read {max(live['full']):,} tokens in full": bits_of_a_byte(
        live["full"][max(live["full"])][0], len(own.ids) - 1, "".join(own_words)
    ),
    "pairs counted": bits_of_a_byte(bigram_nats, len(own.ids) - 1, "".join(own_words)),
    "bzip2, which has no notion of words": compressed_bits_per_byte(
        "bzip2", "\n".join(map(normalize, text.words("read"))), "\n".join(own_words)
    ),
}
Markdown(
    f"With these functions: {test_share:.0%} of the test texts' 12-grams were read, and between {better} and the bag of words "
    f"the better on the first sample is {winner}. Bits for each byte of the dev texts, by which even a compressor can be compared: "
    + "; ".join(f"{name} {value:.2f}" for name, value in bits.items())
    + "."
)

# %% [markdown] name="clinic"
# ## Bug clinic
#
# Three results, of which nothing in the code complains. Run the experiment below each, decide from the numbers what must be wrong, then unfold the diagnosis.

# %% [markdown] name="clinic-perplexity-story"
# ### Patient 1: a lower loss
#
# “We exchanged the tokenizer for a smaller one, and the same model, one of token pairs, has a far lower loss per token.”

# %% name="clinic-perplexity" tags=["clinic"]


def patient_compare(nats, n_tokens, n_bytes):
    return nats / n_tokens


@cache
def pairs_with(vocab_size):
    """The nats that a model of token pairs spends on dev texts with a tokenizer of that size, tokens and bytes."""
    read, asked = words_of(text.part("read")[:800]), words_of(text.part("dev")[:60])
    small = train_tokenizer(read, vocab_size=vocab_size)
    streams = [torch.tensor([i for ids in small.encode_all(part) for i in ids]) for part in (read, asked)]
    nats = Bigram.fit(streams[0], small.vocabulary).nats(streams[1]).sum()
    return float(nats), len(streams[1]) - 1, sum(len(normalize(t).encode()) for t in asked)


def large_and_small(compare_by):
    """What is reported for a tokenizer of 4,000 pieces, and for one of 500."""
    return tuple(compare_by(*pairs_with(size)) for size in (4000, 500))


# %% name="clinic-perplexity-experiment"
Markdown(
    "Reported: {:.2f} with the large tokenizer, {:.2f} with the small one.".format(*large_and_small(patient_compare))
)

# %% [markdown] name="clinic-perplexity-diagnosis"
# <details><summary>Diagnosis</summary>
#
# Smaller pieces are easier to guess, and there are more of them. Nats per token, and perplexity, compare only models with the same
# tokenizer. All of a text's nats, shared out over its bytes, compare any two.
# </details>

# %% name="clinic-perplexity-cure" tags=["clinic"]


def cured_compare(nats, n_tokens, n_bytes):
    return bits_per_byte(nats, n_bytes)


# %% [markdown] name="clinic-windows-story"
# ### Patient 2: held out
#
# “Cut the text into overlapping windows, shuffle, hold out a tenth.”

# %% name="clinic-windows" tags=["clinic"]


def patient_hold_out(texts, length=64):
    stream = [i for ids in tokenizer.encode_all(texts) for i in ids]
    windows = [stream[k : k + length] for k in range(0, len(stream) - length, length // 4)]
    order = torch.randperm(len(windows), generator=seeded(0)).tolist()
    held, tenth = [windows[n] for n in order], len(windows) // 10
    return held[tenth:], held[:tenth]


def held_out_and_read(hold_out):
    """The share of held-out 12-grams that stand in what is read."""
    read, held = hold_out(words_of(text.part("read")[:300]))
    return copied_share([ids for ids in held if len(ids) >= 12], [i for ids in read for i in [*ids, 0]], 12)


# %% name="clinic-windows-experiment"
Markdown(f"{held_out_and_read(patient_hold_out):.0%} of the held-out 12-grams were read.")

# %% [markdown] name="clinic-windows-diagnosis"
# <details><summary>Diagnosis</summary>
#
# Each held-out window stands, in pieces, in its neighbours, and most of these are read. The loss on it measures memory. Split the texts first,
# by identity, then cut.
# </details>

# %% name="clinic-windows-cure" tags=["clinic"]


def cured_hold_out(texts):
    ids = tokenizer.encode_all(texts)
    is_held = [int(identity(t)[:8], 16) % 10 == 0 for t in texts]
    return [i for i, held in zip(ids, is_held, strict=True) if not held], [
        i for i, held in zip(ids, is_held, strict=True) if held
    ]


# %% [markdown] name="clinic-tokenizer-story"
# ### Patient 3: a tokenizer that fits
#
# “The shipped tokenizer cuts this text too small. We trained one of the same size on it, and kept the pre-trained model.”

# %% name="clinic-tokenizer" tags=["clinic"]


@cache
def patient_tokenizer():
    return train_tokenizer(words_of(text.part("read")[:1500]), vocab_size=tokenizer.vocabulary.size)


def loss_with(some_tokenizer, *, blind=False):
    """Bits per byte of the shipped decoder on some reviews, or of blind guessing of the same tokens."""
    texts = [review.text for review in reviews_of("dev", "rotten_tomatoes")[:60]]
    ends = some_tokenizer.vocabulary
    ids = [i for ids in some_tokenizer.encode_all(texts) for i in (ends.bos, *ids, ends.eos)]
    blind_nats = uniform_loss(ends) * (len(ids) - 1)
    nats = blind_nats if blind else stream_nats(load_checkpoint("decoder"), torch.tensor(ids)).sum()
    return bits_per_byte(nats, sum(len(text.encode()) for text in texts))


# %% name="clinic-tokenizer-experiment"
Markdown(
    f"On reviews, which it was made for, the decoder spends {loss_with(patient_tokenizer()):.2f} bits on a byte. Guessing these tokens blindly takes "
    f"{loss_with(patient_tokenizer(), blind=True):.2f}."
)

# %% [markdown] name="clinic-tokenizer-diagnosis"
# <details><summary>Diagnosis</summary>
#
# The sizes agree, so nothing complains. But number 4,711 is another piece in the new tokenizer than in the one that the model's embeddings
# were learned for. A model and its tokenizer are one thing: a checkpoint here remembers the hash of its tokenizer.
# </details>

# %% name="clinic-tokenizer-cure" tags=["clinic"]


def cured_tokenizer():
    return course_tokenizer()


# %% [markdown] name="cures"
# Each patient's cure stands in a cell beside its diagnosis. Here is every experiment once more, on patient and cure.

# %% name="clinic-after" jupyter={"source_hidden": true}
cases = [
    [
        "reported, large and small tokenizer",
        *("{:.2f}, {:.2f}".format(*large_and_small(f)) for f in (patient_compare, cured_compare)),
    ],
    ["held-out 12-grams that were read", *(f"{held_out_and_read(f):.0%}" for f in (patient_hold_out, cured_hold_out))],
    ["bits per byte of reviews", *(f"{loss_with(f()):.2f}" for f in (patient_tokenizer, cured_tokenizer))],
]
table(["what was measured", "patient", "cured"], cases)

# %% [markdown] name="checklist"
# ## The checklist
#
# Before you show your result to anybody. Every line is computed from what this notebook measured above, and some may well say *no*: then the
# report says so, or the work goes on. Lines marked *must* stop the chapter, for then a figure above is worth nothing.

# %% name="tick-checklist"
saved_folder = save_model(read_models["full"], folder / "saved", tokenizer)
some_ids_BT = torch.tensor([held_out["own"].ids[:32]], device=device)


def logits_of(model):
    with torch.no_grad():
        return model(some_ids_BT).logits.cpu()


switch(read_models["LoRA"], None)
is_undone = torch.equal(logits_of(read_models["LoRA"]), logits_of(snapshots[0]))
switch(read_models["LoRA"], "default")
test_N = wide_test.nats(read_models["full"])
on_test, on_dev = wide_test.interval(test_N), wide.interval(wide_N["full"])
apart = on_test.value - on_dev.value
reach = math.hypot(on_test.high - on_test.low, on_dev.high - on_dev.low) / 2
test_less_dev = Interval(apart, apart - reach, apart + reach)
full_now = live["full"][max(live["full"])][0]
reviews_rose = on_reviews_now["full"] - on_reviews_now["before"]
CHECKLIST = [
    ("must", "no text is on two sides", on_two_sides == 0, f"{on_two_sides} are"),
    ("must", "what is saved computes what was trained, to the bit", torch.equal(logits_of(load_model(saved_folder).to(device)), logits_of(read_models["full"])), ""),
    ("must", "with the adapter off, the old model is back, to the bit", is_undone, ""),
    ("", "hardly any test text was read in pieces (12-grams below 5%)", test_share < 0.05, f"{test_share:.0%}"),
    ("", "the loss on dev texts fell: all of the interval lies above 0", fall.low > 0, f"by {fall:.2f} nats per token, drawing {len(wide.sizes)} texts anew"),
    ("", "test texts cost what dev texts do: all of the interval within 0.3 nats", test_less_dev.low > -0.3 and test_less_dev.high < 0.3, f"{test_less_dev:+.2f} nats per token more, on {len(wide_test.ids):,} and {len(wide.ids):,} tokens"),
    ("", "reading beats counting pairs of tokens", full_now < bigram_nats, f"{full_now:.2f} and {bigram_nats:.2f} nats ({max(live['full']):,} tokens read; pairs counted over {len(read_stream):,})"),
    ("", "reviews were forgotten by less than was learned here", reviews_rose < fall.value, f"{reviews_rose:+.2f} nats on reviews"),
    ("", "the task was measured on more than one sample", len(SEEDS) > 1, f"{len(SEEDS)}"),
    ("", "a strategy beats the bag of words, in every sample", verdict == "ahead", verdict),
    ("", "the record was made from the text that was read here", is_same_text, ""),
]  # fmt: skip
display(table(["", "", "yes or no", "measured"], [[must, claim, "yes" if is_so else "**no**", how] for must, claim, is_so, how in CHECKLIST]))  # fmt: skip
failed = [claim for must, claim, is_so, _ in CHECKLIST if must and not is_so]
if failed:
    raise AssertionError(f"a figure above is worth nothing before this is mended: {'; '.join(failed)}")
Markdown(f"{sum(is_so for _, _, is_so, _ in CHECKLIST)} of {len(CHECKLIST)} lines say yes. What says no belongs in the report as it stands.")  # fmt: skip

# %% [markdown] name="what-first"
# **What to try first** on a text like this one, by what it was worth in the figures above.

# %% name="what-first-table" jupyter={"source_hidden": true}
half = max(t for t in curves["full"] if t < last_rung)
WORTH = {
    f"twice the tokens ({half:,} to {last_rung:,}, in full)": curves["full"][half] - at_end["full"],
    "all weights instead of LoRA": at_end["LoRA"] - at_end["full"],
    "a model that has read anything before, instead of one from nothing": at_end["from nothing"] - at_end["full"],
}
if of_record:
    display(Markdown(of_record))
display(
    table(
        ["", "what it changed, nats per token"],
        [[name, f"{-worth:+.2f}"] for name, worth in sorted(WORTH.items(), key=lambda item: -item[1])],
    )
)
Markdown(
    f"A tokenizer made for the text would save {saved:.0%} of its tokens, and want embeddings that no model here has learned; that was not tried, and "
    "one run of each is all that this order rests on. The learning rate was not tried here; try a third and three times of it before you believe any order."
)

# %% [markdown] name="claims"
# ## What is usually said
#
# “The source” is the text that this course grew out of. The verdicts are computed from the figures above.

# %% name="claims-table" jupyter={"source_hidden": true}
recorded_text = "" if is_same_text else "of the recorded text: "
first, last, n_read = (
    (before_nats, at_end["full"], last_rung) if is_same_text else (live["full"][0][0], full_now, max(live["full"]))
)
claims = [
    [
        "Continue pre-training on your own domain.",
        "not said",
        f"{first:.2f} to {last:.2f} nats per token after {n_read:,} tokens",
        "holds here" if last < first - 0.05 else "not here",
    ],
    [
        "Small texts need no pre-trained model.",
        "not said",
        f"{recorded_text}from nothing {at_end['from nothing']:.2f}, shipped and in full {at_end['full']:.2f}",
        "not at this size" if at_end["from nothing"] > at_end["full"] + 0.05 else "holds here",
    ],
    [
        "LoRA is as good as full fine-tuning.",
        "not said",
        f"{recorded_text}{at_end['LoRA'] - at_end['full']:+.2f} nats per token",
        "not here, at these rates" if at_end["LoRA"] > at_end["full"] + 0.05 else "holds here",
    ],
    [
        "LoRA does not forget, since the base is frozen.",
        "not said",
        f"{recorded_text}reviews {lost['LoRA']:+.2f} nats by LoRA, {lost['full']:+.2f} in full; at the same gain {NAMED[more]} forgot more",
        "forgets while it is on; off, nothing is lost" if lost["LoRA"] > 0.05 else "holds here",
    ],
    [
        "Pre-trained models beat classical methods.",
        "no baseline",
        f"{better}, the better of two on these tests, less bag of words: " + ", ".join(f"{100 * d.value:+.1f}" for d in pairs[better]) + " points",
        {"ahead": "holds here", "behind": "not here"}.get(verdict, "not settled here"),
    ],
]  # fmt: skip
table(["usually said", "the source", "measured here", "verdict"], claims)

# %% [markdown] name="summary"
# ## What to take along
#
# - Look at the text before any model does: split by identity, and count what is said twice all the same.
# - The tokenizer belongs to the model. Where it does not fit, rows hold less text; a new one means a new model.
# - A pre-trained model is a beginning even for text that it has never seen the like of. The way from nothing is longer than it looks.
# - LoRA trains few weights and can be switched off. Hold what it forgets against full training at the same gain, not only at the same number of tokens.
# - Tokens of one text are alike: draw texts anew, not tokens, when you say how sure you are.
# - Compare models with different tokenizers by bits per byte, classifiers by pairs on the same texts, and everything with the simplest baseline.
# - A checklist that cannot say no is decoration.
#
# **Where to go from here.** Put your own text into `OWN`, raise `TOKENS`, and let the chapter run over lunch. The whole ladder, from nothing included, is
# `record_own_text(text=text, path=Path("my_record.jsonl"))` from `course_lib.runs.own_reading`: it takes hours, and goes on where it was stopped. Chapters [1](01_pretraining_objectives.ipynb) to [5](05_efficient_training.ipynb) have the pieces: another objective, a longer loop, other strategies,
# labels, more devices. The library in `course_lib/` is made to be read and reused, [docs](../docs/several-machines.md) says how several machines share a run,
# and everything here also opens in `transformers` and `peft`, where larger models wait. What was measured small must be measured again there.
#
# [Back to the beginning: 00 Start here](00_start_here.ipynb)
#
# ## Sources
#
# - Gururangan et al. 2020, continued pre-training on a domain and a task, [arXiv:2004.10964](https://arxiv.org/abs/2004.10964)
# - Hu et al. 2021, LoRA, [arXiv:2106.09685](https://arxiv.org/abs/2106.09685); Biderman et al. 2024, *LoRA Learns Less and Forgets Less*,
#   [arXiv:2405.09673](https://arxiv.org/abs/2405.09673), on code and mathematics with larger models (what it comes to here at the same gain stands in
#   section 3); Ben Zaken et al. 2021, BitFit, [arXiv:2106.10199](https://arxiv.org/abs/2106.10199)
# - Lee et al. 2021, what is said twice in training text, [arXiv:2107.06499](https://arxiv.org/abs/2107.06499)
# - Dodge et al. 2019, *Show Your Work*, [arXiv:1909.03004](https://arxiv.org/abs/1909.03004); Agresti and Min 2005, intervals for paired shares,
#   [doi:10.1002/sim.1781](https://doi.org/10.1002/sim.1781)

# %% name="sweep-controls" tags=["remove-cell"] jupyter={"source_hidden": true}
sweep(surprise_box)  # every control to its ends: fails if it shows an error
