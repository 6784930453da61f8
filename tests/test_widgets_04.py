"""The explorers of chapter 4: what a token is drawn from, where a threshold lies, and a review of one's own."""

import math
from dataclasses import replace
from functools import cache, partial

import matplotlib.pyplot
import numpy as np
import pytest
import torch
from few import few
from matplotlib.figure import Figure
from pictures import assert_readable, reader
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from tiny import shaken

from course_lib import plots
from course_lib.data import course_tokenizer
from course_lib.evaluation import at_threshold, explaining, first_tokens, fit_bag_of_words
from course_lib.finetuning import Classifier, predictions
from course_lib.generation import draw_tokens, generate, next_token_probabilities
from course_lib.layers import TransformerConfig
from course_lib.model import Decoder, Encoder
from course_lib.plots import Candidate, lay_out_contributions
from course_lib.plots.theme import BLUE, VERMILLION, Canvas
from course_lib.runtime import seeded
from course_lib.training import new_model
from course_lib.widgets.binder import sweep
from course_lib.widgets.generation import (
    DRAWN,
    OFF,
    SHOWN,
    STEPS,
    TOP_K,
    GenerationBench,
    describe_generation,
    draw_generation,
    generation_explorer,
)
from course_lib.widgets.own_review import (
    Judged,
    compute_judged,
    describe_judged,
    draw_judged,
    judge_with,
    judge_with_bag_of_words,
    review_explorer,
)
from course_lib.widgets.threshold import (
    BINS,
    GRID_T,
    LOOKS,
    ThresholdBench,
    describe_threshold,
    draw_threshold,
    threshold_explorer,
)

TOKENIZER = course_tokenizer()
VOCABULARY = TOKENIZER.vocabulary
CONFIG = TransformerConfig(VOCABULARY.size, 16, 2, 2, 24, 128)
PROMPTS = {"a film": "this movie was so bad that", "nothing": "", "long": "an unforgettable film, " * 15}


# --- what can be read in a picture ------------------------------------------------------------------------------------


@pytest.fixture
def reading(monkeypatch):
    return reader(monkeypatch)


def test_words_that_leave_the_picture_or_cover_each_other_would_be_noticed(reading):
    def draw(*places):
        figure = Figure(figsize=(3, 1))
        Canvas(figure, 4, 4).write_all(places, align=0)
        plots.write(figure, 8, 40, "a title")
        return figure

    assert_readable(*reading(draw, (0, 10, "words"), (60, 10, "others")))
    with pytest.raises(AssertionError, match="leaves the picture"):
        assert_readable(*reading(draw, (190, 10, "too far")))
    for wrong in ((20, 12, "over"), (10, 47, "the title")):
        with pytest.raises(AssertionError):
            assert_readable(*reading(draw, (0, 10, "words"), wrong))


# --- what the next token is drawn from --------------------------------------------------------------------------------


@cache
def decoder():
    return shaken(new_model(Decoder, CONFIG, device="cpu"), 0.3).eval()


@cache
def writing():
    return GenerationBench(decoder(), TOKENIZER, PROMPTS)


def with_logits(logits_V):
    """A bench whose model says this after whatever is written."""
    bench = GenerationBench(decoder(), TOKENIZER, {"a film": "a film"})
    new, _ = writing().path("a film")
    bench.path = lambda _prompt: (new, logits_V.expand(STEPS + 1, -1))
    return bench


def crafted(**probabilities):
    """Logits of a few tokens by name, the rest of the probability spread over all others."""
    share = (1 - sum(probabilities.values())) / (VOCABULARY.size - len(probabilities))
    probability_V = torch.full((VOCABULARY.size,), share, dtype=torch.float64)
    for word, probability in probabilities.items():
        probability_V[ID_OF[word]] = probability
    return probability_V.log().float()


ID_OF = {word: TOKENIZER.encode(f" {word}")[0] for word in ("good", "bad", "long", "funny")}
ID_OF |= {"pad": VOCABULARY.pad, "eos": VOCABULARY.eos}


@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_path_holds_what_the_model_says_behind_each_of_its_tokens(prompt):
    new, logits_SV = writing().path(prompt)
    ids = [VOCABULARY.bos, *TOKENIZER.encode(PROMPTS[prompt])]
    assert len(new) == STEPS and logits_SV.shape == (STEPS + 1, VOCABULARY.size)
    for written in (0, 1, STEPS):
        with torch.no_grad():
            wanted_V = decoder()(torch.tensor([[*ids, *new[:written]]])).logits[0, -1]
        assert torch.allclose(logits_SV[written], wanted_V, atol=1e-4)
    assert not torch.allclose(logits_SV[1], logits_SV[0], atol=1e-2)  # negative control


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.5}, {"top_k": 5}, {"temperature": 1.6, "top_p": 0.3}], ids=str
)
def test_bars_are_the_models_own_probabilities_and_those_that_generate_draws_from(options):
    view, logits_SV = writing().compute(written=3, **options), writing().path("a film")[1]
    own_V = logits_SV[3].double().softmax(-1)
    may_come_V = VOCABULARY.is_ordinary_V.clone()
    may_come_V[VOCABULARY.eos] = True
    drawn_V = next_token_probabilities(logits_SV[3][None], allowed_V=may_come_V, **options)[0]
    best = own_V.topk(SHOWN)
    assert [c.own for c in view.candidates] == pytest.approx(best.values.tolist(), rel=1e-6)
    assert [c.drawn for c in view.candidates] == pytest.approx(drawn_V[best.indices].tolist(), rel=1e-9)
    assert [c.token for c in view.candidates] == [TOKENIZER.token(i) for i in best.indices.tolist()]
    assert (view.n_possible, view.n_tokens) == (int((drawn_V > 0).sum()), VOCABULARY.size)
    for p_V, bits in ((own_V, view.own_entropy), (drawn_V, view.entropy)):
        assert bits == pytest.approx(-sum(p * math.log2(p) for p in p_V.tolist() if p > 0), rel=1e-6)


