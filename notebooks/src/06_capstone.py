# ---
# jupyter:
#   jupytext: {text_representation: {extension: .py, format_name: percent}}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown] name="title"
# # 06 Capstone
#
# **Now with your own text.** Every chapter so far worked on film reviews, where it was known what would come out. This one takes a text that
# no model here has read, yours if you give one, and goes the whole way: look at it, let a pre-trained model read it, adapt that model by two
# strategies, hold the result against a baseline, export it, and write down what you may claim.
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
# **How to read it.** Run the cells in order with Shift+Enter, or all of them with *Run → Run All Cells*, which takes a few minutes. Where it
# says *Predict*, commit to a guess before you run the next cell. A measured number comes from the cell above it, on your machine, or from a
# recorded run that the text names.
#
# **If you build compilers:** you have a front end, and you have written a language on top of it. This is the port to another platform, with the
# test suite, the packaging and the release notes that go with it. The analogy breaks where the front end itself changes: each port
# here rewrites a part of it, and what it understood before can get lost.

# %% [markdown] name="words"
# <details><summary><b>Words used below</b> (unfold when you meet one)</summary>
#
# - **Continued pre-training**: the same task as in pre-training, on other text, from the weights that are there.
# - **Read, dev, test**: what a model is trained on, what is looked at on the way, and what is looked at once, at the end.
# - **Nats per token**: the loss of a language model, the surprise that it feels at each token on average. **Bits per byte**: the same
#   surprise, shared out over the bytes of the text instead of the tokens, so that models with different tokenizers can be compared.
# - **n-gram**: n tokens in a row. **Docstring**: the text with which a piece of Python code documents itself.
# - **LoRA**: thin matrices beside frozen ones. **Full**: everything trains. **BitFit**: the biases alone train.
# - **Bag of words**: a classifier that knows which words and pairs of words a text has, and not in what order.
# - **Paired interval**: where the difference of two classifiers lies in 95 of 100 such tests, from the texts on which only one is right.
# - **The source**: the text that this course grew out of. **Names in the code** end in their axes:
#   `ids_BT` has a row for each text of the batch (B) and a column for each position (T).
# </details>

# %% name="setup" tags=["setup"]
import copy
from collections import Counter
from dataclasses import replace

import numpy as np
from IPython.display import Markdown, display
from tqdm.auto import tqdm

from course_lib import plots
from course_lib.data import course_tokenizer, normalize, reviews_of
from course_lib.documentation import without_names
from course_lib.evaluation import (
    copied_share,
    fit_bag_of_words,
    paired_comparison,
    proportion_interval,
)
from course_lib.finetuning import Classifier, FineTuning, fine_tune, predictions
from course_lib.generation import complete
from course_lib.peft import BitFit, LoRA, apply
from course_lib.pretrained import load_checkpoint
from course_lib.records import Record
from course_lib.runs import RECORDS_FOLDER
from course_lib.runs.own_text import Reading, class_of, held_out_of, own_text, paragraphs
from course_lib.runtime import pick_device, seeded
from course_lib.tokenizer import train_tokenizer
from course_lib.widgets.binder import compare, guess, guess_number, table

device = pick_device()
tokenizer = course_tokenizer()

# %% [markdown] name="text"
# ## 1 The text
#
# Put your own text in the next cell: a folder of `.txt` files, one `.txt` (texts divided by empty lines), or a `.csv` with a column `text` and,
# if you have labels, a column `label` of 0s and 1s. A few hundred paragraphs are enough to begin with; where a text cannot carry the
# experiment, the error says what is missing.
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
    display(Markdown(f"**{name}**: {plots.cut(min(by_class[name], key=lambda t: abs(len(t.text) - 250)).text, 300)}"))
sides = {part: {t.identity for t in text.part(part)} for part in ("read", "dev", "test")}
on_two_sides = sum(len(sides[a] & sides[b]) for a, b in (("read", "dev"), ("read", "test"), ("dev", "test")))
Markdown(
    f"{len(text.texts):,} distinct texts. The side of each follows from a hash of its normalised words, as in chapter 4, so that "
    f"{on_two_sides} of them stand on two sides."
)

# %% [markdown] name="repeats-question"
# No text stands on two sides. But documentation repeats itself: the same parameter is explained with the same words in forty places.
# **Predict.** Take every stretch of twelve tokens in the dev texts. How many of these stretches stand, word for word, in the part that is read?

# %% name="predict-repeats"
repeats_guess = guess_number("12-grams of the dev texts that are in the read part", low=0, high=100, step=1, unit="%")
display(repeats_guess)

