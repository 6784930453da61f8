"""The check of chapter 2's checkpoint: a stopped run goes on beside one that was never stopped, and must equal it."""

import copy
import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from course_lib import checkpoint, objectives, training
from course_lib.checks.report import NotAttempted, Wrong, described, invoke, same
from course_lib.checks.tiny import tiny_decoder
from course_lib.model import LanguageModel
from course_lib.optimizers import Optimizer, make_optimizer
from course_lib.runtime import seeded, threads
from course_lib.schedules import cosine
from course_lib.vocabulary import Vocabulary

Take = Callable[[LanguageModel, Optimizer, int], dict]
Restore = Callable[[dict, LanguageModel, Optimizer], int]

STOP, LAST = 4, 7  # the step that the run goes on with, and the number of its steps
STORY = f"{STOP} steps, written and read back, a fresh model and optimizer, {LAST - STOP} more steps"
PLAIN = (Tensor, int, float, bool, str, bytes, type(None))


def take_reference(model: LanguageModel, optimizer: Optimizer, step: int) -> dict:
    """All that a run needs to go on with `step` as if it had never been stopped."""
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
        "random": checkpoint.random_states(),
    }


def restore_reference(state: dict, model: LanguageModel, optimizer: Optimizer) -> int:
    """Put all of it back; the step to go on with."""
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    checkpoint.restore_random_states(state["random"])
    return state["step"]


@dataclass
class Run:
    """A tiny model with dropout, its optimizer, and the step it goes on with. Batches and rate go by the step."""

    model: LanguageModel
    optimizer: Optimizer
    step: int = 0

    @classmethod
    def fresh(cls, seed: int) -> "Run":
        model = tiny_decoder(seed=seed, dropout=0.2)
        torch.manual_seed(seed)
        return cls(model, make_optimizer(model))

    def go_on(self, end: int) -> "Run":
        for step in range(max(0, self.step), end):
            ids_BT = torch.randint(1, 40, (4, 10), generator=seeded(5, step))
            batch, rate = (
                objectives.causal(ids_BT, Vocabulary(40, pad=0)),
                0.02 * cosine(step, warmup=2, total=LAST, floor=0.1),
            )
            training.step(self.model, self.optimizer, [batch], rate=rate, dtype=torch.float32)
        self.step = end
        return self

    def weights(self) -> Tensor:
        return nn.utils.parameters_to_vector(self.model.parameters()).detach().clone()


@dataclass(frozen=True)
class Snapshot:
    """What a run consists of at step STOP, copied by the check itself; each piece can be put back alone."""

    model: dict
    optimizer: dict
    random: dict

    @classmethod
    def of(cls, run: Run) -> "Snapshot":
        return cls(*copy.deepcopy((run.model.state_dict(), run.optimizer.state_dict(), checkpoint.random_states())))

    def put_back(self, piece: str, run: Run) -> None:
        if piece == "weights":
            with torch.no_grad():
                for name, parameter in run.model.named_parameters():
                    parameter.copy_(self.model[name])
        elif piece == "moments":
            run.optimizer.load_state_dict(copy.deepcopy(self.optimizer))
        elif piece == "step":
            run.step = STOP
        elif piece == "mode":
            run.model.train()
        else:
            checkpoint.restore_random_states(self.random)


PIECES = {  # in words, for "with ... put back as well"
    "weights": "the weights",
    "moments": "the optimizer's moments",
    "step": "the step",
    "mode": "training mode",
    "random": "the random state",
}
LIVE = (
    " (your state refers to the model's own tensors: written at once, as here, it is right; kept in memory, it would "
    "change with the next step)"
)
LOST = {  # what to say of a piece that is not put back, with who forgot it
    "weights": "The model's weights are lost ({}): the fresh model's are random.",
    "moments": "The optimizer's state is lost ({}): Adam begins again without a memory of earlier gradients.",
    "random": "The random state is lost ({}): dropout draws other numbers than it would have. A seed says where a "
    "generator began; what counts is where it stands.",
}


