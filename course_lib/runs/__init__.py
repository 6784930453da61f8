"""Whole runs from a config: what notebooks, the command line and, later, ranks all call."""

from course_lib.runs.finetuning import (
    FineTune,
    Prediction,
    Report,
    TunedClassifier,
    TunedWriter,
    answer_lines,
    finetune,
    load_tuned,
)
from course_lib.runs.laboratory import Laboratory, training_rows
from course_lib.runs.pretraining import pretrain, report
from course_lib.runs.probe import SentimentProbe
from course_lib.runs.recipes import RECIPES, Pretraining, recipe
from course_lib.runs.recording import RECORDERS, RECORDS_FOLDER, record, record_objectives

__all__ = [
    "RECIPES",
    "RECORDERS",
    "RECORDS_FOLDER",
    "FineTune",
    "Laboratory",
    "Prediction",
    "Pretraining",
    "Report",
    "SentimentProbe",
    "TunedClassifier",
    "TunedWriter",
    "answer_lines",
    "finetune",
    "load_tuned",
    "pretrain",
    "recipe",
    "record",
    "record_objectives",
    "report",
    "training_rows",
]
