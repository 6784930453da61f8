"""The checks of chapter 4 say what is wrong, accept every right answer, and let nothing of a learner's code reach the
notebook."""

import copy
import functools
import hashlib
import itertools
import math
import os
import random
import subprocess
import sys
import unicodedata
import zlib

import numpy as np
import pytest
import torch
from exercises import (
    HOSTILE,
    HalfMade,
    assert_accepted,
    assert_crash_is_reported,
    assert_diagnosed,
    assert_enough_diagnoses,
    assert_generators_and_grad_mode_are_left_alone,
    assert_no_function_is_refused,
    assert_not_attempted,
    assert_replaced_by_what_passes,
    assert_solution_is_hidden,
    cases_of,
)
from few import few
from sklearn import metrics
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from course_lib import checks, data
from course_lib.checks import collating, responses, reviews, scores, splitting
from course_lib.evaluation import classification
from course_lib.finetuning.collators import ClassificationCollator, GenerationCollator
from course_lib.vocabulary import Vocabulary

# --- the collator -----------------------------------------------------------------------------------------------------


def collate_with_lists(examples, pad_id):
    rows = [example["input_ids"] for example in examples]
    longest = max(map(len, rows))
    return {
        "input_ids": torch.tensor([row + [pad_id] * (longest - len(row)) for row in rows]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows]),
        "labels": torch.tensor([example["label"] for example in examples]),
    }


def collate_with_pad_sequence(examples, pad_id):
    rows = [torch.tensor(example["input_ids"], dtype=torch.long) for example in examples]
    return {
        "input_ids": pad_sequence(rows, batch_first=True, padding_value=pad_id),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in rows], batch_first=True),
        "labels": torch.LongTensor([example["label"] for example in examples]),
    }


def collate_into_a_full_tensor(examples, pad_id):
    length_B = torch.tensor([len(example["input_ids"]) for example in examples])
    is_real_BT = torch.arange(int(length_B.max())) < length_B[:, None]
    ids_BT = torch.full(is_real_BT.shape, pad_id)
    ids_BT[is_real_BT] = torch.tensor([token for example in examples for token in example["input_ids"]])
    labels_B = torch.stack([torch.tensor(example["label"]) for example in examples])
    return {"labels": labels_B, "attention_mask": is_real_BT.long(), "input_ids": ids_BT}


def collated(before=lambda examples: examples, **fields):
    """The right collator, with other examples before it or other fields behind: f(right, examples, pad_id)."""

    def my_collate(examples, pad_id):
        examples = before(examples)
        right = collate_with_lists(examples, pad_id)
        return right | {name: make(right, examples, pad_id) for name, make in fields.items()}

    return my_collate


def filled(fill, at_end=True, length=None):
    """input_ids with something else about the padding."""

    def ids(right, examples, pad_id):
        rows = [example["input_ids"] for example in examples]
        longest = length(rows) if length else max(map(len, rows))
        gaps = [[fill(pad_id)] * (longest - len(row)) for row in rows]
        return torch.tensor(
            [(row + gap if at_end else gap + row)[:longest] for row, gap in zip(rows, gaps, strict=True)]
        )

    return ids


def to_length(length):
    def mask(right, examples, pad):
        rows = [example["input_ids"] for example in examples]
        longest = length(rows)
        return torch.tensor([([1] * len(row) + [0] * longest)[:longest] for row in rows])

    return collated(input_ids=filled(lambda pad: pad, length=length), attention_mask=mask)


def with_mask(make):
    return collated(attention_mask=lambda right, examples, pad: make(right["input_ids"], right["attention_mask"], pad))


def with_labels(make):
    return collated(labels=lambda right, examples, pad: make(right["labels"]))


def sorted_by_length(examples):
    return sorted(examples, key=lambda example: -len(example["input_ids"]))


def sorted_rows_alone(examples, pad_id):
    right = collate_with_lists(examples, pad_id)
    return collate_with_lists(sorted_by_length(examples), pad_id) | {"labels": right["labels"]}


def sorted_in_place(examples, pad_id):
    examples.sort(key=lambda example: -len(example["input_ids"]))
    return collate_with_lists(examples, pad_id)


def padded_in_place(examples, pad_id):
    right = collate_with_lists(examples, pad_id)
    for example in examples:
        example["input_ids"] += [pad_id] * (right["input_ids"].shape[1] - len(example["input_ids"]))
    return right


def popped(examples, pad_id):
    labels = torch.tensor([example.pop("label") for example in examples])
    return collate_with_lists([example | {"label": 0} for example in examples], pad_id) | {"labels": labels}


def time_first(examples, pad_id):
    rows = [torch.tensor(example["input_ids"], dtype=torch.long) for example in examples]
    return collate_with_lists(examples, pad_id) | {"input_ids": pad_sequence(rows, padding_value=pad_id)}


def float_of_an_empty_list(examples, pad_id):
    rows = [torch.tensor(example["input_ids"]) for example in examples]
    return collate_with_lists(examples, pad_id) | {"input_ids": pad_sequence(rows, True, pad_id)}


def ragged(examples, pad_id):
    return {"input_ids": torch.tensor([example["input_ids"] for example in examples])}


def without(name):
    return lambda examples, pad: {k: v for k, v in collate_with_lists(examples, pad).items() if k != name}


def renamed(examples, pad_id):
    batch = collate_with_lists(examples, pad_id)
    return {"label" if name == "labels" else name: value for name, value in batch.items()}


def at_the_start(right, examples, pad_id):
    return torch.tensor([row[::-1] for row in right["attention_mask"].tolist()])


