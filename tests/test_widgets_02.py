"""The explorers of the pre-training loop: schedules with their classic mistakes, and the lab that trains live."""

import io
import itertools
import threading
from dataclasses import asdict

import matplotlib
import matplotlib.image
import matplotlib.pyplot
import numpy as np
import pytest
import torch
from few import few
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tiny import CONFIG, packed

from course_lib import data, plots, training
from course_lib.schedules import SHAPES, Schedule
from course_lib.training import StepRecord
from course_lib.widgets import lab_bench, lab_runs, training_lab
from course_lib.widgets.binder import DPI, sweep
from course_lib.widgets.lab_runs import KEPT, LabRun, LabSettings, describe_runs, draw_runs
from course_lib.widgets.rates import PRESETS, ScheduleSettings, compute_schedule, steps_in
from course_lib.widgets.schedules import OWN, describe_schedule, draw_schedule, schedule_explorer
from course_lib.widgets.training_lab import TrainingLab

PRE_TRAINING, FINE_TUNING = PRESETS
LONG = 300  # seconds after which a test gives up waiting; nothing here is timed
VOCABULARY = data.course_tokenizer().vocabulary
SMALL = LabSettings(batch_size=4, warmup=0, steps=6)


def words_of(figure):
    """Every piece of text in a figure with its box, in pixels."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    pieces = [*figure.texts]
    for axes in figure.axes:
        pieces += [*axes.texts, axes.title, axes.xaxis.label, axes.yaxis.label]
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            pieces += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    for legend in figure.legends:
        pieces += legend.get_texts()
    return {f"{n} {text.get_text()}": text.get_window_extent(renderer)
            for n, text in enumerate(pieces) if text.get_text() and text.get_visible()}  # fmt: skip


def assert_readable(figure):
    boxes = words_of(figure)
    wide, high = figure.get_size_inches() * figure.dpi
    for name, box in boxes.items():
        assert min(box.x0, box.y0) >= 0 and box.x1 <= wide and box.y1 <= high, f"{name} leaves the picture"
    for (one, a), (other, b) in itertools.combinations(boxes.items(), 2):
        assert not a.shrunk(0.96, 0.85).overlaps(b.shrunk(0.96, 0.85)), (one, other)
    for axes, legend in itertools.product(figure.axes, figure.legends):
        assert not legend.get_window_extent().overlaps(axes.get_window_extent())


# --- schedules --------------------------------------------------------------------------------------------------------

CORNERS = list(itertools.product(SHAPES, (1e-6, 1e-1), (0, 1, 100, 100_000), (9, 10, 1000, 1_000_000), (0.0, 1.0)))


@pytest.fixture(scope="module")
def explorer():
    return schedule_explorer()


@pytest.mark.slow
def test_the_explorer_survives_every_setting_and_comes_back(explorer):
    before = {name: control.value for name, control in explorer.controls.items()}
    image = explorer.image.value
    assert sweep(explorer) > 40
    assert {name: control.value for name, control in explorer.controls.items()} == before
    assert explorer.banner.value == "" and explorer.image.value == image
    assert matplotlib.pyplot.get_fignums() == []


def test_every_control_can_be_found_without_eyes(explorer):
    for control in explorer.controls.values():
        assert control.description and control.tooltip
    assert "aria-live" in explorer.words.value and len(explorer.words.value) > 200


@pytest.mark.slow
def test_every_corner_of_the_settings_has_rates():
    for shape, peak, warmup, total, floor in CORNERS:
        view = compute_schedule(shape, peak, warmup, total, floor)
        assert len(view.steps) == len(view.rates) < 500 and view.steps[-1] > total
        assert all(0 <= rate <= peak * (1 + 1e-9) for rate in view.rates)
        assert 0 < view.reached <= 1 + 1e-9
        assert describe_schedule(view).endswith(".")


@pytest.mark.slow
def test_the_rates_are_those_of_schedule_wherever_it_accepts_them():
    accepted = 0
    for shape, peak, warmup, total, floor in CORNERS:
        view = compute_schedule(shape, peak, warmup, total, floor)
        if view.refusal is None:
            accepted += 1
            schedule = Schedule(shape, peak, total, warmup, floor)
            assert view.rates == pytest.approx([schedule(step) for step in view.steps], rel=1e-12, abs=0)
            assert (view.at_first, view.at_last, view.after) == pytest.approx(
                (schedule(0), schedule(total - 1), schedule(total)), rel=1e-12
            )
    assert accepted > len(CORNERS) // 3


def test_the_warm_up_from_zero_takes_its_first_step_at_zero_and_then_joins():
    view = compute_schedule("cosine", warmup=5, total=20, floor=0.0)
    assert view.first_from_zero[0] == 0 < view.first_rates[0]
    assert view.first_from_zero[1:5] == pytest.approx(view.first_rates[:4]), "one step behind while it warms up"
    assert view.first_from_zero[5:] == view.first_rates[5:]
    assert compute_schedule(warmup=0).from_zero is None


def test_the_cosine_that_rises_again_leaves_the_schedule_at_its_end():
    view = compute_schedule("cosine", warmup=5, total=20, floor=0.1)
    steps, rates = view.rising
    assert steps[0] == 20 and rates[0] == pytest.approx(view.after)
    assert list(rates) == sorted(set(rates)) and view.rates[-1] == view.after
    for other in ({"shape": "linear"}, {"shape": "cosine", "warmup": 20, "total": 20}):
        assert compute_schedule(**other).rising is None


def test_fine_tuning_by_the_preset_ends_at_nine_hundredths_of_its_peak():
    settings = PRESETS[FINE_TUNING]
    assert settings.total == steps_in(6, batch_size=2, epochs=3) == 9
    view = compute_schedule(**asdict(settings))
    assert view.reached == pytest.approx(0.09)
    assert "shorten the warm-up" in view.refusal
    shown = " ".join(words_of(draw_schedule(view)))
    assert "ends before the peak is reached: its highest rate is 9.0% of the peak" in shown
    assert "ends before the peak" in describe_schedule(view)
    well = compute_schedule(**asdict(PRESETS[PRE_TRAINING]))
    assert well.refusal is None and "The peak is reached" in " ".join(words_of(draw_schedule(well)))


@pytest.mark.slow
def test_a_preset_sets_the_controls_once_and_moving_one_leads_back_to_ones_own(monkeypatch):
    box = schedule_explorer()
    preset, warmup = box.controls["preset"], box.controls["warmup"]
    warmup.value = 50
    begun, drawn = box.image.value, []
    monkeypatch.setattr(box, "_draw", lambda view: drawn.append(view.settings) or draw_schedule(view))
    preset.value = PRE_TRAINING
    assert drawn == [PRESETS[PRE_TRAINING]], "one picture, not one for each control"
    preset.value = FINE_TUNING
    assert box.controls["total"].value == 9 and box.controls["peak"].value == 2e-5
    preset.value = OWN
    assert warmup.value == 50 and box.image.value == begun
    preset.value = FINE_TUNING
    warmup.value = 2
    assert preset.value == OWN and box.controls["total"].value == 9
    assert drawn[-1] == ScheduleSettings("linear", 2e-5, 2, 9, 0.0) and len(drawn) == 5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["peak", "warmup", "total", "floor"])
def test_moving_a_slider_changes_picture_and_words(explorer, name):
    control = explorer.controls[name]
    start, before = control.value, (explorer.image.value, explorer.words.value)
    control.value = control.options[-1][1] if hasattr(control, "options") else control.min or 1e-6
    assert explorer.image.value != before[0] and explorer.words.value != before[1]
    control.value = start
    assert explorer.image.value == before[0]


DRAWN = [
    ScheduleSettings(),
    *PRESETS.values(),
    ScheduleSettings("warmup_stable_decay", 1e-2, 100_000, 100_000),
    ScheduleSettings("warmup_stable_decay", 5e-6, 200_000, 1_000_000, 1.0),
    ScheduleSettings("inverse_square_root", 1e-3, 0, 10),
    ScheduleSettings("cosine", 3e-3, 5, 20, 0.0),
]


@pytest.mark.parametrize("settings", few(DRAWN, PRESETS[FINE_TUNING]))
def test_the_words_of_a_schedule_stand_apart(settings):
    assert_readable(draw_schedule(compute_schedule(**asdict(settings))))


def test_words_over_each_other_would_be_noticed():
    figure = draw_schedule(compute_schedule())
    plots.write(figure, 8, 7, "between two lines")
    with pytest.raises(AssertionError):
        assert_readable(figure)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [({"shape": "cosinus"}, "choose one of constant"), ({"peak": 0.0}, "peak above 0"), ({"total": 0}, "at least 1")],
)
def test_settings_without_a_meaning_are_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        compute_schedule(**wrong)


# --- the lab ----------------------------------------------------------------------------------------------------------


def new_lab(**changes):
    defaults = {"defaults": SMALL, "config": CONFIG.with_(positions="rotary")}
    return TrainingLab(packed(), VOCABULARY, **(defaults | changes))


def quick_picture(runs, **_options):
    """Another colour for every number of runs and of steps: what most tests of the lab need of a picture."""
    steps = sum(len(run.records) for run in runs)
    return Figure(figsize=(0.1, 0.1), facecolor=(len(runs) / 10, steps % 256 / 255, 0))


@pytest.fixture
def lab(monkeypatch):
    monkeypatch.setattr(training_lab, "draw_runs", quick_picture)
    made = new_lab()
    yield made
    made.stop()
    assert made.wait(LONG)


@pytest.fixture
def gate(monkeypatch):
    """Training that stands still after its third step until it is let through."""
    reached, through = threading.Event(), threading.Event()

    def train(*arguments, **options):
        for record in training.train(*arguments, **options):
            if record.step == 3:
                reached.set()
                assert through.wait(LONG)
            yield record

    monkeypatch.setattr(lab_bench, "train", train)
    yield reached, through
    through.set()


def losses(run):
    return [record.loss for record in run.records]


def by_hand(lab, settings):
    model, batches, rates = lab.bench.experiment(settings)
    return [record.loss for record in training.train(model, batches, steps=settings.steps, rate=rates)]


def test_start_trains_to_the_end_and_shows_the_curve():
    lab = new_lab()  # with its real pictures
    before = lab.image.value
    assert lab.start() and lab.wait(LONG)
    (run,) = lab.runs
    assert run.state == "done" and [record.step for record in run.records] == [1, 2, 3, 4, 5, 6]
    assert run.settings == SMALL and run.records[-1].tokens == 6 * run.tokens_per_step == 6 * 4 * 24
    assert lab.image.value != before and lab.banner.value == ""
    assert "Run 1, done: step 6 of 6" in lab.status.value
    assert "in 6 steps and 576 tokens" in lab.words.value


def test_start_takes_what_the_sliders_say(lab):
    wanted = {"peak_rate": 1e-2, "warmup": 10, "batch_size": 8, "mask_prob": 0.3, "steps": 12}
    for name, value in wanted.items():
        lab.controls[name].value = value
    assert "12 steps of 8 rows of 24 tokens: 2,304 tokens" in lab.status.value
    lab.controls["start"].click()
    assert lab.wait(LONG)
    assert lab.runs[0].settings == LabSettings(**wanted)
    assert [record.rate for record in lab.runs[0].records] == pytest.approx([*np.arange(1, 11) * 1e-3, 1e-2, 1e-2])


def test_stop_takes_at_most_one_further_step(lab, gate):
    reached, through = gate
    lab.start()
    assert reached.wait(LONG)
    lab.controls["stop"].click()
    through.set()
    assert lab.wait(LONG)
    assert len(lab.runs[0].records) == 3 and lab.runs[0].state == "stopped"


def test_stop_takes_at_most_one_further_step_at_full_speed(lab):
    lab.controls["steps"].value = 600
    lab.start()
    lab.stop()
    taken = len(lab.runs[0].records)
    assert lab.wait(LONG)
    assert len(lab.runs[0].records) <= taken + 1


def test_without_stop_it_would_go_on(lab, gate):
    """Negative control for the two tests above."""
    reached, through = gate
    lab.start()
    assert reached.wait(LONG)
    through.set()
    assert lab.wait(LONG)
    assert len(lab.runs[0].records) == SMALL.steps


def test_a_second_start_while_one_runs_is_refused_with_a_word(lab, gate):
    reached, through = gate
    assert lab.start()
    assert reached.wait(LONG)
    assert not lab.start()
    assert "One run at a time" in lab.status.value and lab.banner.value == ""
    with pytest.raises(RuntimeError, match="call stop"):
        lab.train_now()
    assert len(lab.runs) == 1 and not lab.wait(0.01)
    lab.stop()
    through.set()
    assert lab.wait(LONG)
    assert lab.start() and lab.wait(LONG)
    assert [run.state for run in lab.runs] == ["stopped", "done"] and "One run" not in lab.status.value


@pytest.mark.slow
def test_runs_lie_over_each_other_and_the_oldest_makes_room(lab):
    lab.train_now(steps=2)
    one = lab.image.value
    lab.train_now(steps=2, batch_size=8)
    assert lab.image.value != one
    assert lab_runs.names_of(lab.runs) == ["1: batch 4", "2: batch 8"]
    for number in range(KEPT):
        lab.train_now(steps=1, mask_prob=0.2 + number / 10)
    assert [run.number for run in lab.runs] == list(range(3, 3 + KEPT))
    assert sorted(run.place for run in lab.runs) == list(range(KEPT)), "each has a colour of its own"


def test_an_error_in_training_shows_and_the_lab_survives(lab, monkeypatch):
    def train(*arguments, **options):
        yield from itertools.islice(training.train(*arguments, **options), 4)
        raise FloatingPointError("step 5: loss <nan>: lower the rate")

    monkeypatch.setattr(lab_bench, "train", train)
    assert lab.start() and lab.wait(LONG)
    assert "FloatingPointError" in lab.banner.value and "loss &lt;nan&gt;" in lab.banner.value
    assert lab.runs[0].state == "failed" and len(lab.runs[0].records) == 4
    with pytest.raises(FloatingPointError, match="step 5"):
        lab.train_now()
    monkeypatch.undo()
    assert lab.start() and lab.wait(LONG)
    assert lab.banner.value == "" and [run.state for run in lab.runs] == ["failed", "failed", "done"]
    assert "(failed)" in lab_runs.names_of(lab.runs)[0]


def test_a_rate_beyond_all_reason_is_such_an_error(lab):
    with pytest.raises(FloatingPointError, match=r"step \d+: loss"):
        lab.train_now(peak_rate=1e30)
    assert "lower the rate" in lab.banner.value and lab.runs[0].records


def test_an_error_in_drawing_shows_too_and_training_goes_on(lab, monkeypatch):
    def draw(*_arguments, **_options):
        raise ZeroDivisionError("no picture")

    monkeypatch.setattr(training_lab, "draw_runs", draw)
    assert lab.start() and lab.wait(LONG)
    assert lab.runs[0].state == "done" and "ZeroDivisionError" in lab.banner.value


def test_settings_of_which_no_run_can_be_made_are_a_banner(lab):
    lab.controls["warmup"].value = 100
    assert not lab.start()
    assert "shorten the warm-up" in lab.banner.value and lab.runs == [] and lab.wait(0)
    lab.controls["warmup"].value = 5
    assert lab.start() and lab.wait(LONG) and lab.banner.value == ""


def test_train_now_is_training_by_hand_to_the_bit(lab):
    run = lab.train_now(peak_rate=1e-2, mask_prob=0.3)
    assert losses(run) == by_hand(lab, LabSettings(1e-2, 0, 4, 0.3, 6))
    assert losses(run) != by_hand(lab, LabSettings(1.01e-2, 0, 4, 0.3, 6)), "the comparison sees a small difference"


def test_the_thread_trains_to_the_bit_as_the_caller_does(lab):
    lab.start()
    assert lab.wait(LONG)
    assert losses(lab.runs[0]) == losses(lab.train_now())


def test_train_now_starts_from_the_labs_defaults_wherever_the_sliders_stand(lab):
    lab.controls["mask_prob"].value = 0.5
    assert lab.train_now(steps=1).settings == LabSettings(**{**asdict(SMALL), "steps": 1})
    with pytest.raises(TypeError, match="mask"):
        lab.train_now(mask=0.3)


@pytest.mark.slow
def test_the_notebooks_random_numbers_are_neither_moved_nor_used(lab):
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    lab.start()
    assert lab.wait(LONG)
    first = losses(lab.train_now())
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    assert losses(lab.train_now()) == first == losses(lab.runs[0])


def test_the_thread_never_touches_the_random_state_even_for_a_moment(lab, monkeypatch):
    """fork_rng puts the caller's state back, but what the notebook draws meanwhile would be drawn twice."""
    calls, seed = [], torch.manual_seed
    monkeypatch.setattr(torch, "manual_seed", lambda n: calls.append(threading.current_thread()) or seed(n))
    lab.start()
    assert lab.wait(LONG)
    assert set(calls) == {threading.main_thread()}