def test_entropy_counts_the_choices_in_bits():
    flat = with_logits(torch.zeros(VOCABULARY.size))
    n_may_come = len(VOCABULARY.ordinary_ids) + 1  # [EOS]
    view = flat.compute()
    assert view.own_entropy == pytest.approx(math.log2(VOCABULARY.size))
    assert view.entropy == pytest.approx(math.log2(n_may_come)) and view.n_possible == n_may_come
    four = with_logits(crafted(good=0.2499, bad=0.2499, long=0.2499, funny=0.2499)).compute(top_k=4)
    assert four.entropy == pytest.approx(2) and four.n_possible == 4
    for settings in ({"temperature": 0.0}, {"top_k": 1}, {"top_p": 0.1}):
        view = with_logits(crafted(good=0.5, bad=0.2)).compute(**settings)
        assert (view.n_possible, view.entropy) == (1, 0)


def cuts(**settings):
    view = with_logits(crafted(pad=0.1, good=0.4, bad=0.2, long=0.15, funny=0.1, eos=0.04)).compute(**settings)
    return {c.token.strip(): c.cut for c in view.candidates[:6]}


def test_what_was_cut_says_by_which_option():
    """Of the ordinary tokens good has 0.4 / 0.9, bad 0.2 / 0.9, and so on: [PAD] never comes, and [EOS] does."""
    kept = {"[PAD]": "special", "good": "", "bad": "", "long": "", "funny": "", "[EOS]": ""}
    assert cuts() == kept
    assert cuts(top_k=3) == kept | {"funny": "top-k", "[EOS]": "top-k"}
    assert cuts(top_p=0.6) == kept | {"long": "top-p", "funny": "top-p", "[EOS]": "top-p"}
    assert cuts(top_k=3, top_p=0.6) == kept | {"long": "top-p", "funny": "top-k", "[EOS]": "top-k"}
    assert set(cuts(temperature=0.0).values()) == {"special", "", "temp."} and cuts(temperature=0.0)["good"] == ""


def test_a_continuation_is_what_generate_writes_and_begins_with_a_draw_from_the_picture():
    options = {"temperature": 0.9, "top_k": 40, "top_p": 0.8}
    new, logits_SV = writing().path("a film")
    ids = [VOCABULARY.bos, *TOKENIZER.encode(PROMPTS["a film"]), *new[:2]]
    for seed in (0, 1):
        view = writing().compute(written=2, seed=seed, **options)
        wanted = generate(decoder(), [ids], VOCABULARY, max_new_tokens=DRAWN, generator=seeded(seed), **options)[0]
        assert view.continuation == tuple(TOKENIZER.token(i) for i in wanted) and view.seed == seed
        drawn_V = next_token_probabilities(logits_SV[2][None], **options)
        first = draw_tokens(drawn_V, torch.rand(1, generator=seeded(seed), dtype=torch.float64)).item()
        assert view.continuation[0] == TOKENIZER.token(first)
    assert writing().compute(written=2, **options).continuation == ()
    assert view.written == tuple(TOKENIZER.token(i) for i in new[:2]) and view.before[0] == "[BOS]"


def test_a_text_that_the_model_ends_says_so(reading):
    ends = shaken(new_model(Decoder, CONFIG, device="cpu"), 0.0).eval()
    bench = GenerationBench(ends, TOKENIZER, {"a film": "a film"})
    view = bench.compute(seed=0)
    assert not view.has_ended and len(view.continuation) == DRAWN
    ended = replace(view, continuation=(), has_ended=True)
    for one in (ended, replace(view, continuation=view.continuation[:3], has_ended=True)):
        figure, words = reading(draw_generation, one)
        assert_readable(figure, words)
        assert "[EOS]" in [text for text, _ in words]


