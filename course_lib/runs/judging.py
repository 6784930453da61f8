"""The judge: MiniLM with an adapter that has learned sentiment from the reviews kept for it, which no generator has
read. What a model writes on demand is judged by it, and its own error is stated beside."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from course_lib.data import ADAPTERS_FOLDER, course_tokenizer, reviews_of
from course_lib.evaluation import first_tokens
from course_lib.finetuning import Classifier, FineTuning, fine_tune, predictions
from course_lib.finetuning.tasks import labelled_sentences
from course_lib.peft import LoRA, apply, load_adapter, save_adapter
from course_lib.pretrained import load_minilm
from course_lib.runtime import pick_device
from course_lib.tokenizer import Tokenizer

MAX_TOKENS = 200  # MiniLM's own, enough for the stretch that every method reads
TRAINING = FineTuning(rate=5e-4, epochs=3, head_strength=0.005, max_tokens=MAX_TOKENS, length_grouped=True)
STRATEGY = LoRA(rank=8, alpha=16)


@dataclass(frozen=True)
class Judge:
    """Says of texts how likely each is praise."""

    classifier: Classifier
    tokenizer: Tokenizer

    def positive(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [N]: the probability that each text is positive; one without a word counts as undecided."""
        read = first_tokens(texts, course_tokenizer())
        has_word = [any(map(str.isalnum, text)) for text in read]
        shown = [text if is_text else "." for text, is_text in zip(read, has_word, strict=True)]
        given_N = predictions(self.classifier, shown, self.tokenizer, max_tokens=MAX_TOKENS)[:, 1]
        return np.where(has_word, given_N, np.float32(0.5))

    def is_right(self, texts: Sequence[str], labels: Sequence[int]) -> np.ndarray:
        """bool [N]: whether each text is judged as its label says."""
        return (self.positive(texts) >= 0.5) == np.array(labels, dtype=bool)


@cache
def load_judge() -> Judge:
    """The judge that the course ships, read once."""
    classifier, tokenizer = _bare()
    load_adapter(classifier, ADAPTERS_FOLDER / "judge")
    return Judge(classifier.to(pick_device()).eval(), tokenizer)


def judge_texts() -> tuple[list[str], list[int]]:
    """What the judge learns from: the reviews kept for it, and their first and last sentences."""
    reviews = reviews_of("judge")
    parts, labels = labelled_sentences("judge")
    return [r.text for r in reviews] + list(parts), [r.label for r in reviews] + list(labels)


def record_judge(*, folder: Path = ADAPTERS_FOLDER / "judge", progress: Callable[[str], None] = print) -> Path:
    """Train the judge again and save its adapter."""
    texts, labels = judge_texts()
    classifier, tokenizer = _bare()
    classifier.to(pick_device())
    apply(classifier, STRATEGY, modules_to_save=["head"])
    progress(f"training the judge on {len(texts):,} texts")
    fine_tune(classifier, first_tokens(texts, course_tokenizer()), labels, tokenizer, TRAINING)
    return save_adapter(classifier, folder)


def _bare() -> tuple[Classifier, Tokenizer]:
    body, tokenizer = load_minilm()
    return Classifier(body), tokenizer
