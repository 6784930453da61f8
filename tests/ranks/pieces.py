"""Run by torchrun: what of a small model with odd sizes lies on each rank, in bytes. pieces.py FOLDER"""

import json
import sys
from pathlib import Path

import torch
from torch import nn
from torch.distributed import init_device_mesh
from torch.distributed.fsdp import fully_shard

from course_lib.parallel import leave, rank, ranks, world

SHAPES = [(7, 3), (5,), (2, 4, 3), (1,), (11, 2), (1, 6)]


class Odd(nn.Module):
    """Parameters of these shapes."""

    def __init__(self):
        super().__init__()
        self.all = nn.ParameterList(nn.Parameter(torch.full(shape, 0.5)) for shape in SHAPES)

    def forward(self):
        return sum((parameter**2).sum() for parameter in self.all)


def main():
    torch.set_num_threads(1)
    with ranks():
        model = Odd()
        fully_shard(model, mesh=init_device_mesh("cpu", (world(),)))
        rule = torch.optim.AdamW(model.parameters())
        model().backward()
        gradients = [parameter.grad for parameter in model.parameters()]
        rule.step()
        moments = [rule.state[p][name] for p in model.parameters() for name in ("exp_avg", "exp_avg_sq")]
        kept = [tensor.to_local() for tensor in (*model.parameters(), *gradients, *moments)]
        found = {"world": world(), "rank": rank(), "bytes": sum(t.numel() * t.element_size() for t in kept)}
        found["rows"] = [parameter.to_local().shape[0] for parameter in model.parameters()]
        (Path(sys.argv[1]) / f"rank_{rank()}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
    leave()
