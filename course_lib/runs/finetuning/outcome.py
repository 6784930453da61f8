"""What fine-tuning has come to: judged on texts that it has not seen, beside the simplest that could be done instead.

Axes: N text, C class.
"""

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import asdict
from functools import partial

import numpy as np

from course_lib.data import normalize
from course_lib.evaluation import (
    Interval,
    Reliability,
    bootstrap_interval,
    calibration_error,
    confusion,
    first_tokens,
    fit_bag_of_words,
    macro_f1,
    most_confident_mistakes,
    paired_comparison,
    reliability,
    share_interval,
)
from course_lib.finetuning import Instruction
from course_lib.runs.finetuning.examples import Examples
from course_lib.runs.finetuning.learning import Learned
from course_lib.runs.finetuning.tuned import TunedClassifier

RESAMPLES = 1000  # of the bootstrap
MISTAKES, SAMPLES = 5, 5
SHORT = 5  # words of an answer that is compared word for word
ANSWERED = 200  # prompts answered for that comparison, at most


def judge_classifier(learned: Learned) -> dict:
    """Accuracy, macro F1, ECE and its bins on the test texts, the same of a bag of words that has learned from the same
    stretch of the same texts, which of the two is right where the other is not, and the most confident mistakes."""
    tuned, examples = learned.tuned, learned.examples
    texts, labels = [one.text for one in examples.test], np.array([one.label for one in examples.test])
    probabilities_NC = tuned.probabilities(texts)
    given = probabilities_NC.argmax(1)
    mistakes = most_confident_mistakes(probabilities_NC, labels, MISTAKES)
    return {
        "accuracy": asdict(share_interval(given == labels)),
        "macro_f1": asdict(_macro_f1(labels, given)),
        "calibration_error": calibration_error(probabilities_NC, labels),
        "reliability": _bins(reliability(probabilities_NC, labels)),
        "bag_of_words": _beside_bag_of_words(tuned, examples, texts, labels, given),
        "most_frequent_class": float((labels == _most_frequent([one.label for one in examples.train])).mean()),
        "confusion": confusion(labels, given, len(examples.classes)).tolist(),
        "mistakes": [
            {
                "text": texts[n],
                "label": examples.classes[labels[n]],
                "given": examples.classes[given[n]],
                "probability": float(probabilities_NC[n].max()),
            }
            for n in mistakes
        ],
    }


def judge_writer(learned: Learned) -> dict:
    """Loss per token on the test answers before and after, how many short answers are met word for word (greedily, of
    at most 200), beside always giving the most frequent short one, and samples."""
    tuned, examples = learned.tuned, learned.examples
    short = [one for one in examples.test if _is_short(one)][:ANSWERED]
    known = [normalize(one.output) for one in examples.train if _is_short(one)]
    met = {}
    if short:
        wanted = [normalize(one.output) for one in short]
        written = [normalize(text) for text in tuned.write(short, temperature=0)]
        constant = _most_frequent(known) if known else None
        met = {
            "of": len(short),
            "words": SHORT,
            "share": asdict(share_interval(np.array(written) == np.array(wanted))),
            "most_frequent_answer": sum(text == constant for text in wanted) / len(wanted),
        }
    shown = examples.test[:SAMPLES]
    return {
        "test_loss_before": learned.test_losses[0],
        "test_loss": learned.test_losses[1],
        "short_answers": met,
        "samples": [
            {"instruction": one.instruction, "input": one.input, "written": text, "expected": one.output}
            for one, text in zip(shown, tuned.write(shown), strict=True)
        ],
    }


def _bins(found: Reliability) -> list[dict]:
    """The bins that hold a text: mean probability of the given class, share that is right, number of texts."""
    rows = zip(found.confidence_K.tolist(), found.accuracy_K.tolist(), found.count_K.tolist(), strict=True)
    return [{"confidence": one, "accuracy": right, "texts": count} for one, right, count in rows if count]


def _macro_f1(labels_N: np.ndarray, given_N: np.ndarray) -> Interval:
    """Over the classes that occur in the test, as labels or as answers."""
    classes, places = np.unique(np.concatenate([labels_N, given_N]), return_inverse=True)
    labels_N, given_N = np.split(places.reshape(-1), 2)
    metric = partial(macro_f1, n_classes=max(2, len(classes)))
    return bootstrap_interval(metric, labels_N, given_N, resamples=RESAMPLES, generator=np.random.default_rng(0))


def _beside_bag_of_words(
    tuned: TunedClassifier, examples: Examples, texts: Sequence[str], labels: np.ndarray, given: np.ndarray
) -> dict | None:
    """None where the texts hold no words that it could count."""
    read, asked = (
        first_tokens(part, tuned.tokenizer, tuned.max_tokens) for part in ([one.text for one in examples.train], texts)
    )
    try:
        model = fit_bag_of_words(read, np.array([one.label for one in examples.train]))
    except ValueError:  # scikit-learn's: an empty vocabulary
        return None
    simple = model.predict(asked)
    paired = paired_comparison(given == labels, simple == labels)
    return {"accuracy": asdict(share_interval(simple == labels)), "macro_f1": asdict(_macro_f1(labels, simple)),
            "paired": asdict(paired)}  # fmt: skip


def _most_frequent(values: Sequence[Hashable]) -> Hashable:
    return Counter(values).most_common(1)[0][0]


def _is_short(example: Instruction) -> bool:
    return len(example.output.split()) <= SHORT
