"""What a decision rests on: values that add up to it, and that other ways of computing them find too."""

import copy
from functools import cache
from itertools import count

import numpy as np
import pytest
import torch
from few import few
from peft_models import CONFIG, IDS_BT, ROTARY, STRATEGIES, WIDTH, adapted, looks, make
from tiny import shaken
from torch import nn

from course_lib.evaluation import Attribution, attributions, token_attributions
from course_lib.finetuning import Classifier
from course_lib.model import Decoder, Encoder, EncoderDecoder
from course_lib.pretrained import load_minilm, minilm_folder, save_model
from course_lib.runtime import seeded

IDS_T = IDS_BT[0]
FIXED_T = torch.arange(len(IDS_T)) % (len(IDS_T) - 1) == 0  # the first and the last
TOLERANCE = 1e-5  # relative to the largest value compared, fp32
BODIES = {
    "encoder": lambda: Encoder(CONFIG, head=False),
    "rotary encoder": lambda: Encoder(ROTARY),
    "decoder": lambda: Decoder(CONFIG),
    "encoder-decoder": lambda: EncoderDecoder(CONFIG),
}
SENTENCE = "a good film, but far too long"


def classifier(kind="encoder", n_classes=2):
    """Tiny and random, the same weights every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return shaken(Classifier(BODIES[kind](), n_classes), 0.2).eval()


def explained(model=None, ids_T=IDS_T, *, baseline_id=0, **options):
    return token_attributions(classifier() if model is None else model, ids_T, baseline_id=baseline_id, **options)


def exactly(steps, **options):
    """The values of a quadrature with so many points."""
    return explained(tolerance=0, most_steps=steps, **options).values_T


def differ(some, other) -> float:
    return abs(some - other).max() / abs(other).max()


def score_of(model, ids_T, for_class=1, against=0):
    with torch.no_grad():
        logits_C = model(ids_T[None], torch.ones_like(ids_T[None], dtype=torch.bool))[0]
    return (logits_C[for_class] - logits_C[against]).item()


# --- models whose attributions can be written down


class Bag(nn.Module):
    """Logits that are linear in the sum of the word embeddings."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.words, self.head, self.scale = nn.Embedding(20, 4), nn.Linear(4, 3), scale

    def forward(self, input_ids_BT, is_real_BT):
        return self.head(self.scale * self.words(input_ids_BT).sum(1))

    def written_down(self, ids_T, baseline_id, for_class=1, against=0):
        w_E = self.scale * (self.head.weight[for_class] - self.head.weight[against])
        return ((self.words(ids_T) - self.words(torch.tensor(baseline_id))) @ w_E).detach().numpy()


class Power(nn.Module):
    """The good logit is a power of the sum of all words' numbers, the bad one 0."""

    def __init__(self, power):
        super().__init__()
        self.words, self.power = nn.Embedding.from_pretrained(torch.tensor([[0.25], [1.0], [-0.5], [2.0]])), power

    def forward(self, input_ids_BT, is_real_BT):
        good_B1 = self.words(input_ids_BT).sum(1) ** self.power
        return torch.cat([torch.zeros_like(good_B1), good_B1], 1)


class Traps(Bag):
    """Positions and segments are read before the words, from tables and through ids that look the same; the word table
    scales what it gives, is called by keyword, and once more with ids that are not the text's."""

    class Scaled(nn.Embedding):
        def forward(self, input):
            return 3 * super().forward(input)

    def __init__(self):
        super().__init__()
        del self.words
        self.positions, self.segments, self.words = nn.Embedding(20, 4), nn.Embedding(20, 4), self.Scaled(20, 4)

    def forward(self, input_ids_BT, is_real_BT):
        positions_BT = torch.arange(input_ids_BT.shape[1]).expand_as(input_ids_BT)
        x_BTE = self.positions(positions_BT) + self.segments(torch.zeros_like(input_ids_BT))
        prompt_B1E = self.words(input=torch.full_like(input_ids_BT[:, :1], 11))
        return self.head((x_BTE + self.words(input=input_ids_BT) + prompt_B1E).sum(1))