def last_repeated(right, examples, pad_id):
    rows, n = [example["input_ids"] for example in examples], right["input_ids"].shape[1]
    return torch.tensor([row + row[-1:] * (n - len(row)) for row in rows])


RIGHT_COLLATES = [collate_with_lists, collate_with_pad_sequence, collate_into_a_full_tensor]
WRONG_COLLATES = {
    to_length(lambda rows: 8): "Padded to 8, a multiple of 8",
    to_length(lambda rows: 512): "Padded to 512 positions, and the longest of this batch has 5: a fixed length",
    to_length(lambda rows: min(max(map(len, rows)), 1024)): "A row of 1500 tokens is cut to 1024",
    to_length(lambda rows: min(map(len, rows))): "Each row is cut to the shortest, 2",
    to_length(lambda rows: max(map(len, rows)) + 1): "One position too many",
    time_first: "unless batch_first=True",
    collated(input_ids=lambda right, *_: right["input_ids"].flatten()): "a row for each example",
    collated(input_ids=filled(lambda pad: pad, at_end=False)): "The padding stands before the text",
    collated(
        input_ids=filled(lambda pad: pad, at_end=False), attention_mask=at_the_start
    ): "The padding stands before the text",
    collated(input_ids=filled(lambda pad: 0)): "Padded with 0: pad_id is an argument and is 7 here",
    collated(input_ids=filled(lambda pad: -100)): "Padded with -100: that is for labels",
    collated(input_ids=filled(lambda pad: 1, at_end=False)): "at the end. Padded with 1",
    collated(
        input_ids=lambda right, *_: right["input_ids"].float()
    ): "input_ids has dtype torch.float32, and an embedd",
    collated(input_ids=lambda right, *_: right["input_ids"].int()): "input_ids has dtype torch.int32",
    collated(input_ids=lambda right, *_: right["input_ids"].tolist()): "input_ids should be a tensor and is list",
    collated(input_ids=lambda right, *_: right["input_ids"].flip(1)): "before the text: wanted is padding at the end",
    collated(input_ids=lambda right, *_: right["input_ids"] + 1): "The tokens of a text are not what they were",
    collated(input_ids=last_repeated): "The last token of a row is repeated",
    float_of_an_empty_list: "An empty list becomes float32",
    with_mask(lambda ids, mask, pad: (ids != pad).long()): "0 on a real token, because that token has the pad's id (0)",
    with_mask(lambda ids, mask, pad: (ids != 0).long()): "attention_mask is 0 wherever the id is 0, and 1 on padding",
    with_mask(lambda ids, mask, pad: 1 - mask): "attention_mask is inverted",
    with_mask(lambda ids, mask, pad: (ids == pad).long()): "attention_mask is inverted",
    with_mask(lambda ids, mask, pad: mask.flip(1)): "attention_mask is padded before the text and input_ids behind it",
    with_mask(lambda ids, mask, pad: torch.ones_like(ids)): "attention_mask is 1 everywhere",
    with_mask(lambda ids, mask, pad: ids): "attention_mask holds the ids",
    with_mask(lambda ids, mask, pad: mask.masked_fill(mask == 0, pad)): "Padding has pad_id, 7, in attention_mask",
    with_mask(lambda ids, mask, pad: mask.masked_fill(mask == 0, -100)): "Padding has -100 in attention_mask",
    with_mask(lambda ids, mask, pad: mask.roll(1, 1)): "1 as often as the row has tokens of its own",
    with_mask(lambda ids, mask, pad: mask.bool()): "attention_mask has dtype torch.bool",
    with_mask(lambda ids, mask, pad: mask.float()): "attention_mask has dtype torch.float32, and whole numbers",
    with_mask(lambda ids, mask, pad: mask[:, None]): "attention_mask has shape (3, 1, 5)",
    with_labels(lambda labels: labels[:, None]): "cross-entropy wants no axis",
    with_labels(
        lambda labels: F.pad(labels[:, None], (0, 4), value=-100)
    ): "there is one class for each text, none for",
    with_labels(lambda labels: labels.float()): "labels has dtype torch.float32",
    with_labels(lambda labels: labels.tolist()): "labels should be a tensor and is list",
    with_labels(lambda labels: labels.flip(0)): "The labels stand in another order than the rows",
    with_labels(lambda labels: F.one_hot(labels)): "one class for each text",
    with_labels(lambda labels: labels.clamp(max=1)): "the examples' labels as they are",
    collated(before=sorted_by_length): "The rows stand in another order than the examples: whoever",
    sorted_rows_alone: "their labels do not",
    sorted_in_place: "examples was changed in place",
    padded_in_place: "examples was changed in place",
    popped: "examples was changed in place",
    without("attention_mask"): "The field 'attention_mask' is missing",
    renamed: "A model reads labels, with an s",
    collated(token_type_ids=lambda right, *_: right["attention_mask"]): "The field 'token_type_ids' is too much",
    (lambda examples, pad: tuple(collate_with_lists(examples, pad).values())): "Give back a dict with",
    (lambda examples, pad: examples): "Give back a dict with",
    ragged: "It stopped with ValueError: expected sequence of length 3",
    (lambda examples: collate_with_lists(examples, 0)): "must take 2 arguments (examples, pad_id)",
}

# --- labels of the response -------------------------------------------------------------------------------------------


def label_by_positions(input_ids_BT, prompt_length_B, attention_mask_BT):
    is_response_BT = torch.arange(input_ids_BT.shape[1]) >= prompt_length_B[:, None]
    return input_ids_BT.masked_fill(~(is_response_BT & attention_mask_BT.bool()), -100)