def test_the_thread_computes_with_gradients_and_the_callers_threads(lab, monkeypatch):
    seen = []

    def train(*arguments, **options):
        for record in training.train(*arguments, **options):
            seen.append((torch.is_grad_enabled(), torch.get_num_threads()))
            yield record

    monkeypatch.setattr(lab_bench, "train", train)
    with torch.no_grad():
        lab.start()
        assert lab.wait(LONG)
        lab.train_now(steps=1)
    assert set(seen) == {(True, torch.get_num_threads())} and len(seen) == SMALL.steps + 1


def test_the_lab_survives_a_sweep_and_comes_back(lab):
    before = {name: control.value for name, control in lab.controls.items() if hasattr(control, "value")}
    assert sweep(lab) > 15
    assert {name: lab.controls[name].value for name in before} == before
    assert lab.runs == [] and not lab.bench.is_training and matplotlib.pyplot.get_fignums() == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["peak_rate", "warmup", "batch_size", "mask_prob"])
def test_a_run_can_be_begun_at_both_ends_and_the_middle_of_every_slider(lab, name):
    control = lab.controls[name]
    if hasattr(control, "options"):
        values = control.options
    elif name == "peak_rate":
        values = [10**control.min, 10 ** ((control.min + control.max) / 2), 10**control.max]
    else:
        values = [control.min, type(control.value)((control.min + control.max) / 2), control.max]
    for value in values:
        settings = LabSettings(**{**asdict(SMALL), "steps": 100, name: value})
        model, batches, rates = lab.bench.experiment(settings)
        records = itertools.islice(training.train(model, batches, steps=100, rate=rates), 2)
        assert [record.step for record in records] == [1, 2]


