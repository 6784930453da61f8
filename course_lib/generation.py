"""What a trained model says: a text written on, token by token, and the masked places of a text, filled in.

A decoder gives every token a score. `next_token_probabilities` makes a distribution of the scores, `draw_tokens` takes
one token from it, and `generate` does so again and again; keys and values of what was read are kept (a KV cache), so
that each step reads one new token a row.
Axes: B row of the batch, T position to read, K position read so far, N new token, M masked place, V the vocabulary.
"""

import math
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from course_lib import masks
from course_lib.layers import Preallocated
from course_lib.model import Cache, Decoder, Encoder, evaluating
from course_lib.tokenizer import Tokenizer
from course_lib.vocabulary import Vocabulary


def next_token_probabilities(
    logits_BV: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    repetition_penalty: float = 1.0,
    seen_BV: Tensor | None = None,
    allowed_V: Tensor | None = None,
) -> Tensor:
    """float64 [B, V] on the CPU: from what distribution the next token is drawn. The options act in this order:

    repetition_penalty: scores of tokens that the row holds already (bool `seen_BV`) are divided by it where they are
    positive and multiplied where they are negative (CTRL, arXiv:1909.05858); 1 changes nothing.
    allowed_V: bool, which tokens may come at all; all where it is not given.
    temperature: divides the scores; 0 leaves only the best token (the first of equals).
    top_k: only the k likeliest stay (arXiv:1805.04833), and those equal to the k-th.
    top_p: of these, only the fewest whose probabilities sum to p or more (nucleus sampling, arXiv:1904.09751).
    Raises ValueError for options out of range, a penalty without seen_BV, or a row without a finite best score.

    >>> logits_BV = torch.tensor([[0.5, 0.25, 0.15, 0.1]]).log()
    >>> next_token_probabilities(logits_BV, top_p=0.7)[0].tolist()  # 0.5 is less than 0.7, 0.5 + 0.25 is enough
    [0.66..., 0.33..., 0.0, 0.0]
    """
    _check_sampling(temperature, top_k, top_p, repetition_penalty)
    scores_BV = _scores(logits_BV, repetition_penalty, seen_BV, allowed_V)
    if temperature == 0:
        return F.one_hot(scores_BV.argmax(-1), scores_BV.shape[-1]).double()
    scores_BV = scores_BV.double()
    best_B1 = scores_BV.amax(-1, keepdim=True)
    scores_BV = (scores_BV - best_B1) / temperature  # the best is 0, so that a temperature near 0 overflows nothing
    if top_k is not None:
        least_B1 = scores_BV.topk(min(top_k, scores_BV.shape[-1])).values[:, -1:]
        scores_BV = scores_BV.masked_fill(scores_BV < least_B1, -math.inf)
    probabilities_BV = scores_BV.softmax(-1)
    return probabilities_BV if top_p is None else _nucleus(probabilities_BV, top_p)