def test_moving_the_options_asks_the_model_nothing():
    model = new_model(Decoder, CONFIG, device="cpu").eval()
    bench, calls = GenerationBench(model, TOKENIZER, PROMPTS), []
    model.register_forward_hook(lambda *_: calls.append(1))
    bench.compute()
    asked = len(calls)
    for settings in ({"temperature": 0.3}, {"top_k": 5}, {"top_p": 0.4}, {"written": 7}):
        bench.compute(**settings)
    assert len(calls) == asked > 0
    bench.compute(seed=0)
    bench.compute("nothing")
    assert len(calls) > asked  # negative control


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"prompt": "a book"}, "prompt 'a book' is not there: choose one of a film, nothing, long"),
        ({"written": STEPS + 1}, "written is 21: choose from 0 to 20"),
        ({"temperature": -1.0}, "temperature is -1"),
        ({"top_p": 0.0}, "top_p is 0"),
        ({"top_k": -2}, "top_k is -2"),
    ],
)
def test_settings_that_are_not_there_are_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        writing().compute(**wrong)


@pytest.mark.parametrize(
    ("prompts", "words"),
    [({}, "prompts are empty"), ({"novel": "a good film " * 60}, "prompt 'novel' has .* tokens: shorten it to 88")],
)
def test_prompts_without_room_are_refused(prompts, words):
    with pytest.raises(ValueError, match=words):
        GenerationBench(decoder(), TOKENIZER, prompts)


DRAWN_WITH = [{}, {"temperature": 0.0}, {"top_k": 3, "top_p": 0.5, "seed": 1, "written": STEPS},
              {"temperature": 2.0, "prompt": "long", "seed": 0, "written": 3}, {"prompt": "nothing"}]  # fmt: skip


@pytest.mark.parametrize("settings", few(DRAWN_WITH, DRAWN_WITH[2]), ids=str)
def test_the_picture_of_the_next_token_can_be_read(reading, settings):
    view = writing().compute(**settings)
    figure, words = reading(draw_generation, view)
    assert_readable(figure, words)
    texts = [text for text, _ in words]
    assert any(f"{view.n_possible:,} of {view.n_tokens:,} possible, {view.entropy:.2f} bits" in text for text in texts)
    assert sum(text.startswith("× ") for text in texts) == sum(c.cut != "" for c in view.candidates)
    assert any("seed 1" in text for text in texts) == (settings.get("seed") == 1)


def test_names_numbers_and_bars_at_their_widest_can_be_read(reading):
    rows = [Candidate(" extraordinarily long-winded", 0.9999, 1.0), Candidate("\n", 1e-5, 0.0, "special"),
            *[Candidate(" the", 1e-9, 0.0, "top-p")] * (SHOWN - 2)]  # fmt: skip
    view = replace(writing().compute(), candidates=tuple(rows), entropy=12.97, own_entropy=12.97)
    assert_readable(*reading(draw_generation, view))


def bars_of(figure):
    """Lengths of the bars of each kind, in points."""
    kinds = [c for c in figure.artists if type(c).__name__ == "PolyCollection"][:3]
    return [[path.vertices[:, 0].max() - path.vertices[:, 0].min() for path in kind.get_paths()] for kind in kinds]


def test_bars_are_as_long_as_their_numbers_and_the_cut_ones_are_hatched():
    view = with_logits(crafted(good=0.4, bad=0.2, long=0.15, funny=0.1)).compute(top_k=2)
    figure = draw_generation(view)
    own, cut, drawn = bars_of(figure)
    assert len(own) == 2 and len(cut) == SHOWN - 2 and len(drawn) == SHOWN
    assert own[0] / own[1] == pytest.approx(2, rel=1e-3)
    assert drawn[0] / own[0] == pytest.approx(view.candidates[0].drawn / view.candidates[0].own, rel=1e-6)
    assert drawn[2:] == [0] * (SHOWN - 2)
    kinds = [c for c in figure.artists if type(c).__name__ == "PolyCollection"][:3]
    assert [bool(kind.get_hatch()) for kind in kinds] == [False, True, False]


def test_the_words_of_the_next_token_say_what_the_picture_shows():
    view = writing().compute(top_k=3, seed=1)
    said = describe_generation(view)
    parts = (
        "that”",
        "3 tokens are possible",
        f"{view.entropy:.2f} bits",
        f"{view.candidates[0].own:.1%}",
        "cut by top-k",
    )
    for part in (*parts, f"seed 1:{view.continuation[0]}"):
        assert part in said
    assert "seed" not in describe_generation(writing().compute())


@pytest.mark.slow
def test_a_continuation_comes_when_asked_for_and_goes_when_the_options_move():
    box = generation_explorer(decoder(), TOKENIZER, PROMPTS)
    write, another = box.controls["seed"], box.controls["another"]
    assert box.value.seed is None and box.value.continuation == ()
    write.click()
    first = box.value
    assert first.seed == 0 and len(first.continuation) == DRAWN
    write.click()
    assert box.value.continuation == first.continuation
    another.click()
    assert box.value.seed == 1 and box.value.continuation != first.continuation
    box.controls["temperature"].value = 0.3
    assert box.value.seed is None and box.value.continuation == ()
    write.click()
    assert box.value.seed == 1  # the same random numbers under other options
    assert box.banner.value == ""


# --- a threshold ------------------------------------------------------------------------------------------------------


