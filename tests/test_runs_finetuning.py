"""Fine-tuning from data to a folder and back: what is read is split by the texts alone, the model of the best epoch is
what is kept, judged, saved and loaded, to the bit, and what cannot be is refused by line or by name."""

import json
import math
import shutil
from collections import Counter
from dataclasses import asdict, replace
from functools import cache

import numpy as np
import pytest
import torch
from few import few
from tiny import tiny
from torch.nn import functional as F

from course_lib.data import clean, course_tokenizer, identity, normalize, reviews_of
from course_lib.evaluation import bag_of_words_predictions, first_tokens, proportion_interval
from course_lib.finetuning import Instruction, encode, predictions, prompt_of
from course_lib.finetuning.tasks import TASKS, make_examples
from course_lib.pretrained import save_model
from course_lib.runs import FineTune, TunedClassifier, TunedWriter, finetune, load_tuned
from course_lib.runs.finetuning import facts, outcome, reports
from course_lib.runs.finetuning.examples import Text, own_examples, packaged_examples, part_of, read_asked
from course_lib.runs.finetuning.run import OF_COURSE, OF_MINILM, OF_WRITER, STRATEGIES
from course_lib.runs.finetuning.tuned import NAMED_BASES, load_base

TOKENIZER = course_tokenizer()


