"""Whole runs from a config: what notebooks, the command line and ranks all call.

A run's module is imported when one of its names is first asked for: ranks start anew again and again, and a rank that
pre-trains need not wait for what draws reports.
"""

import importlib
from typing import Any

_HOMES = {
    "exporting": ("export",),
    "finetuning": (
        *("FineTune", "Prediction", "Report", "TunedClassifier", "TunedWriter"),
        *("answer_lines", "finetune", "load_tuned"),
    ),
    "laboratory": ("Laboratory",),
    "pages": ("write_page",),
    "pretraining": ("pretrain", "report"),
    "probe": ("SentenceProbe", "SentimentProbe"),
    "teaching": ("Taught", "bag_of_words", "frozen", "teach"),
    "recipes": ("RECIPES", "Pretraining", "recipe"),
    "recording": ("RECORDERS", "RECORDS_FOLDER", "record", "record_objectives"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
