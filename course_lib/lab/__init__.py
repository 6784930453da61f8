"""The chapters in your hands: copies to work in, JupyterLab on loopback, and a run of every chapter without a browser.

Everything lies in the course's folder, nothing in your home: `work/` holds the learner's copies, `work/solutions/` the
solved exercises, `work/executed/` what `course run` computed, `work/.jupyter/` the settings of this JupyterLab.
"""

from course_lib.lab.copies import Copy, prepare_copies
from course_lib.lab.execution import ChapterRun, execute, run_chapters
from course_lib.lab.exercises import Exercise, exercises, progress, progress_report, stamp
from course_lib.lab.folder import CourseFolder, private_environment
from course_lib.lab.server import RunningLab, jupyterlab, launch

__all__ = [
    "ChapterRun",
    "Copy",
    "CourseFolder",
    "Exercise",
    "RunningLab",
    "execute",
    "exercises",
    "jupyterlab",
    "launch",
    "prepare_copies",
    "private_environment",
    "progress",
    "progress_report",
    "run_chapters",
    "stamp",
]