def test_every_control_of_the_lab_can_be_found_without_eyes(lab):
    for control in lab.controls.values():
        assert control.description and control.tooltip


def test_another_lab_stops_the_one_that_a_cell_left_behind(lab, gate):
    reached, through = gate
    lab.start()
    assert reached.wait(LONG)
    other = new_lab()
    other.start()
    through.set()
    assert lab.wait(LONG) and other.wait(LONG)
    assert lab.runs[0].state == "stopped" and other.runs[0].state == "done"


def test_closing_the_lab_stops_it_and_clearing_forgets(lab, gate):
    reached, through = gate
    lab.start()
    assert reached.wait(LONG)
    lab.close()
    through.set()
    assert lab.wait(LONG) and lab.runs[0].state == "stopped"
    lab.clear()
    assert lab.runs == [] and "no run" not in lab.status.value
    assert lab.train_now(steps=1).number == 1


def test_a_model_that_would_draw_random_numbers_or_is_too_short_is_refused():
    with pytest.raises(ValueError, match="dropout"):
        new_lab(config=CONFIG.with_(positions="rotary", dropout=0.1))
    with pytest.raises(ValueError, match="max_len is 8"):
        new_lab(config=CONFIG.with_(positions="rotary", max_len=8))
    with pytest.raises(ValueError, match="give a batch_size"):
        new_lab(defaults=LabSettings(batch_size=10**6))
    with pytest.raises(ValueError, match="mask_prob is 0"):
        LabSettings(mask_prob=0.0)


