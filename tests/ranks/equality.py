"""Run by torchrun: every case of `scenes` on these ranks, which start from different weights, and the mistakes that
must show. Weights go to CASE.pt, what each rank heard to rank_R.jsonl."""

import json
import sys
from pathlib import Path
from unittest import mock

import torch
from ranks import scenes
from torch.distributed.tensor import DTensor

from course_lib.optimizers import make_optimizer
from course_lib.parallel import (
    Replicated,
    Sharded,
    agreed,
    engines,
    gathered,
    leave,
    make_engine,
    rank,
    ranks,
    summed,
    whole_weights,
)
from course_lib.parallel import world as world_size
from course_lib.training import held_out_loss, step


class MeanOfMeans(Replicated):
    """Each rank divides by its own targets, and the ranks' gradients are averaged."""

    def share(self, batch):
        self.whole = int(batch.is_target_BL.sum())
        return super().share(batch)

    def loss(self, model, batch):
        return super().loss(model, batch) * self.whole / (self.world * int(batch.is_target_BL.sum()))


class NeverSynchronised(Replicated):
    """`no_sync` around the last micro-batch too."""

    def accumulating(self, model, *, is_last):
        return super().accumulating(model, is_last=False)


class SameRows(Replicated):
    """Every rank reads the rows of rank 0."""

    def share(self, batch):
        return batch.rows(slice(0, None, self.world))


def not_broadcast_ddp(model):
    mine = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    engine = Replicated(model)
    model.load_state_dict(mine)
    return engine


def not_broadcast_fsdp(model):
    with mock.patch.object(engines, "alike", lambda _tensors: None):
        return Sharded(model)


ENGINES = {
    "ddp": Replicated,
    "fsdp": Sharded,
    "mean_of_means": MeanOfMeans,
    "never_synchronised": NeverSynchronised,
    "same_rows": SameRows,
    "not_broadcast_ddp": not_broadcast_ddp,
    "not_broadcast_fsdp": not_broadcast_fsdp,
}


def run_case(case, folder):
    model = scenes.model(case.objective, case.dtype, seed=rank())
    engine = ENGINES[case.kind](model)
    try:
        rows = scenes.trained(case, model, scenes.optimizer(case.optimizer, model), engine)
    except RuntimeError as error:
        return {"error": str(error)}
    weights = whole_weights(model)
    if rank() == 0:
        torch.save(weights, folder / f"{case.name}.pt")
    return {"rows": rows}


def words_of(call) -> str:
    try:
        call()
    except ValueError as error:
        return str(error)
    return "not refused"


def gradients_of_two_parts(kind):
    """After each of two micro-batches: how many gradients there are, and how large they are in sum."""
    model, found = scenes.model(seed=rank()), []
    engine = make_engine(kind, model)
    for number, is_last in enumerate((False, True)):
        with engine.accumulating(model, is_last=is_last):
            engine.loss(model, engine.share(scenes.batch(number))).backward()
        there = [p.grad for p in model.parameters() if p.grad is not None]
        whole = [gradient.full_tensor() if kind == "fsdp" else gradient for gradient in there]
        found.append([len(there), sum(gradient.abs().sum().item() for gradient in whole)])
    return found


def norms_after_an_interrupt(kind):
    """Of a step that follows one interrupted in its second micro-batch, of the same step without that, and of the same
    where the engine forgets nothing."""
    found, rows = [], scenes.batch(5).rows(slice(0, world_size() - 1))  # too few for all ranks
    for is_interrupted, forgets in ((True, True), (False, True), (True, False)):
        model = scenes.model()
        engine, rule = make_engine(kind, model), scenes.optimizer("sgd", model)
        if not forgets:
            engine.forget = lambda _model: None
        if is_interrupted:
            assert "share a batch" in words_of(
                lambda model=model, rule=rule, engine=engine: step(
                    model, rule, [scenes.batch(4), rows], rate=0.1, dtype=torch.float32, engine=engine
                )
            )
        parts = [scenes.batch(0), scenes.batch(1)]
        found.append(step(model, rule, parts, rate=0.1, dtype=torch.float32, engine=engine)[2])
    return found


def kept_in_parts():
    """Shares of the weights, the gradients and the optimiser's state that lie on this rank, and which of the two blocks
    are whole while the second is at work."""
    model = scenes.model()
    engine, at_work = make_engine("fsdp", model), []
    blocks = list(model.transformer["h"])
    is_whole = lambda block: not any(isinstance(p, DTensor) for p in block.parameters())
    next(blocks[1].children()).register_forward_pre_hook(lambda *_: at_work.append([*map(is_whole, blocks)]))
    rule = make_optimizer(model)
    engine.loss(model, engine.share(scenes.batch(0))).backward()
    gradients = [p.grad for p in model.parameters()]
    rule.step()
    moments = [tensor for state in rule.state.values() for tensor in state.values() if tensor.dim()]
    share = lambda tensors: sum(t.to_local().numel() for t in tensors) / sum(t.numel() for t in tensors)
    return {"shares": [share([*model.parameters()]), share(gradients), share(moments)], "at work": at_work}


def facts():
    """What is said and refused among ranks, besides training."""
    found = {"rank": rank(), "world": world_size(), "sum": summed(rank() + 0.25), "agreed": agreed([rank(), "x"])}
    found["small sum"] = summed(1e-12 if rank() else 1.0)
    found["gathered"] = gathered([rank(), "x"])
    for kind in ("ddp", "fsdp"):
        model = scenes.model(seed=rank())
        engine = make_engine(kind, model)
        small = scenes.batch(0).rows(slice(0, world_size() - 1))
        found[f"{kind} few rows"] = words_of(lambda engine=engine, small=small: engine.share(small))
        found[f"{kind} muon"] = words_of(lambda model=model: make_optimizer(model, "muon"))
        found[f"{kind} held out"] = held_out_loss(
            model, [scenes.batch(98), scenes.batch(99)], dtype=torch.float32, engine=engine
        )
        found[f"{kind} one row each"] = len(engine.share(scenes.batch(0).rows(slice(0, world_size()))).input_ids_BT)
        found[f"{kind} two parts"] = gradients_of_two_parts(kind)
        found[f"{kind} interrupted"] = norms_after_an_interrupt(kind)
        found[f"{kind} rows"] = [engine.share(scenes.batch(n)).input_ids_BT.tolist() for n in range(2)]
    found["kept in parts"] = kept_in_parts()
    other = scenes.model()
    found["ddp other model"] = words_of(lambda: make_engine("ddp", scenes.model()).loss(other, scenes.batch(0)))
    found["unknown"] = words_of(lambda: make_engine("zero", other))
    return found


def main():
    folder, names = Path(sys.argv[1]), sys.argv[2].split(",")
    torch.set_num_threads(1)
    with ranks(), (folder / f"rank_{rank()}.jsonl").open("w") as file:
        for name in names:
            for case in getattr(scenes, name):
                heard = run_case(case, folder)
                print(json.dumps({"case": case.name} | heard), file=file, flush=True)
        print(json.dumps({"case": "facts"} | facts()), file=file)


if __name__ == "__main__":
    main()
    leave()