def texts_judged(dtype=np.float64, count=300):
    """Probabilities, many of them exactly where the slider can stand, and labels that they say something of."""
    draw = np.random.default_rng(0)
    labels_N = draw.integers(2, size=count)
    probability_N = np.clip(draw.normal(0.35 + 0.3 * labels_N, 0.25), 0, 1)
    probability_N[::2] = np.round(probability_N[::2] / 0.05) * 0.05
    return probability_N.clip(0, 1).astype(dtype), labels_N


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_point_of_the_curves_is_what_at_threshold_counts(dtype):
    probability_N, labels_N = texts_judged(dtype)
    view = ThresholdBench(probability_N, labels_N).compute(0.3, cost=2.5)
    for n in range(0, len(GRID_T), 5):  # all of 0, 0.025, 0.05, where ties are
        wanted = at_threshold(probability_N, labels_N, GRID_T[n])
        for metric in LOOKS:
            assert view.curves[metric][n] == pytest.approx(getattr(wanted, metric), abs=1e-12, nan_ok=True), GRID_T[n]
        cost = 2.5 * wanted.false_positives + wanted.false_negatives
        assert view.cost_T[n] == pytest.approx(cost / len(labels_N), abs=1e-12)
    assert view.present == at_threshold(probability_N, labels_N, 0.3)
    assert view.expected_cost == pytest.approx(view.cost_T[60]) and GRID_T[60] == 0.3


def test_the_check_above_would_notice_ties_on_the_wrong_side():
    probability_N, labels_N = texts_judged()
    bench, n = ThresholdBench(probability_N, labels_N), 100
    above = np.sum((probability_N > GRID_T[n]) & (labels_N == 0))
    assert bench.false_T[n] == at_threshold(probability_N, labels_N, GRID_T[n]).false_positives != above


@pytest.mark.parametrize("cost", [0.1, 1.0, 4.0, 10.0])
def test_no_threshold_of_the_slider_costs_less_than_the_best(cost):
    probability_N, labels_N = texts_judged()
    bench = ThresholdBench(probability_N, labels_N)
    view = bench.compute(0.5, cost)
    at_best = bench.compute(view.best, cost)
    assert at_best.expected_cost == pytest.approx(view.cost_T.min(), abs=1e-12)
    assert all(bench.compute(float(t), cost).expected_cost >= at_best.expected_cost - 1e-12 for t in GRID_T[::10])


@pytest.mark.parametrize("cost", few([0.25, 1.0, 3.0], 3.0))
def test_of_right_probabilities_the_best_threshold_is_where_both_errors_cost_the_same(cost):
    draw = np.random.default_rng(1)
    probability_N = draw.random(100_000)
    labels_N = (draw.random(100_000) < probability_N).astype(int)
    view = ThresholdBench(probability_N, labels_N).compute(0.5, cost)
    assert view.calibrated == cost / (1 + cost)
    assert view.best == pytest.approx(view.calibrated, abs=0.05)
    overconfident = ThresholdBench(probability_N**3, labels_N).compute(0.5, cost)  # negative control
    assert overconfident.best == pytest.approx(view.calibrated**3, abs=0.06) != view.calibrated


@pytest.mark.parametrize(("cost", "best"), [(1.0, 0.5), (4.0, 0.8), (0.1, 0.205), (10.0, 0.9)])
def test_of_thresholds_that_cost_the_same_the_best_is_nearest_to_the_calibrated_one(cost, best):
    """All above 0.2 and up to 0.9 make no error."""
    view = ThresholdBench([0.2, 0.9], [0, 1]).compute(0.5, cost)
    assert view.cost_T.min() == 0 and view.best == best


def test_dearer_false_positives_raise_the_threshold():
    bench = ThresholdBench(*texts_judged())
    best = [bench.compute(0.5, cost).best for cost in (0.1, 0.5, 1.0, 2.0, 10.0)]
    assert best == sorted(best) and best[0] < best[-1]


def test_histograms_hold_every_text_once():
    probability_N, labels_N = texts_judged()
    view = ThresholdBench(probability_N, labels_N).compute(0.3)
    assert (view.positive_K.sum(), view.negative_K.sum()) == (labels_N.sum(), (1 - labels_N).sum())
    assert len(view.positive_K) == BINS and view.n_texts == len(labels_N)
    figure = draw_threshold(view)
    up, wrong_up, down, wrong_down = (patch for patch in figure.axes[0].patches[:4])
    assert up.get_data().values == pytest.approx(np.sqrt(view.positive_K))
    assert down.get_data().values == pytest.approx(-np.sqrt(view.negative_K))
    assert wrong_up.get_hatch() and wrong_down.get_hatch() and not up.get_hatch() and not down.get_hatch()
    assert up.get_facecolor() != down.get_facecolor()
    to_data = figure.axes[0].transData.inverted()
    hatched = [to_data.transform_bbox(wrong.get_clip_box()) for wrong in (wrong_up, wrong_down)]
    assert [(box.x0, box.x1) for box in hatched] == [pytest.approx((0, 0.3)), pytest.approx((0.3, 1))]