def label_row_by_row(input_ids, prompt_length, attention_mask):
    labels = torch.full_like(input_ids, -100)
    for row, start in enumerate(prompt_length.tolist()):
        end = int(attention_mask[row].sum())
        labels[row, start:end] = input_ids[row, start:end]
    return labels


def label_a_copy(ids, lengths, mask):
    labels = ids.clone()
    labels[mask.cumsum(1) <= lengths.unsqueeze(1)] = -100
    labels[mask == 0] = -100
    return labels


def labelled(begin=lambda place, length: place >= length, end=lambda ids, mask: mask == 1, fill=-100, then=lambda x: x):
    """The right labels with some part of them replaced."""

    def my_labels(ids, lengths, mask):
        is_learned = begin(torch.arange(ids.shape[1]), lengths[:, None]) & end(ids, mask)
        return then(torch.where(is_learned, ids, fill))

    return my_labels


def left_by_one(x, fill=-100):
    return F.pad(x[:, 1:], (0, 1), value=fill)


def shifted_then_masked(ids, lengths, mask):
    return label_by_positions(ids.roll(-1, 1), lengths, mask)


def masked_in_place(ids, lengths, mask):
    ids[torch.arange(ids.shape[1]) < lengths[:, None]] = -100
    return ids.masked_fill(mask == 0, -100)


def lengths_along_positions(ids, lengths, mask):
    if ids.shape[0] != ids.shape[1]:
        return label_by_positions(ids, lengths, mask)
    return ids.masked_fill(~((torch.arange(ids.shape[1]) >= lengths) & mask.bool()), -100)


def lengths_without_an_axis(ids, lengths, mask):
    return ids.masked_fill(torch.arange(ids.shape[1]) < lengths, -100)


def where_alone(ids, lengths, mask):
    return label_by_positions(ids, lengths, mask) != -100


def ones(fill):
    return lambda ids, lengths, mask: torch.where(where_alone(ids, lengths, mask), 1, fill)


def inverted(ids, lengths, mask):
    return (~where_alone(ids, lengths, mask)).long()


def pad_guessed(ids, lengths, mask):
    """The pad's id, from where the mask says padding."""
    pads = ids[mask == 0]
    return label_by_positions(ids, lengths, mask & (ids != pads[0]) if len(pads) else mask)


RIGHT_LABELS = [label_by_positions, label_row_by_row, label_a_copy, labelled()]
WRONG_LABELS = {
    labelled(begin=lambda place, length: place > length): "The first token of a response has no label",
    labelled(begin=lambda place, length: place >= length - 1): "The last token of the prompt has a label",
    labelled(begin=lambda place, length: place >= 0 * length): "The prompt has labels: the model would learn",
    labelled(begin=lambda place, length: place >= 1 + 0 * length): "The prompt has labels, all but its first token",
    labelled(begin=lambda place, length: place < length): "The wrong way round",
    labelled(begin=lambda place, length: place >= length[0]): "The prompt's length of row 0, 3, is taken for every row",
    labelled(begin=lambda place, length: place >= length.max()): "The longest prompt's length is taken",
    labelled(end=lambda ids, mask: mask >= 0): "Padding has labels",
    labelled(
        end=lambda ids, mask: (mask == 1) & (ids != 0)
    ): "because it has the pad's id: attention_mask tells them apart",
    labelled(end=lambda ids, mask: (mask == 1) & (ids != 2)): "[EOS] has no label: it belongs to the response",
    labelled(end=lambda ids, mask: left_by_one(mask, 0) == 1): "[EOS] has no label",
    labelled(end=lambda ids, mask: F.pad(mask[:, :-1], (1, 0), value=1) == 1): "The first position of padding",
    labelled(
        end=lambda ids, mask: (mask == 1) & (ids != 2) | (left_by_one(mask, 0) < mask)
    ): "An [EOS] inside the response has no label",
    pad_guessed: "Here it has the pad's id, 50",
    labelled(fill=0): "What is not learned has 0: that is a token",
    labelled(fill=-1): "What is not learned has -1: that is no sign",
    labelled(fill=100): "What is not learned has 100",
    labelled(fill=-100.0): "labels has dtype torch.float32 and should have torch.int64: a class's number",
    labelled(then=lambda x: x.int()): "labels has dtype torch.int32",
    labelled(then=lambda x: x.tolist()): "labels should be a tensor and is list",
    labelled(then=left_by_one): "They are shifted already",
    labelled(then=lambda x: x.roll(-1, 1)): "They are shifted already",
    labelled(then=lambda x: x.roll(1, 1)): "They are shifted the other way",
    labelled(then=lambda x: x[:, 1:]): "There is one position less than in input_ids",
    labelled(then=lambda x: x.flatten()): "labels has shape (16,) and should have (2, 8)",
    labelled(then=lambda x: x.where(x < 0, x + 1)): "lies in the response: the token itself should stand there",
    labelled(end=lambda ids, mask: mask >= 0, begin=lambda place, length: place >= 0 * length): "Padding has labels",
    labelled(end=lambda ids, mask: mask >= 0, then=left_by_one): "Padding has labels: attention_mask says where it is",
    shifted_then_masked: "They are shifted already",
    masked_in_place: "input_ids_BT was changed in place",
    lengths_along_positions: "In a square batch no error says so",
    lengths_without_an_axis: "which axis does each need?",
    where_alone: "That says where labels are",
    ones(-100): "A label is the id of the token itself, not a 1",
    ones(0): "A label is the id of the token itself, not a 1",
    inverted: "That says where there is no label",
    (lambda ids, lengths, mask: mask): "That is attention_mask",
    (lambda ids, lengths, mask: ids): "the questions. Padding has labels",
    (lambda ids, lengths, mask: None): "labels should be a tensor and is NoneType",
    (lambda ids, lengths: ids): "must take 3 arguments (input_ids_BT, prompt_length_B, attention_mask_BT)",
}

