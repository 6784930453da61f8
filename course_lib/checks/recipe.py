"""Checks of chapter 2 that look at a recipe: the schedule of the rate, and which parameters decay."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from course_lib import optimizers
from course_lib.checks.report import Wrong, described, invoke, number, pair
from course_lib.checks.tiny import TINY
from course_lib.model import Decoder, Encoder, EncoderDecoder
from course_lib.schedules import cosine
from course_lib.training import new_model

WarmupCosine = Callable[..., float]
DecayGroups = Callable[[nn.Module], tuple[list[nn.Parameter], list[nn.Parameter]]]

# --- warm-up and cosine -----------------------------------------------------------------------------------------------

SCHEDULES = [  # warmup, total, floor
    (4, 12, 0.25), (4, 12, 0.0), (1, 5, 0.1), (10, 100, 0.1), (0, 8, 0.25), (0, 1, 0.0), (6, 6, 0.0)
]  # fmt: skip
BEYOND = 6  # steps that are looked at behind the end
Mistake = tuple[str, Callable[..., float]]  # what to say of it ("" of the right way), and how it computes

FROM_ZERO = (
    "The cosine's way is counted from step 0: it begins when the warm-up ends, and all of it lies between `warmup` and "
    "`total`."
)
PROGRESSES: list[Mistake] = [  # share of the way that a step has gone
    ("", lambda s, w, t: (s - w) / max(1, t - w)),
    (FROM_ZERO, lambda s, w, t: s / t),
    (FROM_ZERO, lambda s, w, t: s / max(1, t - w)),
    ("The way from `warmup` on is divided by the whole run's length: at `total` it is not yet at its end.",
     lambda s, w, t: (s - w) / t),
    ("The cosine arrives one step early: it should reach the floor at `total`, one behind the last step.",
     lambda s, w, t: (s - w) / max(1, t - w - 1)),
    ("The cosine is one step ahead: at step `warmup` nothing of the way has been gone.",
     lambda s, w, t: (s - w + 1) / max(1, t - w)),
    ("The cosine is one step ahead: at step `warmup` nothing of the way has been gone.",
     lambda s, w, t: (s - w + 1) / (t - w + 1)),
]  # fmt: skip
QUARTER = "That is a quarter of a wave: half a wave goes from the top to the bottom."
WAVES: list[Mistake] = [  # 1 at the beginning of the way, 0 at its end
    ("", lambda p: (1 + math.cos(math.pi * p)) / 2),
    ("That is a whole wave: it falls, and has risen again by the end. Half a wave only falls.",
     lambda p: (1 + math.cos(2 * math.pi * p)) / 2),
    (QUARTER, lambda p: (1 + math.cos(math.pi * p / 2)) / 2),
    (QUARTER, lambda p: math.cos(math.pi * p / 2)),
    ("The angle is in degrees, and math.cos takes radians: how large is half a turn there?",
     lambda p: (1 + math.cos(180 * p)) / 2),
    ("The angle goes from 0 to 1, which is a small part of a wave: how large is half a turn in radians?",
     lambda p: (1 + math.cos(p)) / 2),
    ("A cosine falls from 1 to -1, and the factor from 1 to 0: lift it and halve it.", lambda p: math.cos(math.pi * p)),
    ("The wave is lifted and not halved: it starts at 2.", lambda p: 1 + math.cos(math.pi * p)),
    ("The wave is halved and not lifted: it goes below 0.", lambda p: math.cos(math.pi * p) / 2),
    ("The wave is upside down: it rises where it should fall.", lambda p: (1 - math.cos(math.pi * p)) / 2),
    ("That is a straight line: the cosine falls slowly, then fast, then slowly.", lambda p: 1 - p),
]  # fmt: skip
MIXES: list[Mistake] = [  # what becomes of the wave w above the floor f
    ("", lambda w, f: f + (1 - f) * w),
    ("The floor is ignored: the decay should end there, not at 0.", lambda w, f: w),
    ("The floor is added on top: the decay still begins at 1, so only what lies above the floor may fall.",
     lambda w, f: f + w),
    ("The wave is cut off at the floor: it should be squeezed between 1 and the floor, and arrive at `total`.",
     lambda w, f: max(f, w)),
    ("The wave is shrunk and not lifted to the floor: it begins below 1 and ends at 0.", lambda w, f: (1 - f) * w),
    ("The floor is multiplied: it is where the decay ends.", lambda w, f: f * w),
]  # fmt: skip
ON_THE_FLOOR = (
    "The warm-up starts from the floor: the floor is where the decay ends, and the warm-up knows nothing of it."
)
WARMUPS: list[Mistake] = [
    ("Step 0 has rate 0: it costs a batch and changes no weight. The first of the warm-up's steps is a step already.",
     lambda s, w, t, f: s / w),
    ("The fraction is lost: // divides whole numbers, / gives shares.", lambda s, w, t, f: (s + 1) // w),
    ("There is no warm-up: the first `warmup` steps climb to 1.", lambda s, w, t, f: 1.0),
    ("There is no warm-up: the first `warmup` steps climb to 1.", lambda s, w, t, f: cosine(s, total=t, floor=f)),
    ("The warm-up takes one step too many: its last step, `warmup` - 1, should be at 1.",
     lambda s, w, t, f: (s + 1) / (w + 1)),
    ("The warm-up is one step ahead: step 0 is its first.", lambda s, w, t, f: (s + 2) / w),
    ("The warm-up is one step ahead: step 0 is its first.", lambda s, w, t, f: min(1.0, (s + 2) / w)),
    (ON_THE_FLOOR, lambda s, w, t, f: f + (1 - f) * (s + 1) / w),
    (ON_THE_FLOOR, lambda s, w, t, f: max(f, (s + 1) / w)),
    (FROM_ZERO, lambda s, w, t, f: (s + 1) / w * cosine(s, total=t, floor=f)),
    (FROM_ZERO, lambda s, w, t, f: (s + 1) / w * cosine(s, total=t)),
    ("During the warm-up the cosine's way is negative, and a cosine falls to that side too: nothing of the way has "
     "been gone yet.",
     lambda s, w, t, f: (s + 1) / w * (f + (1 - f) * (1 + math.cos(math.pi * (s - w) / max(1, t - w))) / 2)),
]  # fmt: skip


def verify_warmup_cosine(function: WarmupCosine) -> str:
    """Compare a schedule with the library's, step by step. Raises Wrong or NotAttempted; says what was verified."""
    n = 0
    for warmup, total, floor in SCHEDULES:
        settings = {"warmup": warmup, "total": total, "floor": floor}
        steps = range(total if warmup == total else total + BEYOND)
        factors = [_factor(function, step, settings) for step in steps]
        n += len(factors)
        for step, given in enumerate(factors):
            wanted = cosine(step, **settings)
            if not _near(given, wanted):
                cause = _schedule_cause(step, factors, **settings)
                raise Wrong(cause, **{"step": step, **settings}, wanted=round(wanted, 6), given=round(given, 6))
    return f"{n} steps: with and without a warm-up or a floor, and behind the end"


