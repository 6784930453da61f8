"""Rows of tests/test_bad_input.py's table for the folders of runs: exporting them, and reporting on them."""

import json

from course_lib.files import write_atomically
from course_lib.runs import export, write_page


def holding(act, *names, **settings):
    """Do it to a folder that holds empty files of these names, and settings.json where there are settings."""

    def do(folder):
        for name in names:
            write_atomically(folder / "run" / name, "")
        if settings:
            write_atomically(folder / "run" / "settings.json", json.dumps(settings))
        (folder / "run").mkdir(exist_ok=True)
        return act(folder)

    return do


def exported(folder):
    return export(folder / "run", folder / "out")


def exported_onto_a_file(folder):
    write_atomically(folder / "note", "here")
    return export(folder / "run", folder / "note")


def measured(metrics):
    """The page of a run whose metrics.json holds this."""

    def show(folder):
        write_atomically(folder / "run" / "metrics.json", json.dumps(metrics))
        return shown(folder)

    return holding(show, kind="classification")


def shown(folder):
    return write_page(folder / "run", folder / "out.html")


def shown_in_a_folder(folder):
    return write_page(folder / "run", folder)


REFUSED_RUNS = [
    ("export of a folder that is not there", exported, "run is not there: check the name"),
    ("export of no run", holding(exported, "holiday.png"), ("holds no run", "`course pretrain` or `course finetune`")),
    ("export of a run that goes on", holding(exported, "record.jsonl"), ("is not finished", "--resume")),
    ("export of a run cut off", holding(exported, "metrics.json", "report.md"), ("was cut off", "fine-tune again")),
    ("export of a damaged run", holding(exported, kind="classification"), "settings.json is damaged ('base')"),
    ("export onto a file", holding(exported_onto_a_file, "record.jsonl"), "note is not empty: choose another folder"),
    ("page of a folder that is not there", shown, "run is not there: check the name"),
    ("page of no run", holding(shown, "holiday.png"), ("holds no run", "`course pretrain` or `course finetune`")),
    ("page of a run that goes on", holding(shown, "step_3/state.pt"), ("is not finished", "--resume")),
    ("page of a run cut off", holding(shown, "report.md"), ("was cut off", "fine-tune again")),
    ("page of a run without its numbers", holding(shown, kind="classification"), "metrics.json is not there"),
    ("page of damaged numbers", holding(shown, "metrics.json", kind="instructions"), "metrics.json is damaged"),
    ("page of numbers of nothing", measured({"kind": "classification"}), ("metrics.json is damaged", "fine-tune")),
    ("page onto a folder", holding(shown_in_a_folder, kind="instructions"), "is a folder: name a file for the page"),
]