# --- the curves -------------------------------------------------------------------------------------------------------


def made_up(number=1, settings=None, *, place=0, steps=60, state="done", worst=9.0):
    """A run with a curve, without training."""
    settings = settings or LabSettings()
    curve = 6.5 + (worst - 6.5) * np.exp(-np.arange(steps) / 15)
    records = [StepRecord(n + 1, (n + 1) * 2048, 300, float(loss), 1e-3, 1.0, 0.03) for n, loss in enumerate(curve)]
    return LabRun(number, settings, place, 2048, records, state)


ALL_DIFFER = [
    made_up(n + 1, LabSettings(10.0 ** (-4 + n / 3), 5 * n, 2**n, 0.1 * (n + 1), 100 + n), place=n, steps=20 + 8 * n)
    for n in range(KEPT)
]
SCENES = {
    "no run": [],
    "no step yet": [LabRun(1, LabSettings())],
    "one": [made_up(state="stopped")],
    "two": [made_up(), made_up(2, LabSettings(batch_size=8), place=1, steps=200, state="training")],
    "one that explodes": [made_up(), made_up(2, LabSettings(1.0), place=1, worst=400.0, state="failed")],
    "all differ": ALL_DIFFER,
}


@pytest.mark.parametrize("scene", few(SCENES, "two", "one that explodes"))
@pytest.mark.parametrize("axis", few(lab_runs.AXES, "steps"))
def test_the_words_of_the_curves_stand_apart(scene, axis):
    assert_readable(draw_runs(SCENES[scene], uniform=9.01, axis=axis))


