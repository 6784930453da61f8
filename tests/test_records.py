"""Rows that survive a crash, are never written twice, and always say where they come from."""

import json
import math

import numpy as np
import pytest
import torch

from course_lib.records import KEYS, Record


def row(step=1, **changes):
    return {"name": "masked", "seed": 0, "step": step, "metric": "loss", **changes}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "records" / "run.jsonl"


@pytest.fixture
def record(path):
    record = Record(path, command="course record run", about={"corpus": "abc"})
    for step in (1, 2, 3):
        record.add(**row(step), value=10.0 / step)
    return record


def kept(path):
    return [(r["step"], r["value"]) for r in Record(path).rows()]


THREE = [(1, 10.0), (2, 5.0), (3, 10.0 / 3)]


def test_rows_come_back_exactly_as_they_were_added(record, path):
    assert kept(path) == THREE
    assert Record(path).rows()[0] == {**row(1), "value": 10.0, "by": 0}


@pytest.mark.parametrize("lost", [1, 2, 20, -1])
def test_a_crash_costs_the_last_row_at_most_and_the_next_writer_makes_it_again(record, path, lost):
    """Cut off anywhere in the last line, down to its first character and the line break alone."""
    whole = path.read_bytes()
    last = whole[:-1].rfind(b"\n") + 1
    cut = whole[: len(whole) - lost] if lost > 0 else whole[: last + 1]
    path.write_bytes(cut)
    assert kept(path) in (THREE[:2], THREE)
    again = Record(path, command="second")
    for step in (1, 2, 3):
        again.add(**row(step), value=10.0 / step)
    assert kept(path) == THREE
    for line in path.read_text().splitlines():
        json.loads(line)


def test_a_provenance_that_a_crash_cut_off_is_written_again(record, path):
    Record(path, command="second").add(**row(4), value=1.0)
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:-1])[:-5])
    Record(path, command="third").add(**row(4), value=1.0)
    assert [p["command"] for p in Record(path).provenance()] == ["course record run", "third"]
    assert [r["by"] for r in Record(path).rows()] == [0, 0, 0, 1]


@pytest.mark.parametrize(
    "damage", ['{"name": "masked", "se', "[1, 2]", "7", '{"name": "masked"}', "<<<<<<< HEAD"], ids=lambda d: d[:9]
)
def test_a_damaged_line_is_named_and_nothing_is_added_to_it(record, path, damage):
    lines = path.read_text().splitlines()
    lines[2] = damage
    path.write_text("\n".join(lines) + "\n")
    before = path.read_bytes()
    for use in (Record(path).rows, Record(path).provenance, lambda: Record(path).add(**row(9), value=1.0)):
        with pytest.raises(ValueError, match=r"run\.jsonl, line 3, is damaged: remove it and record it again"):
            use()
    assert path.read_bytes() == before


def test_empty_lines_and_those_of_windows_are_no_damage(record, path):
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n") + b"\n")
    assert kept(path) == THREE


def test_a_measurement_is_written_once_by_however_many_writers(record, path):
    before = path.read_bytes()
    record.add(**row(2), value=99.0)
    later = Record(path)
    later.add(**row(2), value=99.0)
    later.add(**row(3), value=99.0, note="more does not make it another measurement")
    assert path.read_bytes() == before
    for other in (row(4), row(2, seed=1), row(2, name="causal"), row(2, metric="held_out")):
        assert not later.has(**other)
        later.add(**other, value=1.0)
        assert later.has(**other)
    assert len(Record(path).rows()) == 7


def test_values_by_step_and_seed_pair_what_two_names_were_measured_at(path):
    record = Record(path)
    for name, seed, step, value in [("b", 1, 2, 0.1), ("a", 1, 2, 0.9), ("a", 0, 2, 0.3), ("b", 0, 2, 0.2),
                                    ("a", 0, 1, 0.5)]:  # fmt: skip
        record.add(name=name, seed=seed, step=step, metric="accuracy", value=value)
    a, b = (record.by_step("accuracy", name=name) for name in "ab")
    assert list(a) == [1, 2] and a == {1: {0: 0.5}, 2: {0: 0.3, 1: 0.9}} and b == {2: {0: 0.2, 1: 0.1}}
    assert [list(by_step[2]) for by_step in (a, b)] == [[0, 1]] * 2
    assert [v for _, v in record.values("accuracy", name="b")] == [0.1, 0.2]  # the control: these are sorted by value


