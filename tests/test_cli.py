"""Arguments in, library calls out, errors in one line."""

import os
import shlex
import signal
import subprocess
import sys
import time

import pytest
import torch

from course_lib import __version__, cli, doctor, lab
from course_lib.checkpoint import Checkpoints
from course_lib.data import reviews_of
from course_lib.pretrained import load_model
from course_lib.records import Record


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["--help"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    commands = ("lab", "run", "progress", "pretrain", "finetune", "predict", "report", "export", "record", "doctor")
    assert all(f"\n    {command} " in said for command in commands)


def test_help_loads_no_torch():
    script = "import sys; from course_lib import cli; cli._parser().format_help(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_version_is_the_packages(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out.strip() == f"course {__version__}"


def test_lab_passes_what_was_asked_for(monkeypatch):
    asked = {}

    def launch(chapter, **options):
        asked.update(options, chapter=chapter)
        return 0

    monkeypatch.setattr(lab, "launch", launch)
    assert cli.main(["lab", "01", "--no-browser", "--port", "9000"]) == 0
    assert asked == {"chapter": "01", "reset": None, "browser": False, "port": 9000}
    cli.main(["lab", "--reset", "02"])
    assert asked == {"chapter": None, "reset": "02", "browser": True, "port": None}


def test_run_returns_what_the_run_returned(monkeypatch):
    monkeypatch.setattr(lab, "run_chapters", lambda chapters: 1 if chapters == ["01", "02"] else 0)
    assert cli.main(["run", "01", "02"]) == 1
    assert cli.main(["run"]) == 0


@pytest.mark.parametrize("error", [ValueError, FileNotFoundError])
def test_an_error_on_purpose_is_one_line(monkeypatch, capsys, error):
    def refuse(chapters):
        raise error("there is no chapter 99")

    monkeypatch.setattr(lab, "run_chapters", refuse)
    assert cli.main(["run", "99"]) == 2
    assert capsys.readouterr().err == "course run: there is no chapter 99\n"


def test_any_other_error_keeps_its_traceback(monkeypatch):
    """Negative control: a mistake of ours is not made to look like one of the reader's."""

    def stumble(chapters):
        raise KeyError("ours")

    monkeypatch.setattr(lab, "run_chapters", stumble)
    with pytest.raises(KeyError):
        cli.main(["run"])


@pytest.mark.parametrize("port", ["0", "70000", "x", "-1"])
def test_a_port_that_is_none_is_refused(capsys, port):
    with pytest.raises(SystemExit) as end:
        cli.main(["lab", f"--port={port}"])
    assert end.value.code == 2
    assert "give a number from 1 to 65535" in capsys.readouterr().err


def test_a_chapter_that_is_not_there_is_said(capsys):
    assert cli.main(["run", "99"]) == 2
    assert "there is no chapter 99: choose from 00_" in capsys.readouterr().err


def test_the_doctor_finds_this_installation_in_order(capsys):
    assert cli.main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.split()[0] in ("ok", "note") for line in lines)
    assert {line.split()[1] for line in lines} >= {"Python", "torch", "device", "reviews", "MiniLM", "tokenizer"}


def test_the_doctor_fails_where_something_is_missing(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "CORPUS_SHA256", "0" * 64)
    assert cli.main(["doctor"]) == 1
    assert "missing  reviews    " in capsys.readouterr().out


# ---------------------------------------------------------------- pretrain

COURSE = (sys.executable, "-c", "import sys; from course_lib.cli import main; sys.exit(main())")
SMALL = shlex.split(
    "pretrain decoder --device cpu --width 32 --layers 2 --dropout 0.1 --row-length 64 --batch-size 8 --tokens 60k "
    "--optimizer adamw --save-every 50"
)
STEPS = 60_000 // (64 * 8)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A file of 60 real reviews."""
    path = tmp_path_factory.mktemp("text") / "own.txt"
    path.write_text("\n\n".join(review.text for review in reviews_of("train", "imdb")[:60]), "utf-8")
    return path


