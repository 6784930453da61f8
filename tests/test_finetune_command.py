"""`course finetune` and `course predict`: arguments in, a report or lines out, errors in one line."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from tiny import tiny

from course_lib import cli
from course_lib.data import course_tokenizer, reviews_of
from course_lib.finetuning import Instruction
from course_lib.pretrained import save_model
from course_lib.runs import load_tuned

COURSE = (sys.executable, "-c", "import sys; from course_lib.cli import main; sys.exit(main())")


@pytest.fixture(scope="module", autouse=True)
def in_fp32():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("course_lib.runtime.fast_dtype", lambda device: torch.float32)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Data and bases: texts.csv, asked.jsonl, encoder and decoder."""
    folder = tmp_path_factory.mktemp("finetune")
    for name, objective in {"encoder": "masked", "decoder": "causal"}.items():
        save_model(tiny(objective, max_len=64, n_layers=1), folder / name, course_tokenizer())
    reviews = reviews_of("dev", "rotten_tomatoes")[:50]
    cells = [f'"{review.text[:60].replace(chr(34), "")}",{review.label}\n' for review in reviews]
    (folder / "texts.csv").write_text("text,label\n" + "".join(cells), "utf-8")
    asked = [{"instruction": "Repeat.", "input": r.text[:20], "output": r.text[:20]} for r in reviews]
    (folder / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked), "utf-8")
    return folder


def finetune(folder, data, base, out, *more):
    where = ["--data", folder / data, "--base", folder / base, "--out", folder / out]
    return cli.main([str(part) for part in ["finetune", *where, "--epochs", 1, "--device", "cpu", *more]])


@pytest.fixture(scope="module")
def runs(folder):
    """The folders of a classifier and of a writer."""
    assert finetune(folder, "texts.csv", "encoder", "classifier", "--strategy", "bitfit") == 0
    assert finetune(folder, "asked.jsonl", "decoder", "writer", "--rank", 2) == 0
    return folder / "classifier", folder / "writer"


def test_finetune_prints_the_report_alone_and_its_progress_elsewhere(folder, capsys):
    assert finetune(folder, "texts.csv", "encoder", "printed", "--strategy", "lora", "--rank", 2, "--seed", 3) == 0
    said, progress = capsys.readouterr()
    assert said == (folder / "printed" / "report.md").read_text("utf-8")
    assert said.splitlines()[-1] == f'Use it: course predict {folder / "printed"} "..."'
    assert "to learn from" in progress.splitlines()[0] and progress.splitlines()[-1].startswith("epoch 1 of 1: loss ")
    settings = json.loads((folder / "printed" / "settings.json").read_text("utf-8"))
    assert (settings["strategy"]["rank"], settings["classes"]) == (2, ["0", "1"])
    metrics = json.loads((folder / "printed" / "metrics.json").read_text("utf-8"))
    assert metrics["training"]["seed"] == 3


def test_predict_prints_a_class_and_its_probability_a_line(runs, folder, capsys):
    asked, tuned = ["a good film", "a bad film"], load_tuned(runs[0], device="cpu")
    found = tuned.predict(asked)
    wanted = "".join(f"{one.label}\t{one.probability:.4f}\n" for one in found)
    assert cli.main(["predict", str(runs[0]), *asked, "--device", "cpu"]) == 0
    assert capsys.readouterr().out == wanted
    (folder / "asked.txt").write_text("\n".join(asked) + "\n")
    assert cli.main(["predict", str(runs[0]), "--file", str(folder / "asked.txt"), "--device", "cpu"]) == 0
    assert capsys.readouterr().out == wanted
    assert cli.main(["predict", str(runs[0]), *asked, "--json", "--device", "cpu"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["text"], line["label"], line["probabilities"]) for line in lines] == [
        (text, one.label, one.probabilities) for text, one in zip(asked, found, strict=True)
    ]