# %% name="count-repeats"
ids_of = {part: tokenizer.encode_all(text.words(part)) for part in ("read", "dev", "test")}
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
        "the figures below are for text of this kind, boilerplate included. Who wants to know about new words only must split by "
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
# The course's tokenizer learned its pieces from film reviews. It can write any text, if need be byte by byte, but what it never met
# it cuts small. Then a row of 256 tokens holds less text, and every step reads less. **Predict.** Reviews take about one and a
# quarter tokens a word. And this text?

# %% name="predict-tokenizer"
pieces_guess = guess_number("Tokens per word of this text", low=1, high=6, step=0.1, unit="tokens")
display(pieces_guess)

# %% name="measure-tokenizer"
review_words = [review.text for review in reviews_of("dev", "imdb")[:300]]
trained_here = train_tokenizer(text.words("read"), vocab_size=tokenizer.vocabulary.size)
N_SPECIAL = 107  # special tokens and sentinels; the 256 single bytes come behind them


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
        ["text and tokenizer", "tokens per word", "bytes per token", "tokens of a single byte"],
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
    "another piece of text, so a new tokenizer means to begin anew, or nearly so. The pre-trained model is worth more, and the chapter keeps "
    "its tokenizer. The clinic below shows what happens otherwise.",
    on_own["words"],
    near=0.2,
)

# %% [markdown] name="reading"
# ## 3 Let the model read it
#
# The shipped decoder continues its pre-training on the part to read: the same task, the next token, on other text. In three ways: in
# **full**, all weights training; by **LoRA**, low-rank updates beside the frozen ones; and, for comparison, a decoder of the same shape
# **from nothing**. All read the same rows in the same order. The record (`course record own_text`) has them at a ladder of tokens;
# the cell below reads the first rungs of it once more, on your machine.
#
# **Predict.** At the last rung of the record, which has the lowest loss on dev texts, and which the highest?

# %% name="predict-reading"
ORDERS = ["full, LoRA, from nothing", "LoRA, full, from nothing", "full, from nothing, LoRA"]
reading_guess = guess("From the lowest loss to the highest", ORDERS)
display(reading_guess)

# %% name="read-live"
TOKENS = 32_768  # that each of the two reads here; 200_000 is a coffee, and shows more
reading = Reading()
rows, held_out = reading.rows(text), held_out_of(text, reading)
rungs = sorted({reading.step_of(TOKENS >> halvings) for halvings in range(4)})  # steps at which we look
live, read_models, snapshots = {}, {}, {0: load_checkpoint("decoder").to(device)}
for name in ("full", "LoRA"):
    model, optimizer = reading.begin(name)
    found = {0: held_out["own"].loss(model)}
    with tqdm(total=rungs[-1], desc=name, unit="step") as bar:
        for row in reading.read(name, model, optimizer, rows, end=rungs[-1]):
            bar.update()
            if row.step in rungs:
                found[row.tokens] = held_out["own"].loss(model)
                if name == "full":
                    snapshots[row.tokens] = copy.deepcopy(model)
    live[name], read_models[name] = found, model.eval()
table(
    ["", "tokens read", "nats per token on dev texts", "bits per byte"],
    [[n, f"{tokens:,}", f"{a:.2f}", f"{b:.2f}"] for n, found in live.items() for tokens, (a, b) in found.items()],
)

# %% name="draw-reading"
record = Record(RECORDS_FOLDER / "own_text.jsonl")


def recorded(name, metric):
    """{tokens: value} of a way of reading, as far as it is recorded."""
    return {row["step"]: row["value"] for row in record.rows() if (row["name"], row["metric"]) == (name, metric)}


curves = {name: recorded(name, "own_nats") for name in reading.methods}
last_rung = min(max(curve) for curve in curves.values())
display(
    plots.show(
        plots.draw_curves(
            {name: ([t / 1000 for t in curve if t], [v for t, v in curve.items() if t]) for name, curve in curves.items()},
            {name: ([t / 1000 for t in found if t], [nats for t, (nats, _) in found.items() if t]) for name, found in live.items()},
            references={"before": curves["full"][0]},
            xlabel="thousand tokens read (log scale)",
            ylabel="nats per token, dev texts",
            log_x=True,
        ),
        alt="Loss on held-out text of the three ways of reading against the tokens read; the live runs drawn over the record.",
    )
)  # fmt: skip
is_same_text = all(sitting["text_sha256"] == text.fingerprint for sitting in record.provenance())
sittings = {(s["machine"].get("device", "cpu"), s["date"]) for s in record.provenance()}
Markdown(
    f"Recorded by `course record own_text` on {', '.join(f'{d} ({when})' for d, when in sorted(sittings))}, up to {last_rung:,} tokens each, of a "
    f"run that is planned for {reading.tokens:,}; the points are yours. "
    + (
        "You read the text that was recorded, so that points and lines should agree."
        if is_same_text
        else "Your text is not the recorded one (packages of other versions are another text): expect points beside the lines, and look "
        "whether the order of the methods is the same."
    )
)