def test_rows_that_share_step_and_seed_are_not_mixed_up(record, path):
    record.add(**row(2, name="causal"), value=7.0)
    with pytest.raises(ValueError, match=r"several rows .* at step 2, seed \d+: say which, such as name='"):
        record.by_step(row(2)["metric"])
    with pytest.raises(ValueError, match="has no row of metric 'nothing'"):
        record.by_step("nothing")


def test_every_sitting_says_where_its_rows_come_from_and_one_that_writes_nothing_says_nothing(record, path):
    Record(path, command="looks only").has(**row(1))
    Record(path, command="has nothing new").add(**row(1), value=3.0)
    Record(path, command="second").add(**row(4), value=2.5)
    first, second = Record(path).provenance()
    assert (first["command"], first["corpus"]) == ("course record run", "abc")
    assert second["command"] == "second"
    assert {"date", "commit", "machine"} <= first.keys()
    assert first["machine"]["torch"] == torch.__version__.split("+")[0]
    assert [r["by"] for r in Record(path).rows()] == [0, 0, 0, 1]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float32("nan")])
def test_a_value_that_is_no_finite_number_is_refused_before_anything_is_written(path, value):
    with pytest.raises(ValueError, match=r"value is (nan|inf|-inf): a row holds a finite number"):
        Record(path).add(**row(), value=value)
    assert not path.exists()


@pytest.mark.parametrize("wrong", [{"note": math.nan}, {"note": torch.ones(2)}])
def test_what_cannot_be_written_is_refused_before_anything_is(path, wrong):
    with pytest.raises((ValueError, TypeError)):
        Record(path).add(**row(), **wrong, value=1.0)
    assert not path.exists()


@pytest.mark.parametrize("missing", KEYS)
def test_a_row_needs_all_its_keys(path, missing):
    keys = {key: value for key, value in row().items() if key != missing}
    for use in (Record(path).has, lambda **more: Record(path).add(**more, value=1.0)):
        with pytest.raises(ValueError, match=f"a row needs '{missing}': give name, seed, step, metric"):
            use(**keys)
    assert not path.exists()


@pytest.mark.parametrize("value", [np.float64(2.5), np.float32(2.5), torch.tensor(2.5), 2.5])
def test_numbers_of_any_library_become_plain_ones(path, value):
    Record(path).add(**row(), value=value)
    assert Record(path).rows()[0]["value"] == 2.5


def test_values_are_those_that_agree_sorted_by_step(record):
    record.add(**row(1, seed=1), value=7.0)
    record.add(**row(0), value=8.0)
    record.add(**row(5, metric="held_out"), value=9.0)
    assert record.values("loss", name="masked", seed=0) == [(0, 8.0), *THREE]
    assert record.values("loss", seed=1) == [(1, 7.0)]
    with pytest.raises(ValueError, match=r"run\.jsonl has no row of metric 'bpb' with {'seed': 0}"):
        record.values("bpb", seed=0)


def test_a_record_that_is_not_there_is_missed_by_readers_and_begun_by_writers(path):
    for use in (Record(path).rows, Record(path).provenance):
        with pytest.raises(FileNotFoundError, match=r"run\.jsonl is not there"):
            use()
    assert not Record(path).has(**row())
    assert not path.exists()


def test_rows_are_dropped_with_what_said_where_they_came_from(record, path):
    later = Record(path, command="another sitting")
    later.add(**row(4), value=1.0)
    for step in (1, 2, 3):
        record.drop(step=step)
    assert kept(path) == [(4, 1.0)]
    assert [sitting["command"] for sitting in Record(path).provenance()] == ["another sitting"]
    third = Record(path, command="a third")  # takes no number of a sitting that is still named
    third.add(**row(1), value=2.0)
    assert [(r["step"], r["by"]) for r in Record(path).rows()] == [(4, 1), (1, 2)]


def test_what_was_dropped_can_be_written_again_by_the_same_writer(record, path):
    record.drop(name="masked", step=2)
    assert not record.has(**row(2)) and record.has(**row(3))
    record.add(**row(2), value=7.0)
    assert sorted(kept(path)) == [THREE[0], (2, 7.0), THREE[2]]


def test_dropping_nothing_in_particular_is_refused(record, path):
    record.drop(name="another")
    assert kept(path) == THREE
    with pytest.raises(ValueError, match="give at least one field"):
        record.drop()
    assert kept(path) == THREE