@pytest.fixture(scope="module", autouse=True)
def quick_and_in_fp32():
    """What pays on this machine is not what is tested, nor is waiting for the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("course_lib.runtime.fast_dtype", lambda device: torch.float32)
        patch.setattr("course_lib.files.os.fsync", lambda descriptor: None)
        yield


def lines_of(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def written_to(path, content):
    path.write_text(content, "utf-8")
    return str(path)


@cache
def reviews(split, source):
    return reviews_of(split, source)


def texts(count, source="rotten_tomatoes"):
    """Real reviews with their labels in words, shortened."""
    return [
        {"text": review.text[:90], "label": ("bad", "good")[review.label]} for review in reviews("dev", source)[:count]
    ]


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Folders with small untrained models and their tokenizer."""
    folder = tmp_path_factory.mktemp("bases")
    for name, objective in {"encoder": "masked", "decoder": "causal"}.items():
        save_model(tiny(objective, max_len=96, n_layers=2), folder / name, TOKENIZER)
    return folder


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A file to classify, and one of instructions."""
    folder = tmp_path_factory.mktemp("own")
    tasks = [one for name in ("classify", "repeat") for one in make_examples(TASKS[name], 30, split="dev")]
    short = [asdict(replace(one, input=" ".join(one.input.split()[:12]))) for one in tasks]
    written_to(folder / "texts.jsonl", lines_of(texts(60)))
    written_to(folder / "asked.jsonl", lines_of(short))
    return folder


def run_of(bases, own, kind="texts", **changes):
    base = bases / ("encoder" if kind == "texts" else "decoder")
    return FineTune(**{"data": str(own / f"{kind}.jsonl"), "base": str(base), "epochs": 4, "rate": 2e-2} | changes)


@pytest.fixture(scope="module")
def classified(bases, own, tmp_path_factory):
    """A finished run of a classifier, what it said, and its data. Its rate is so high that a later epoch is worse."""
    said, run = [], run_of(bases, own)
    out = tmp_path_factory.mktemp("runs") / "classifier"
    return finetune(run, out, device="cpu", progress=said.append), said, run.examples()


@pytest.fixture(scope="module")
def taught(bases, own, tmp_path_factory):
    """The same of a writer."""
    said, run = [], run_of(bases, own, "asked", rate=5e-2, epochs=6)
    out = tmp_path_factory.mktemp("runs") / "writer"
    return finetune(run, out, device="cpu", progress=said.append), said, run.examples()


# ---------------------------------------------------------------- data: what is refused


GOOD = "text,label\n" + "".join(f"text {n},{'ab'[n % 2]}\n" for n in range(40))
ASKED = '{"instruction": "say", "output": "yes"}\n'


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", "a text\n", "a.txt is neither a .csv nor a .jsonl: convert it to one of these"),
        ("a.csv", "", "holds no example: give at least one line below its columns"),
        ("a.csv", "text,label\n", "holds no example"),
        ("a.jsonl", "\n\n", "holds no example: give at least one line"),
        ("a.csv", "text;label\na;b\n", "a.csv, line 1: the fields are text;label: give text,label (to classify) or"),
        ("a.csv", "text;label\na;b\n", "divided by commas"),
        ("a.csv", "words,label\na,b\n", "line 1: the fields are words, label: give text,label"),
        ("a.csv", "text,text,label\na,b,c\n", "line 1: two columns are called 'text': rename one of them"),
        ("a.csv", "text,label\na, b,c\n", "line 2: 3 cells for the 2 columns text, label: put a text with a comma"),
        ("a.csv", 'text,label\n"a\nb",x\nlonely\n', "line 4: 1 cells for the 2 columns"),
        ("a.csv", 'text,label\n"a,b\n', "unexpected end of data: close every quote"),
        ("a.csv", "text,label\n  ,x\n", "line 2: text is empty: fill it in, or leave the line out"),
        ("a.csv", "text,label\n<br />,x\n", "line 2: text is empty"),
        ("a.csv", "text,label\na,\n", "line 2: label is empty: fill it in"),
        ("a.csv", "text,label,instruction,output\na,b,c,d\n", "are not of one kind with the others"),
        ("a.csv", "instruction,input\na,b\n", "line 1: the fields are instruction, input: give text,label"),
        ("a.jsonl", '{"text": "a"\n', "a.jsonl, line 1: no JSON (Expecting"),
        ("a.jsonl", "\n[1]\n", "line 2: a list: write one object a line, {...}"),
        ("a.jsonl", "[" * 100_000 + "\n", "line 1: no JSON (maximum recursion"),
        (
            "a.jsonl",
            '{"text": "a", "label": "x"}\n' + ASKED,
            "line 2: the fields instruction, output are not of one kind",
        ),
        ("a.jsonl", ASKED + '{"instruction": "a"}\n', "line 2: the field 'output' is missing (there is instruction)"),
        (
            "a.jsonl",
            '{"text": "a", "label": "x"}\n{"text": "a"}\n',
            "line 2: the field 'label' is missing (there is text)",
        ),
        ("a.jsonl", '{"text": 3, "label": "x"}\n', "line 1: text is 3: give text"),
        ("a.jsonl", '{"text": "a", "label": null}\n', "line 1: label is null: give text"),
        ("a.jsonl", '{"text": "a", "label": ["x"]}\n', 'line 1: label is ["x"]: give text'),
        ("a.jsonl", '{"text": "a", "label": NaN}\n', "line 1: label is nan: give a word or a number"),
        ("a.jsonl", '{"text": "\\ud800", "label": 1}\n', "line 1: text holds half a surrogate pair"),
        ("a.jsonl", '{"instruction": "", "output": "a"}\n', "line 1: instruction is empty"),
        ("a.jsonl", '{"instruction": "a", "output": " "}\n', "line 1: output is empty"),
        ("a.jsonl", '{"instruction": "a", "input": 1, "output": "b"}\n', "line 1: input is 1: give text"),
        (
            "a.jsonl",
            '{"instruction": "a\\n### Input:", "output": "b"}\n',
            "line 1: instruction holds the line '### Input:', which the template uses",
        ),
        ("a.csv", "text,label\na,x\nb,x\n", "the texts have 1 label: give texts of at least 2 classes"),
        ("a.csv", GOOD + "more,c\n", "class 'c' has a single text: give at least 2 of each class, better 20"),
        ("a.csv", GOOD + "more,c\nMORE,c\n", "class 'c' has a single text (lines left out because the same stands"),
        ("a.csv", "text,label\na,x\nA,y\n", "have 0 label (texts left out because they have two different labels: 1"),
        (
            "a.csv",
            "text,label\na,x\nc,x\ng,y\nh,y\n",
            "its examples split into 4 to learn from, 0 held out and 0 to test",
        ),
        ("a.jsonl", ASKED, "split into 1 to learn from, 0 held out and 0 to test: give more, of 50"),
    ],
)
def test_a_file_that_will_not_do_is_refused_by_its_line_and_nothing_is_made(name, content, words, tmp_path):
    path, out = written_to(tmp_path / name, content), tmp_path / "out"
    with pytest.raises(ValueError) as refused:
        finetune(FineTune(data=path), out)
    assert words in str(refused.value) and str(refused.value).startswith(path)
    assert "\n" not in str(refused.value)
    assert not out.exists()


def test_a_file_that_is_not_there_or_no_utf_8_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none.csv is not there"):
        own_examples(tmp_path / "none.csv")
    (tmp_path / "latin.csv").write_bytes("text,label\ngut,1\nschön,1\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin.csv, line 3, is not UTF-8"):
        own_examples(tmp_path / "latin.csv")


# ---------------------------------------------------------------- data: how it is split


def in_part(part, label, count):
    """Rows of one label whose texts come to lie in this part."""
    found = (text for n in range(10_000) if part_of(identity(text := f"{label} {n}")) == part)
    return [{"text": text, "label": label} for text, _ in zip(found, range(count), strict=False)]


def all_of(examples):
    return [one for part in examples.parts.values() for one in part]


def test_no_text_stands_on_both_sides_and_the_parts_have_their_shares(tmp_path):
    rows = texts(200) + texts(500, "imdb")
    rows += [row | {"text": f"  {row['text'].upper()} "} for row in rows[:100]]  # the same texts, written otherwise
    examples = own_examples(written_to(tmp_path / "a.jsonl", lines_of(rows)))
    parts = [{normalize(one.text) for one in part} for part in examples.parts.values()]
    assert sum(map(len, parts)) == len(set.union(*parts)) == len({normalize(row["text"]) for row in rows})
    for part, share in zip(parts, (0.7, 0.1, 0.2), strict=True):
        assert proportion_interval(len(part), sum(map(len, parts))).holds(share)
    assert examples.classes == ("bad", "good")
    wanted = {normalize(row["text"]): row["label"] for row in rows}
    assert all(examples.classes[one.label] == wanted[normalize(one.text)] for one in all_of(examples))


def test_the_order_of_the_lines_means_nothing_and_more_lines_move_no_text(tmp_path):
    rows = texts(120)
    few_rows, all_rows, backwards = (
        own_examples(written_to(tmp_path / f"{n}.jsonl", lines_of(part)))
        for n, part in enumerate((rows[:80], rows, rows[::-1]))
    )
    assert all_rows.parts == backwards.parts
    for name, part in few_rows.parts.items():
        assert {*part} < {*all_rows.parts[name]}


def test_doubles_count_once_and_texts_with_two_labels_are_left_out(tmp_path):
    rows = texts(60)
    rows += [rows[0], rows[1] | {"text": rows[1]["text"].upper()}, rows[2] | {"label": "neither"}]
    examples = own_examples(written_to(tmp_path / "a.jsonl", lines_of(rows)))
    assert examples.notes == (
        "lines left out because the same stands there before: 2",
        "texts left out because they have two different labels: 1, such as lines 3 and 63",
    )
    assert len(all_of(examples)) == 59
    assert rows[2]["text"] not in {one.text for one in all_of(examples)}
    assert examples.classes == ("bad", "good")


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ([10, 9, 1.0], ("1", "9", "10")),
        (["b", "a b", " a\tb "], ("a b", "b")),
        ([True, False], ("false", "true")),
        (["2", 10, 2.5], ("2", "2.5", "10")),
        (["nan", "1"], ("1", "nan")),
    ],
)
def test_labels_are_words_or_numbers_in_their_order(labels, classes, tmp_path):
    rows = [row | {"label": labels[n % len(labels)]} for n, row in enumerate(texts(90))]
    assert own_examples(written_to(tmp_path / "a.jsonl", lines_of(rows))).classes == classes


def test_a_csv_and_a_jsonl_of_the_same_rows_are_the_same_and_other_fields_are_said(tmp_path):
    rows = texts(60)
    cells = [f'{n},"{row["text"].replace(chr(34), chr(34) * 2)}\n",{row["label"]}\n' for n, row in enumerate(rows)]
    of_csv = own_examples(written_to(tmp_path / "a.csv", "\ufeffid,text , label\n\n" + "".join(cells)))
    of_json = own_examples(written_to(tmp_path / "a.jsonl", lines_of(rows)))
    assert of_csv.parts == of_json.parts
    assert (of_csv.notes, of_json.notes) == (("fields that are not read: id",), ())


def test_parts_that_lack_a_class_are_refused_or_said(tmp_path):
    parts = {(part, label): in_part(part, label, 9) for part in ("train", "held_out", "test") for label in "abc"}

    def examples_without(*lacking):
        rows = [row for key, rows in parts.items() if key not in lacking for row in rows]
        return own_examples(written_to(tmp_path / "a.jsonl", lines_of(rows)))

    assert examples_without().notes == ()
    with pytest.raises(ValueError, match="of class 'b' there is none to learn from: give more texts of it, 20 are"):
        examples_without(("train", "b"))
    with pytest.raises(ValueError, match="of class 'a' there is none to test"):
        examples_without(("test", "a"), ("test", "b"))
    with pytest.raises(ValueError, match="split into 27 to learn from, 0 held out and 27 to test: give more"):
        examples_without(*[("held_out", label) for label in "abc"])
    assert examples_without(("held_out", "a"), ("held_out", "b"), ("test", "c")).notes == (
        "no text of class a, b is held out to choose the epoch: give more of them",
        "no text of class c is tested on: give more of them",
    )


def test_answers_to_one_prompt_stay_on_one_side_and_an_input_may_be_missing(tmp_path):
    rows = [
        {"instruction": f"say {n}", "output": f"{answer} {n}"} | more
        for n in range(60)
        for answer, more in (("yes", {}), ("no", {"input": ""}), ("no", {"input": None}))
    ]
    examples = own_examples(written_to(tmp_path / "a.jsonl", lines_of(rows)))
    assert examples.notes == ("lines left out because the same stands there before: 60",)
    prompts = [{prompt_of(one) for one in part} for part in examples.parts.values()]
    assert sum(map(len, prompts)) == 60 and len(all_of(examples)) == 120
    assert {one.output for one in all_of(examples)} == {row["output"] for row in rows}


def test_packaged_reviews_are_half_of_each_kind_and_of_their_own_splits():
    examples = packaged_examples("imdb", 20, 30, seed=3)
    assert Counter(one.label for one in examples.train) == {0: 10, 1: 10}
    assert [len(part) for part in examples.parts.values()] == [20, 200, 30]
    for name, part in zip(("train", "dev", "test"), examples.parts.values(), strict=True):
        known = {(review.text, review.label) for review in reviews(name, "imdb")}
        assert {(one.text, one.label) for one in part} <= known
        assert all(clean(one.text) == one.text for one in part)
    assert packaged_examples("imdb", 20, 30, seed=4).train != examples.train


# ---------------------------------------------------------------- a classifier, from end to end


def loss_of(classifier, part):
    given_NC = predictions(classifier, [one.text for one in part], TOKENIZER, max_tokens=94).astype(np.float64)
    return -np.log(given_NC[np.arange(len(part)), [one.label for one in part]]).mean()


def test_what_is_kept_judged_and_loaded_is_the_classifier_of_the_best_epoch_to_the_bit(classified):
    report, said, examples = classified
    epochs = report.metrics["epochs"]
    losses = [row["held_out"] for row in epochs]
    best = int(np.argmin(losses)) + 1
    assert report.metrics["best_epoch"] == best < len(epochs) == 4  # or nothing would be told apart here
    assert loss_of(report.tuned.classifier, examples.held_out) == pytest.approx(losses[best - 1], abs=1e-9)
    assert min(abs(loss - losses[best - 1]) for n, loss in enumerate(losses) if n != best - 1) > 1e-3
    asked = [one.text for one in examples.test]
    loaded = load_tuned(report.folder, device="cpu")
    assert np.array_equal(loaded.probabilities(asked), report.tuned.probabilities(asked))
    assert [line for line in said if line.startswith("epoch")][best - 1].startswith(
        f"epoch {best} of 4: loss {epochs[best - 1]['loss']:.3f}, held out {losses[best - 1]:.3f}, accuracy "
    )


def test_the_report_says_what_was_measured(classified):
    report, _, examples = classified
    found, classes = report.metrics["test"], examples.classes
    labels = np.array([one.label for one in examples.test])
    given_NC = report.tuned.probabilities([one.text for one in examples.test])
    right = int((given_NC.argmax(1) == labels).sum())
    assert found["accuracy"] == asdict(proportion_interval(right, len(labels)))
    assert np.trace(found["confusion"]) == right and np.sum(found["confusion"]) == len(labels)
    read, asked = (first_tokens([one.text for one in part], TOKENIZER, 94) for part in (examples.train, examples.test))
    simple = bag_of_words_predictions(read, np.array([one.label for one in examples.train]), asked)
    assert found["bag_of_words"]["accuracy"]["value"] == (simple == labels).mean()
    pair = found["bag_of_words"]["paired"]
    assert pair["only_a"] - pair["only_b"] == right - (simple == labels).sum()
    mistakes = [(one["label"], one["given"], one["probability"]) for one in found["mistakes"]]
    wrong = np.flatnonzero(given_NC.argmax(1) != labels)
    assert len(mistakes) == min(5, len(wrong))
    assert mistakes[0] == max(
        ((classes[labels[n]], classes[given_NC[n].argmax()], float(given_NC[n].max())) for n in wrong),
        key=lambda one: one[2],
    )
    lines = report.text.splitlines()
    assert f"| accuracy | {proportion_interval(right, len(labels)):.3f} |" in report.text
    assert f"Data: {examples.origin}; {len(examples.train)} to learn from, " in report.text
    assert f"| bad | {' | '.join(map(str, found['confusion'][0]))} |" in lines
    assert f'"{facts.cut(found["mistakes"][0]["text"])}"' in report.text
    assert lines[-1] == f'Use it: course predict {report.folder} "..."'


def test_the_folder_holds_what_it_should(classified, taught):
    for report, kind in ((classified[0], "classification"), (taught[0], "instructions")):
        names = {"adapter", "curves.png", "metrics.json", "report.md", "settings.json"}
        assert {path.name for path in report.folder.iterdir()} == names
        assert (report.folder / "report.md").read_text("utf-8") == report.text + "\n"
        assert json.loads((report.folder / "metrics.json").read_text("utf-8")) == report.metrics
        assert (report.folder / "curves.png").read_bytes().startswith(b"\x89PNG")
        settings = json.loads((report.folder / "settings.json").read_text("utf-8"))
        assert (settings["kind"], settings["strategy"]["kind"]) == (kind, "lora")
        assert len(report.metrics["base_sha256"]) == 64 == len(settings["base_sha256"])


@pytest.mark.slow
def test_the_same_seed_gives_the_same_and_another_something_else(classified, bases, own, tmp_path):
    report = classified[0]
    again = finetune(run_of(bases, own), tmp_path / "again", device="cpu", progress=lambda line: None)
    other = finetune(run_of(bases, own, seed=1), tmp_path / "other", device="cpu", progress=lambda line: None)
    assert again.metrics["epochs"] == report.metrics["epochs"] != other.metrics["epochs"]
    assert again.metrics["test"] == report.metrics["test"]


@pytest.mark.parametrize("strategy", few(STRATEGIES, "prefix"))
def test_every_strategy_comes_back_to_the_bit(strategy, bases, own, tmp_path):
    run = run_of(bases, own, strategy=strategy, rate=5e-3, epochs=2)
    report = finetune(run, tmp_path / "out", device="cpu", progress=lambda line: None)
    asked = [one.text for one in run.examples().test]
    loaded = load_tuned(tmp_path / "out", device="cpu")
    assert np.array_equal(loaded.probabilities(asked), report.tuned.probabilities(asked))
    trained = [{name for name, _ in one.classifier.named_parameters()} for one in (report.tuned, loaded)]
    assert trained[0] == trained[1]  # what makes a prefix is gone before it is judged
    before = load_base(run.base).model
    assert not torch.equal(
        before.encode(torch.tensor([[2, 300, 3]]), torch.ones(1, 3).bool()),
        report.tuned.classifier.body.encode(torch.tensor([[2, 300, 3]]), torch.ones(1, 3).bool()),
    )


@pytest.mark.slow
def test_three_classes_are_learned_on_a_decoder_that_pools_its_last_token(bases, tmp_path):
    """Sentences, reviews and shouting are easily told apart, even by an untrained model's features."""
    sources = {
        "sentence": [row["text"] for row in texts(60)],
        "review": [row["text"] for row in texts(60, "imdb")],
        "numbers": [" ".join(str(ord(c)) for c in row["text"][:20]) for row in texts(60)],
    }
    rows = [{"text": text, "label": label} for label, found in sources.items() for text in found]
    path = written_to(tmp_path / "a.jsonl", lines_of(rows))
    run = FineTune(data=path, base=str(bases / "decoder"), epochs=3, rate=1e-2, strategy="full")
    report = finetune(run, tmp_path / "out", device="cpu", progress=lambda line: None)
    assert report.tuned.classes == ("numbers", "review", "sentence")
    assert report.tuned.classifier.pooling == "last"
    assert report.metrics["test"]["accuracy"]["low"] > report.metrics["test"]["most_frequent_class"] + 0.05
    assert report.tuned.predict([sources["numbers"][0]])[0].label == "numbers"