class First(nn.Module):
    """Decides by the last hidden state of the first position alone."""

    def __init__(self, body):
        super().__init__()
        self.body, self.head = body, nn.Linear(WIDTH, 2)

    def forward(self, input_ids_BT, is_real_BT):
        return self.head(self.body.encode(input_ids_BT, is_real_BT)[:, 0])


@pytest.mark.parametrize("scale", [1.0, 10.0])
@pytest.mark.parametrize("classes", [(1, 0), (0, 2)])
def test_of_a_linear_model_the_values_are_weights_times_differences(scale, classes):
    bag, ids_T = Bag(scale), torch.tensor([3, 19, 3, 0, 7])
    found = explained(bag, ids_T, baseline_id=7, for_class=classes[0], against=classes[1])
    assert differ(found.values_T, bag.written_down(ids_T, 7, *classes)) < TOLERANCE
    assert found.values_T[0] == found.values_T[2] and found.values_T[4] == 0
    assert found.steps == attributions.FIRST_STEPS and found.error < 1e-4


@pytest.mark.parametrize("points", [1, 2, 3])
def test_of_a_power_as_many_points_as_half_the_power_give_the_exact_values(points):
    """Gauss-Legendre with n points integrates polynomials up to degree 2 n - 1, and the gradient has 2 n - 1."""
    model, ids_T, power = Power(2 * points), torch.tensor([1, 2, 3]), 2 * points
    x_T, start = model.words.weight[ids_T, 0].double(), model.words.weight[0, 0].double()
    rise = (x_T.sum() ** power - (3 * start) ** power) / (x_T.sum() - 3 * start)
    assert differ(exactly(points, model=model, ids_T=ids_T), ((x_T - start) * rise).numpy()) < TOLERANCE
    too_few = exactly(points, model=Power(power + 2), ids_T=ids_T)  # negative control
    assert abs(too_few.sum() / (x_T.sum() ** (power + 2) - (3 * start) ** (power + 2)) - 1) > 0.001


@pytest.mark.parametrize("ids", [[0], [1], [0, 1, 2, 3], [0, 0, 0], [1, 1], [5, 11, 0, 11]])
def test_the_word_table_is_told_from_positions_and_segments(ids):
    model = Traps()
    found, wanted = explained(model, ids, baseline_id=9).values_T, model.written_down(torch.tensor(ids), 9)
    assert differ(found, wanted) < TOLERANCE


def test_a_token_that_the_model_cannot_see_gets_nothing():
    decides_first = shaken(First(classifier("decoder").body), 0.2)
    found = explained(decides_first)
    assert (found.values_T[1:] == 0).all() and found.values_T[0] == pytest.approx(found.values_T.sum())
    assert (explained(classifier("decoder")).values_T != 0).all()  # negative control
    assert (explained(shaken(First(classifier("encoder").body), 0.2)).values_T != 0).all()


# --- completeness


@pytest.mark.parametrize("fixed", [None, FIXED_T], ids=["free", "framed"])
@pytest.mark.parametrize("kind", BODIES)
def test_the_values_add_up_to_what_moves_the_decision(kind, fixed):
    model = classifier(kind)
    found = explained(model, fixed=fixed, baseline_id=4)
    baseline_T = torch.full_like(IDS_T, 4) if fixed is None else IDS_T.where(fixed, 4)
    assert found.score == pytest.approx(score_of(model, IDS_T), rel=TOLERANCE)
    assert found.baseline_score == pytest.approx(score_of(model, baseline_T), rel=TOLERANCE)
    moved = score_of(model, IDS_T) - score_of(model, baseline_T)
    assert found.values_T.sum() == pytest.approx(moved, rel=0.01)
    assert found.error <= 0.01 and found.input_ids == tuple(IDS_T.tolist())
    assert found.values_T.shape == (len(IDS_T),) and found.values_T.dtype == np.float64
    if fixed is not None:
        assert (found.values_T[fixed.numpy()] == 0).all()


RULES = {
    "gradient times difference": lambda nodes, weights: (np.ones(1), np.full(1, 2.0)),
    "gradient at the baseline": lambda nodes, weights: (-np.ones(1), np.full(1, 2.0)),
    "the interval twice as long": lambda nodes, weights: (2 * nodes + 1, weights),
    "weights that sum to 2": lambda nodes, weights: (nodes, 2 * weights),
    "points evenly weighted": lambda nodes, weights: (nodes, np.full_like(weights, 2 / len(weights))),
}


