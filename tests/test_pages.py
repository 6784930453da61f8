"""The page of a run: every number on it is one of the run's, every word of a text is only a word, nothing is loaded."""

import base64
import json
import re
import shutil
from html.parser import HTMLParser

import pytest
import torch
from tiny import CONFIG, tiny

from course_lib import cli
from course_lib.data import course_tokenizer, reviews_of
from course_lib.evaluation import mean_interval
from course_lib.files import sha256_of
from course_lib.pretrained import save_model
from course_lib.records import Record
from course_lib.runs import FineTune, finetune, load_tuned, pretrain, write_page
from course_lib.runs.finetuning import facts
from course_lib.runs.pages import elements
from course_lib.runs.recipes import Pretraining

ATTACK = "<script>alert('x')</script> & <img src=http://evil.example/x.png>"


@pytest.fixture(scope="module", autouse=True)
def quick_and_in_fp32():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("course_lib.runtime.fast_dtype", lambda device: torch.float32)
        patch.setattr("course_lib.files.os.fsync", lambda descriptor: None)
        patch.setattr("course_lib.records._commit", lambda: "unknown")
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With data of which every text is an attack on the page, and bases."""
    folder = tmp_path_factory.mktemp("pages")
    for name, objective in {"encoder": "masked", "decoder": "causal"}.items():
        save_model(tiny(objective, max_len=128, n_layers=1), folder / name, course_tokenizer())
    reviews = reviews_of("dev", "rotten_tomatoes")[:50]
    rows = [{"text": f"{ATTACK} {one.text[:40]}", "label": ("<b>", "good")[one.label]} for one in reviews]
    asked = [{"instruction": ATTACK, "input": one.text[:20], "output": one.text[:20]} for one in reviews]
    for name, lines in {"texts": rows, "asked": asked}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    (folder / "own.txt").write_text("\n\n".join(one.text for one in reviews_of("train", "imdb")[:30]), "utf-8")
    return folder


def tuned(folder, data, base, out):
    run = FineTune(data=str(folder / data), base=str(folder / base), epochs=2, rate=2e-2, max_tokens=90, rank=2)
    return finetune(run, folder / out, device="cpu", progress=lambda line: None)


@pytest.fixture(scope="module")
def classifier(folder):
    return tuned(folder, "texts.jsonl", "encoder", "classifier")


@pytest.fixture(scope="module")
def writer(folder):
    return tuned(folder, "asked.jsonl", "decoder", "writer")


@pytest.fixture(scope="module")
def pretrained(folder):
    """A run that a probe seems to have looked at."""
    run = Pretraining(name="small", tokens=32 * 4 * 6, row_length=32, batch_size=4, warmup=2, peak_rate=1e-2,
                      config=CONFIG, text=str(folder / "own.txt"), held_out_batches=2, save_every=2)  # fmt: skip
    list(pretrain(run, folder / "pretrained", device="cpu"))
    record = Record(folder / "pretrained" / "record.jsonl")
    for seed, value in enumerate((0.5, 0.6, 0.64)):
        record.add(name="small", seed=seed, step=6, metric="probe_100", value=value)
    return folder / "pretrained", run


class Page(HTMLParser):
    """What a browser makes of a page: its tags with their attributes, its text, the cells of its tables."""

    def __init__(self, content):
        super().__init__()
        self.tags, self.pieces, self.rows, self._open = [], [], [], []
        self.feed(content)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in ("meta", "img"):
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if "style" not in self._open:
            self.pieces.append(data)
        if self._open and self._open[-1] in ("td", "th"):
            self.rows[-1][-1] += data

    @property
    def text(self):
        return " ".join(" ".join(self.pieces).split())

    def cell(self, name, column=1):
        found = {row[column] for row in self.rows if row and row[0] == name}
        assert len(found) == 1, (name, found)
        return found.pop()


def page_of(folder, out=None):
    return Page(write_page(folder, out).read_text("utf-8"))


def with_interval(found):
    return f"{found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f})"


def test_the_numbers_of_a_classifiers_page_are_those_of_its_run(classifier, folder):
    page, metrics = page_of(classifier.folder), classifier.metrics
    found, simple = metrics["test"], metrics["test"]["bag_of_words"]
    assert page.cell("accuracy") == with_interval(found["accuracy"])
    assert page.cell("accuracy", 2) == with_interval(simple["accuracy"])
    assert page.cell("accuracy", 3) == f"{found['most_frequent_class']:.3f}"
    assert page.cell("macro F1") == with_interval(found["macro_f1"])
    assert page.cell("calibration error (ECE)") == f"{found['calibration_error']:.3f}"
    for name, row in zip(metrics["classes"], found["confusion"], strict=True):
        assert [row for row in page.rows if row[0] == name] == [[name, *map(str, row)]]
    for name, count in metrics["sizes"].items():
        assert page.cell(name) == str(count)
    assert f"p = {simple['paired']['p_value']:.2g}" in page.text and facts.title(metrics) in page.text
    assert metrics["command"] in page.text and sha256_of(folder / "texts.jsonl") in page.text
    assert metrics["base_sha256"] in page.text and page.cell("rate") == "0.02" and page.cell("strategy: rank") == "2"
    assert found["mistakes"]  # or the next line would say nothing
    for one in found["mistakes"]:
        assert f"probability of {one['probability']:.3f}, is {one['label']} {facts.cut(one['text'], 1200)}" in page.text
    right = sum(one["texts"] * one["accuracy"] for one in found["reliability"])
    assert right / metrics["sizes"]["to test"] == pytest.approx(found["accuracy"]["value"])
    alts = " ".join(of["alt"] for tag, of in page.tags if tag == "img")
    assert all(f"{one['confidence']:.2f} claimed, {one['accuracy']:.2f} right" in alts for one in found["reliability"])
    points = [row for row in page.rows if len(row) == 3 and row[1].endswith(")") and row[2].isdigit()]
    assert [int(row[2]) for row in points] == [one["texts"] for one in found["reliability"]]
    for one, (claimed, right_of, _) in zip(found["reliability"], points, strict=True):
        assert (claimed, right_of.split()[0]) == (f"{one['confidence']:.2f}", f"{one['accuracy']:.2f}")
        low, high = (float(end) for end in right_of.split("(")[1].rstrip(")").split(" to "))
        assert low < high and low - 0.01 <= one["accuracy"] <= high + 0.01
    size = (classifier.folder / "metrics.json").stat().st_size
    assert page.cell("metrics.json") == f"{size:,}"


def test_another_number_in_the_folder_is_another_on_the_page(classifier, tmp_path):
    """The control: the page is made from the folder, each time."""
    changed = shutil.copytree(classifier.folder, tmp_path / "run")
    metrics = json.loads((changed / "metrics.json").read_text("utf-8"))
    metrics["test"]["accuracy"] = {"value": 0.123, "low": 0.1, "high": 0.2}
    (changed / "metrics.json").write_text(json.dumps(metrics), "utf-8")
    assert page_of(changed).cell("accuracy") == "0.123 (0.100 to 0.200)" != page_of(classifier.folder).cell("accuracy")


def test_the_numbers_of_a_writers_page_are_those_of_its_run(writer):
    page, found = page_of(writer.folder), writer.metrics["test"]
    assert page.cell("test") == f"{found['test_loss_before']:.3f}"
    assert page.cell("test", 2) == f"{found['test_loss']:.3f}"
    assert facts.short_answers(writer.metrics) in page.text
    assert all(facts.cut(one["written"], 1200) in page.text for one in found["samples"])


def test_the_numbers_of_a_pretrainings_page_are_those_of_its_record(pretrained, folder):
    where, run = pretrained
    page, curve = page_of(where), Record(where / "record.jsonl").values("held_out")
    step, lowest = min(curve, key=lambda pair: pair[1])
    assert page.cell("before the first step") == f"{curve[0][1]:.3f}"
    assert page.cell(f"at its best, step {step:,}") == f"{lowest:.3f}"
    assert f"{run.steps} steps of 128 tokens: {run.steps * 128} read in all" in page.text
    assert sha256_of(folder / "own.txt") in page.text and course_tokenizer().fingerprint in page.text
    assert page.cell("100 labels", 2) == f"{mean_interval([0.5, 0.6, 0.64]):.3f}"
    assert page.cell("peak rate") == "0.01" and page.cell("d model") == str(CONFIG.d_model)
    assert "by itself" in page.text and page_of(where).text == page.text  # what it writes is drawn by a seed


@pytest.mark.parametrize("kind", ["classifier", "writer", "pretrained"])
def test_a_page_loads_nothing_runs_nothing_and_shows_texts_as_they_are(kind, request):
    run = request.getfixturevalue(kind)
    path = write_page(run[0] if kind == "pretrained" else run.folder)
    content = path.read_text("utf-8")
    page = Page(content)
    assert path.name == "report.html" and content.isascii() is not None
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "iframe", "object", "embed", "form", "a", "video", "b"}
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") or name in ("href", "srcset") for name in attributes), tag
        if tag == "img":
            head, data = attributes["src"].split(",", 1)
            assert head == "data:image/png;base64" and base64.b64decode(data)[1:4] == b"PNG"
            assert len(attributes["alt"]) > 20
    assert not re.search(r"url\(|@import", content)
    assert "prefers-color-scheme: dark" in content and "width=device-width" in content
    if kind != "pretrained":
        assert ATTACK in page.text  # as words
        assert "http://evil" in content and "<img src=http" not in content


def test_the_check_above_sees_a_text_that_is_not_escaped(classifier, monkeypatch, tmp_path):
    monkeypatch.setattr(elements.html, "escape", lambda words: words)
    content = write_page(classifier.folder, tmp_path / "page.html").read_text("utf-8")
    assert "<script>alert" in content


@pytest.mark.parametrize("kind", ["classifier", "writer", "pretrained"])
def test_the_python_on_a_page_works(kind, request, capsys):
    run = request.getfixturevalue(kind)
    content = write_page(run[0] if kind == "pretrained" else run.folder).read_text("utf-8")
    blocks = [elements.html.unescape(block) for block in re.findall(r"<pre><code>(.*?)</code></pre>", content, re.S)]
    python = [block for block in blocks if block.startswith("from course_lib")]
    assert len(python) == 1
    made = {}
    exec(compile(python[0], "page", "exec"), made)
    if kind == "classifier":
        asked = re.search(r"predict\(\[(.*)\]\)", python[0])[1]
        assert repr(load_tuned(run.folder).predict([asked[1:-1]])) in capsys.readouterr().out
    if kind == "pretrained":
        assert made["model"].config == CONFIG


def test_what_a_folder_lacks_is_said_in_words(classifier, pretrained, tmp_path):
    old = shutil.copytree(classifier.folder, tmp_path / "old")
    metrics = json.loads((old / "metrics.json").read_text("utf-8"))
    metrics = {name: value for name, value in metrics.items() if name not in ("command", "date", "data_sha256")}
    del metrics["test"]["reliability"]
    (old / "metrics.json").write_text(json.dumps(metrics | {"test": metrics["test"] | {"bag_of_words": None}}), "utf-8")
    page = page_of(old)
    assert "does not say with which command" in page.text and "does not hold the bins" in page.text
    assert page.cell("accuracy", 2) == "no words to count" and page.cell("date") == "the folder does not say"
    bare = shutil.copytree(pretrained[0], tmp_path / "bare")
    rows = [row for row in Record(bare / "record.jsonl").rows() if row["metric"] == "held_out"]
    (bare / "record.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    assert "does not say with which command" in page_of(bare).text


def test_the_command_says_where_the_page_stands(classifier, tmp_path, capsys):
    out = tmp_path / "a" / "page.html"
    assert cli.main(["report", str(classifier.folder), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"written to {out}\n"
    assert facts.title(classifier.metrics) in Page(out.read_text("utf-8")).text