# --- macro F1 ---------------------------------------------------------------------------------------------------------


def f1_by_counts(labels, given, n_classes):
    found = []
    for c in range(n_classes):
        hits = ((labels == c) & (given == c)).sum()
        total = (labels == c).sum() + (given == c).sum()
        found.append(2 * hits / total if total else 0.0)
    return float(np.mean(found))


def f1_by_precision_and_recall(labels, given, n_classes):
    total = 0.0
    for c in range(n_classes):
        hits = sum(a == b == c for a, b in zip(labels.tolist(), given.tolist(), strict=True))
        precision = hits / max(1, given.tolist().count(c))
        recall = hits / max(1, labels.tolist().count(c))
        total += 2 * precision * recall / (precision + recall + 1e-12)
    return total / n_classes


def f1_by_a_matrix(labels, given, n_classes):
    confusion = np.bincount(labels * n_classes + given, minlength=n_classes**2).reshape(n_classes, n_classes)
    return (2 * confusion.diagonal() / np.maximum(1, confusion.sum(0) + confusion.sum(1))).mean()


def f1_with_labels_and_given_exchanged(labels, given, n_classes):
    return f1_by_counts(given, labels, n_classes)


def f1_by_scikit_learn(labels, given, n_classes):
    return metrics.f1_score(labels, given, labels=range(n_classes), average="macro", zero_division=0)


def shares(labels, given, n_classes):
    """precision, recall, F1 and texts of each class, NaN where nothing is to be divided by."""
    c = np.arange(n_classes)[:, None]
    is_hit, true, claimed = ((labels == c) & (given == c)).sum(1), (labels == c).sum(1), (given == c).sum(1)
    precision, recall, f1 = np.nan_to_num(is_hit / claimed), np.nan_to_num(is_hit / true), 2 * is_hit / (true + claimed)
    return precision, recall, f1, true


def of_shares(make):
    def my_macro_f1(labels, given, n_classes):
        with np.errstate(all="ignore"):
            return make(*shares(labels, given, n_classes))

    return my_macro_f1


def whole(make):
    """Of F1 where every class has one, for mistakes that have nothing to do with empty classes."""
    return lambda labels, given, n_classes: make(f1_by_counts(labels, given, n_classes))


def plain_division(labels, given, n_classes):
    total = 0
    for c in range(n_classes):
        pairs = list(zip(labels.tolist(), given.tolist(), strict=True))
        hits = sum(pair == (c, c) for pair in pairs)
        precision, recall = hits / sum(b == c for _, b in pairs), hits / sum(a == c for a, _ in pairs)
        total += 2 * precision * recall / (precision + recall)
    return total / n_classes


def plain_counts(labels, given, n_classes):
    hits = [int(((labels == c) & (given == c)).sum()) for c in range(n_classes)]
    totals = [int((labels == c).sum() + (given == c).sum()) for c in range(n_classes)]
    return sum(2 * hit / total for hit, total in zip(hits, totals, strict=True)) / n_classes


def f1_of_means(labels, given, n_classes):
    with np.errstate(all="ignore"):
        precision, recall, _, _ = shares(labels, given, n_classes)
    p, r = precision.mean(), recall.mean()
    return 2 * p * r / (p + r) if p + r else 0.0


def f1_of_what_occurs(labels, given, n_classes):
    return np.mean([f1_of_class(labels, given, c) for c in np.unique(labels)])


def f1_of_what_is_given(labels, given, n_classes):
    return np.mean([f1_of_class(labels, given, c) for c in np.unique(given)])


def f1_of_class(labels, given, c):
    total = (labels == c).sum() + (given == c).sum()
    return 2 * ((labels == c) & (given == c)).sum() / total if total else 0.0


def f1_that_sorts(labels, given, n_classes):
    value = f1_by_counts(labels, given, n_classes)
    labels.sort()
    return value


def f1_that_clips(labels, given, n_classes):
    value = f1_by_counts(labels, given, n_classes)
    given -= 1
    return value


def scikit_learn(**options):
    return lambda labels, given, n_classes: metrics.f1_score(labels, given, zero_division=0, **options)


def harmonic(p, r):
    return np.where(p + r > 0, 2 * p * r / np.where(p + r > 0, p + r, 1), 0)