@pytest.mark.parametrize("kind", BODIES)
@pytest.mark.parametrize("rule", RULES)
def test_the_check_above_refuses(rule, kind, monkeypatch):
    """Negative control: the error tells of every other rule, however many points it has."""
    error = lambda: explained(classifier(kind), fixed=FIXED_T, baseline_id=4, tolerance=0, most_steps=64).error
    assert error() < 1e-4
    right = attributions.leggauss
    monkeypatch.setattr(attributions, "leggauss", lambda steps: RULES[rule](*right(steps)))
    assert error() > 50e-4


def test_a_text_that_is_its_own_baseline_explains_nothing():
    found = explained(ids_T=torch.full((5,), 9), baseline_id=9)
    assert (found.values_T == 0).all() and found.score == found.baseline_score and found.error == 0


def test_a_head_of_zeros_decides_nothing():
    found = explained(Classifier(Encoder(CONFIG)))
    assert (found.values_T == 0).all() and found.error == 0 and found.steps == attributions.FIRST_STEPS


def test_the_error_is_a_share_of_what_is_explained():
    values_T = np.array([0.5, -0.25, 1.5])
    assert Attribution((1, 2, 3), values_T, 1.0, -1.0, 16).error == pytest.approx(0.125)
    assert Attribution((1, 2, 3), values_T, -1.0, -2.75, 16).error == 0
    assert Attribution((1, 2, 3), values_T, 1.0, 1.0, 16).error == float("inf")


def test_points_are_doubled_until_the_error_is_small_enough_or_there_are_enough(monkeypatch):
    model, tried = classifier("rotary encoder"), []
    right = attributions.leggauss
    monkeypatch.setattr(attributions, "leggauss", lambda steps: tried.append(steps) or right(steps))
    explained(model, tolerance=0, most_steps=200)
    assert tried == [32, 64, 128, 200]
    assert explained(model, tolerance=float("inf")).steps == 32
    assert [explained(model, tolerance=0, most_steps=most).steps for most in (1, 5, 32, 100)] == [1, 5, 32, 100]
    with_one = explained(model, most_steps=1)
    assert with_one.error > 0.01  # given back all the same
    errors = [explained(model, tolerance=0, most_steps=most).error for most in (2, 8, 32)]
    assert errors[0] > 10 * errors[1] > 100 * errors[2]


# --- other ways to compute the same


def by_a_plain_loop(model, ids_T, baseline_id, points=100):
    """A midpoint sum over a model whose word table holds the point's embeddings in its first rows, one point at a
    time."""
    model = copy.deepcopy(model)
    table = next(part for part in model.modules() if isinstance(part, nn.Embedding) and len(part.weight) == 60)
    start_TE, end_TE = table.weight[baseline_id].detach().expand(len(ids_T), -1), table.weight[ids_T].detach()
    rows_1T = torch.arange(len(ids_T))[None]
    sum_TE = torch.zeros_like(start_TE)
    for point in range(points):
        weight = table.weight.detach().clone()
        weight[: len(ids_T)] = start_TE + (point + 0.5) / points * (end_TE - start_TE)
        table.weight = nn.Parameter(weight)
        logits_C = model(rows_1T, torch.ones_like(rows_1T, dtype=torch.bool))[0]
        (logits_C[1] - logits_C[0]).backward()
        sum_TE += table.weight.grad[: len(ids_T)]
    return (sum_TE / points * (end_TE - start_TE)).sum(-1).numpy()


@pytest.mark.parametrize("kind", few(BODIES, "encoder"))
def test_a_plain_loop_over_the_line_finds_the_same_values(kind):
    model = classifier(kind)
    wanted = by_a_plain_loop(model, IDS_T, 4)
    assert differ(exactly(64, model=model, baseline_id=4), wanted) < 0.001
    assert differ(exactly(64, model=model, baseline_id=5), wanted) > 0.01  # negative control: another baseline