def draw_tokens(probabilities_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """int64 [B]: one token a row. The probabilities lie side by side on a line, and each row's number, uniform in
    [0, 1), says where on it. A token of probability 0 is never drawn.

    >>> draw_tokens(torch.tensor([[0.2, 0.0, 0.8]] * 3), torch.tensor([0.1, 0.3, 0.9])).tolist()
    [0, 2, 2]
    """
    ends_BV = probabilities_BV.double().cumsum(-1)
    place_B1 = uniform_B[:, None].double() * ends_BV[:, -1:]  # of the sum as it was rounded, not of 1
    return torch.searchsorted(ends_BV, place_B1, right=True)[:, 0]


@torch.no_grad()
def generate(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    vocabulary: Vocabulary,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    repetition_penalty: float = 1.0,
    stop_ids: Sequence[int] | None = None,
    banned_ids: Sequence[int] = (),
    allow_special: bool = False,
    generator: torch.Generator | None = None,
) -> list[list[int]]:
    """Write on behind each prompt (its token ids, of any length): the new tokens alone, `max_new_tokens` of them, or
    fewer where a row came to one of its `stop_ids`, which is not among them.

    temperature, top_k, top_p, repetition_penalty: as in `next_token_probabilities`; temperature 0 is greedy, and the
    prompt counts among what a row holds.
    stop_ids: [EOS] where they are not given; with () every row gets its full length.
    banned_ids: never written. Nor are special tokens, unless they stop a row or with `allow_special`.
    generator: on the CPU; needed unless the temperature is 0. Every row takes `max_new_tokens` numbers from it, used
    or not, so that a batch gives what its prompts give one after another (to a float's rounding of the logits).
    Raises TypeError for a model that is no Decoder; ValueError for a prompt that is empty, of foreign ids, or too long
    for the model together with its new tokens, and for options out of range. Nothing is computed or drawn then.

    >>> from course_lib.layers import TransformerConfig
    >>> model = Decoder(TransformerConfig(vocab_size=50, d_model=8, n_layers=1, n_heads=2, d_ff=8, max_len=16))
    >>> new = generate(model, [[7, 8, 9], [7]], Vocabulary(50, eos=3), max_new_tokens=5, stop_ids=(), temperature=0)
    >>> [len(row) for row in new]
    [5, 5]
    """
    sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "repetition_penalty": repetition_penalty}
    _check_models(model, vocabulary)
    _check_sampling(**sampling)
    prompts = _checked_prompts(prompts, vocabulary, max_new_tokens, model.config.max_len)
    if stop_ids is None:
        stop_ids = () if vocabulary.eos is None else (vocabulary.eos,)
    is_stop_V, is_banned_V = _table("stop_ids", stop_ids, vocabulary), _table("banned_ids", banned_ids, vocabulary)
    allowed_V = (vocabulary.is_ordinary_V | is_stop_V | allow_special) & ~is_banned_V
    if not allowed_V.any():
        raise ValueError("banned_ids leave no token to write: ban fewer of them")
    uniform_BN = _uniform(len(prompts), max_new_tokens, generator, is_greedy=temperature == 0)
    # a model may have more ids than its tokenizer, and nobody could read those
    is_stop_V, allowed_V = (F.pad(t, (0, model.config.vocab_size - vocabulary.size)) for t in (is_stop_V, allowed_V))
    with evaluating(model):
        rows = _write(model, prompts, uniform_BN, is_stop_V, allowed_V=allowed_V, **sampling).tolist()
    return [list(takewhile(lambda i: not is_stop_V[i], row)) for row in rows]


def complete(
    model: Decoder,
    tokenizer: Tokenizer,
    text: str | Sequence[str],
    *,
    max_new_tokens: int = 40,
    bos: bool = True,
    **options: Any,
) -> str | list[str]:
    """What the model writes behind a text, or behind each of several.

    bos: begin with [BOS], as documents do in training; an empty text then lets the model begin by itself.
    options: those of `generate`, which also says what is refused.

    >>> from course_lib.data import course_tokenizer
    >>> from course_lib.layers import TransformerConfig
    >>> model = Decoder(TransformerConfig(vocab_size=8192, d_model=8, n_layers=1, n_heads=2, d_ff=8, max_len=16))
    >>> written = complete(model, course_tokenizer(), ["a good", ""], max_new_tokens=4, temperature=0)
    >>> [type(more).__name__ for more in written]
    ['str', 'str']
    """
    head = [tokenizer.vocabulary.require("bos", "completing a text")] if bos else []
    texts = [text] if isinstance(text, str) else text
    prompts = [head + ids for ids in tokenizer.encode_all(texts)]
    rows = generate(model, prompts, tokenizer.vocabulary, max_new_tokens=max_new_tokens, **options)
    written = [tokenizer.decode(ids) for ids in rows]
    return written[0] if isinstance(text, str) else written