ONE_CLASS = [(0, 0.0), (0, 1.0), (1, 0.0), (1, 0.7), (1, 1.0)]


@pytest.mark.parametrize(("label", "threshold"), few(ONE_CLASS, ONE_CLASS[1]))
def test_texts_of_one_class_leave_gaps_and_no_error(label, threshold, reading):
    view = ThresholdBench([0.2, 0.7, 0.7], [label] * 3).compute(threshold)
    figure, words = reading(draw_threshold, view)
    assert_readable(figure, words)
    assert any("none" in text for text, _ in words) == any(np.isnan(getattr(view.present, name)) for name in LOOKS)


@pytest.mark.parametrize(
    ("probabilities", "labels", "words"),
    [([0.5, 1.2], [0, 1], "probabilities hold 1.2"), ([0.5], [0, 1], "shape"), ([0.5, 0.6], [0, 2], "labels hold 2"),
     ([], [], "at least one text")],
)  # fmt: skip
def test_what_is_no_probability_or_label_is_refused(probabilities, labels, words):
    with pytest.raises(ValueError, match=words):
        ThresholdBench(np.array(probabilities), np.array(labels, dtype=int))


@pytest.mark.parametrize(("threshold", "cost", "words"), [(1.5, 1, "threshold is 1.5"), (0.5, 0, "cost is 0")])
def test_thresholds_and_costs_out_of_range_are_refused(threshold, cost, words):
    with pytest.raises(ValueError, match=words):
        ThresholdBench(*texts_judged()).compute(threshold, cost)


AT = [(0.5, 1.0), (0.0, 10.0), (1.0, 0.1), (0.995, 9.99)]


@pytest.mark.parametrize(("threshold", "cost"), few(AT, AT[3]))
def test_the_picture_of_a_threshold_can_be_read(reading, threshold, cost):
    view = ThresholdBench(*texts_judged(count=20_000 if cost > 9 else 300)).compute(threshold, cost)
    figure, words = reading(draw_threshold, view)
    assert_readable(figure, words)
    texts = " ".join(text for text, _ in words)
    for number in (view.present.true_positives, view.present.false_negatives, view.n_texts):
        assert f"{number:,}" in texts
    assert f"{view.expected_cost:.3f}" in texts and f"at {view.best:g}" in texts


def test_marks_stand_on_their_curves_at_the_threshold():
    view = ThresholdBench(*texts_judged()).compute(0.4)
    _, metrics, costs = draw_threshold(view).axes
    for n, metric in enumerate(LOOKS):
        curve, mark = metrics.lines[2 * n : 2 * n + 2]
        assert mark.get_xdata()[0] == 0.4 and mark.get_ydata()[0] == getattr(view.present, metric)
        assert mark.get_ydata()[0] == pytest.approx(curve.get_ydata()[80])
    markers = {line.get_marker() for line in metrics.lines[1:8:2]}
    dashes = {str(line.get_linestyle()) + str(line._dash_pattern) for line in metrics.lines[0:8:2]}
    assert len(markers) == len(dashes) == len(LOOKS)  # told apart without colours
    assert (costs.lines[1].get_xdata()[0], costs.lines[2].get_xdata()[0]) == (view.best, 0.4)


def test_the_words_of_a_threshold_say_what_the_picture_shows():
    view = ThresholdBench(*texts_judged()).compute(0.4, 2)
    said = describe_threshold(view)
    counts = view.present
    for part in ("Threshold 0.4", f"{counts.false_positives} false positives", f"recall {counts.recall:.3f}",
                 "costs 2 ", f"{view.expected_cost:.3f}", f"at {view.best:g}"):  # fmt: skip
        assert part in said


# --- judges -----------------------------------------------------------------------------------------------------------

REVIEWS = ["a good film, a very good film", "a bad film", "good actors and a good plot", "bad, bad acting: not good",
           "not bad at all", "the plot is bad"]  # fmt: skip
LABELS = np.array([1, 0, 1, 0, 1, 0])
ASKED = [*REVIEWS, "Good GOOD good; never seen words, good film", "unknown", "a film " * 40]


@cache
def bag():
    return fit_bag_of_words(REVIEWS, LABELS)


@pytest.mark.parametrize("text", ASKED)
def test_the_words_of_a_bag_sum_to_its_decision_less_the_intercept(text):
    judged = judge_with_bag_of_words(bag())(text)
    decision, intercept = bag().decision_function([text])[0], bag()[-1].intercept_[0]
    assert sum(judged.values) == pytest.approx(decision - intercept, abs=1e-9)
    assert judged.positive == pytest.approx(1 / (1 + math.exp(-decision)), abs=1e-12)
    assert judged.tokens == tuple(bag()[0].build_tokenizer()(text.lower()))