@pytest.mark.parametrize("strategy", few(STRATEGIES, "bitfit"))
def test_what_fine_tuning_added_acts(strategy):
    model, _ = adapted("classifier", strategy, weights=5, modules_to_save=["head"])
    found = explained(model)
    assert found.error <= 0.01
    assert differ(found.values_T, by_a_plain_loop(model, IDS_T, 0)) < 0.02
    assert differ(found.values_T, explained(make("classifier")).values_T) > 0.1


class Theirs(nn.Module):
    """A body from transformers under the head of a classifier of ours."""

    def __init__(self, body, head):
        super().__init__()
        self.body, self.head = body, head

    def forward(self, input_ids_BT, is_real_BT):
        hidden_BTE = self.body(input_ids=input_ids_BT, attention_mask=is_real_BT.long()).last_hidden_state
        return self.head(hidden_BTE.mean(1))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_a_model_of_transformers_with_the_same_weights_is_explained_alike(kind, tmp_path):
    transformers = pytest.importorskip("transformers", reason="install the extra [interop] for the parity tests")
    ours = classifier(kind)
    body = transformers.AutoModel.from_pretrained(save_model(ours.body, tmp_path), local_files_only=True)
    options = {"ids_T": IDS_T, "fixed": FIXED_T, "baseline_id": 4}
    theirs = Theirs(body, ours.head)
    assert differ(exactly(32, model=theirs, **options), exactly(32, model=ours, **options)) < 5 * TOLERANCE
    with torch.no_grad():
        next(p for name, p in body.named_parameters() if name.endswith(("value.bias", "c_attn.bias")))[-1] += 0.05
    assert differ(exactly(32, model=theirs, **options), exactly(32, model=ours, **options)) > 50 * TOLERANCE


def test_to_explain_the_opposite_turns_every_sign():
    values_T = explained(classifier(n_classes=3), for_class=2, against=0).values_T
    assert differ(explained(classifier(n_classes=3), for_class=0, against=2).values_T, -values_T) < TOLERANCE


def test_steps_from_class_to_class_add_up():
    of = lambda one, other: exactly(16, model=classifier(n_classes=3), for_class=one, against=other)
    assert differ(of(2, 1) + of(1, 0), of(2, 0)) < TOLERANCE
    assert differ(of(2, 1), of(2, 0)) > 0.1


@pytest.mark.parametrize("tokens", few([1, 20, 100], 100))
def test_how_many_points_are_computed_at_a_time_changes_nothing(tokens, monkeypatch):
    wanted = exactly(33)
    monkeypatch.setattr(attributions, "TOKENS_AT_A_TIME", tokens)
    assert differ(exactly(33), wanted) < TOLERANCE


@pytest.mark.parametrize("kind", [list, tuple, np.array, lambda ids: torch.tensor(ids, dtype=torch.int32)])
def test_ids_may_come_in_any_kind_of_sequence(kind):
    ids, fixed = IDS_T.tolist(), FIXED_T.tolist()
    found = explained(ids_T=kind(ids), fixed=fixed)
    assert np.array_equal(found.values_T, explained(fixed=FIXED_T).values_T) and found.input_ids == tuple(ids)


# --- the model is left as it was


def test_nothing_of_the_model_or_of_torch_is_changed():
    model = classifier("encoder")
    model.train().body.encoder["layer"][1].eval()
    model.head.bias.grad = torch.ones(2)
    model.body.embeddings.LayerNorm.weight.requires_grad_(False)
    before, weights = seen_from_outside(model), copy.deepcopy(model.state_dict())
    draws, ids_T = torch.random.get_rng_state(), IDS_T.clone()
    explained(model, fixed=FIXED_T)
    assert seen_from_outside(model) == before
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    assert {name: p.grad.tolist() for name, p in model.named_parameters() if p.grad is not None} == {
        "head.bias": [1.0, 1.0]
    }
    assert torch.equal(torch.random.get_rng_state(), draws) and torch.equal(IDS_T, ids_T)


def seen_from_outside(model):
    return looks(model), [part.training for part in model.modules()], torch.is_grad_enabled()


