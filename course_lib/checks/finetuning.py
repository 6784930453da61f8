"""Checks of chapter 4: a collator, labels for the response alone, macro F1, a split without leakage."""

from course_lib.checks.collating import CollateReviews, collate_reference, verify_collate_reviews
from course_lib.checks.report import Part, report
from course_lib.checks.responses import ResponseLabels, response_labels_reference, verify_response_labels
from course_lib.checks.scores import MacroF1, macro_f1_reference, verify_macro_f1
from course_lib.checks.splitting import LeakFreeSplit, split_reference, verify_leak_free_split


def collate_reviews(function: CollateReviews) -> CollateReviews:
    """Check f([{"input_ids": tokens, "label": class}, ...], pad_id) -> a dict of int64 tensors: input_ids [B, T],
    padded at the end with pad_id to the longest of the batch, attention_mask [B, T] (1: a token of the text, 0:
    padding) and labels [B]. Prints a verdict; gives back f if it is right, else the library's."""
    return report(Part("collate_reviews", function, verify_collate_reviews, collate_reference))[0]


def response_labels(function: ResponseLabels) -> ResponseLabels:
    """Check f(input_ids_BT, prompt_length_B, attention_mask_BT) -> labels [B, T]: the token itself where it belongs to
    the response, its [EOS] included, and -100 on prompt and padding; the model shifts them. Rows are padded at their
    end. Prints a verdict; gives back f if it is right, else the library's."""
    return report(Part("response_labels", function, verify_response_labels, response_labels_reference))[0]


def macro_f1(function: MacroF1) -> MacroF1:
    """Check f(labels_N, given_N, n_classes) -> the mean of the classes' F1, as `evaluation.classification.macro_f1`
    defines it; a class without any true or given text counts as 0. Prints a verdict; gives back f if it is right, else
    the library's."""
    return report(Part("macro_f1", function, verify_macro_f1, macro_f1_reference))[0]


def leak_free_split(function: LeakFreeSplit) -> LeakFreeSplit:
    """Check f(texts, test_share) -> a list of bools, True where a text is test: a text alone decides about itself, in
    every list and every process, and texts that agree after NFKC, in lower case and with single spaces, are on one
    side. Prints a verdict; gives back f if it is right, else the library's."""
    return report(Part("leak_free_split", function, verify_leak_free_split, split_reference))[0]