def test_an_n_grams_share_is_split_evenly_among_its_occurrences_and_their_words():
    text = "good film good film new"
    judged = judge_with_bag_of_words(bag())(text)
    vectorizer, regression = bag()
    row_V = vectorizer.transform([text]).toarray()[0] * regression.coef_[0]
    good, film, pair = (row_V[vectorizer.vocabulary_[gram]] for gram in ("good", "film", "good film"))
    assert "film good" not in vectorizer.vocabulary_
    wanted = [good / 2 + pair / 4, film / 2 + pair / 4] * 2 + [0.0]
    assert judged.values == pytest.approx(wanted, abs=1e-12)
    assert abs(pair) > 1e-3 and sum(wanted) != pytest.approx(good + film)  # negative control: the pair counts


def test_a_share_given_to_each_occurrence_in_full_would_be_noticed(monkeypatch):
    class Once(dict):
        def __init__(self, columns):
            super().__init__((column, 1) for column in columns)

    monkeypatch.setattr(explaining, "Counter", Once)
    test_the_words_of_a_bag_sum_to_its_decision_less_the_intercept("a bad film")
    with pytest.raises(AssertionError):
        test_the_words_of_a_bag_sum_to_its_decision_less_the_intercept(REVIEWS[0])


def test_a_bag_reads_as_far_as_the_comparison():
    text = "a good film " * 60
    judged = judge_with_bag_of_words(bag(), TOKENIZER, max_tokens=9)(text)
    assert judged == judge_with_bag_of_words(bag())(first_tokens([text], TOKENIZER, 9)[0])
    assert len(judged.tokens) == 9


def test_pipelines_and_texts_that_a_bag_cannot_judge_are_refused():
    with pytest.raises(ValueError, match="holds no word"):
        judge_with_bag_of_words(bag())("?! ...")
    other = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), stop_words=["film"]), LogisticRegression())
    with pytest.raises(ValueError, match="reads other things than words in a row"):
        judge_with_bag_of_words(other.fit(REVIEWS, LABELS))("a good film")
    with pytest.raises(ValueError, match="make it with fit_bag_of_words"):
        judge_with_bag_of_words(make_pipeline(TfidfVectorizer()).fit(REVIEWS))
    with pytest.raises(ValueError, match="fit it on labels 0 and 1"):
        judge_with_bag_of_words(fit_bag_of_words(REVIEWS, LABELS + 1))


@cache
def classifier(n_classes=2):
    return shaken(Classifier(new_model(partial(Encoder, head=False), CONFIG, device="cpu"), n_classes), 0.3).eval()


ROUNDED = 0.005  # `predictions` may compute in bfloat16, and a judge never does


def log_odds(ids):
    with torch.no_grad():
        logits_C = classifier()(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.bool))[0]
    return (logits_C[1] - logits_C[0]).item()


@pytest.mark.parametrize("text", [REVIEWS[3], "Unbelievable!"])
def test_the_tokens_of_a_classifier_sum_to_what_they_add_to_a_text_of_padding(text):
    judged = judge_with(classifier(), TOKENIZER, tolerance=1e-3)(text)
    ids, frame = TOKENIZER.encode(text), (VOCABULARY.bos, VOCABULARY.eos)
    assert judged.tokens == tuple(map(TOKENIZER.token, ids))
    assert judged.positive == pytest.approx(predictions(classifier(), [text], TOKENIZER)[0, 1], abs=ROUNDED)
    score = log_odds([frame[0], *ids, frame[1]])
    start = log_odds([frame[0], *[VOCABULARY.pad] * len(ids), frame[1]])
    assert sum(judged.values) == pytest.approx(score - start, rel=2e-3)
    assert abs(score - start) > 0.05 and sum(judged.values) != pytest.approx(score, rel=2e-3)  # negative control
    assert math.log(judged.positive / (1 - judged.positive)) == pytest.approx(score, rel=1e-3)


def test_a_classifier_reads_its_first_tokens():
    text = "a good film " * 10
    judged = judge_with(classifier(), TOKENIZER, max_tokens=7)(text)
    assert judged.tokens == tuple(map(TOKENIZER.token, TOKENIZER.encode(text)[:7])) and len(judged.values) == 7
    wanted, longer = (predictions(classifier(), [text], TOKENIZER, max_tokens=n)[0, 1] for n in (7, 40))
    assert judged.positive == pytest.approx(wanted, abs=ROUNDED) != longer


def test_texts_and_classifiers_that_nobody_can_judge_are_refused():
    with pytest.raises(ValueError, match="holds no token"):
        judge_with(classifier(), TOKENIZER)("")
    with pytest.raises(ValueError, match="tells 3 classes apart"):
        judge_with(classifier(3), TOKENIZER)("a film")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [((1.2,), "positive is 1.2"), ((math.nan,), "positive is nan"),
     ((0.5, ("a",), (1.0, 2.0)), "1 tokens and 2 values"), ((0.5, ("a",), (math.inf,)), "nan or inf")],
)  # fmt: skip
def test_what_is_no_judgement_is_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        Judged(*wrong)


# --- a review of one's own --------------------------------------------------------------------------------------------

SPOKEN = Judged(0.2, (" not", " a", " good", " film", "."), (-1.5, 0.0, 0.75, 0.25, -0.5))
SILENT = Judged(0.5)