@torch.no_grad()
def fill_in(
    model: Encoder, tokenizer: Tokenizer, text: str, *, top: int = 5, frame: tuple[str, str] = ("bos", "eos")
) -> list[list[tuple[str, float]]]:
    """For each [MASK] of the text, from left to right, the `top` likeliest tokens with their probabilities.

    frame: the special tokens around a text, those that the model was trained with.
    Raises ValueError for a text without [MASK], a model without a prediction head, or a text longer than the model;
    TypeError for a model that is no Encoder.
    """
    if not isinstance(model, Encoder):
        raise TypeError(f"model is a {type(model).__name__}: only an Encoder reads what stands behind a [MASK]")
    mask_id = tokenizer.vocabulary.require("mask", "filling in")
    first_id, last_id = tokenizer.vocabulary.frame_ids("filling in", frame)
    ids = tokenizer.encode(text, special=True)
    if mask_id not in ids:
        raise ValueError(
            f"the text {text[:60]!r} holds no [MASK]: write [MASK], in capitals, where a word is to be found"
        )
    input_ids_BT = torch.tensor([[first_id, *ids, last_id]], device=next(model.parameters()).device)
    with evaluating(model):
        logits_MV = model(input_ids_BT, wanted_BT=input_ids_BT == mask_id).logits
    if logits_MV is None:
        raise ValueError("this encoder has no prediction head: load or train one that was made to fill in masks")
    best = logits_MV.float().softmax(-1).topk(top)
    return [
        [(tokenizer.token(i), probability) for i, probability in zip(ids, probabilities, strict=True)]
        for ids, probabilities in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def _scores(
    logits_BV: Tensor, repetition_penalty: float = 1.0, seen_BV: Tensor | None = None, allowed_V: Tensor | None = None
) -> Tensor:
    """[B, V] on the CPU: the logits, less what a penalty takes, -inf where no token may come."""
    scores_BV = logits_BV.detach().cpu()
    if repetition_penalty != 1:
        scores_BV = _penalised(scores_BV.double(), seen_BV, repetition_penalty)
    if allowed_V is not None:
        scores_BV = scores_BV.masked_fill(~allowed_V.cpu(), -math.inf)
    if not scores_BV.amax(-1).isfinite().all():
        raise ValueError("logits_BV hold nan or inf, or a row without a token allowed: has the model's loss diverged?")
    return scores_BV


def _next_tokens(logits_BV: Tensor, uniform_B: Tensor, *, temperature: float, **options: Any) -> Tensor:
    """int64 [B]: what comes next; the greedy choice needs no distribution."""
    if temperature == 0:
        shaping = ("repetition_penalty", "seen_BV", "allowed_V")
        return _scores(logits_BV, *(options[name] for name in shaping)).argmax(-1)
    return draw_tokens(next_token_probabilities(logits_BV, temperature=temperature, **options), uniform_B)


def _penalised(scores_BV: Tensor, seen_BV: Tensor | None, penalty: float) -> Tensor:
    if seen_BV is None:
        raise ValueError(f"repetition_penalty is {penalty} and seen_BV is not given: say which tokens each row holds")
    smaller_BV = torch.where(scores_BV < 0, scores_BV * penalty, scores_BV / penalty)
    return torch.where(seen_BV.cpu(), smaller_BV, scores_BV)


def _nucleus(probabilities_BV: Tensor, top_p: float) -> Tensor:
    if top_p == 1:  # a rounded sum may reach 1 before the last token
        return probabilities_BV
    sorted_BV, order_BV = probabilities_BV.sort(dim=-1, descending=True, stable=True)
    likelier_BV = sorted_BV.cumsum(-1) - sorted_BV  # the sum of all before this one
    kept_BV = torch.zeros_like(sorted_BV).scatter_(-1, order_BV, sorted_BV.masked_fill(likelier_BV >= top_p, 0.0))
    return kept_BV / kept_BV.sum(-1, keepdim=True)


def _write(model: Decoder, prompts: list[list[int]], uniform_BN: Tensor, is_stop_V: Tensor, **sampling: Any) -> Tensor:
    """int64 [B, N]: new tokens, until all rows have stopped; what a row holds behind its stop means nothing."""
    length = max(len(prompt) for prompt in prompts)  # padding before a prompt: all rows then go on in one column
    input_ids_BT = torch.tensor([[0] * (length - len(prompt)) + prompt for prompt in prompts])
    is_real_BK = torch.arange(length) >= torch.tensor([[length - len(prompt)] for prompt in prompts])
    seen_BV = torch.zeros(len(prompts), len(is_stop_V), dtype=torch.bool)
    for seen_V, prompt in zip(seen_BV, prompts, strict=True):
        seen_V[prompt] = True
    cache, written, has_stopped_B = None, [], torch.zeros(len(prompts), dtype=torch.bool)
    for uniform_B in uniform_BN.unbind(1):
        logits_BV, cache = _read(model, input_ids_BT, is_real_BK, cache)
        if not written:
            cache = [Preallocated(seen, room=uniform_BN.shape[1]) for seen in cache]
        new_B = _next_tokens(logits_BV, uniform_B, seen_BV=seen_BV, **sampling)
        written.append(new_B)
        has_stopped_B |= is_stop_V[new_B]
        if has_stopped_B.all():
            break
        seen_BV.scatter_(1, new_B[:, None], True)
        input_ids_BT, is_real_BK = new_B[:, None], F.pad(is_real_BK, (0, 1), value=True)
    return torch.stack(written, dim=1)


def _read(model: Decoder, input_ids_BT: Tensor, is_real_BK: Tensor, cache: Cache | None) -> tuple[Tensor, Cache | None]:
    """Logits [B, V] behind the last of the new positions T, and the cache with them; K counts earlier ones too."""
    device, new = next(model.parameters()).device, slice(-input_ids_BT.shape[1], None)
    position_BK = masks.positions(is_real_BK)
    may_attend_BTK = masks.causal(is_real_BK.shape[1])[:, new] & masks.padding(is_real_BK)
    wanted_BT = torch.zeros_like(input_ids_BT, dtype=torch.bool)
    wanted_BT[:, -1] = True
    output = model(
        input_ids_BT.to(device),
        may_attend_BTK.to(device),
        position_BT=position_BK[:, new].to(device),
        wanted_BT=wanted_BT.to(device),
        cache=cache,
    )
    return output.logits, output.cache


def _uniform(n_rows: int, count: int, generator: torch.Generator | None, *, is_greedy: bool) -> Tensor:
    """float64 [B, N] in [0, 1): each row's numbers, drawn row after row; zeros where there is nothing to choose."""
    if is_greedy:
        return torch.zeros(n_rows, count, dtype=torch.float64)
    if generator is None:
        raise ValueError("generator is None: give one to draw from, such as seeded(0), or temperature=0")
    return torch.stack([torch.rand(count, generator=generator, dtype=torch.float64) for _ in range(n_rows)])


def _table(name: str, ids: Sequence[int], vocabulary: Vocabulary) -> Tensor:
    """bool [V], True for these ids."""
    if isinstance(ids, int):
        raise TypeError(f"{name} is {ids}: give a list of ids, [{ids}]")
    if outside := [i for i in ids if not 0 <= i < vocabulary.size]:
        raise ValueError(f"{name} hold {outside[0]}, which lies outside the vocabulary of {vocabulary.size}")
    return torch.zeros(vocabulary.size, dtype=torch.bool).index_fill_(0, torch.tensor([*ids]).long(), True)


def _check_sampling(temperature: float, top_k: int | None, top_p: float | None, repetition_penalty: float) -> None:
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature is {temperature}: give 0 for the best token, or a number above 0, such as 0.8")
    if top_k is not None and (not isinstance(top_k, int) or top_k < 1):
        raise ValueError(f"top_k is {top_k}: give a whole number of at least 1, or None to keep every token")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}: give a probability above 0 and at most 1, such as 0.9, or None")
    if not 0 < repetition_penalty < math.inf:
        raise ValueError(f"repetition_penalty is {repetition_penalty}: give a number above 0; 1 changes nothing")


