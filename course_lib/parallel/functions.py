"""A function of a notebook, called on ranks: its source is written into a program that torchrun starts."""

import inspect
import json
import tempfile
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from course_lib.parallel.launch import torchrun

PROGRAM = """
import gc

gc.disable()  # while torch is imported, which leaves no garbage, and takes a fifth longer if that is looked for

{sources}


def _main():
    import json
    from pathlib import Path

    from course_lib.parallel import rank, ranks

    gc.enable()
    folder = Path({folder!r})
    with ranks():
        result = {name}(**json.loads((folder / "arguments.json").read_text("utf-8")))
        (folder / f"{{rank()}}.json").write_text(json.dumps(result), "utf-8")


if __name__ == "__main__":
    from torch.distributed.elastic.multiprocessing.errors import record

    from course_lib.parallel import leave

    record(_main)()  # notes the traceback of a rank that fails
    leave()
"""


def run_on_ranks(
    function: Callable[..., Any],
    *,
    helpers: Sequence[Callable[..., Any] | type] = (),
    ranks: int = 2,
    device: str = "cpu",
    show: Callable[[str], None] = print,
    **arguments: Any,
) -> list[Any]:
    """Call a function on every rank: what each of them has given back, rank 0 first.

    Only the source travels, that of the function and of its helpers: they import inside their bodies what they need.
    Arguments and results travel as JSON: numbers, texts, lists, dicts. The ranks compute on the CPU, of which every
    machine has enough for several, and see no GPU, unless `device` is "cuda".
    Raises ValueError for a function without readable source, such as a lambda, and arguments that are no JSON; besides
    what `torchrun` raises.

    >>> def greet(word):
    ...     from course_lib.parallel import rank, world
    ...     return f"{word} from rank {rank()} of {world()}"
    >>> run_on_ranks(greet, word="hello")  # doctest: +SKIP
    ['hello from rank 0 of 2', 'hello from rank 1 of 2']
    """
    sources = "\n\n".join(_source(one) for one in (*helpers, function))
    with tempfile.TemporaryDirectory(prefix="function_") as name:
        folder = Path(name)
        try:
            (folder / "arguments.json").write_text(json.dumps(arguments), "utf-8")
        except TypeError as error:
            raise ValueError(f"arguments must be numbers, texts, lists or dicts, and {error}") from None
        program = PROGRAM.format(sources=sources, name=function.__name__, folder=name)
        (folder / "program.py").write_text(program, "utf-8")
        torchrun([folder / "program.py"], ranks=ranks, device=device, show=show)
        return [json.loads((folder / f"{number}.json").read_text("utf-8")) for number in range(ranks)]


def _source(one: Callable[..., Any] | type) -> str:
    if getattr(one, "__name__", "<lambda>") == "<lambda>":
        raise ValueError(f"{one!r} has no name to be called by on a rank: define it with def")
    try:
        return textwrap.dedent(inspect.getsource(one))
    except (OSError, TypeError):
        raise ValueError(f"the source of {one.__name__} cannot be read: define it in a cell or in a file") from None
