"""Checks of the exercises, by the exercise's name: each runs a learner's function and says what is right or wrong."""

from course_lib.checks.objectives import corrupt_spans, mask_tokens, permutation_mask, shift_labels

__all__ = ["corrupt_spans", "mask_tokens", "permutation_mask", "shift_labels"]
