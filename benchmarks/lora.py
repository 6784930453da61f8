"""LoRA on MiniLM: ours against `peft`'s on the same model, rank, targets and batch. Time of a step, memory, inference.

Both stand on transformers' BertModel with the same weights and take turns step by step; a ratio is the median over
steps of ours divided by theirs. Peak memory is that of a process of its own for each.
"""

import copy
import subprocess
import sys
import time
import warnings

import numpy as np
import torch

from course_lib.data import pad, reviews_of
from course_lib.peft import LoRA, apply, merge
from course_lib.pretrained import load_minilm, minilm_folder
from course_lib.runtime import describe_machine, kept_for_backward, peak_memory

ROUNDS, ROWS = 30, 16
TARGETS = {
    "query and value": ["query", "value"],
    "every linear layer": ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"],
}


def main() -> None:
    if len(sys.argv) > 1:
        print(peak_of(sys.argv[1]))
        return
    import transformers  # here, so that the processes of `peak_of` load what they need and no more

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore")
    print(describe_machine())
    base = transformers.AutoModel.from_pretrained(minilm_folder())
    batch = real_batch()
    for words, targets in TARGETS.items():
        ours, theirs = adapt_ours(copy.deepcopy(base), targets), adapt_theirs(copy.deepcopy(base), targets)
        times = np.array([[seconds(model, batch) for model in (ours, theirs)] for _ in range(ROUNDS)])[3:]
        kept = [bytes_kept(model, batch) for model in (ours, theirs)]
        ratio = np.median(times[:, 0] / times[:, 1])
        print(f"{words}: step {ratio:.2f}x the time of peft ({np.median(times[:, 0]):.3f} s), "
              f"{kept[0] / kept[1]:.2f}x the bytes kept for the backward pass ({kept[0] / 2**20:.0f} MiB)")  # fmt: skip
    peaks = {who: int(subprocess.check_output([sys.executable, __file__, who])) for who in ("ours", "theirs")}
    ratio = peaks["ours"] / peaks["theirs"]
    print(f"peak memory of a process of 5 steps: {ratio:.2f}x peft's ({peaks['ours'] / 2**20:.0f} MiB)")
    merged = adapt_ours(copy.deepcopy(base), TARGETS["every linear layer"])
    unmerged = copy.deepcopy(merged)
    merge(merged)
    models = [model.eval() for model in (merged, unmerged, base)]
    with torch.no_grad():
        times = np.array([[inference(model, batch) for model in models] for _ in range(ROUNDS)])[3:]
    print(f"inference: merged {np.median(times[:, 0] / times[:, 2]):.2f}x the base, "
          f"unmerged {np.median(times[:, 1] / times[:, 2]):.2f}x")  # fmt: skip


def real_batch() -> dict[str, torch.Tensor]:
    """ROWS reviews, up to 128 tokens each."""
    _, tokenizer = load_minilm()
    texts = [review.text for review in reviews_of("dev", "imdb")[:ROWS]]
    ids_BT = pad(tokenizer.encode_all(texts), tokenizer.vocabulary, length=128)
    return {"input_ids": ids_BT, "attention_mask": (ids_BT != tokenizer.vocabulary.pad).long()}


def adapt_ours(model: torch.nn.Module, targets: list[str]) -> torch.nn.Module:
    apply(model, LoRA(rank=8, alpha=16, targets=targets))
    return model.train()


def adapt_theirs(model: torch.nn.Module, targets: list[str]) -> torch.nn.Module:
    import peft

    return peft.get_peft_model(model, peft.LoraConfig(r=8, lora_alpha=16, target_modules=targets)).train()


def loss_of(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(**batch).last_hidden_state.square().mean()


def seconds(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> float:
    """Forward and backward pass; the optimiser does the same for both."""
    began = time.perf_counter()
    loss_of(model, batch).backward()
    took = time.perf_counter() - began
    model.zero_grad()
    return took


def inference(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> float:
    began = time.perf_counter()
    model(**batch)
    return time.perf_counter() - began


def bytes_kept(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> int:
    with kept_for_backward(model) as kept:
        loss_of(model, batch)
    return kept.bytes


def peak_of(who: str) -> int:
    """The most memory, in bytes, that this process has held after 5 steps."""
    import peft  # noqa: F401 both load the same libraries
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    base, adapt = transformers.AutoModel.from_pretrained(minilm_folder()), {"ours": adapt_ours, "theirs": adapt_theirs}
    model, batch = adapt[who](base, TARGETS["every linear layer"]), real_batch()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    for _ in range(5):
        loss_of(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    return peak_memory()


if __name__ == "__main__":
    main()