@torch.enable_grad()
def verify_checkpoint(functions: tuple[Take, Restore]) -> str:
    """Stop a run, go on with it, and compare it to the bit. Raises Wrong or NotAttempted; says what was verified."""
    take, restore = functions
    before = checkpoint.random_states()
    try:
        with threads(1):
            return _verify(take, restore)
    finally:
        checkpoint.restore_random_states(before)


def _verify(take: Take, restore: Restore) -> str:
    undisturbed = Run.fresh(0).go_on(LAST).weights()
    run = Run.fresh(0).go_on(STOP)
    snapshot = Snapshot.of(run)
    shown = {"model": "a tiny decoder with dropout", "optimizer": "AdamW", "step": STOP}
    state = invoke(take, run.model, run.optimizer, STOP, shown=shown)
    if not isinstance(state, dict):
        raise Wrong("take should give back a dict of all that is to be saved.", **shown, given=described(state))
    is_live, written = _shares_memory(state, run.model), _written(state)
    _judge_taking(run, snapshot, undisturbed)
    try:
        resumed = _finished(_restored(restore, written))
    except NotAttempted:
        raise Wrong("take gives a state that can be written; restore is not written yet.", **shown) from None
    if not same(resumed, undisturbed):
        _judge_drift(restore, written, snapshot, resumed, undisturbed)
    return f"{STORY}: every weight equals the undisturbed run's to the bit{LIVE if is_live else ''}"


def _written(state: dict) -> bytes:
    """The state as a file. Raises Wrong if it can't be written, or not be read back without running code."""
    buffer = io.BytesIO()
    try:
        torch.save(state, buffer)
        torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)
    except Exception as error:  # noqa: BLE001 pickle raises whatever an object's own code raises
        where, what = next(_strange(state, "state"), ("the state", "something that pickle does not know"))
        raise Wrong(
            "The state can't be read back with torch.load(..., weights_only=True), which runs no code of a file's: "
            "keep to tensors, numbers, text, lists and dicts (a state_dict() is made of such).",
            holds=f"{where} is {what}",
            error=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
        ) from None
    return buffer.getvalue()