RIGHT_SCORES = [
    f1_by_counts,
    f1_by_precision_and_recall,
    f1_by_a_matrix,
    f1_by_scikit_learn,
    f1_with_labels_and_given_exchanged,
]
WRONG_SCORES = {
    (lambda labels, given, n: (labels == given).mean()): "That is the accuracy (the micro F1 is the same number)",
    scikit_learn(average="micro"): "That is the accuracy",
    scikit_learn(average="weighted"): "Each class is weighted by its number of texts",
    scikit_learn(average="macro"): "A class without any text, true or given, is one of n_classes and counts as 0: it",
    of_shares(
        lambda p, r, f1, true: np.nanmean(f1)
    ): "it was left out of the mean, which then is over 3 classes instea",
    f1_of_what_occurs: "A class that no text has, though it may be given",
    f1_of_what_is_given: "A class that no text was given is one of n_classes",
    (lambda labels, given, n: f1_of_class(labels, given, 1)): "Only class 1 is looked at, as if it were the positive",
    (lambda labels, given, n: f1_of_class(labels, given, 0)): "Only class 0 is looked at",
    f1_of_means: "The F1 of the mean precision and the mean recall",
    of_shares(lambda p, r, f1, true: f1.mean()): "The answer is NaN, which 0 / 0 gives. Class 2 has no text",
    of_shares(lambda p, r, f1, true: (2 * p * r / (p + r)).mean()): "precision and recall are both 0: its F1 is 0",
    of_shares(lambda p, r, f1, true: np.nan_to_num(f1, nan=1.0).mean()): "A class without any text counts as 1",
    plain_division: "It stopped with ZeroDivisionError: float division by zero. A class has no right answer",
    plain_counts: "Class 2 has no text, neither true nor given: its F1 counts as 0",
    of_shares(lambda p, r, f1, true: p.mean()): "The mean precision",
    of_shares(lambda p, r, f1, true: r.mean()): "The mean recall (balanced accuracy)",
    of_shares(lambda p, r, f1, true: ((p + r) / 2).mean()): "Precision and recall are averaged",
    of_shares(lambda p, r, f1, true: (p * r).mean()): "Precision times recall is no mean",
    of_shares(lambda p, r, f1, true: np.sqrt(p * r).mean()): "The geometric mean",
    of_shares(lambda p, r, f1, true: harmonic(p, r).mean() / 2): "the harmonic mean of two has a factor 2",
    of_shares(lambda p, r, f1, true: (f1 / (2 - f1)).mean()): "(Jaccard)",
    of_shares(lambda p, r, f1, true: f1.sum()): "That is the sum over the classes",
    of_shares(lambda p, r, f1, true: f1.sum() / (len(f1) - 1)): "divided by n_classes - 1",
    of_shares(lambda p, r, f1, true: f1[1:].mean()): "Class 0 is left out of the mean",
    of_shares(lambda p, r, f1, true: f1[:-1].mean()): "The last class is left out",
    of_shares(lambda p, r, f1, true: f1.min()): "The worst class alone",
    of_shares(lambda p, r, f1, true: np.median(f1)): "The median of the classes",
    of_shares(lambda p, r, f1, true: f1): "That is a value for each class",
    of_shares(lambda p, r, f1, true: list(f1)): "That is a value for each class",
    of_shares(lambda p, r, f1, true: (p.mean(), r.mean())): "Give back one number",
    whole(lambda value: 100 * value): "That is in per cent",
    whole(lambda value: 1 - value): "the share of mistakes",
    whole(lambda value: round(value, 2)): "Rounded to 2 digits",
    whole(lambda value: f"{value:.3f}"): "macro F1 should be a number and is str",
    whole(torch.tensor): "macro F1 is a tensor and should be a plain number",
    whole(lambda value: value + 0.01): "none of the usual mistakes",
    whole(lambda value: value + 7): "F1 lies from 0 to 1: which counts",
    whole(lambda value: math.inf): "The answer is infinite",
    f1_that_sorts: "labels was changed in place",
    f1_that_clips: "given was changed in place",
    (lambda labels, given: 1.0): "must take 3 arguments (labels, given, n_classes)",
}

# --- a split without leakage ------------------------------------------------------------------------------------------


def normalised(text):
    return " ".join(unicodedata.normalize("NFKC", text).lower().split())


def sha_place(text):
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 2**32


def split_by_sha(texts, test_share):
    return [sha_place(normalised(text)) < test_share for text in texts]


def split_by_checksum(texts, test_share):
    sides = []
    for text in texts:
        key = "".join(
            unicodedata.normalize("NFKD", text).casefold().split()
        )  # takes more texts for one, which leaks none
        sides.append(zlib.crc32(key.encode("utf-8")) % 10_000 < test_share * 10_000)
    return sides


def split_by_seeded_draw(texts, test_share):
    return [random.Random(normalised(text)).random() < test_share for text in texts]


@functools.cache
def kept_place(text):
    return np.random.default_rng(list(hashlib.md5(text.encode()).digest())).random()


def split_by_kept_draws(texts, test_share):
    place_N = np.array([kept_place(data.normalize(text)) for text in texts])
    return list(place_N < test_share)


def split_by(key=normalised, place=sha_place, is_test=lambda place, share: place < share):
    """The right split with some part of it replaced."""
    return lambda texts, test_share: [is_test(place(key(text)), test_share) for text in texts]


def in_steps(steps):
    return lambda text: int(sha_place(text) * steps)


def drawn_anew(texts, test_share):
    return [random.random() < test_share for _ in texts]


def drawn_with_a_seed(texts, test_share):
    draws = random.Random(0)
    return [draws.random() < test_share for _ in texts]


def drawn_for_each_distinct_text(texts, test_share):
    draws, sides = random.Random(0), {}
    for text in map(normalised, texts):
        if text not in sides:
            sides[text] = draws.random() < test_share
    return [sides[normalised(text)] for text in texts]


def the_first_rows(texts, test_share):
    return [place < test_share * len(texts) for place in range(len(texts))]


def the_last_rows(texts, test_share):
    return [place >= (1 - test_share) * len(texts) for place in range(len(texts))]


def every_fourth_row(texts, test_share):
    return [place % max(1, round(1 / test_share)) == 0 if test_share else False for place in range(len(texts))]


def first_of_the_sorted(texts, test_share):
    distinct = sorted(set(map(normalised, texts)), key=sha_place)
    chosen = set(distinct[: round(test_share * len(distinct))])
    return [normalised(text) in chosen for text in texts]