# %% name="compare-reading" jupyter={"source_hidden": true}
at_end = {name: curve[last_rung] for name, curve in curves.items()}
order = ", ".join(sorted(at_end, key=at_end.get))
bits_at_end = {name: recorded(name, "own_bits_per_byte")[last_rung] for name in curves}
before_nats = curves["full"][0]
compare(
    reading_guess,
    f"After {last_rung:,} tokens: "
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
        "LoRA lies between: it cannot move the embeddings, where the words of this text live, and it changes the rest in a few directions. "
        if at_end["full"] < at_end["LoRA"] < at_end["from nothing"]
        else "LoRA ends last: the text is so far from reviews that a few directions beside frozen embeddings do not reach it. "
        if at_end["LoRA"] == max(at_end.values())
        else ""
    )
    + "One run of each, on one order of the text: the gaps are far larger than what another order changes, but no interval is claimed.",
    order if order in ORDERS else None,
)

# %% [markdown] name="forgetting-question"
# **What was forgotten?** The model read other text, and no review. **Predict.** What has happened to its loss on held-out reviews, at the
# last rung, in full and by LoRA?

# %% name="predict-forgetting"
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
compare(
    forgetting_guess,
    f"In full it rose by {lost['full']:.2f} nats, by LoRA by {lost['LoRA']:.2f}, while on the new text they gained {gained['full']:.2f} and "
    f"{gained['LoRA']:.2f}. Freezing the weights does not keep what they knew: what LoRA adds acts on reviews as well. "
    "What it does keep is the way back: switch the adapter off, and the old model is there, to the bit.",
    "about alike (within 0.1 nats)"
    if abs(lost["full"] - lost["LoRA"]) <= 0.1
    else "in full"
    if lost["full"] > lost["LoRA"]
    else "by LoRA",
)

# %% [markdown] name="samples"
# **Hear the difference.** The same beginnings, continued before and after, at temperature 0.8 with the same random numbers. After so few
# tokens it knows the tone before it knows anything else.

# %% name="write-samples"
STARTS = ["Returns", "The parameter", "This function"] if OWN is None else [" ".join(t.text.split()[:3]) for t in text.part("test")[:3]]  # fmt: skip
written = {
    name: complete(a_model, tokenizer, STARTS, max_new_tokens=30, temperature=0.8, generator=seeded(1))
    for name, a_model in {"before": snapshots[0], "after, full": read_models["full"], "after, LoRA": read_models["LoRA"]}.items()
}  # fmt: skip
table(["begins with", *written], [[start, *(w[n] for w in written.values())] for n, start in enumerate(STARTS)])

# %% [markdown] name="adapt"
# ## 4 A task on this text, by two strategies
#
# Which package does a paragraph come from? (Of your own text: which file, or which label.) The names of the packages, and of their best known
# things, are taken out of the default text first: whoever sees `torch.Tensor` need not read on. Four classes, the same paragraphs for
# all: a bag of words, and the course's encoder, adapted by **LoRA** and by **BitFit**.
#
# **Predict.** The encoder was pre-trained on film reviews. Does it beat the bag of words here?

# %% name="predict-adapt"
adapt_guess = guess(
    "The better of the two strategies, against the bag of words", ["ahead", "behind", "no clear difference"]
)
display(adapt_guess)

# %% name="choose-paragraphs"
try:
    task_text, task_classes = text, text.classes if OWN else ["matplotlib", "numpy", "sklearn", "torch"]
    paragraphs(text.part("read"), task_classes, 8)
except ValueError as error:  # a text of one kind has no task in it
    print(f"{error}\nThis section goes on with the documentation.")
    task_text, task_classes = own_text(), ["matplotlib", "numpy", "sklearn", "torch"]
PER_CLASS, PER_CLASS_TESTS, SEEDS = 60, 40, (0, 1)