# ---------------------------------------------------------------- a writer, from end to end


@torch.no_grad()
def response_loss(decoder, part, max_len=96):
    """Nats per token of the answers, one example at a time, without padding or collator."""
    total, count = 0.0, 0
    for one in part:
        encoded = encode(one, TOKENIZER, max_len=max_len)
        ids_T = torch.tensor(encoded.input_ids)
        is_learned_T = torch.tensor(encoded.completion_mask)
        logits_TV = decoder.eval()(ids_T[None, :-1]).logits[0]
        total += F.cross_entropy(logits_TV[is_learned_T[1:]], ids_T[1:][is_learned_T[1:]], reduction="sum").item()
        count += int(is_learned_T.sum())
    return total / count


def test_what_is_kept_and_loaded_is_the_writer_of_the_best_epoch(taught, bases):
    report, said, examples = taught
    rows = report.metrics["epochs"]
    losses = [row["held_out"] for row in rows]
    assert [row["epoch"] for row in rows] == [0, 1, 2, 3, 4, 5, 6] and rows[0]["loss"] is None
    best = int(np.argmin(losses[1:])) + 1
    assert report.metrics["best_epoch"] == best < 6  # or nothing would be told apart here
    assert losses[6] > losses[best] + 1e-2
    base = load_base(str(bases / "decoder")).model
    loaded = load_tuned(report.folder, device="cpu")
    assert response_loss(base, examples.held_out) == pytest.approx(losses[0], rel=1e-5)
    assert response_loss(base, examples.test) == pytest.approx(report.metrics["test"]["test_loss_before"], rel=1e-5)
    for writer in (report.tuned, loaded):
        assert response_loss(writer.decoder, examples.held_out) == pytest.approx(losses[best], rel=1e-5)
        assert response_loss(writer.decoder, examples.test) == pytest.approx(
            report.metrics["test"]["test_loss"], rel=1e-5
        )
    assert losses[best] < losses[0] - 0.01
    assert loaded.write(examples.test, seed=1) == report.tuned.write(examples.test, seed=1)
    assert any(line.startswith("step ") for line in said) and said[-1].startswith("epoch 6 of 6: loss ")