@pytest.mark.parametrize("call", range(5))
def test_an_error_inside_the_model_leaves_it_as_it_was(call):
    """The calls: to find the table, on the baseline, on the text, at both ends, at points between."""

    class Breaks(Classifier):
        def forward(self, *inputs):
            hidden = super().forward(*inputs)
            if next(calls) == call:
                raise RuntimeError("broken on purpose")
            return hidden

    calls, model = count(), Breaks(Encoder(CONFIG)).train()
    before = seen_from_outside(model)
    with pytest.raises(RuntimeError, match="broken on purpose"):
        explained(model)
    assert seen_from_outside(model) == before


def test_dropout_does_not_act():
    model = classifier("encoder").train()
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.5
    assert np.array_equal(explained(model).values_T, explained(classifier("encoder")).values_T)


@pytest.mark.parametrize(
    "inside", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)],
    ids=["no_grad", "inference_mode", "autocast"],
)  # fmt: skip
def test_it_does_not_matter_where_it_is_called(inside):
    model = classifier()
    with inside():
        found = explained(model, fixed=FIXED_T).values_T
    assert np.array_equal(found, explained(fixed=FIXED_T).values_T)


def test_a_model_whose_weights_do_not_train_is_explained_too():
    model = classifier().requires_grad_(False)
    assert np.array_equal(explained(model).values_T, explained().values_T)


@pytest.mark.gpu
def test_on_an_accelerator_the_values_are_the_same():
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    there = explained(classifier().cuda(), fixed=FIXED_T)
    assert differ(there.values_T, explained(fixed=FIXED_T).values_T) < 0.001


# --- the real one


@cache
def minilm():
    """With a random head, and the ids of a sentence in its frame."""
    body, tokenizer = load_minilm()
    model, vocabulary = Classifier(body), tokenizer.vocabulary
    with torch.no_grad():
        model.head.weight.copy_(torch.randn(model.head.weight.shape, generator=seeded(1)))
    return model, [vocabulary.cls, *tokenizer.encode(SENTENCE), vocabulary.sep], vocabulary


@pytest.mark.slow
@pytest.mark.parametrize("baseline", ["pad", "mask"])
def test_decisions_of_minilm_are_explained_within_one_percent(baseline):
    model, ids, vocabulary = minilm()
    fixed = [i in (vocabulary.cls, vocabulary.sep) for i in ids]
    found = explained(model, ids, baseline_id=getattr(vocabulary, baseline), fixed=fixed)
    assert found.error <= 0.01 and found.steps <= 128
    assert found.score == pytest.approx(score_of(model, torch.tensor(ids)), rel=TOLERANCE)
    assert found.values_T[0] == found.values_T[-1] == 0 and (found.values_T[1:-1] != 0).all()
    one_point = explained(model, ids, baseline_id=getattr(vocabulary, baseline), fixed=fixed, most_steps=1)
    assert one_point.error > 0.01  # negative control


@pytest.mark.slow
def test_minilm_in_transformers_is_explained_alike():
    transformers = pytest.importorskip("transformers", reason="install the extra [interop] for the parity tests")
    model, ids, vocabulary = minilm()
    theirs = transformers.AutoModel.from_pretrained(minilm_folder(), local_files_only=True)
    options = {"ids_T": ids, "baseline_id": vocabulary.mask}
    twin = exactly(32, model=Theirs(theirs, model.head), **options)
    assert differ(twin, exactly(32, model=model, **options)) < 0.001


# --- what is refused


class Reading(nn.Module):
    """A classifier of this function of the ids and a table."""

    def __init__(self, function):
        super().__init__()
        self.words, self.function = nn.Embedding(20, 2), function

    def forward(self, input_ids_BT, is_real_BT):
        return self.function(self.words, input_ids_BT)


def reading(function, **options):
    return lambda: explained(Reading(function), torch.tensor([3, 4]), **options)


def diverged():
    model = classifier()
    nn.init.constant_(model.head.bias, float("nan"))
    return model


