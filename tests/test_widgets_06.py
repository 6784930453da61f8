"""The explorer of chapter 6: which tokens surprise a decoder less as it reads on."""

import numpy as np
import pytest
import torch
from pictures import assert_readable, reader
from tiny import CONFIG

from course_lib.data import course_tokenizer, reviews_of
from course_lib.evaluation import stream_nats
from course_lib.model import Decoder
from course_lib.training import new_model
from course_lib.widgets.binder import sweep
from course_lib.widgets.surprise import (
    MOST_TOKENS,
    Surprise,
    SurpriseBench,
    describe_surprise,
    draw_surprise,
    surprise_explorer,
)

TEXTS = [review.text for review in reviews_of("dev", "rotten_tomatoes")[:2]]


@pytest.fixture(scope="module")
def snapshots():
    return {read: new_model(Decoder, CONFIG, seed=read, device="cpu").eval() for read in (0, 500, 1000)}


@pytest.fixture(scope="module")
def bench(snapshots):
    return SurpriseBench(snapshots, TEXTS, course_tokenizer())


def test_the_bars_are_what_the_model_pays_for_each_token(bench, snapshots):
    surprise = bench.compute(1000, TEXTS[0])
    ids = [course_tokenizer().vocabulary.bos, *course_tokenizer().encode(TEXTS[0])[:MOST_TOKENS]]
    assert np.array_equal(surprise.after_T, stream_nats(snapshots[1000], torch.tensor(ids)))
    assert np.array_equal(surprise.before_T, stream_nats(snapshots[0], torch.tensor(ids)))
    assert len(surprise.tokens) == len(surprise.after_T) == len(ids) - 1
    assert not np.array_equal(surprise.after_T, surprise.before_T)


def test_before_any_reading_nothing_has_changed(bench):
    surprise = bench.compute(0, TEXTS[1])
    assert np.array_equal(surprise.after_T, surprise.before_T)
    assert "0 of" in describe_surprise(surprise)


def test_the_picture_shows_every_token_and_can_be_read(bench, monkeypatch):
    surprise = bench.compute(500, TEXTS[0])
    figure, words = reader(monkeypatch)(draw_surprise, surprise)
    assert_readable(figure, words)
    bars = figure.axes[0].patches
    assert [bar.get_width() for bar in bars] == pytest.approx(surprise.after_T.tolist())
    legend = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert set(legend) == {"now: after 500 tokens", "before reading"}


@pytest.mark.parametrize("dearest", [3.0, 12.0, 40.0])
def test_no_mark_lies_on_the_edge_or_outside(dearest):
    surprise = Surprise(("a", "b"), np.array([1.0, dearest]), np.array([2.0, 1.0]), 10)
    assert draw_surprise(surprise).axes[0].get_xlim()[1] > 1.04 * dearest


def test_every_setting_of_the_explorer_is_well(snapshots):
    box = surprise_explorer(snapshots, TEXTS, course_tokenizer())
    assert sweep(box) == 5
    assert box.value.read == 1000 and "1,000" in box.words.value


@pytest.mark.parametrize(("read", "text"), [(7, 0), (500, None)])
def test_what_is_not_there_is_refused(bench, read, text):
    with pytest.raises(ValueError, match="choose from the lists"):
        bench.compute(read, "another" if text is None else TEXTS[text])


def test_a_bench_needs_the_beginning_and_a_text(snapshots):
    for models, texts in (({500: snapshots[500]}, TEXTS), (snapshots, [])):
        with pytest.raises(ValueError, match="snapshot of 0 tokens"):
            SurpriseBench(models, texts, course_tokenizer())