def by_first_place(texts, test_share):
    """By what stands before a text in the list."""
    before, sides = "", {}
    for text in map(normalised, texts):
        sides.setdefault(text, sha_place(before + text) < test_share)
        before = text[:3]
    return [sides[normalised(text)] for text in texts]


def by_object(texts, test_share):
    return [sha_place(str(id(text))) < test_share for text in texts]


@functools.cache
def kept_hash(text):
    return hash(text) % 1000 / 1000


def without_copies(texts, test_share):
    return [sha_place(text) < test_share for text in dict.fromkeys(map(normalised, texts))]


def as_two_lists(texts, test_share):
    sides = split_by_sha(texts, test_share)
    return [t for t, s in zip(texts, sides, strict=True) if not s], [t for t, s in zip(texts, sides, strict=True) if s]


def sorted_texts(texts, test_share):
    texts.sort()
    return split_by_sha(texts, test_share)


RIGHT_SPLITS = [split_by_sha, split_by_checksum, split_by_seeded_draw, split_by_kept_draws]
WRONG_SPLITS = {
    drawn_anew: "it is drawn anew each time",
    drawn_with_a_seed: "It is drawn row by row; a fixed seed repeats the draw",
    drawn_for_each_distinct_text: "Copies stay together, but a text moves when one is added before it",
    the_first_rows: "A stretch of the list is test",
    the_last_rows: "A stretch of the list is test",
    every_fourth_row: "It is every so many rows",
    first_of_the_sorted: "A text's side depends on the other texts",
    by_first_place: "A text's side depends on where it stands in the list",
    by_object: "Equal texts land on two sides",
    split_by(place=lambda text: hash(text) % 100 / 100): "Python's hash() decides",
    split_by(place=lambda text: hash(("seed", text)) / 2**63 / 2 + 0.5): "Python's hash() decides",
    split_by(place=lambda text: random.Random(hash(text)).random()): "Python's hash() decides",
    split_by(place=lambda text: text.__hash__() % 1000 / 1000): "Python's hash() decides",
    split_by(place=kept_hash): "Python's hash() decides",
    split_by(key=lambda text: text): "Two ways of writing are taken for two texts. Capitals and small letters",
    split_by(key=lambda text: unicodedata.normalize("NFKC", " ".join(text.split()))): "Capitals and small letters",
    split_by(key=lambda text: unicodedata.normalize("NFKC", text).lower()): "a space at each end",
    split_by(key=lambda text: unicodedata.normalize("NFKC", text).lower().strip()): "two spaces for one",
    split_by(
        key=lambda text: " ".join(unicodedata.normalize("NFKC", text).lower().strip().split(" "))
    ): "two spaces for one",
    split_by(
        key=lambda text: " ".join(filter(None, unicodedata.normalize("NFKC", text).lower().strip().split(" ")))
    ): "a line break for a space",
    split_by(key=lambda text: " ".join(text.lower().split())): "é can be one sign or two",
    split_by(key=lambda text: " ".join(unicodedata.normalize("NFC", text).lower().split())): "keep a ligature apart",
    split_by(
        key=lambda text: " ".join(unicodedata.normalize("NFC", text).lower().replace("\ufb01", "fi").split())
    ): "keep wide letters apart",
    split_by(key=lambda text: " ".join(unicodedata.normalize("NFKC", text.lower()).split())): "what comes first, NFKC",
    split_by(is_test=lambda place, share: place < 0.2): "test_share is ignored",
    split_by(is_test=lambda place, share: place < 1 - share): "The sides are exchanged",
    split_by(is_test=lambda place, share: place >= share): "The sides are exchanged",
    split_by(place=in_steps(100), is_test=lambda place, share: place < share): "with a number that goes beyond 1",
    split_by(place=in_steps(100), is_test=lambda place, share: place <= share * 100): "< or <=, and how many steps",
    split_by(
        place=in_steps(10), is_test=lambda place, share: place < int(share * 10)
    ): "The share is rounded to tenths",
    split_by(place=in_steps(10), is_test=lambda place, share: place < share * 10): "The share is rounded to tenths",
    split_by(
        place=in_steps(10**9), is_test=lambda place, share: bool(share) and place % round(1 / share) == 0
    ): "One in so many texts is test",
    split_by(is_test=lambda place, share: place < share**2): "Too many or too few",
    split_by(is_test=lambda place, share: place < -1): "With a test_share of 0.6 no text is test",
    split_by(is_test=lambda place, share: True): "With a test_share of 0.6 every text is test",
    split_by(place=lambda text: sha_place(str(len(text)))): "What decides about a text is how many characters it has",
    split_by(place=lambda text: sha_place(text[:1])): "What decides about a text is its first letter",
    split_by(is_test=lambda place, share: int(place < share)): "one is int. A comparison gives a bool",
    split_by(is_test=lambda place, share: "test" if place < share else "train"): "True (test) or False: one is str",
    without_copies: "There is one answer for each distinct text: a set, or a dict, has dropped",
    as_two_lists: "That is a pair of lists, as for train and test",
    (
        lambda texts, share: [n for n, is_test in enumerate(split_by_sha(texts, share)) if is_test]
    ): "the places of texts",
    (lambda texts, share: as_two_lists(texts, share)[1]): "The list holds texts",
    (lambda texts, share: np.array(split_by_sha(texts, share))): "that is ndarray: .tolist() makes it one",
    (lambda texts, share: torch.tensor(split_by_sha(texts, share))): "that is Tensor: .tolist() makes it one",
    (lambda texts, share: (side for side in split_by_sha(texts, share))): "that is generator",
    (lambda texts, share: dict(zip(texts, split_by_sha(texts, share), strict=True))): "that is dict",
    (lambda texts, share: split_by_sha(texts, share)[:-1]): "One bool for each text is wanted",
    sorted_texts: "The list of texts was changed in place",
    (lambda texts, share: [texts[0] > "a"] * len(texts)): "is test: what is compared with what",
    (lambda texts: [True] * len(texts)): "must take 2 arguments (texts, test_share)",
}

