"""The implementations behind the course: how language models are pre-trained and fine-tuned.

The modules lie in layers, and each imports only from the layers below its own: at the bottom what knows no
model (`runtime`, `files`, `vocabulary`, `masks`), then objectives, data and models, then training and
evaluation, whole runs, and on top the widgets, checks and commands. Import what you need by its module,
`from course_lib.objectives import ...`; the package itself imports none of them.
"""

import os
from pathlib import Path

__version__ = "0.1.0"

COURSE = Path(__file__).resolve().parents[1]
WORK = COURSE / "work" if (COURSE / "notebooks").is_dir() else None  # None: installed without the repository
if WORK:  # matplotlib lists a machine's fonts: in the course's folder, not in your home
    os.environ.setdefault("MPLCONFIGDIR", str(WORK / ".jupyter" / "matplotlib"))