def _check_models(model: Decoder, vocabulary: Vocabulary) -> None:
    if not isinstance(model, Decoder):
        raise TypeError(f"model is a {type(model).__name__}: only a Decoder writes token by token")
    if not isinstance(vocabulary, Vocabulary):
        raise TypeError(f"vocabulary is a {type(vocabulary).__name__}: give a Vocabulary, such as tokenizer.vocabulary")
    if vocabulary.size > model.config.vocab_size:
        raise ValueError(
            f"the vocabulary has {vocabulary.size} tokens and the model {model.config.vocab_size}: "
            "give the one that the model was trained with"
        )


def _checked_prompts(
    prompts: Sequence[Sequence[int]], vocabulary: Vocabulary, max_new_tokens: int, max_len: int
) -> list[list[int]]:
    if not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens}: give a whole number of at least 1")
    if len(prompts) == 0:
        raise ValueError("prompts are empty: give at least one, such as [[vocabulary.bos]]")
    checked = []
    for number, prompt in enumerate(prompts):
        if isinstance(prompt, str) or (ids := torch.as_tensor(prompt)).dim() != 1:
            raise TypeError(f"prompts[{number}] is {prompt!r:.40}: give a list of token ids for each prompt")
        if len(ids) == 0:
            raise ValueError(f"prompts[{number}] is empty: begin with [BOS], or give at least one token")
        vocabulary.check_ids(ids)
        if (total := len(ids) + max_new_tokens) > max_len:
            raise ValueError(
                f"prompts[{number}] has {len(ids)} tokens and max_new_tokens is {max_new_tokens}, together {total}, "
                f"more than max_len {max_len}: shorten the prompt, or lower max_new_tokens"
            )
        checked.append(ids.tolist())
    return checked