def test_all_models_judge_the_text_and_a_triple_will_do():
    seen = []
    models = {"one": lambda text: seen.append(text) or SPOKEN, "two": lambda _text: (0.9, ("a",), (1.0,))}
    order = []
    judged = compute_judged(models, "  a good\nfilm ", order.append)
    assert judged == {"one": SPOKEN, "two": Judged(0.9, ("a",), (1.0,))}
    assert seen == ["a good film"] and order == ["one", "two"]


def failing(_text):
    raise RuntimeError("it is on fire")


@pytest.mark.parametrize(
    ("models", "text", "words"),
    [({"one": failing}, "a film", "one cannot judge this text: it is on fire"),
     ({"one": lambda _text: (2.0,)}, "a film", "one cannot judge this text: positive is 2.0"),
     ({"one": failing}, " \n ", "the review is empty")],
)  # fmt: skip
def test_a_text_that_cannot_be_judged_says_why(models, text, words):
    with pytest.raises(ValueError, match=words):
        compute_judged(models, text)


LONG = Judged(0.99, tuple(f" word{n}" for n in range(300)), tuple(np.linspace(-1, 2, 300).tolist()))
SHOWN_TOGETHER = [
    {"a": SPOKEN}, {"a": SILENT}, {"a": Judged(1.0, (" good",), (3.0,)), "b": Judged(0.0, (" bad",), (0.0,))},
    {"bag of words": SPOKEN, "a model with an unreasonably long name": LONG, "a coin": SILENT},
    {"far off": Judged(0.9999, (" x",), (-123.45,)), "odd": Judged(0.5, ("日本", "\n", "é"), (0.1, 0.2, -0.1))},
]  # fmt: skip


@pytest.mark.parametrize("judged", few(SHOWN_TOGETHER, *SHOWN_TOGETHER[3:]), ids=lambda judged: " ".join(judged)[:20])
def test_the_picture_of_a_review_can_be_read(reading, judged):
    figure, words = reading(draw_judged, judged)
    assert_readable(figure, words)
    texts = [text for text, _ in words]
    for one in judged.values():
        said = f"{one.positive:.1%} positive" if one.positive >= 0.5 else f"{1 - one.positive:.1%} negative"
        assert said in texts
    assert texts.count("it does not say why") == sum(not one.values for one in judged.values())
    assert any("in log-odds" in text for text in texts) == any(any(one.values) for one in judged.values())


def test_a_long_text_is_cut_and_says_by_how_much():
    whole = lay_out_contributions(LONG.tokens, LONG.values, 500, most_lines=100)
    layout = lay_out_contributions(LONG.tokens, LONG.values, 500, most_lines=3)
    assert whole.rest == "" and len(whole.boxes) == 300
    kept = len(layout.boxes)
    assert len({y for _, y, *_ in layout.boxes}) == 3 and layout.boxes == whole.boxes[:kept]
    assert layout.rest == f"… and {300 - kept} more tokens, together {sum(LONG.values[kept:]):+.2f}"
    assert sum(layout.values) + sum(LONG.values[kept:]) == pytest.approx(sum(LONG.values))
    with pytest.raises(ValueError, match="give one value for each token"):
        lay_out_contributions(["a"], [], 100)


def test_bars_stand_above_what_pulls_up_and_below_what_pulls_down():
    figure = Figure(figsize=(6, 1))
    layout = lay_out_contributions(SPOKEN.tokens, SPOKEN.values, 400)
    plots.paint_contributions(figure, layout, 0, 0, largest=1.5)
    boxes, up, down = (c for c in figure.artists if type(c).__name__ == "PolyCollection")
    tops = {x: (y, y + plots.tokens.BOX) for x, y, *_ in layout.boxes}
    heights = {}
    for bars, edge in ((up, 0), (down, 1)):
        for path in bars.get_paths():
            x, low, high = path.vertices[:, 0].min(), path.vertices[:, 1].min(), path.vertices[:, 1].max()
            assert (high if edge == 0 else low) == pytest.approx(tops[x][edge])  # it touches its box from outside
            heights[x] = (1 - 2 * edge) * (high - low)
    by_value = {x: value for (x, *_), value in zip(layout.boxes, layout.values, strict=True) if value}
    assert heights.keys() == by_value.keys()
    for x, value in by_value.items():
        assert heights[x] == pytest.approx(value / 1.5 * plots.contributions.REACH)
    blue, vermillion = (matplotlib.colors.to_rgba(colour) for colour in (BLUE, VERMILLION))
    assert (tuple(up.get_facecolor()[0]), tuple(down.get_facecolor()[0])) == (blue, vermillion)
    fills = boxes.get_facecolor()
    assert tuple(fills[1][:3]) == pytest.approx((1, 1, 1), abs=0.02)  # no pull, no colour
    assert fills[0][0] > fills[0][2] and fills[2][2] > fills[2][0]  # red against blue


