"""A function that travels to ranks by its source: what comes back, and what is refused before anything is started."""

import linecache

import pytest

from course_lib.parallel import run_on_ranks

slow = pytest.mark.slow


def double(number):
    return 2 * number


def tell(words, number):
    from course_lib.parallel import rank, summed, world

    print(f"rank {rank()} says {words['it']}", flush=True)
    return [rank(), world(), summed(rank() + number), double(number)]


def fail_on_one():
    from course_lib.parallel import barrier, rank

    if rank() == 1:
        raise ValueError("this rank has no rows")
    barrier()


def abort_while_python_ends():
    import atexit
    import os

    atexit.register(os.abort)  # as torch now and then does
    print("done", flush=False)
    return 7


@slow
def test_every_rank_calls_the_function_with_its_helpers_and_gives_back_what_it_returns():
    lines = []
    results = run_on_ranks(tell, helpers=[double], ranks=3, show=lines.append, words={"it": "é"}, number=5)
    assert results == [[rank, 3, 18.0, 10] for rank in range(3)]
    assert sorted(line for line in lines if line.startswith("rank")) == [f"rank {n} says é" for n in range(3)]


def what_is_seen():
    import os

    from course_lib.runtime import pick_device

    return [os.environ.get("CUDA_VISIBLE_DEVICES"), pick_device().type]


@slow
def test_ranks_see_no_gpu_unless_they_are_to_compute_there(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert run_on_ranks(what_is_seen, ranks=1) == [["", "cpu"]]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(RuntimeError, match="device 'cuda' is not on this machine"):
        run_on_ranks(what_is_seen, ranks=1, device="cuda")


@slow
def test_the_traceback_is_that_of_the_rank_that_failed():
    with pytest.raises(RuntimeError) as caught:
        run_on_ranks(fail_on_one, show=lambda line: None)
    assert str(caught.value).splitlines()[-1] == "ValueError: this rank has no rows"
    assert "in fail_on_one" in str(caught.value)


@slow
def test_a_rank_that_has_given_back_its_result_has_not_failed():
    lines = []
    assert run_on_ranks(abort_while_python_ends, show=lines.append) == [7, 7]
    assert lines.count("done") == 2


@slow
def test_a_function_of_a_notebook_s_cell_travels_too():
    source = "def in_a_cell(n):\n    from course_lib.parallel import rank\n    return n + rank()\n"
    linecache.cache["<cell>"] = (len(source), None, source.splitlines(keepends=True), "<cell>")
    names = {}
    exec(compile(source, "<cell>", "exec"), names)
    assert run_on_ranks(names["in_a_cell"], ranks=1, n=4) == [4]


def test_what_cannot_travel_is_refused_before_a_rank_is_started():
    with pytest.raises(ValueError, match="has no name to be called by on a rank: define it with def"):
        run_on_ranks(lambda: 0)
    with pytest.raises(ValueError, match="the source of print cannot be read: define it in a cell or in a file"):
        run_on_ranks(print)
    with pytest.raises(ValueError, match=r"arguments must be numbers, texts, lists or dicts, and .*set"):
        run_on_ranks(double, number={1})
    with pytest.raises(ValueError, match="ranks is 0"):
        run_on_ranks(double, ranks=0, number=1)