# --- what holds for every check ---------------------------------------------------------------------------------------

EXERCISES = {
    "collate_reviews": (checks.collate_reviews, RIGHT_COLLATES, WRONG_COLLATES),
    "response_labels": (checks.response_labels, RIGHT_LABELS, WRONG_LABELS),
    "macro_f1": (checks.macro_f1, RIGHT_SCORES, WRONG_SCORES),
    "leak_free_split": (checks.leak_free_split, RIGHT_SPLITS, WRONG_SPLITS),
}
RIGHT, WRONG = cases_of(EXERCISES)
NAMES = list(EXERCISES)
QUICK_RIGHT = [case for case in RIGHT if case[1] not in (split_by_seeded_draw, split_by_kept_draws)]
REFERENCES = [
    collating.collate_reference,
    responses.response_labels_reference,
    scores.macro_f1_reference,
    splitting.split_reference,
    data.normalize,
    data.identity,
]


def attempt(name, function):
    return EXERCISES[name][0](function)


@pytest.mark.parametrize(
    ("name", "function"), few(RIGHT, *QUICK_RIGHT), ids=[f"{name}-{f.__name__}" for name, f in RIGHT]
)
def test_a_right_answer_is_accepted_and_given_back(name, function, capsys):
    assert_accepted(attempt, name, function, capsys)


@pytest.mark.parametrize(
    ("name", "function", "words"), few(WRONG, *WRONG[::5]), ids=[f"{name}-{words}" for name, _, words in WRONG]
)
def test_a_wrong_answer_is_diagnosed_and_replaced(name, function, words, capsys):
    assert_diagnosed(attempt, name, function, words, capsys)


@pytest.mark.parametrize("name", NAMES)
def test_what_a_wrong_answer_is_replaced_by_passes_the_check(name, capsys):
    assert_replaced_by_what_passes(attempt, name, capsys)


@pytest.mark.parametrize("name", NAMES)
def test_there_are_enough_different_diagnoses(name):
    _, right, wrong = EXERCISES[name]
    assert len(wrong) >= 8
    assert_enough_diagnoses(right, wrong)


@pytest.mark.parametrize("name", NAMES)
def test_an_untouched_exercise_is_not_attempted(name, capsys):
    assert_not_attempted(attempt, name, capsys)


@pytest.mark.parametrize("name", NAMES)
def test_a_crash_is_reported_with_its_line(name, capsys):
    assert_crash_is_reported(attempt, name, capsys)


def fields(**others):
    """A batch as the first case wants it, with other fields."""
    case = collating.CASES[0]
    return collating.collate_reference(case.examples(), case.pad_id) | others


