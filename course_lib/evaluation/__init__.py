"""Is it any good: baselines that know nothing of order or of the world, probes, and intervals."""

from course_lib.evaluation.attention import attention_weights
from course_lib.evaluation.intervals import Interval, mean_interval, proportion_interval
from course_lib.evaluation.language import (
    COMPRESSORS,
    Bigram,
    bits_per_byte,
    compressed_bits_per_byte,
    copied_share,
    distinct_share,
    stream_nats,
    uniform_loss,
    unigram_loss,
)
from course_lib.evaluation.leaks import influences
from course_lib.evaluation.probes import (
    COMPARISON_TOKENS,
    bag_of_words_accuracy,
    bag_of_words_predictions,
    first_tokens,
    frozen_features,
    labelled_sample,
    probe_accuracy,
)
from course_lib.evaluation.scaling import PowerLaw

__all__ = [
    "COMPARISON_TOKENS",
    "COMPRESSORS",
    "Bigram",
    "Interval",
    "PowerLaw",
    "attention_weights",
    "bag_of_words_accuracy",
    "bag_of_words_predictions",
    "bits_per_byte",
    "compressed_bits_per_byte",
    "copied_share",
    "distinct_share",
    "first_tokens",
    "frozen_features",
    "influences",
    "labelled_sample",
    "mean_interval",
    "probe_accuracy",
    "proportion_interval",
    "stream_nats",
    "uniform_loss",
    "unigram_loss",
]