def test_samples_and_short_answers_are_what_the_writer_writes(taught):
    report, _, examples = taught
    found = report.metrics["test"]
    assert [one["written"] for one in found["samples"]] == report.tuned.write(examples.test[:5])
    assert [one["expected"] for one in found["samples"]] == [one.output for one in examples.test[:5]]
    short = [one for one in examples.test if len(one.output.split()) <= 5]
    written = report.tuned.write(short, temperature=0)
    met = sum(normalize(one.output) == normalize(text) for one, text in zip(short, written, strict=True))
    assert found["short_answers"]["of"] == len(short) > 3
    assert found["short_answers"]["share"] == asdict(proportion_interval(met, len(short)))
    known = Counter(normalize(one.output) for one in examples.train if len(one.output.split()) <= 5)
    constant = known.most_common(1)[0][0]
    share = sum(normalize(one.output) == constant for one in short) / len(short)
    assert found["short_answers"]["most_frequent_answer"] == share
    assert f"- expected: {facts.cut(examples.test[0].output)}" in report.text


def test_examples_that_are_too_long_are_left_out_and_counted(bases, tmp_path):
    rows = [{"instruction": f"say {n}", "output": "yes " * (90 if n % 10 == 0 else 1)} for n in range(60)]
    rows += [{"instruction": f"say {n} {'more ' * 80}", "output": "yes"} for n in range(5)]
    path = written_to(tmp_path / "a.jsonl", lines_of(rows))
    run = FineTune(data=path, base=str(bases / "decoder"), epochs=1)
    report = finetune(run, tmp_path / "out", device="cpu", progress=lambda line: None)
    assert report.metrics["notes"] == ["examples left out because they are too long: 11"]
    examples = run.examples()
    kept = [one for one in examples.test if len(TOKENIZER.encode(prompt_of(one) + one.output)) < 80]
    assert report.metrics["sizes"]["to test"] == len(kept) < len(examples.test)
    assert sum(report.metrics["sizes"].values()) == 54
    assert report.tuned.max_new_tokens == len(TOKENIZER.encode("yes")) + 1
    with pytest.raises(ValueError, match=r"of the .* to learn from none fits into max_tokens 8: raise it"):
        finetune(replace(run, max_tokens=8), tmp_path / "none", device="cpu", progress=lambda line: None)
    assert not (tmp_path / "none").exists()