NO_IDS = "give the ids of a text's tokens, tokenizer.encode(text)"
REFUSED = [
    ("no tokens", lambda: explained(ids_T=[]), ValueError, ("shape (0,)", "at least one token")),
    ("a batch", lambda: explained(ids_T=IDS_BT), ValueError, ("shape (3, 7)", "give one text")),
    ("one number", lambda: explained(ids_T=7), ValueError, "shape ()"),
    ("text", lambda: explained(ids_T="a film"), TypeError, ("input_ids_T is a str", NO_IDS)),
    ("tokens as text", lambda: explained(ids_T=["a", "film"]), TypeError, ("input_ids_T is a list", NO_IDS)),
    ("nothing", lambda: explained(ids_T=None), TypeError, ("input_ids_T is a NoneType", NO_IDS)),
    ("floats", lambda: explained(ids_T=[1.0, 2.0]), TypeError, "input_ids_T is torch.float32"),
    ("bools", lambda: explained(ids_T=[True, False]), TypeError, "input_ids_T is torch.bool"),
    ("id too high", lambda: explained(ids_T=[7, 60]), ValueError, ("token id 60", "table of 60", "another tokenizer")),
    ("id negative", lambda: explained(ids_T=[7, -1]), ValueError, "token id -1 lies outside"),
    ("baseline too high", lambda: explained(baseline_id=99), ValueError, "token id 99 lies outside"),
    ("no baseline", lambda: explained(baseline_id=None), TypeError, ("baseline_id is None", "vocabulary.pad")),
    ("text too long", lambda: explained(ids_T=[7] * 33), ValueError, "sequence length 33 exceeds max_len 32"),
    ("fixed too short", lambda: explained(fixed=[True]), ValueError, ("shape (1,)", "each of the 7 tokens")),
    ("fixed as positions", lambda: explained(fixed=[0, 1, 2, 3, 4, 5, 6]), ValueError, ("torch.int64", "one bool")),
    ("everything fixed", lambda: explained(fixed=[True] * 7), ValueError, "every token is fixed: leave at least one"),
    ("no such class", lambda: explained(for_class=2), ValueError, "class 2 is not there: this model tells 0 to 1"),
    ("class below 0", lambda: explained(against=-1), ValueError, "class -1 is not there"),
    ("class by name", lambda: explained(for_class="good"), ValueError, "class 'good' is not there"),
    ("one class twice", lambda: explained(against=1), ValueError, "for_class and against are both 1"),
    ("tolerance below 0", lambda: explained(tolerance=-0.1), ValueError, "tolerance is -0.1"),
    ("tolerance nan", lambda: explained(tolerance=float("nan")), ValueError, "tolerance is nan"),
    ("no steps", lambda: explained(most_steps=0), ValueError, "most_steps is 0"),
    ("half a step", lambda: explained(most_steps=1.5), ValueError, "most_steps is 1.5"),
    ("no module", lambda: explained(len), TypeError, "model is a builtin_function_or_method"),
    ("no table", lambda: explained(nn.Linear(2, 2)), ValueError, "this Linear has no nn.Embedding"),
    ("a language model", lambda: explained(Encoder(CONFIG)), ValueError, "may_attend_BQK"),
    ("no logits", reading(lambda words, ids: (words(ids),)), TypeError, "the model gives a tuple"),
    ("logits of tokens", reading(lambda words, ids: words(ids)), TypeError, "a tensor of shape (2, 2, 2)"),
    ("ids flattened", reading(lambda words, ids: words(ids.flatten())), ValueError, "calls no nn.Embedding"),
    ("ids used elsewhere", reading(lambda words, ids: words(ids).sum(1) + ids[:, :1] * torch.eye(2)[0]), ValueError,
     "uses the ids in another place too"),
    ("another order of ids", reading(lambda words, ids: words(ids).sum(1) + words(ids.flip(1)).prod(1)), ValueError,
     "uses the ids in another place too"),
    ("no gradient", reading(lambda words, ids: words(ids).detach().sum(1)), ValueError, "no gradient reaches"),
    ("gradient of the head", reading(lambda words, ids: words(ids).detach().sum(1) + words.weight[:1]), ValueError,
     ("no gradient reaches", "torch.no_grad")),
    ("logits not finite", lambda: explained(diverged()), FloatingPointError, "the logits are [nan, nan]"),
]  # fmt: skip


@pytest.mark.parametrize(("act", "kind", "words"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_what_cannot_be_explained_is_refused_with_what_to_do(act, kind, words):
    with pytest.raises(kind) as error:
        act()
    for word in [words] if isinstance(words, str) else words:
        assert word in str(error.value)
