"""The training loop beside transformers' Trainer and a bare loop, the share of the machine's peak, what saving costs.

Trainer runs the twin of each model, written by `save_model` and opened by the Auto classes, fed a list of examples and
the collator that everybody uses, in bf16 where this machine gains from it. Our loop and the bare one take turns,
step by step; Trainer runs before and after them. Rates are those of the median step behind the first few.
"""

import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    DataCollatorForLanguageModeling,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from course_lib.checkpoint import Checkpoints, random_states
from course_lib.data import DATA_FOLDER
from course_lib.losses import token_loss
from course_lib.optimizers import Muon, MuonAndAdamW, make_optimizer
from course_lib.pretrained import model_files, save_model
from course_lib.runs import RECIPES, Pretraining
from course_lib.runtime import autocast, fast_dtype, matmul_rate, pick_device
from course_lib.training import step, train

SKIPPED, COUNTED, TURNS = 3, 12, 40
DEVICE = pick_device("cpu")


def in_turns(run: Pretraining, rows: object) -> tuple[list[float], list[float]]:
    """Seconds of each step of our loop and of the bare one, data preparation included."""
    loops = (train(run.model(), run.dataset(rows), steps=SKIPPED + TURNS, rate=1e-3), bare(run, rows))
    seconds = ([], [])
    for number in range(SKIPPED + TURNS):
        for loop, found in list(zip(loops, seconds, strict=True))[:: 1 if number % 2 else -1]:
            began = time.perf_counter()
            next(loop)
            found.append(time.perf_counter() - began)
    return seconds[0][SKIPPED:], seconds[1][SKIPPED:]


def bare(run: Pretraining, rows: object) -> Iterator[None]:
    """The same model and batches in the fewest lines."""
    model, dataset = run.model(), run.dataset(rows)
    model.train()
    optimizer = make_optimizer(model)
    for batch in dataset:
        with autocast(DEVICE):
            total, count = token_loss(model.target_logits(batch), batch.labels_BL[batch.is_target_BL])
        (total / count).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = 1e-3
        optimizer.step()
        optimizer.zero_grad()
        total.item()
        yield


def of_trainer(run: Pretraining, rows: object) -> list[float]:
    """transformers' Trainer on the twin."""
    marks = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_arguments: object, **_more: object) -> None:
            marks.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        save_model(run.model(), folder)
        masked = run.objective == "masked"
        twin = (AutoModelForMaskedLM if masked else AutoModelForCausalLM).from_pretrained(folder)
        names = {f"{role}_token": f"[{role.upper()}]" for role in ("pad", "unk", "bos", "eos", "cls", "sep", "mask")}
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(DATA_FOLDER / "tokenizer.json"), **names)
        arguments = TrainingArguments(
            output_dir=folder, max_steps=SKIPPED + COUNTED, per_device_train_batch_size=run.batch_size, use_cpu=True,
            bf16=fast_dtype(DEVICE) == torch.bfloat16, learning_rate=1e-3, save_strategy="no", report_to=[],
            disable_tqdm=True, logging_strategy="no",
        )  # fmt: skip
        share = run.options.get("mask_prob", 0.15)
        collator = DataCollatorForLanguageModeling(tokenizer, mlm=masked, mlm_probability=share)
        examples = [{"input_ids": ids} for ids in rows.ids_NT[: run.batch_size * (SKIPPED + COUNTED)].tolist()]
        Trainer(twin, arguments, data_collator=collator, train_dataset=examples, callbacks=[Clock()]).train()
    return [b - a for a, b in itertools.pairwise(marks)][SKIPPED - 1 :]


def share_of_peak(run: Pretraining, rows: object, dtype: torch.dtype) -> tuple[float, float, float]:
    """Operations of one step as torch counts them, a second; the machine's peak in a matrix product; their ratio."""
    model, dataset = run.model(), run.dataset(rows)
    optimizer = make_optimizer(model)
    with FlopCounterMode(display=False) as counter:
        step(model, optimizer, [dataset.batch(0)], rate=1e-3, dtype=dtype)
    seconds = []
    for number in range(1, 8):
        batch = dataset.batch(number)
        began = time.perf_counter()
        step(model, optimizer, [batch], rate=1e-3, dtype=dtype)
        seconds.append(time.perf_counter() - began)
    reached = counter.get_total_flops() / statistics.median(seconds)
    peak = matmul_rate(dtype, DEVICE, size=2048)
    return reached, peak, reached / peak