def nameless(texts):
    return [replace(t, text=without_names(t.text)) for t in texts] if task_text.name.startswith("the doc") else texts


pool = nameless(paragraphs(task_text.part("read"), task_classes, 2 * PER_CLASS, tokens=(24, 48)))
tests = nameless(paragraphs(task_text.part("test"), task_classes, min(PER_CLASS_TESTS, 40), tokens=(24, 48)))
number_of = {name: n for n, name in enumerate(task_classes)}
labels_of = lambda texts: np.array([number_of[class_of(t)] for t in texts])
words_of = lambda texts: [t.text for t in texts]


def sample(seed):
    """`PER_CLASS` paragraphs of each class, other ones for each seed."""
    mine = [[t for t in pool if class_of(t) == name][seed::2][:PER_CLASS] for name in task_classes]
    return [t for of_class in zip(*mine, strict=True) for t in of_class]


display(table(["class", "a paragraph, names taken out"], [[class_of(t), plots.cut(t.text, 160)] for t in sample(0)[: len(task_classes)]]))  # fmt: skip
Markdown(f"{len(sample(0))} paragraphs to learn from in each sample, {len(tests)} to test on, the same for all.")

# %% name="adapt-both"
HOW = FineTuning(epochs=4, head_first=False, max_tokens=48, length_grouped=True)
STRATEGIES = {"LoRA": (LoRA(rank=8, alpha=16), 2e-3), "BitFit": (BitFit(), 4e-3)}


def adapted(name, learned, seed):
    """The course's encoder with a head for the classes, adapted by a strategy."""
    strategy, rate = STRATEGIES[name]
    classifier = Classifier(load_checkpoint("encoder"), n_classes=len(task_classes)).to(device)
    apply(classifier, strategy, modules_to_save=["head"], seed=seed)
    fine_tune(classifier, words_of(learned), labels_of(learned), tokenizer, replace(HOW, rate=rate, seed=seed))
    return classifier


right, classifiers = {"bag of words": []} | {name: [] for name in STRATEGIES}, {}
for seed in tqdm(SEEDS, desc="samples"):
    learned = sample(seed)
    bag = fit_bag_of_words(words_of(learned), labels_of(learned))
    right["bag of words"].append(bag.predict(words_of(tests)) == labels_of(tests))
    for name in STRATEGIES:
        classifiers[name] = adapted(name, learned, seed)
        given = predictions(classifiers[name], words_of(tests), tokenizer).argmax(1)
        right[name].append(given == labels_of(tests))
shares = {name: [proportion_interval(int(r.sum()), len(r)) for r in runs] for name, runs in right.items()}
plots.show(
    plots.draw_bars(
        [f"{name}, sample {seed + 1}" for name in shares for seed in SEEDS],
        *zip(*((100 * i.value, 100 * i.low, 100 * i.high) for runs in shares.values() for i in runs), strict=True),
        references={"chance": 100 / len(task_classes)},
        xlabel=f"accuracy on {len(tests)} test paragraphs, %, with 95 % intervals",
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
        "ahead": "Here pre-training pays, although the encoder never read such text: what it learned about how words go together holds beyond films.",
        "behind": "The bag of words wins, and that is a result. Which package a paragraph is about shows in single words, and single words are what a "
        "bag of words counts; the encoder has cut them into small pieces, has read none of them, and had few paragraphs to learn them from.",
        "no clear difference": f"The intervals do not settle it, or not in every sample: {len(tests)} paragraphs cannot tell these apart. Then the cheaper one is the better "
        "choice, and that is the bag of words.",
    }[verdict],
    verdict,
)  # fmt: skip

# %% [markdown] name="export"
# ## 5 Take it along
#
# What was trained here opens in other libraries.

# %% [markdown] name="twins"
# ## 6 The same calls elsewhere
#
# Each call of the course has a relative in `transformers` or `peft`.

# %% [markdown] name="report"
# ## 7 The report
#
# One page, every figure computed.

# %% [markdown] name="command-line"
# ## 8 The same from the command line
#
# Everything above is also a command. These cells run them on a small part of the same text, in a folder that is thrown away, with settings that
# are tiny: they show how it goes, not how well.

# %% [markdown] name="exercises"
# ## Exercises

# %% [markdown] name="clinic"
# ## Bug clinic

# %% [markdown] name="checklist"
# ## The checklist

# %% [markdown] name="claims"
# ## What is usually said

# %% [markdown] name="summary"
# ## What to take along
#
# ## Sources
#
# [00 Start here](00_start_here.ipynb)
