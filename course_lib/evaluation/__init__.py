"""Is it any good: baselines that know nothing of order or of the world, probes, intervals, a classifier's errors."""

from course_lib.evaluation.attention import attention_weights
from course_lib.evaluation.attributions import Attribution, token_attributions
from course_lib.evaluation.classification import (
    Paired,
    Reliability,
    Threshold,
    accuracy,
    at_threshold,
    bootstrap_interval,
    calibration_error,
    confusion,
    macro_f1,
    most_confident_mistakes,
    paired_comparison,
    reliability,
)
from course_lib.evaluation.intervals import Interval, columns, mean_interval, proportion_interval, share_interval
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
    fit_bag_of_words,
    frozen_features,
    labelled_sample,
    probe_accuracy,
)
from course_lib.evaluation.scaling import PowerLaw

__all__ = [
    "COMPARISON_TOKENS",
    "COMPRESSORS",
    "Attribution",
    "Bigram",
    "Interval",
    "Paired",
    "PowerLaw",
    "Reliability",
    "Threshold",
    "accuracy",
    "at_threshold",
    "attention_weights",
    "bag_of_words_accuracy",
    "bag_of_words_predictions",
    "bits_per_byte",
    "bootstrap_interval",
    "calibration_error",
    "columns",
    "compressed_bits_per_byte",
    "confusion",
    "copied_share",
    "distinct_share",
    "first_tokens",
    "fit_bag_of_words",
    "frozen_features",
    "influences",
    "labelled_sample",
    "macro_f1",
    "mean_interval",
    "most_confident_mistakes",
    "paired_comparison",
    "probe_accuracy",
    "proportion_interval",
    "reliability",
    "share_interval",
    "stream_nats",
    "token_attributions",
    "uniform_loss",
    "unigram_loss",
]