def _strange(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """Where a state holds what is no plain value, and what that is."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _strange(inner, f"{path}[{key!r}]" if isinstance(key, (str, int)) else f"a key of {path}")
    elif type(value) in (list, tuple):
        for n, inner in enumerate(value):
            yield from _strange(inner, f"{path}[{n}]")
    elif type(value) not in PLAIN and not isinstance(value, Tensor):
        yield path, f"of type {type(value).__name__}"


def _judge_taking(run: Run, snapshot: Snapshot, undisturbed: Tensor) -> None:
    """Raises Wrong if the run that was saved goes on otherwise than one that was not."""
    was_training, is_moved = run.model.training, not torch.equal(torch.get_rng_state(), snapshot.random["torch"])
    weights = _finished(run)
    if same(weights, undisturbed):
        return
    if not was_training:
        why = "the model is left in evaluation mode, without dropout"
    elif is_moved:
        why = "it moves torch's random generator (a seed that is set, or a number that is drawn)"
    else:
        why = "it changes the model or the optimizer"
    raise Wrong(
        f"take disturbs the run that it saves: {why}. Saving only looks.",
        wanted="a run that goes on as without take",
        given=_drift(weights, undisturbed),
    )


def _restored(restore: Restore, written: bytes) -> Run:
    """A fresh run, as restore leaves it. Raises Wrong if that fails, or names no step."""
    run = Run.fresh(1)
    state = torch.load(io.BytesIO(written), weights_only=True)
    shown = {"state": f"keys {described(list(state))}", "model": "a fresh decoder", "optimizer": "a fresh AdamW"}
    step = invoke(restore, state, run.model, run.optimizer, shown=shown)
    if isinstance(step, bool) or not isinstance(step, int):
        raise Wrong(
            f"restore should give back the step to go on with, a whole number, and gave {type(step).__name__}.",
            **shown,
            wanted=STOP,
            given=described(step),
        )
    run.step = step
    return run


def _finished(run: Run) -> Tensor:
    """The weights at the end of a run. Raises Wrong if it breaks."""
    try:
        return run.go_on(LAST).weights()
    except Exception as error:  # noqa: BLE001 whatever was done to model and optimizer
        raise Wrong("After that the run can't go on.", error=f"{type(error).__name__}: {error}") from None


def _judge_drift(restore: Restore, written: bytes, snapshot: Snapshot, resumed: Tensor, undisturbed: Tensor) -> None:
    """Raises Wrong, naming each piece without which the run drifts although the check puts all others back."""

    def drifts_without(*missing: str) -> bool:
        run = _restored(restore, written)
        for piece in PIECES:
            if piece not in missing:
                snapshot.put_back(piece, run)
        return not same(_finished(run), undisturbed)

    evidence = {"input": STORY, "wanted": "weights as undisturbed, to the bit", "given": _drift(resumed, undisturbed)}
    lost = [] if drifts_without() else [piece for piece in PIECES if drifts_without(piece)]
    if not lost:
        raise Wrong(
            "Even with weights, moments, step and random state put back the run goes on otherwise. Does the optimizer "
            "hold this model's parameters still? Copy values into them, and replace none.",
            **evidence,
        )
    left, held = _restored(restore, written), torch.load(io.BytesIO(written), weights_only=True)
    words = " and ".join(PIECES[piece] for piece in lost)
    causes = " ".join(_cause(piece, held, snapshot, left) for piece in lost)
    raise Wrong(causes, **evidence, repaired=f"with {words} put back as well: no difference")


def _drift(given: Tensor, wanted: Tensor) -> str:
    if given.shape != wanted.shape:
        return "other parameters than the model had"
    return f"weights that lie up to {(given - wanted).abs().max().item():.2g} apart"


def _cause(piece: str, held: dict, snapshot: Snapshot, left: Run) -> str:
    """What to say of a piece that is missing. held: what take saved; left: the run as restore left it."""
    if piece == "step":
        return _step_cause(left.step)
    if piece == "mode":
        return "The model is left in evaluation mode: dropout is off, and training goes on as another one."
    if piece == "weights":
        then = nn.utils.parameters_to_vector([snapshot.model[name] for name, _ in left.model.named_parameters()])
        if (left.weights() - then).abs().max() < 0.02 * then.abs().max():
            return "The weights come back rounded: a checkpoint keeps every bit of them."
        saved = list(snapshot.model.values())
    elif piece == "moments":
        saved = [moments["exp_avg"] for moments in snapshot.optimizer["state"].values()]
    else:
        saved = [snapshot.random["torch"]]
    there = list(_tensors(held))
    is_held = all(any(same(one, other) for other in there) for one in saved)
    who = "saved by take, not put back by restore" if is_held else "not saved by take"
    return LOST[piece].format(who)


def _step_cause(step: int) -> str:
    head = f"The step is wrong: the run should go on with step {STOP} and goes on with {step}"
    effects = {
        STOP + 1: "one batch is skipped, and the rate is one step ahead.",
        STOP - 1: "one batch is read twice, and the rate is one step behind.",
        0: "it reads the first batches again, and warms up again. Batches and rate go by the step.",
    }
    return f"{head}: {effects.get(step, 'batches and rate go by the step.')}"


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (Mapping, list, tuple)):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(inner)


def _shares_memory(state: dict, model: nn.Module) -> bool:
    own = {parameter.data_ptr() for parameter in model.parameters()}
    return any(tensor.numel() and tensor.data_ptr() in own for tensor in _tensors(state))