def luminance(colour):
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    return np.dot(linear, [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("share", [-1, 1])
def test_letters_on_the_strongest_pull_have_contrast(share):
    """WCAG asks for 4.5."""
    fill = plots.contributions.PULLS(0.5 + 0.5 * plots.contributions.WASH * share)
    ink = matplotlib.colors.to_rgb(plots.theme.INK)
    assert (luminance(fill) + 0.05) / (luminance(ink) + 0.05) >= 4.5
    full = plots.contributions.PULLS(0.5 + 0.5 * share)  # negative control: unwashed
    assert (luminance(full) + 0.05) / (luminance(ink) + 0.05) < 4.5


def test_what_a_model_starts_from_is_its_log_odds_less_its_tokens(reading):
    judge = judge_with_bag_of_words(bag())
    judged = judge(REVIEWS[0])
    start = f"{bag()[-1].intercept_[0]:+.2f}".replace("-", "−")
    assert any(f"starts at {start}, tokens" in text for text, _ in reading(draw_judged, {"bag": judged})[1])


def test_the_words_of_a_review_say_what_the_picture_shows():
    said = describe_judged({"one": SPOKEN, "two": SILENT})
    for part in ("one: 20.0% positive", "tokens −1.00", "not −1.50, good +0.75, . −0.50", "two: 50.0% positive"):
        assert part in said


def test_a_picture_of_nobody_is_refused():
    with pytest.raises(ValueError, match="at least one model"):
        draw_judged({})
    with pytest.raises(ValueError, match="models are empty"):
        review_explorer({}, "a film")


def test_the_button_judges_is_disabled_meanwhile_and_comes_back():
    seen = []

    def watching(text):
        seen.append((text, box.button.disabled, box.button.description, box.status.value) if box else text)
        if box:
            box.button.click()  # once more, while it is judging
        return SPOKEN

    box = None
    box = review_explorer({"watcher": watching}, "a film")
    assert seen == ["a film"] and box.value == {"watcher": SPOKEN}
    box.area.value = "a book"
    assert len(seen) == 1 and "has changed" in box.status.value  # nothing is judged before the button is pressed
    box.button.click()
    ((text, is_disabled, description, status),) = seen[1:]
    assert (text, is_disabled, description) == ("a book", True, "Judging …") and "watcher, model 1 of 1" in status
    assert not box.button.disabled and box.button.description == "Judge" and "Judging" not in box.status.value


def test_an_error_is_a_banner_and_the_button_comes_back():
    box = review_explorer({"bag": judge_with_bag_of_words(bag())}, "a good film")
    before = box.image.value
    for text, words in (("", "the review is empty"), ("?!", "bag cannot judge this text")):
        box.area.value = text
        box.button.click()
        assert words in box.banner.value and 'role="alert"' in box.banner.value
        assert box.value is None and box.image.value == b"" and not box.button.disabled
    box.area.value = "a good film"
    box.button.click()
    assert box.banner.value == "" and box.image.value == before


# --- all explorers ----------------------------------------------------------------------------------------------------


@pytest.fixture(params=["generation", "threshold", "review"])
def explorer(request):
    if request.param == "generation":
        return generation_explorer(decoder(), TOKENIZER, PROMPTS)
    if request.param == "threshold":
        return threshold_explorer(*texts_judged())
    judges = {"bag of words": judge_with_bag_of_words(bag()), "encoder": judge_with(classifier(), TOKENIZER)}
    return review_explorer(judges, "a good film")


@pytest.mark.slow
def test_an_explorer_survives_every_setting_and_comes_back(explorer):
    values = {name: control.value for name, control in explorer.controls.items() if hasattr(control, "value")}
    image = explorer.image.value
    n_settings = 2 if "judge" in explorer.controls else 6
    assert sweep(explorer) >= n_settings
    for name in values.keys() - {"seed"}:
        assert explorer.controls[name].value == values[name]
    if "seed" in explorer.controls:
        explorer.controls["top_p"].value = 0.5
        explorer.controls["top_p"].value = 1.0  # and what was drawn is gone
    assert explorer.banner.value == "" and explorer.image.value == image
    assert matplotlib.pyplot.get_fignums() == []


@pytest.mark.slow
def test_every_control_can_be_found_without_eyes(explorer):
    for control in explorer.controls.values():
        assert control.description and control.tooltip
    assert "aria-live" in explorer.words.value


@pytest.mark.slow
def test_moving_a_control_changes_picture_and_words(explorer):
    for name, control in explorer.controls.items():
        if not (hasattr(control, "min") or hasattr(control, "options")):
            continue
        start, before = control.value, (explorer.image.value, explorer.words.value)
        if hasattr(control, "options"):
            control.index = 1
        elif name == "cost":
            control.value = 10
        else:
            control.value = control.min if start > control.min else control.max
        assert explorer.image.value != before[0] and explorer.words.value != before[1], name
        control.value = start
        assert explorer.image.value == before[0], name


def test_top_k_runs_from_one_token_to_all():
    assert TOP_K[0] == 1 and max(TOP_K) == 100 and TOP_K[-1] == OFF