def _factor(function: WarmupCosine, step: int, settings: dict[str, Any]) -> float:
    shown = {"step": step, **settings}
    try:
        given = invoke(function, step, shown=shown, **settings)
    except Wrong as wrong:
        if "ZeroDivisionError" not in wrong.cause:
            raise
        what = "no warm-up" if settings["warmup"] == 0 else "nothing left after the warm-up"
        raise Wrong(f"{wrong.cause}. There is {what} here, so its length is 0.", **wrong.evidence) from None
    return number(given, "The factor", **shown)


def _near(given: float, wanted: float) -> bool:
    return abs(given - wanted) < 1e-5


def _schedule_cause(step: int, factors: Sequence[float], *, warmup: int, total: int, floor: float) -> str:
    if step < warmup:
        for cause, mistaken in WARMUPS:
            if all(_near(factors[s], mistaken(s, warmup, total, floor)) for s in range(warmup)):
                return cause
        if factors[step] > 1 + 1e-5:
            return "The warm-up overshoots: a factor is never above 1."
        return "The warm-up climbs in `warmup` equal steps from 0 to 1, and its first step is above 0 already."
    if step > total:
        if factors[step] > floor:
            return "The factor rises again after the last step: a cosine knows no end, so hold its way at the end."
        return "Behind the end the factor stays at the floor."
    if cause := next(_explanations(factors[warmup : total + 1], warmup, total, floor), None):
        return cause
    if step == warmup and factors[step] > 1 + 1e-5:
        return "The warm-up overshoots: it ends before step `warmup`, and a factor is never above 1."
    if step == warmup:
        return "At step `warmup` the warm-up is over and the cosine begins: the factor is 1 (without a warm-up, too)."
    if step == total:
        return "At `total` the cosine should have reached the floor."
    return "Between `warmup` and `total` the factor is half a wave of a cosine, from 1 down to the floor."


