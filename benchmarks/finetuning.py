"""Fine-tuning MiniLM on whole reviews: what padding costs, and our loop beside transformers' Trainer.

All take turns, run by run, on the same texts; a ratio is that of the quickest runs. Speeds are in tokens that are no
padding, and data preparation counts.
"""

import copy
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    logging,
)

from course_lib.data import reviews_of
from course_lib.evaluation import labelled_sample
from course_lib.finetuning import Classifier, FineTuning, epochs
from course_lib.pretrained import load_minilm, minilm_folder
from course_lib.runtime import describe_machine, fast_dtype, pick_device

TEXTS, LONGEST, ROUNDS, BATCH = 48, 510, 2, 8  # all that MiniLM can read of a text, two special tokens aside
DEVICE = pick_device("cpu")


def main() -> None:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    print(describe_machine())
    reviews = labelled_sample(reviews_of("train", "imdb"), TEXTS, seed=0)
    texts, labels = [r.text for r in reviews], [r.label for r in reviews]
    base, tokenizer = load_minilm()
    how = FineTuning(epochs=1, head_first=False, max_tokens=LONGEST, batch_size=BATCH)
    modes = {"dynamic padding": how, "length grouping": replace(how, length_grouped=True)}
    modes |= {"padding to the maximum": replace(how, pad_to_most=True)}
    runs = {name: (lambda mode=mode: ours(base, texts, labels, tokenizer, mode)) for name, mode in modes.items()}
    seconds = taking_turns(runs | {"Trainer": lambda: trainer(texts, labels)})
    for rival in ("padding to the maximum", "Trainer"):
        for name in ("dynamic padding", "length grouping"):
            print(f"{name}: {seconds[rival] / seconds[name]:.2f}x the real tokens a second of {rival}")


def taking_turns(runs: dict[str, Callable[[], float]]) -> dict[str, float]:
    """The quickest of ROUNDS runs of each, in seconds; the first round warms up."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(1 + ROUNDS):
        for name, run in runs.items():
            found[name].append(run())
    return {name: min(times[1:]) for name, times in found.items()}


def ours(base: torch.nn.Module, texts: list[str], labels: list[int], tokenizer: object, how: FineTuning) -> float:
    classifier = Classifier(copy.deepcopy(base)).to(DEVICE)
    began = time.perf_counter()
    list(epochs(classifier, texts, labels, tokenizer, how))
    return time.perf_counter() - began


def trainer(texts: list[str], labels: list[int]) -> float:
    """transformers' Trainer with the same batch size, rate, optimiser and number format, dynamic padding by its own
    collator; tokenizing counts, as it does in ours."""
    tokenizer = AutoTokenizer.from_pretrained(minilm_folder())
    model = AutoModelForSequenceClassification.from_pretrained(minilm_folder(), num_labels=2)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, num_train_epochs=1, per_device_train_batch_size=BATCH, use_cpu=True, report_to=[],
            bf16=fast_dtype(DEVICE) == torch.bfloat16, learning_rate=3e-4, weight_decay=0.05, max_grad_norm=1.0,
            save_strategy="no", logging_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        began = time.perf_counter()
        encoded = tokenizer(texts, truncation=True, max_length=LONGEST + 2)
        rows = [
            {"input_ids": ids, "attention_mask": mask, "labels": label}
            for ids, mask, label in zip(encoded["input_ids"], encoded["attention_mask"], labels, strict=True)
        ]
        Trainer(model, arguments, data_collator=DataCollatorWithPadding(tokenizer), train_dataset=rows).train()
        return time.perf_counter() - began


if __name__ == "__main__":
    main()