# ---------------------------------------------------------------- settings and bases


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "give one of source .* and data"),
        ({"source": "imdb", "data": "a.csv"}, "give one of source .* and data"),
        ({"data": "a.csv", "labels": 10}, "labels is for the packaged reviews"),
        ({"source": "imdb", "strategy": "lorra"}, "strategy 'lorra' is unknown: choose one of full, lora, prefix"),
        ({"source": "imdb", "strategy": "full", "rank": 8}, "rank is LoRA's, and the strategy is full: leave it out"),
        ({"source": "imdb", "rank": 0}, "rank is 0: give a whole number of at least 1"),
        ({"source": "imdb", "pooling": "max"}, "pooling 'max' is unknown: choose one of mean, cls, last"),
        ({"source": "imdb", "labels": 0}, "labels is 0: give at least 2"),
        ({"source": "imdb", "tests": 1}, "tests is 1: give at least 2"),
        ({"source": "imdb", "epochs": 0}, "epochs is 0: give at least 1"),
        ({"source": "imdb", "batch_size": 0}, "batch_size is 0: give at least 1"),
        ({"source": "imdb", "max_tokens": 0}, "max_tokens is 0: give at least 1"),
        ({"source": "imdb", "rate": math.nan}, "rate is nan: give a learning rate above 0"),
        ({"source": "imdb", "rate": -1.0}, "rate is -1.0: give a learning rate above 0"),
        ({"source": "imdb", "seed": -1}, "give one or more whole numbers from 0 up"),
    ],
)
def test_settings_that_will_not_do_are_refused_before_anything_is_read(settings, words):
    with pytest.raises(ValueError, match=words):
        FineTune(**settings)