@pytest.mark.slow
def test_the_curves_look_the_same_whatever_matplotlib_is_set_to():
    """They are drawn from a thread, while the notebook may be drawing in its own style."""
    wild = {"axes.facecolor": "black", "axes.grid": False, "font.size": 20, "lines.linewidth": 9, "text.color": "red",
            "xtick.color": "red", "axes.labelcolor": "red", "axes.spines.top": False, "legend.fontsize": 3,
            "lines.linestyle": "--", "figure.facecolor": "red", "axes.edgecolor": "red", "grid.color": "red",
            "xtick.bottom": True, "ytick.left": True, "font.family": "DejaVu Serif", "axes.labelsize": 30,
            "xtick.labelsize": 30, "axes.prop_cycle": matplotlib.cycler(color=["red"])}  # fmt: skip

    def picture():
        return matplotlib.image.imread(io.BytesIO(plots.png(draw_runs(SCENES["two"], uniform=9.01))))

    plain = picture()
    with plots.themed():
        assert np.abs(picture() - plain).max() == 0
    with matplotlib.rc_context(wild):
        assert np.abs(picture() - plain).max() == 0


def test_drawing_the_curves_changes_no_setting_of_matplotlib(monkeypatch):
    def refuse(*_arguments, **_options):
        raise AssertionError("a thread must not change settings that belong to the whole process")

    monkeypatch.setattr(matplotlib, "rc_context", refuse)
    plots.png(draw_runs(SCENES["two"], uniform=9.01))
    with pytest.raises(AssertionError, match="whole process"):
        plots.draw_curves({"a": ([1], [2])})


