"""Checks of chapter 1 that look at corrupted text: masking, and spans with their sentinels.

Axes: B row of the batch, T position.
"""

from collections.abc import Callable
from functools import cache
from itertools import groupby

import torch
from torch import Tensor

from course_lib import data, objectives
from course_lib.checks.report import Wrong, call, pair, same, tensor
from course_lib.runtime import seeded
from course_lib.vocabulary import IGNORE_INDEX, Vocabulary

MaskTokens = Callable[[Tensor, Vocabulary, float, torch.Generator], tuple[Tensor, Tensor]]
CorruptSpans = Callable[[list[int], list[bool], list[int]], tuple[list[int], list[int]]]
RestoreSpans = Callable[[list[int], list[int], list[int]], list[int]]
SENTINELS = list(range(100, 140))  # what the checks hand to a learner's function


@cache
def real_batch() -> Tensor:
    """Real reviews, [CLS] in front, [SEP] behind, padded: int64 [48, 128]."""
    texts = [review.text for review in data.reviews_of("dev")[:48]]
    return data.pad(data.course_tokenizer().encode_all(texts), data.course_tokenizer().vocabulary, length=128)


# --- mask tokens ------------------------------------------------------------------------------------------------------


def mask_reference(
    input_ids_BT: Tensor, vocabulary: Vocabulary, mask_prob: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    batch = objectives.masked(input_ids_BT, vocabulary, mask_prob=mask_prob, generator=generator)
    return batch.input_ids_BT, batch.labels_BL


def verify_masking(function: MaskTokens) -> str:
    """Run BERT's masking at several probabilities. Raises Wrong or NotAttempted; says what was verified."""
    scattered = Vocabulary(60, pad=59, mask=30, cls=0, sep=17, sentinels=(40, 41))  # special ids in between
    dense_BT = torch.randint(0, 60, (64, 128), generator=seeded(11))
    course = data.course_tokenizer().vocabulary
    short_BT = torch.tensor([[0, 5, 6, 7, 8, 9, 17, 59]]).repeat(16, 1)
    cases = [(short_BT, scattered, prob) for prob in (0.5, 0.0, 1.0)] + [(torch.full((2, 4), 59), scattered, 1.0)]
    cases += [(real_batch(), course, 0.15), (dense_BT, scattered, 0.5), (dense_BT, scattered, 1.0)]
    for batch_BT, vocabulary, prob in cases:
        shown_BT, labels_BT = _mask_once(function, batch_BT, vocabulary, prob, 1)
        _judge_choice(batch_BT, shown_BT, labels_BT, vocabulary, prob)
        if batch_BT.numel() > 1000:
            _judge_fates(batch_BT, shown_BT, labels_BT, vocabulary)
    _judge_generator(function, dense_BT, scattered)
    n_tokens = sum(batch_BT.numel() for batch_BT, _, _ in cases)
    return f"shares, labels, special tokens and the generator on {n_tokens:,} tokens, mask_prob from 0 to 1"


def _mask_once(
    function: MaskTokens, batch_BT: Tensor, vocabulary: Vocabulary, prob: float, seed: int
) -> tuple[Tensor, Tensor]:
    """The function's result, if it can be one at all: types, labels, and special tokens."""
    generator = seeded(seed)
    result = call(function, input_ids_BT=batch_BT, vocabulary=vocabulary, mask_prob=prob, generator=generator)
    shown_BT, labels_BT = pair(result, ("shown_BT", "labels_BT"), input=batch_BT)
    tensor(shown_BT, "shown_BT", batch_BT.shape, torch.int64, input=batch_BT)
    tensor(labels_BT, "labels_BT", batch_BT.shape, torch.int64, input=batch_BT)
    evidence = {"input": batch_BT[:1], "shown": shown_BT[:1], "labels": labels_BT[:1]}
    is_special_BT, is_chosen_BT = ~vocabulary.is_ordinary_V[batch_BT], labels_BT != IGNORE_INDEX
    if (labels_BT[is_chosen_BT] < 0).any() or (is_chosen_BT.all() and prob < 1):
        raise Wrong("Tokens that were not chosen need the label -100, which the loss skips.", **evidence)
    is_hidden_BT = (shown_BT == vocabulary.mask) & (batch_BT != vocabulary.mask)
    if is_hidden_BT.any() and not (is_hidden_BT & is_chosen_BT).any():
        raise Wrong(
            "Hidden tokens have the label -100 and others a label: the choice is the wrong way round.", **evidence
        )
    if prob == 0 and is_chosen_BT.any():
        raise Wrong("With mask_prob 0 every label should be -100: no token is chosen.", **evidence)
    if n_special := int((is_chosen_BT & is_special_BT).sum()):
        raise Wrong(
            f"{n_special} special tokens were chosen (such as id {int(batch_BT[is_chosen_BT & is_special_BT][0])}): a "
            "[CLS] or padding token says nothing about the language. Choose among vocabulary.is_ordinary_V.",
            **evidence,
        )
    if (moved := (shown_BT != batch_BT) & ~is_chosen_BT).any():
        raise Wrong(f"{int(moved.sum())} tokens that were not chosen read differently: leave them alone.", **evidence)
    if (is_chosen_BT & (labels_BT != batch_BT)).any():
        raise Wrong("A chosen token's label should be the token that stood there, not what is shown now.", **evidence)
    is_swapped_BT = is_chosen_BT & (shown_BT != batch_BT) & (shown_BT != vocabulary.mask)
    drawn = shown_BT[is_swapped_BT]
    if (bad := drawn[~vocabulary.is_ordinary_V[drawn]]).numel():
        raise Wrong(
            f"{len(bad)} of {len(drawn)} tokens were swapped for a special token (such as id {int(bad[0])}): the model "
            "would learn that special tokens stand anywhere. Draw among vocabulary.ordinary_ids.",
            **evidence,
        )
    return shown_BT, labels_BT


def _judge_choice(batch_BT: Tensor, shown_BT: Tensor, labels_BT: Tensor, vocabulary: Vocabulary, prob: float) -> None:
    is_ordinary_BT, is_chosen_BT = vocabulary.is_ordinary_V[batch_BT], labels_BT != IGNORE_INDEX
    both_BT = is_ordinary_BT[:1] & is_ordinary_BT
    if 0 < prob < 1 and len(batch_BT) > 2 and not ((is_chosen_BT != is_chosen_BT[:1]) & both_BT).any():
        raise Wrong("Every row has the same positions chosen: draw for each row and position, in the input's shape.")
    n, chosen = int(is_ordinary_BT.sum()), int(is_chosen_BT.sum())
    is_kept_BT = is_chosen_BT & (shown_BT == batch_BT)
    is_swapped_BT = is_chosen_BT & ~is_kept_BT & (shown_BT != vocabulary.mask)
    if prob == 1 and chosen < n and is_swapped_BT.any() and not is_kept_BT.any():
        raise Wrong(
            f"{chosen} of {n} tokens have a label, and every one of them reads differently. Tokens that were chosen "
            "and stay as they are need a label too: they are predicted as well."
        )
    if abs(chosen - n * prob) > _slack(n, prob):
        raise Wrong(
            f"{chosen} of {n} ordinary tokens were chosen; mask_prob {prob:g} asks for about {n * prob:.0f}: each "
            "token is chosen with that probability, by a draw of its own."
        )


def _judge_fates(batch_BT: Tensor, shown_BT: Tensor, labels_BT: Tensor, vocabulary: Vocabulary) -> None:
    is_chosen_BT = labels_BT != IGNORE_INDEX
    n = int(is_chosen_BT.sum())
    hidden = int((is_chosen_BT & (shown_BT == vocabulary.mask)).sum())
    kept = int((is_chosen_BT & (shown_BT == batch_BT)).sum())
    swapped = n - hidden - kept
    counted = {"chosen": f"{n} tokens: {hidden} hidden, {swapped} swapped, {kept} unchanged"}
    chance = 1 / len(vocabulary.ordinary_ids)  # that a random token is the one that stood there
    if kept <= n * 0.2 * chance + _slack(n, 0.2 * chance):
        more = (
            "all are hidden (is the draw compared with 0.8, or with 0.8 of mask_prob?)"
            if swapped == 0
            else "is the last tenth drawn separately?"
        )
        raise Wrong(f"{kept} of {n} chosen tokens stayed unchanged; the paper keeps 10%: {more}", **counted)
    if swapped == 0:
        raise Wrong("The paper swaps 10% for a random token; here none is.", **counted)
    shares = ((hidden, 0.8), (swapped, 0.1), (kept, 0.1))
    if all(abs(count - n * share) <= _slack(n, share) + 0.1 * n * chance for count, share in shares):
        _judge_swaps(batch_BT, shown_BT, is_chosen_BT, vocabulary)
    elif abs(swapped - 0.02 * n) < _slack(n, 0.02) and abs(hidden - 0.8 * n) < _slack(n, 0.8):
        raise Wrong("You swap a tenth of the rest; the paper swaps a tenth of the *chosen*, half the rest.", **counted)
    elif abs(hidden - 0.72 * n) < _slack(n, 0.72):
        raise Wrong("Swapping hits a tenth of the hidden ones too: the fates must exclude each other.", **counted)
    elif abs(hidden - 0.1 * n) < _slack(n, 0.1):
        raise Wrong("The shares are the wrong way round: 80% become the mask token.", **counted)
    else:
        raise Wrong("It should be 80, 10 and 10%. One draw in [0, 1) for each token can decide all of it.", **counted)


def _judge_swaps(batch_BT: Tensor, shown_BT: Tensor, is_chosen_BT: Tensor, vocabulary: Vocabulary) -> None:
    drawn = shown_BT[is_chosen_BT & (shown_BT != batch_BT) & (shown_BT != vocabulary.mask)]
    if len(drawn) > 20 and len(drawn.unique()) < min(len(drawn), len(vocabulary.ordinary_ids)) / 4:
        raise Wrong(
            f"{len(drawn)} swapped tokens became only {len(drawn.unique())} different ones: draw a token for each, "
            "from the whole vocabulary."
        )


def _judge_generator(function: MaskTokens, batch_BT: Tensor, vocabulary: Vocabulary) -> None:
    first = _mask_once(function, batch_BT, vocabulary, 0.5, 3)
    torch.manual_seed(1 + torch.initial_seed() % 1000)
    second, third = (_mask_once(function, batch_BT, vocabulary, 0.5, seed) for seed in (3, 4))
    if not same(first, second):
        raise Wrong(
            "The same generator seed gave two different results: some draw ignores the generator. Hand "
            "generator=generator to each of them."
        )
    if same(first, third):
        raise Wrong("Two different generators gave the same result: the draws do not come from the generator.")


def _slack(n: int, share: float) -> float:
    """Five standard deviations of a count, so that a right answer fails once in a million."""
    return 5 * (n * share * (1 - share)) ** 0.5 + 1e-9


# --- spans and sentinels ----------------------------------------------------------------------------------------------


def corrupt_reference(ids: list[int], is_noise: list[bool], sentinels: list[int]) -> tuple[list[int], list[int]]:
    shown, target, sentinel = [], [], iter(sentinels)
    for noisy, run in groupby(zip(ids, is_noise, strict=True), key=lambda item: bool(item[1])):
        tokens = [token for token, _ in run]
        if noisy:
            mark = next(sentinel)
            shown.append(mark)
            target += [mark, *tokens]
        else:
            shown += tokens
    return shown, [*target, next(sentinel)]


def restore_reference(shown: list[int], target: list[int], sentinels: list[int]) -> list[int]:
    vocabulary = Vocabulary(max([*shown, *target, *sentinels]) + 2, sentinels=tuple(sentinels))
    return objectives.restore_spans(torch.tensor([shown]), torch.tensor([target]), vocabulary)[0]


def _span_cases() -> list[tuple[list[int], list[bool]]]:
    by_hand = ["..xx.x..", "..x..", "x...", "...x", "..xxx", "xx.xx", "....", "xxx", "x", "."]
    cases = [(list(range(1, len(marks) + 1)), [mark == "x" for mark in marks]) for marks in by_hand]
    ids = real_batch()[0, 1:60].tolist()
    words = [token + 200 for token in ids]  # clear of the sentinels
    noise = (torch.rand(len(words), generator=seeded(5)) < 0.3).tolist()
    return [*cases, ([7, 7, 7, 7, 7], [False, True, False, True, True]), (words, noise)]


def verify_corruption(function: CorruptSpans) -> str:
    for ids, is_noise in _span_cases():
        evidence = {"ids": ids, "is_noise": [int(noisy) for noisy in is_noise]}
        result = call(function, ids=ids, is_noise=is_noise, sentinels=SENTINELS)
        shown, target = (_ids(value, **evidence) for value in pair(result, ("input", "target"), **evidence))
        wanted = corrupt_reference(ids, is_noise, SENTINELS)
        if (shown, target) != wanted:
            cause = _span_cause(ids, is_noise, shown, target, *wanted)
            raise Wrong(f"{cause} Sentinels are 100, 101, ...", **evidence, wanted=wanted, given=(shown, target))
    return (
        f"{len(_span_cases())} texts: spans at both ends, side by side, everything and nothing removed, a real review"
    )


def _span_cause(
    ids: list[int],
    is_noise: list[bool],
    shown: list[int],
    target: list[int],
    want_shown: list[int],
    want_target: list[int],
) -> str:
    removed = [token for token, noisy in zip(ids, is_noise, strict=True) if noisy]
    marks = [token for token in shown if token in SENTINELS]
    n_spans = sum(token in SENTINELS for token in want_shown)
    if (shown, target) == (want_target, want_shown):
        return "Input and target are exchanged: the input comes first."
    if [token for token in shown if token not in SENTINELS] == removed != [t for t in want_shown if t not in SENTINELS]:
        return "The input holds what should have been removed: is_noise marks the tokens that go, not those that stay."
    if len(marks) == sum(is_noise) > n_spans:
        return "Removed tokens side by side are one span, and one sentinel stands for it; here each token has its own."
    ends = [token for token in target if token in SENTINELS]
    if len(set(marks)) < len(marks) or len(set(ends)) < len(ends):
        return "A sentinel is used twice: each span, and the end, needs one of its own, or nobody can tell them apart."
    if shown == want_shown and target == want_target[:-1]:
        return "The target lacks the last sentinel, which says that nothing follows."
    if shown == want_shown and target[:-1] == want_target[:-1]:
        return "The target ends with the wrong sentinel: take the next one that no span has used."
    if len(marks) < n_spans:
        end = "start (is_noise[-1] is the last token)" if is_noise[0] and shown[:1] != want_shown[:1] else "end"
        return f"The input lacks a sentinel where a span was removed: what if the span stands at the {end}?"
    if [token for token in shown if token not in SENTINELS] != [t for t in want_shown if t not in SENTINELS]:
        return "The input should hold the tokens that were not removed, in their order, and no other."
    if marks != [token for token in want_shown if token in SENTINELS]:
        return "The sentinels are taken out of turn: the first span gets sentinels[0], the next sentinels[1]."
    if shown != want_shown:
        return "A sentinel of the input does not stand where its span stood."
    if [token for token in target if token not in SENTINELS] != removed:
        return "The target should hold the removed tokens, all of them and no other."
    if target[:1] != want_target[:1]:
        return "In the target a sentinel comes before the tokens that it stands for."
    return "The target should read: a sentinel, the tokens that it stands for, the next sentinel, ..."


def verify_restoring(function: RestoreSpans) -> str:
    for ids, is_noise in _span_cases():
        shown, target = corrupt_reference(ids, is_noise, SENTINELS)
        evidence = {"input": shown, "target": target}
        given = _ids(call(function, input=shown, target=target, sentinels=SENTINELS), **evidence)
        if given != ids:
            raise Wrong(_restore_cause(shown, ids, given), **evidence, wanted=ids, given=given)
    return f"{len(_span_cases())} texts come back as they were"


def _restore_cause(shown: list[int], ids: list[int], given: list[int]) -> str:
    if given == [token for token in shown if token not in SENTINELS]:
        return "The sentinels are gone and nothing has taken their place: put each one's tokens where it stood."
    if any(token in SENTINELS for token in given):
        return "A sentinel is left in the text: only tokens of the original may stand there."
    if sorted(given) == sorted(ids):
        return "All tokens are there, in another order: each span belongs where its sentinel stands in the input."
    return "A span ends where the next sentinel begins: are all its tokens there, the last span's too?"


def _ids(value: object, **evidence: object) -> list[int]:
    value = value.tolist() if isinstance(value, Tensor) else value
    if not isinstance(value, (list, tuple)) or not all(isinstance(token, int) for token in value):
        raise Wrong("Give back lists of token ids.", **evidence, given=value)
    return list(value)
