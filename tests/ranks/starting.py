"""How tests start the programs of this folder on ranks."""

import os
from pathlib import Path
from unittest import mock

import course_lib
from course_lib.parallel import torchrun

HERE = Path(__file__).parent
SEARCHED = os.pathsep.join([str(HERE.parent), str(Path(course_lib.__file__).parent.parent)])


def start(program, *arguments, ranks=2, **more) -> list[str]:
    """Run ranks/PROGRAM.py on ranks; the lines that they wrote."""
    lines = []
    with mock.patch.dict(os.environ, PYTHONPATH=SEARCHED, TOKENIZERS_PARALLELISM="false"):
        torchrun(["-m", f"ranks.{program}", *arguments], ranks=ranks, **({"show": lines.append} | more))
    return lines