@pytest.mark.parametrize(
    ("kind", "changes", "error", "words"),
    [
        ("texts", {"base": "minlim"}, FileNotFoundError, "base 'minlim' is neither one of minilm, encoder, decoder"),
        ("texts", {"max_tokens": 95}, ValueError, "max_tokens is 95, and .* reads 94 at most: lower it"),
        ("texts", {"max_tokens": 79, "strategy": "prefix"}, ValueError, "max_tokens is 79, and .* reads 78 at most"),
        ("asked", {"max_tokens": 97}, ValueError, "max_tokens is 97, and .* reads 96 at most"),
        ("asked", {"pooling": "mean"}, ValueError, "pooling is a classifier's, and the data holds instructions"),
        ("asked", {"base": "ENCODER"}, ValueError, "is a Encoder, and only a decoder follows instructions"),
        ("texts", {"rank": 64}, ValueError, "rank 64 at .* is larger than its matrix"),
        ("texts", {"rate": 1e30}, FloatingPointError, "the loss is (nan|inf): lower the rate"),
        ("asked", {"rate": 1e30}, FloatingPointError, "lower the rate"),
    ],
)
def test_a_base_that_does_not_fit_is_refused_and_nothing_is_written(kind, changes, error, words, bases, own, tmp_path):
    changes = {name: str(bases / "encoder") if value == "ENCODER" else value for name, value in changes.items()}
    with pytest.raises(error, match=words):
        finetune(run_of(bases, own, kind, **changes), tmp_path / "out", device="cpu", progress=lambda line: None)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_is_refused_before_any_work(classified, tmp_path):
    nothing_to_read = FineTune(data=str(tmp_path / "none.csv"))
    before = {path: path.read_bytes() for path in classified[0].folder.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="holds a run already: choose another folder"):
        finetune(nothing_to_read, classified[0].folder)
    assert before == {path: path.read_bytes() for path in classified[0].folder.rglob("*") if path.is_file()}
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine").write_text("mine")
    with pytest.raises(ValueError, match="used is not empty: choose another folder"):
        finetune(nothing_to_read, tmp_path / "used")
    with pytest.raises(ValueError, match="mine is a file: name a folder"):
        finetune(nothing_to_read, tmp_path / "used" / "mine")
    with pytest.raises(FileNotFoundError, match=r"none.csv"):  # an empty folder will do
        (tmp_path / "empty").mkdir()
        finetune(nothing_to_read, tmp_path / "empty")