def _explanations(given: Sequence[float], warmup: int, total: int, floor: float) -> Iterator[str]:
    """The mistakes that give exactly these factors from `warmup` to `total`, the fewest at once first."""
    ways = itertools.product(PROGRESSES, WAVES, MIXES, (math.inf, 1.0))
    for (far, progress), (form, wave), (mixed, mix), end in sorted(
        ways, key=lambda way: sum(bool(m[0]) for m in way[:3])
    ):
        steps = range(warmup, total + 1)
        wrong = (mix(wave(min(end, progress(s, warmup, total))), floor) for s in steps)
        if all(map(_near, given, wrong)):
            yield " ".join(cause for cause in (far, form, mixed) if cause)


# --- decay groups -----------------------------------------------------------------------------------------------------


def decay_reference(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    decayed, spared = optimizers.decay_groups(model, weight_decay=1.0)
    return decayed["params"], spared["params"]


def _models() -> dict[str, nn.Module]:
    config = TINY.with_(n_layers=2)
    models = {
        "a decoder laid out as GPT-2": new_model(Decoder, config, device="cpu"),
        "an encoder laid out as BERT": new_model(Encoder, config, device="cpu"),
        "the encoder, embeddings and first block frozen": new_model(Encoder, config, device="cpu"),
        "an encoder-decoder, both sides sharing a table": new_model(EncoderDecoder, config, device="cpu"),
    }
    frozen = models["the encoder, embeddings and first block frozen"]
    for part in (frozen.embeddings, frozen.encoder["layer"][0]):
        part.requires_grad_(False)
    return models


def verify_decay_groups(function: DecayGroups) -> str:
    """Compare the groups of four models with the library's. Raises Wrong or NotAttempted; says what was verified."""
    models = _models()
    n = 0
    for title, model in models.items():
        trained = {id(p) for p in model.parameters() if p.requires_grad}
        result = invoke(function, model, shown={"model": title})
        if trained != {id(p) for p in model.parameters() if p.requires_grad}:
            raise Wrong("The model was changed: what it trains is no longer what it was.", model=title)
        decayed, spared = pair(result, ("the list that decays", "the list that is spared"), model=title)
        for group in (decayed, spared):
            _judge_elements(group, model, title)
        _judge_groups([id(p) for p in decayed], [id(p) for p in spared], model, title)
        n += len(decayed) + len(spared)
    return f"{n} parameters of {len(models)} models: GPT-2's and BERT's layout, frozen parts, a shared table"


def _judge_elements(group: Any, model: nn.Module, title: str) -> None:
    """Raises Wrong unless the group is a list of the model's own parameters."""
    given = {"model": title, "given": described(group)}
    if isinstance(group, dict):
        raise Wrong("Give back the two lists of parameters themselves, not an optimizer's groups around them.", **given)
    if not isinstance(group, (list, tuple)):
        raise Wrong(f"Each group should be a list of parameters, and one is {type(group).__name__}.", **given)
    own = {id(p) for p in model.parameters()}
    for element in group:
        if isinstance(element, str):
            raise Wrong("A group holds names: the optimizer wants the parameters themselves.", **given)
        if isinstance(element, tuple):
            raise Wrong("A group holds pairs of a name and a parameter: keep the parameter.", **given)
        if not isinstance(element, Tensor):
            raise Wrong(f"A group should hold parameters, and one element is {type(element).__name__}.", **given)
        if id(element) not in own:
            raise Wrong(
                "A group holds a tensor that is none of the model's parameters. A copy is no use (.data and "
                "state_dict() give such): the optimizer would train it, and the model would stay as it is.",
                **given,
            )


def _judge_groups(decayed: list[int], spared: list[int], model: nn.Module, title: str) -> None:
    """Raises Wrong unless both groups hold the right parameters, each once."""
    names, several = {}, {}
    for name, p in model.named_parameters(remove_duplicate=False):
        several.setdefault(id(p), []).append(name)
        names.setdefault(id(p), name)
    trained = {id(p): p for p in model.parameters() if p.requires_grad}
    matrices = [i for i, p in trained.items() if p.dim() >= 2]
    vectors = [i for i in trained if i not in matrices]
    counts = {
        "model": title,
        "wanted": f"{len(matrices)} that decay, {len(vectors)} spared",
        "given": f"{len(decayed)} that decay, {len(spared)} spared",
    }
    both = [*decayed, *spared]
    if frozen := [names[i] for i in both if i not in trained]:
        raise Wrong(f"{_such(frozen)} frozen (requires_grad is False): leave out what is not trained.", **counts)
    if doubled := [i for i in trained if i in decayed and i in spared]:
        raise Wrong(f"{_such([names[i] for i in doubled])} in both groups: each parameter goes into one.", **counts)
    if doubled := [i for i in trained if both.count(i) > 1]:
        also = several[doubled[0]]
        why = f" It is one parameter with {len(also)} names, {' and '.join(also)}." if len(also) > 1 else ""
        raise Wrong(f"{_such([names[i] for i in doubled])} in a group twice.{why}", **counts)
    if missing := [names[i] for i in trained if i not in both]:
        conv = any(".c_" in name for name in missing)
        why = " GPT-2's layers are no nn.Linear: a rule by type knows only the types it names." if conv else ""
        raise Wrong(f"{_such(missing)} in no group: it would never be trained.{why}", **counts)
    if set(decayed) == set(vectors):
        raise Wrong("The groups are exchanged: what decays comes first. Matrices decay, vectors are spared.", **counts)
    if wrong := [names[i] for i in vectors if i in decayed]:
        raise Wrong(_vector_cause(wrong), **counts)
    if wrong := [names[i] for i in matrices if i in spared]:
        raise Wrong(_matrix_cause(wrong), **counts)


def _such(names: list[str]) -> str:
    return f"{names[0]} is" if len(names) == 1 else f"{len(names)} parameters (such as {names[0]}) are each"


def _vector_cause(names: list[str]) -> str:
    by_name = "A rule by name knows only the names that it was written for"
    head = f"{len(names)} vectors decay, such as "
    if found := [name for name in names if ".ln_" in name]:
        return f"{head}{found[0]}: GPT-2 calls its normalisation ln_1, ln_2 and ln_f. {by_name}."
    if found := [name for name in names if "LayerNorm" in name]:
        return f"{head}{found[0]}: BERT calls its normalisation LayerNorm, with capitals. {by_name}."
    return f"{head}{names[0]}: a bias only shifts, and there is nothing to be gained by pulling it towards 0."


def _matrix_cause(names: list[str]) -> str:
    head = f"{len(names)} matrices are spared, such as "
    tables = [name for name in names if "embedding" in name or ".wte" in name or ".wpe" in name]
    if tables:
        return f"{head}{tables[0]}: a table of embeddings is a matrix and decays like the others."
    return f"{head}{names[0]}: every matrix decays, whatever it is called and whichever layer it belongs to."
