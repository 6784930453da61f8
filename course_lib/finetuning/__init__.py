"""A pre-trained model becomes a classifier, or one that follows instructions: heads, batches, templates, training."""

from course_lib.finetuning.collators import (
    ClassificationCollator,
    Collated,
    DefaultCollator,
    GenerationCollator,
    Padding,
    Seq2SeqCollator,
    as_batch,
    grouped_batches,
    length_grouped,
)
from course_lib.finetuning.freezing import PartlyFrozen
from course_lib.finetuning.heads import Classifier, Writer
from course_lib.finetuning.instructions import (
    HEADERS,
    Encoded,
    Instruction,
    Turn,
    encode,
    encode_chat,
    encode_prompt,
    pack,
    parse,
    prompt_of,
    render,
)
from course_lib.finetuning.tuning import Epoch, FineTuning, epochs, fine_tune, fit_head, nearest, predictions
from course_lib.pooling import POOLINGS, pool

__all__ = [
    "HEADERS",
    "POOLINGS",
    "ClassificationCollator",
    "Classifier",
    "Collated",
    "DefaultCollator",
    "Encoded",
    "Epoch",
    "FineTuning",
    "GenerationCollator",
    "Instruction",
    "Padding",
    "PartlyFrozen",
    "Seq2SeqCollator",
    "Turn",
    "Writer",
    "as_batch",
    "encode",
    "encode_chat",
    "encode_prompt",
    "epochs",
    "fine_tune",
    "fit_head",
    "grouped_batches",
    "length_grouped",
    "nearest",
    "pack",
    "parse",
    "pool",
    "predictions",
    "prompt_of",
    "render",
]