def test_a_run_that_explodes_leaves_the_picture_and_the_words_say_so():
    (axes,) = draw_runs(SCENES["one that explodes"], uniform=9.01).axes
    assert 9.01 < axes.get_ylim()[1] < 10.5
    assert [text.get_text() for text in axes.texts] == ["ln V", f"↑ run 2: {SCENES['one that explodes'][1].loss:.0f}"]
    said = describe_runs(SCENES["one that explodes"], uniform=9.01)
    assert "at most 400.00" in said and said.count("at most") == 1


def test_the_axis_waits_for_a_run_that_is_training_and_follows_one_that_is_not():
    for axis, unit in (("tokens", 2048), ("steps", 1)):
        (training_now,) = draw_runs([made_up(state="training")], uniform=9.01, axis=axis).axes
        (stopped,) = draw_runs([made_up(state="stopped")], uniform=9.01, axis=axis).axes
        assert 300 * unit < training_now.get_xlim()[1] < 310 * unit
        assert 60 * unit < stopped.get_xlim()[1] < 62 * unit
    with pytest.raises(ValueError, match="choose one of tokens, steps"):
        draw_runs([], uniform=9.01, axis="seconds")


def test_the_legend_names_what_differs_and_all_of_a_single_run():
    assert lab_runs.names_of([made_up()]) == ["1: peak 2.0e-03, warm-up 20, batch 32, mask 15%"]
    assert lab_runs.names_of(SCENES["two"]) == ["1: batch 32", "2: batch 8"]
    same = [made_up(), made_up(2, place=1)]
    assert lab_runs.names_of(same)[1] == "2: peak 2.0e-03, warm-up 20, batch 32, mask 15%"


def test_the_static_picture_is_that_of_the_lab(lab):
    lab.train_now(steps=3)
    assert lab.image.value == plots.png(quick_picture(lab.runs), DPI)
    picture = lab.picture()
    assert picture.data[1:4] == b"PNG" and "in 3 steps" in picture.alt