def test_what_suits_is_known_of_every_base_strategy_and_number(bases, own):
    base = load_base(str(bases / "encoder"))
    for table in (OF_MINILM, OF_COURSE, OF_WRITER):
        assert table.keys() == STRATEGIES.keys()
        for by_number in table.values():
            epochs = [epochs for _, (_, epochs) in sorted(by_number.items())]
            assert epochs == sorted(epochs, reverse=True)  # the fewer the examples, the more epochs
    run = FineTune(data=str(own / "texts.jsonl"))
    two = run.examples()
    three = replace(two, classes=("a", "b", "c"), train=(*two.train, Text("c", 2)))
    of_two, of_three = run.training(two, base), run.training(three, base)
    assert (of_two.head_first, of_three.head_first) == (True, False)
    bert = replace(base, model=tiny("masked", "learned", max_len=96))
    assert run.training(two, bert).head_first is False
    assert (run.training(two, bert).rate, run.training(two, bert).epochs) == OF_MINILM["lora"][100]
    assert (of_two.max_tokens, of_two.patience) == (94, 5)
    given = replace(run, rate=0.5, epochs=7, batch_size=3, max_tokens=9, seed=5).training(two, base)
    assert (given.rate, given.epochs, given.batch_size, given.max_tokens, given.seed) == (0.5, 7, 3, 9, 5)


def test_the_courses_own_bases_open():
    for name, kind in zip(NAMED_BASES, ("bert", "roformer", "gpt2"), strict=True):
        if name != "minilm":  # its weights take a second
            base = load_base(name)
            assert (base.name, base.model.layout, base.tokenizer.vocabulary.size) == (name, kind, 8192)