def course(*arguments):
    """The command as a process of its own, with one thread."""
    return subprocess.Popen(
        [*COURSE, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def finished(process):
    """(exit code, what it said, what it said of errors)."""
    said, errors = process.communicate(timeout=900)
    return process.returncode, said, errors


def curve(folder):
    rows = [row for row in Record(folder / "record.jsonl").rows() if row["metric"] != "seconds"]
    return {(row["metric"], row["step"]): row["value"] for row in rows}


@pytest.fixture(scope="module")
def undisturbed(text, tmp_path_factory):
    """The folder of a whole run in a process of its own, and what that said."""
    folder = tmp_path_factory.mktemp("pretrain") / "run"
    return folder, *finished(course(*SMALL, "--text", text, "--out", folder))


@pytest.mark.slow
def test_pretrain_ends_with_a_report_and_a_model_that_loads(undisturbed):
    folder, code, said, errors = undisturbed
    assert code == 0 and "Traceback" not in errors
    steps, losses, model = said.splitlines()
    assert steps.startswith(f"{STEPS} steps, {STEPS * 64 * 8:,} tokens; ") and "tokens a second" in steps
    held_out = {step: loss for (metric, step), loss in curve(folder).items() if metric == "held_out"}
    lowest = min(held_out, key=held_out.get)
    assert held_out.keys() >= {0, 50, 100, STEPS} and lowest != 0
    assert (
        losses
        == f"held-out loss {held_out[0]:.3f} before, {held_out[lowest]:.3f} nats per target at its best (step {lowest})"
    )
    assert str(folder / "model") in model
    loaded = load_model(folder / "model")
    assert (loaded.config.d_model, loaded.config.n_layers, loaded.config.dropout) == (32, 2, 0.1)
    assert sorted(path.name for path in (folder / "model").iterdir()) == [
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"
    ]  # fmt: skip
    best = load_model(folder / f"step_{lowest}").state_dict()
    assert all(torch.equal(tensor, best[name]) for name, tensor in loaded.state_dict().items())


@pytest.mark.slow
def test_ctrl_c_writes_a_checkpoint_says_how_to_go_on_and_the_run_ends_as_the_undisturbed_one_to_the_bit(
    undisturbed, text, tmp_path
):
    process = course(*SMALL, "--text", text, "--out", tmp_path)
    ready = lambda: (tmp_path / "record.jsonl").exists() and ("loss", 7) in curve(tmp_path)
    while process.poll() is None and not ready():
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    code, said, errors = finished(process)
    stopped = Checkpoints(tmp_path).steps()[-1]
    assert code == 130 and 7 <= stopped < STEPS and stopped % 50
    assert said.splitlines() == [
        f"Stopped after step {stopped} of {STEPS}; a checkpoint is written.",
        "Go on with the same command and --resume.",
    ]
    assert "Finishing this step and writing a checkpoint" in errors and "Traceback" not in errors
    assert not (tmp_path / "model").exists()
    assert finished(course(*SMALL, "--text", text, "--out", tmp_path, "--resume"))[0] == 0
    whole = undisturbed[0]
    assert curve(tmp_path) == curve(whole)
    for path in ("model", f"step_{STEPS}"):
        assert (tmp_path / path / "model.safetensors").read_bytes() == (whole / path / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_finished_run_is_not_trained_on_and_a_run_is_not_overwritten(undisturbed, text, capsys):
    folder = undisturbed[0]
    weights = (folder / f"step_{STEPS}" / "model.safetensors").read_bytes()
    before, arguments = curve(folder), [*SMALL, "--text", str(text), "--out", str(folder)]
    assert cli.main([*arguments, "--resume"]) == 0
    assert "the model is in" in capsys.readouterr().out
    assert cli.main(arguments) == 2
    assert "holds a run already: resume it, or choose another folder" in capsys.readouterr().err
    assert cli.main([*arguments, "--resume", "--seed", "1"]) == 2
    assert "begun with seed 0, not 1: give the same again" in capsys.readouterr().err
    assert curve(folder) == before
    assert (folder / f"step_{STEPS}" / "model.safetensors").read_bytes() == weights


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["--rate", "nan"], "peak is nan: give a learning rate above 0, such as 1e-3"),
        (["--rate", "-1"], "peak is -1.0: give a learning rate above 0"),
        (
            ["--warmup", "999"],
            "warmup is 999 steps and the run has only 82 before its rate falls or it ends: shorten",
        ),
        (["--tokens", "511"], "tokens is 511, less than one step of 512: give more"),
        (["--batch-size", "500"], "batch_size is 500 and there are"),
        (["--batch-size", "0"], "batch_size is 0: take at least 1"),
        (["--optimizer", "sgd"], "optimizer 'sgd' is unknown: choose one of adamw, muon"),
        (["--width", "30"], "d_model 30 is not divisible by n_heads"),
        (["--layers", "0"], "n_layers"),
        (["--dropout", "nan"], "dropout is nan: give a probability of at least 0 and below 1"),
        (["--keep", "0"], "keep is 0: the last checkpoint at least must stay"),
        (["--device", "tpu"], "device 'tpu' is unknown: choose one of cpu, cuda, mps"),
        (["--resume"], "holds no checkpoint to go on from: start without --resume"),
        (["--text", "none.txt"], "none.txt"),
        (["--from", "no_folder"], "no_folder"),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, list) else "",
)
def test_a_run_that_cannot_be_is_refused_in_one_line_and_nothing_is_made(changes, words, text, tmp_path, capsys):
    tokens = ["--tokens", "300k"] if "500" in changes else []
    out = tmp_path / "out"
    assert cli.main([*SMALL, "--text", str(text), "--out", str(out), *tokens, *changes]) == 2
    said, errors = capsys.readouterr()
    last = errors.splitlines()[-1]
    assert last.startswith("course pretrain: ") and words in last
    assert said == "" and not out.exists()


def test_an_unknown_recipe_is_refused_with_those_that_are_there(tmp_path, capsys):
    assert cli.main(["pretrain", "gpt", "--out", str(tmp_path / "out")]) == 2
    errors = capsys.readouterr().err
    assert errors == "course pretrain: recipe 'gpt' is unknown: choose one of decoder, encoder, encoder_longer\n"
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_a_file_is_refused_and_left_as_it_is(text, tmp_path, capsys):
    (tmp_path / "out").write_text("mine")
    assert cli.main([*SMALL, "--text", str(text), "--out", str(tmp_path / "out")]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("course pretrain: ") and str(tmp_path / "out") in last
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize("option", ["--tokens", "--width", "--seed", "--save-every"])
@pytest.mark.parametrize("count", ["8G", "-3", "1.5", "k", "nan"])
def test_a_count_that_is_none_is_refused(option, count, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["pretrain", "decoder", "--out", "x", f"{option}={count}"])
    assert end.value.code == 2
    assert f"{count} is no count: give a whole number, such as 64, 500k or 8M" in capsys.readouterr().err


def test_counts_may_be_written_short():
    assert [cli._count(text) for text in ("64", "500k", "3K", "8M", "1m")] == [64, 500_000, 3_000, 8_000_000, 1_000_000]


def test_a_second_interrupt_stops_at_once_and_the_handlers_come_back(capsys):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with cli._interrupt_noted() as noted:
        signal.raise_signal(signal.SIGTERM)
        assert noted == [signal.SIGTERM]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert "once more stops at once" in capsys.readouterr().err