def where_time_goes(run: Pretraining, rows: object, dtype: torch.dtype) -> list[tuple[str, float]]:
    """The operators that take most of a step, as shares of its time."""
    model, dataset = run.model(), run.dataset(rows)
    optimizer = make_optimizer(model)
    batches = [dataset.batch(k) for k in range(4)]
    step(model, optimizer, batches[:1], rate=1e-3, dtype=dtype)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for batch in batches[1:]:
            step(model, optimizer, [batch], rate=1e-3, dtype=dtype)
    events = sorted(profile.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    return [(event.key, event.self_cpu_time_total / total) for event in events[:10]]


def steps_of_muon(run: Pretraining) -> tuple[float, float]:
    """Seconds of an update of all matrices inside the model: our Muon's, and torch's, which computes in bf16."""
    inner = MuonAndAdamW(run.model(), weight_decay=0.05, betas=(0.9, 0.98)).parts[1].param_groups[0]["params"]
    for matrix in inner:
        matrix.grad = torch.randn_like(matrix)
    rules = (Muon(inner, weight_decay=0.05), torch.optim.Muon(inner, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"))
    seconds = ([], [])
    for _, (rule, found) in itertools.product(range(4), zip(rules, seconds, strict=True)):
        began = time.perf_counter()
        rule.step()
        found.append(time.perf_counter() - began)
    return tuple(min(found) for found in seconds)


def cost_of_saving(run: Pretraining, rows: object, seconds_a_step: float) -> float:
    """Seconds of a checkpoint as a share of the 100 steps between two."""
    model = run.model()
    optimizer = make_optimizer(model, run.optimizer)
    step(model, optimizer, [run.dataset(rows).batch(0)], rate=1e-3)
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        checkpoints, seconds = Checkpoints(Path(folder)), []
        for number in range(5):
            began = time.perf_counter()
            state = {"optimizer": optimizer.state_dict(), "random": random_states(), "tokens": 0}
            checkpoints.save(number, model_files(model), state, about=run.about(), score=1.0)
            seconds.append(time.perf_counter() - began)
    return statistics.median(seconds) / (100 * seconds_a_step)


def _row(name: str, value: float, wanted: str) -> None:
    print(f"{name:<58} {value:>8.3f}   {wanted}")


def main() -> None:
    print(f"{torch.get_num_threads()} threads, {fast_dtype(DEVICE)} where it pays")
    print(f"{'ratio':<58} {'':>8}   wanted")
    wanted = {"encoder": "at least 2 (masked)", "decoder": "at least 1.3 (causal)"}
    for name, goal in wanted.items():
        run = RECIPES[name].with_(optimizer="adamw")
        rows, _ = run.rows()
        trainer = of_trainer(run, rows)
        ours, by_hand = in_turns(run, rows)
        took = {"ours": ours, "bare": by_hand, "trainer": trainer + of_trainer(run, rows)}  # there and back
        median = {way: statistics.median(seconds) for way, seconds in took.items()}
        print(f"{name}: " + ", ".join(f"{way} {run.tokens_per_step / m:,.0f} tokens/s" for way, m in median.items()))
        _row(f"{name}: tokens a second, ours over Trainer", median["trainer"] / median["ours"], goal)
        _row(f"{name}: tokens a second, ours over a bare loop", median["bare"] / median["ours"], "at least 0.97")
        if name == "decoder":
            for dtype in (torch.float32, torch.bfloat16):
                reached, peak, share = share_of_peak(run, rows, dtype)
                print(f"{dtype}: {reached / 1e9:,.0f} of {peak / 1e9:,.0f} GFLOP/s")
                _row(f"decoder: share of the peak in {dtype}", share, "above 0.6 in float32")
                for operator, part in where_time_goes(run, rows, dtype):
                    print(f"    {operator:<54} {part:>8.1%}")
            ours_muon, torchs_muon = steps_of_muon(run)
            _row(
                "decoder: a step of Muon, ours over torch's, in seconds",
                ours_muon / torchs_muon,
                "at most 1 without bf16",
            )
            _row("decoder: a checkpoint every 100 steps", cost_of_saving(run, rows, median["ours"]), "at most 0.03")


if __name__ == "__main__":
    main()
