"""`course finetune` and `course predict`: one's own texts, or the packaged ones, from the file to a report and a
directory that predicts."""

from course_lib.runs.finetuning.reports import Report
from course_lib.runs.finetuning.run import FineTune, finetune
from course_lib.runs.finetuning.tuned import Prediction, TunedClassifier, TunedWriter, answer_lines, load_tuned

__all__ = [
    "FineTune",
    "Prediction",
    "Report",
    "TunedClassifier",
    "TunedWriter",
    "answer_lines",
    "finetune",
    "load_tuned",
]
