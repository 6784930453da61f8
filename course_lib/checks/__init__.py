"""Checks of the exercises, by the exercise's name: each runs a learner's function and says what is right or wrong."""

from course_lib.checks.capstone import bits_per_byte, pick_better, share_read
from course_lib.checks.efficiency import accumulate, bytes_of_rank, pick_loss_scale
from course_lib.checks.finetuning import collate_reviews, leak_free_split, macro_f1, response_labels
from course_lib.checks.objectives import corrupt_spans, mask_tokens, permutation_mask, shift_labels
from course_lib.checks.start import majority_baseline
from course_lib.checks.strategies import count_trainable, lora_forward, merge_lora, pick_biases, prefix_attention
from course_lib.checks.training import checkpoint_state, decay_groups, step_loss, training_step, warmup_cosine

__all__ = [
    "accumulate",
    "bits_per_byte",
    "bytes_of_rank",
    "checkpoint_state",
    "collate_reviews",
    "corrupt_spans",
    "count_trainable",
    "decay_groups",
    "leak_free_split",
    "lora_forward",
    "macro_f1",
    "majority_baseline",
    "mask_tokens",
    "merge_lora",
    "permutation_mask",
    "pick_better",
    "pick_biases",
    "pick_loss_scale",
    "prefix_attention",
    "response_labels",
    "share_read",
    "shift_labels",
    "step_loss",
    "training_step",
    "warmup_cosine",
]