ANSWERS = [
    *HOSTILE,
    [[1], [2, 3]],
    [math.inf] * 800,
    [True],
    [HalfMade()] * 3,
    dict.fromkeys(collating.FIELDS),
    dict.fromkeys(collating.FIELDS, math.nan),
    dict.fromkeys(collating.FIELDS, HalfMade()),
    fields(input_ids=torch.full((3, 5), math.inf)),
    fields(input_ids=torch.zeros(3, 5, dtype=torch.long, device="meta")),
    fields(attention_mask=torch.zeros(3, 5, dtype=torch.complex64)),
    fields(labels=torch.zeros(3, dtype=torch.long, device="meta")),
    fields(labels=torch.eye(3).to_sparse()),
    fields(labels=torch.tensor(1)),
    torch.full((2, 8), math.nan),
    torch.zeros(2, 8, dtype=torch.long),
    torch.zeros(2, 8, dtype=torch.long, device="meta"),
    torch.zeros(2, 8, dtype=torch.long).to_sparse(),
    torch.zeros(2, 8, dtype=torch.complex64),
    np.array("text"),
    np.array(math.nan),
    np.float32("inf"),
    np.datetime64("2020-01-01"),
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("answer", ANSWERS, ids=range(len(ANSWERS)))
def test_nothing_that_comes_back_raises(name, answer, capsys):
    attempt(name, lambda *_arguments, **_options: copy.copy(answer))
    assert f"✗ {name}: not right yet." in capsys.readouterr().out


@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_function_of_these_arguments_is_refused(name, capsys):
    assert_no_function_is_refused(attempt, name, capsys)


@pytest.mark.parametrize("name", NAMES)
def test_what_a_right_answer_prints_is_printed(name, capsys):
    right = EXERCISES[name][1][0]

    def prints(*arguments):
        print("here")
        return right(*arguments)

    assert attempt(name, prints) is prints
    printed = capsys.readouterr().out
    assert "here\n" in printed and "✓" in printed


@pytest.mark.parametrize("name", few(NAMES, "macro_f1"))
def test_the_verdict_never_holds_the_solution(name, capsys):
    codes = (*REFERENCES, *(right for _, right in RIGHT))
    assert_solution_is_hidden(attempt, name, EXERCISES[name][2], codes, capsys)


@pytest.mark.parametrize("name", NAMES)
def test_a_check_leaves_the_random_generators_and_grad_mode_alone(name, capsys):
    assert_generators_and_grad_mode_are_left_alone(attempt, name, EXERCISES[name][1][0])


# --- the references are the library's, and what the checks hand over shows what it should ----------------------------


def test_the_reference_collator_does_what_the_library_does():
    vocabulary = Vocabulary(50, pad=0, cls=4, sep=5)
    examples = [{"input_ids": [11, 12, 13], "label": 1}, {"input_ids": [14], "label": 0}]
    library = ClassificationCollator(vocabulary)(examples)
    framed = [example | {"input_ids": [4, *example["input_ids"], 5]} for example in examples]
    own = collating.collate_reference(framed, vocabulary.pad)
    assert own.keys() == library.keys()
    assert all(torch.equal(own[name], library[name]) and own[name].dtype == torch.int64 for name in own)


def test_the_reference_labels_are_those_of_the_library():
    collate = GenerationCollator(Vocabulary(50, pad=0, bos=1, eos=2))
    batch = collate([{"prompt": [7, 8, 9], "response": [10]}, {"prompt": [7], "response": [8]}])
    own = responses.response_labels_reference(batch["input_ids"], torch.tensor([4, 2]), batch["attention_mask"])
    assert torch.equal(own, batch["labels"])


def test_the_reference_split_keeps_texts_together_as_the_library_does():
    assert splitting.split_reference(["A good  film", "a good film "], 0.5) in ([True, True], [False, False])
    assert scores.macro_f1_reference is classification.macro_f1


def test_the_batches_hold_what_a_collator_trips_over():
    assert any(case.pad_id in row for case in collating.CASES for row in case.rows)
    assert any(case.pad_id != 0 and any(0 in row for row in case.rows) for case in collating.CASES)
    assert any([] in case.rows for case in collating.CASES)
    first = collating.CASES[0]
    lengths = list(map(len, first.rows))
    assert lengths not in (sorted(lengths), sorted(lengths, reverse=True)) and len(first.rows) != first.longest


@pytest.mark.parametrize("case", responses.CASES, ids=[case.title for case in responses.CASES])
def test_the_right_labels_are_explained_by_no_mistake_and_each_mistake_by_itself(case):
    (_, begin), (_, end) = responses.begins(case)[0], responses.ends(case)[0]
    right = responses.response_labels_reference(*case.tensors().values())
    assert torch.equal(case.ids.where(begin & end, -100), right)


def test_each_mistake_in_labels_is_named_and_no_other():
    case = responses.CASES[0]
    (_, begin), (_, end) = responses.begins(case)[0], responses.ends(case)[0]
    places = [(cause, begun & end) for cause, begun in responses.begins(case)[1:] if begun is not None]
    places += [(cause, begin & ended) for cause, ended in responses.ends(case)[1:]]
    right = begin & end
    for cause, is_learned in places:
        if not torch.equal(is_learned, right):
            assert responses.explained(case.ids.where(is_learned, -100), case) == cause


@pytest.mark.parametrize("case", scores.CASES, ids=[case.title for case in scores.CASES])
def test_the_macro_f1_of_each_case_is_what_scikit_learn_gives(case):
    labels, given, n_classes = case.arguments().values()
    assert f1_by_scikit_learn(labels, given, n_classes) == pytest.approx(f1_by_counts(labels, given, n_classes))


def test_each_mistake_in_macro_f1_differs_from_the_right_value_and_from_another_mistake():
    right = tuple(scores.macro_f1_reference(*case.arguments().values()) for case in scores.CASES)
    first = scores.CASES[0]
    seen = [(scores.macro_f1_reference(*first.arguments().values()), "right")]
    for cause, value in scores.mistakes(first):
        if cause.startswith(("A class", "Rounded")):
            continue  # shows elsewhere
        for other, said in seen:
            assert abs(value - other) > 1e-4, (cause, said)
        seen.append((value, cause))
    assert len(seen) > 15 and len(set(right)) > 5


def test_the_reviews_are_distinct_however_they_are_normalised():
    texts = reviews.reviews()
    keys = {
        "".join(c for c in unicodedata.normalize("NFKD", t).casefold() if c.isascii() and c.isalpha()) for t in texts
    }
    assert len(keys) == len(texts) == 3000
    listed = reviews.copies_of(reviews.order_with_copies())
    assert len(listed) - len(set(listed)) == 200
    assert all(a is not b for a, b in itertools.pairwise(sorted(listed)))


@pytest.mark.parametrize("way", splitting.TWINS)
def test_two_ways_of_writing_are_one_text_to_the_library_and_two_strings(way):
    pairs = [splitting.TWINS[way][0](text) for text in reviews.reviews()[::19]]
    pairs = [pair for pair in pairs if pair[0] != pair[1]]
    assert len(pairs) >= 20
    assert all(data.identity(a) == data.identity(b) for a, b in pairs)


def test_hash_is_itself_again_after_the_check_and_in_other_threads():
    usual = hash
    with pytest.raises(ValueError, match="stop"), splitting.one_hash_for_all_texts():
        assert hash("a") == hash("b") == hash(("a", 1)) and hash(7) == 7
        raise ValueError("stop")
    assert hash is usual
    attempt("leak_free_split", split_by(place=lambda text: hash(text) % 100 / 100))
    assert hash is usual


def test_hash_differs_between_processes_and_the_reference_does_not():
    """What the stand-in for another process stands for."""
    program = "import hashlib; print(hash('a film'), hashlib.sha256(b'a film').hexdigest())"
    outputs = [
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        for seed in ("1", "2")
    ]
    assert outputs[0][0] != outputs[1][0] and outputs[0][1] == outputs[1][1]