def test_a_folder_of_pretrain_is_opened_at_its_model(bases, tmp_path):
    shutil.copytree(bases / "encoder", tmp_path / "run" / "model")
    outer, inner = load_base(str(tmp_path / "run")), load_base(str(tmp_path / "run" / "model"))
    assert outer.name == inner.name == str(tmp_path / "run" / "model")
    (tmp_path / "run" / "model" / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks tokenizer.json: copy the one that the model was trained with"):
        load_base(str(tmp_path / "run"))


# ---------------------------------------------------------------- loading and predicting


def moved(report, bases, tmp_path, what="encoder"):
    """The folder of a run whose base is a copy that may be changed, and that base."""
    base, folder = tmp_path / "base", tmp_path / "run"
    shutil.copytree(bases / what, base)
    shutil.copytree(report.folder, folder)
    settings = json.loads((folder / "settings.json").read_text("utf-8"))
    (folder / "settings.json").write_text(json.dumps(settings | {"base": str(base)}))
    load_tuned(folder, device="cpu")
    return folder, base


def test_a_base_that_has_changed_or_gone_is_refused(classified, bases, tmp_path):
    folder, base = moved(classified[0], bases, tmp_path)
    save_model(tiny("masked", max_len=96, n_layers=2, shake=0.2), base, TOKENIZER)
    with pytest.raises(ValueError, match=r"the weights of the base .* have sha256 .* and .* was fine-tuned on .*: put"):
        load_tuned(folder)
    shutil.copy(bases / "encoder" / "model.safetensors", base)
    load_tuned(folder, device="cpu")
    path = base / "tokenizer.json"
    path.write_text(path.read_text("utf-8") + " ")
    with pytest.raises(ValueError, match="the tokenizer of the base"):
        load_tuned(folder)
    shutil.rmtree(base)
    with pytest.raises(FileNotFoundError, match=r"base .* is neither"):
        load_tuned(folder)


def test_a_folder_that_is_none_or_damaged_is_refused(classified, bases, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is not there"):
        load_tuned(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"holds nothing fine-tuned \(no settings.json\): name what `course"):
        load_tuned(bases / "encoder")
    folder, _ = moved(classified[0], bases, tmp_path)
    settings = json.loads((folder / "settings.json").read_text("utf-8"))
    (folder / "settings.json").write_text(json.dumps({k: v for k, v in settings.items() if k != "classes"}))
    with pytest.raises(ValueError, match=r"settings.json is damaged \('classes'\): fine-tune again"):
        load_tuned(folder)
    (folder / "settings.json").write_text("{")
    with pytest.raises(ValueError, match=r"settings.json is damaged"):
        load_tuned(folder)


def test_predictions_name_classes_whose_shares_sum_to_one(classified):
    tuned = classified[0].tuned
    assert isinstance(tuned, TunedClassifier)
    asked = [one.text for one in classified[2].test]
    for row_C, one in zip(tuned.probabilities(asked), tuned.predict(asked), strict=True):
        assert one.label == tuned.classes[row_C.argmax()] and one.probability == row_C.max()
        assert list(one.probabilities) == ["bad", "good"] and sum(one.probabilities.values()) == pytest.approx(1)
    spaced = tuned.probabilities(["  a good\n<br /> film\t"])
    assert np.array_equal(spaced, tuned.probabilities(["a good film"]))
    for wrong, error, words in (
        ([], ValueError, "0 texts"), (["a", " \n"], ValueError, "text 2 is empty: give at least a word"),
        ("a film", TypeError, "give a list of texts"),
    ):  # fmt: skip
        with pytest.raises(error, match=words):
            tuned.predict(wrong)


def test_a_writer_draws_by_its_seed(taught):
    tuned, asked = taught[0].tuned, [Instruction("Repeat these words.", "a good film")] * 3
    assert isinstance(tuned, TunedWriter)
    assert tuned.write(asked, temperature=2.0, seed=1) == tuned.write(asked, temperature=2.0, seed=1)
    assert tuned.write(asked, temperature=2.0, seed=1) != tuned.write(asked, temperature=2.0, seed=2)
    assert len({*tuned.write(asked, temperature=0)}) == 1
    assert tuned.write([Instruction("Repeat.", "a film " * 500)], temperature=0)  # its end is left out
    with pytest.raises(ValueError, match="instructions are empty"):
        tuned.write([])
    with pytest.raises(ValueError, match="shorten"):
        tuned.write([Instruction("please " * 500)])


def test_questions_are_read_from_files(tmp_path):
    for name, content in {"a.txt": "one\ntwo\n", "a.csv": "id,text\n1,one\n2,two\n",
                          "a.jsonl": '{"text": "one"}\n{"text": "two"}'}.items():  # fmt: skip
        assert read_asked(written_to(tmp_path / name, content), "classification") == ["one", "two"]
    for name, content in {"b.txt": "one\ntwo\n", "b.csv": "instruction\none\ntwo\n"}.items():
        found = read_asked(written_to(tmp_path / name, content), "instructions")
        assert found == [Instruction("one"), Instruction("two")]
    found = read_asked(written_to(tmp_path / "c.csv", "instruction,input\none,a\ntwo,\n"), "instructions")
    assert found == [Instruction("one", "a"), Instruction("two")]
    for name, content, words in (
        ("d.txt", "", "d.txt is empty"), ("d.txt", "a\n\nb\n", "d.txt, line 2: text is empty"),
        ("d.csv", "words\na\n", "line 2: the field 'text' is missing \\(there is words\\)"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            read_asked(written_to(tmp_path / name, content), "classification")


# ---------------------------------------------------------------- the report's corners


def test_texts_without_a_word_have_no_bag_of_words_and_the_report_says_so(bases, tmp_path):
    signs = "!?*+-#~%&"
    rows = [{"text": f"{a}{b}{c}", "label": a} for a in "!?" for b in signs for c in signs]
    path = written_to(tmp_path / "a.jsonl", lines_of(rows))
    run = FineTune(data=path, base=str(bases / "encoder"), epochs=1)
    report = finetune(run, tmp_path / "out", device="cpu", progress=lambda line: None)
    assert report.metrics["test"]["bag_of_words"] is None
    assert "| no words to count |" in report.text and "Right where the bag of words" not in report.text


def test_a_class_that_is_not_tested_does_not_lower_the_mean_f1():
    labels, given = np.array([0, 2] * 20), np.array([0, 2] * 20)
    assert outcome._macro_f1(labels, given).value == 1.0
    assert outcome._macro_f1(np.array([1, 1]), np.array([1, 1])).value == 0.5  # there is one class, and no second


def test_many_classes_are_reported_by_their_most_frequent_confusions():
    names, counts = [f"c{n}" for n in range(12)], np.diag([5] * 12)
    counts[3, 4], counts[1, 0] = 7, 2
    assert facts.confusions(names, counts.tolist())[1:] == [["c3", "c4", "7"], ["c1", "c0", "2"]]
    assert list(reports._table(facts.confusions(["a|b", "c"], [[1, 0], [0, 1]])))[2] == "| a\\|b | 1 | 0 |"


def test_a_long_text_is_quoted_in_part():
    assert facts.cut("word " * 100) == "word " * 39 + "word..."
    assert facts.cut("two\nlines") == "two lines"


@pytest.mark.slow
def test_minilm_learns_to_tell_sentences_from_reviews(tmp_path):
    """The real base, at its defaults."""
    rows = [{"text": " ".join(review.text.lower().split()[:15]), "label": source}
            for source in ("imdb", "rotten_tomatoes") for review in reviews_of("train", source)[:60]]  # fmt: skip
    run = FineTune(data=written_to(tmp_path / "a.jsonl", lines_of(rows)))
    report = finetune(run, tmp_path / "out", progress=lambda line: None)
    assert report.metrics["base"] == "minilm" and report.metrics["training"]["epochs"] == 20
    assert report.metrics["test"]["accuracy"]["low"] > 0.5
    asked = [row["text"] for row in rows[:10]]
    assert np.array_equal(load_tuned(tmp_path / "out").probabilities(asked), report.tuned.probabilities(asked))