def test_predict_prints_what_is_written(runs, folder, capsys):
    asked, tuned = [Instruction("Repeat.", "a film"), Instruction("Repeat it.", "a film")], load_tuned(runs[1])
    options = ["--input", "a film", "--device", "cpu"]
    assert cli.main(["predict", str(runs[1]), "Repeat.", "Repeat it.", *options]) == 0
    assert capsys.readouterr().out == "".join(f"{text}\n" for text in tuned.write(asked))
    more = ["--json", "--temperature", "2", "--seed", "5"]
    assert cli.main(["predict", str(runs[1]), "Repeat.", "Repeat it.", *options, *more]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["written"] for line in lines] == tuned.write(asked, temperature=2, seed=5)
    assert [line["input"] for line in lines] == ["a film", "a film"]
    (folder / "asked.txt").write_text("Repeat.\nRepeat it.\n")
    assert cli.main(["predict", str(runs[1]), "--file", str(folder / "asked.txt"), *options, "--temperature", "0"]) == 0
    assert capsys.readouterr().out == "".join(f"{text}\n" for text in tuned.write(asked, temperature=0))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["RUN"], "give either texts or a file with them"),
        (["RUN", "a", "--file", "x.txt"], "give either texts or a file with them"),
        (["RUN", "a", " "], "text 2 is empty: give at least a word"),
        (["RUN", "a", "--input", "b"], "holds a classifier, which does not write: leave out input"),
        (["RUN", "a", "--temperature", "1"], "leave out temperature"),
        (["RUN", "--file", "none.txt"], "none.txt is not there"),
        (["RUN", "a", "--device", "tpu"], "device 'tpu' is unknown"),
        (["nowhere", "a"], "nowhere is not there"),
        (["WRITER", ""], "instruction is empty: say what is to be done"),
        (["WRITER", "a", "--temperature", "-1"], "temperature is -1.0: give 0 for the best token"),
        (["WRITER", "a", "--input", "### Response:"], "input holds the line '### Response:'"),
    ],
)
def test_what_cannot_be_predicted_is_refused_in_one_line(arguments, words, runs, capsys):
    names = {"RUN": str(runs[0]), "WRITER": str(runs[1])}
    assert cli.main(["predict", *[names.get(part, part) for part in arguments]]) == 2
    said, errors = capsys.readouterr()
    assert said == "" and errors.startswith("course predict: ") and words in errors and errors.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give one of source (packaged reviews: imdb or rotten_tomatoes) and data (your own file)"),
        (["--source", "yelp"], "source 'yelp' is unknown: choose one of imdb, rotten_tomatoes"),
        (["--source", "imdb", "--labels", "5"], "give an even number"),
        (["--source", "imdb", "--strategy", "qlora"], "strategy 'qlora' is unknown"),
        (["--data", "none.csv"], "none.csv is not there"),
        (["--source", "imdb", "--rate", "nan"], "rate is nan"),
        (["--source", "imdb", "--device", "tpu"], "device 'tpu' is unknown"),
    ],
)
def test_what_cannot_be_tuned_is_refused_in_one_line(arguments, words, tmp_path, capsys):
    assert cli.main(["finetune", "--out", str(tmp_path / "out"), *arguments]) == 2
    said, errors = capsys.readouterr()
    assert said == "" and errors.startswith("course finetune: ") and words in errors and errors.count("\n") == 1
    assert not (tmp_path / "out").exists()


def course(*arguments):
    """(exit code, what it said, what it said of errors) of the command as a process of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*COURSE, *map(str, arguments)], capture_output=True, text=True, env=environment)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
def test_minilm_is_tuned_on_packaged_reviews_and_asked_in_other_processes(tmp_path):
    out = tmp_path / "out"
    data = ("--source", "rotten_tomatoes", "--labels", 20, "--tests", 40)
    code, said, errors = course("finetune", *data, "--epochs", 2, "--out", out)
    assert code == 0 and "Traceback" not in errors
    assert said.startswith("# minilm, fine-tuned by lora, to tell negative from positive\n")
    assert "20 to learn from, 200 held out, 40 to test" in said
    code, said, errors = course("predict", out, "a moving , funny and beautiful film", "--json")
    assert code == 0 and errors == ""
    line = json.loads(said)
    found = load_tuned(out).probabilities([line["text"]])[0]
    assert np.allclose([line["probabilities"][name] for name in ("negative", "positive")], found, atol=0.02)
    code, said, errors = course("finetune", *data, "--out", out)
    assert (code, said) == (2, "") and errors == f"course finetune: {out} holds a run already: choose another folder\n"
