"""A head on a model: it begins as the probe that it was fitted as, learns as a plain loop does, and leaves nothing else
changed."""

import math
from collections import Counter
from functools import cache

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tiny import differ, tiny
from torch import nn
from torch.nn import functional as F

from course_lib.data import course_tokenizer, pad, reviews_of
from course_lib.evaluation import COMPARISON_TOKENS, frozen_features, labelled_sample, probe_accuracy
from course_lib.finetuning import Classifier, FineTuning, fine_tune, fit_head, predictions
from course_lib.runtime import seeded

TOKENIZER = course_tokenizer()
REVIEWS = labelled_sample(reviews_of("dev", "rotten_tomatoes")[:200], 16, seed=0)
TEXTS, LABELS = [review.text[:80] for review in REVIEWS], [review.label for review in REVIEWS]
FEW = FineTuning(rate=1e-3, epochs=3, batch_size=6)


@pytest.fixture(autouse=True)
def in_fp32(monkeypatch):
    """What pays on this machine is not what is tested."""
    monkeypatch.setattr("course_lib.runtime.fast_dtype", lambda device: torch.float32)


def fresh(objective="masked", n_classes=2, **changes):
    return Classifier(tiny(objective, max_len=COMPARISON_TOKENS + 2, n_layers=2, **changes), n_classes)


def tuned(how=FEW, *, texts=TEXTS, labels=LABELS, **changes):
    """A fresh classifier, fine-tuned, and the losses of its epochs."""
    classifier = fresh(**changes)
    return classifier, fine_tune(classifier, texts, labels, TOKENIZER, how)


def copied(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def moved(classifier, before) -> set[str]:
    """The parameters that are not as they were."""
    return {name for name, tensor in classifier.state_dict().items() if not torch.equal(tensor, before[name])}


def how(**changes):
    return FineTuning(**({"rate": 1e-3, "epochs": 3, "batch_size": 6} | changes))


# ---------------------------------------------------------------- the head alone


def points(n=60, *, scale=1.0, shift=0.0):
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.arange(n) % 2)
    features_NE = rng.normal(size=(n, 16)) + 1.5 * (labels[:, None] - 0.5)
    return ((features_NE + shift) * scale).astype(np.float32), labels


def probe(features_NE, labels, strength=0.05):
    return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000)).fit(features_NE, labels)


def margin(classifier, features_NE):
    with torch.no_grad():
        logits_NC = classifier.head(torch.from_numpy(features_NE))
    return logits_NC[:, 1] - logits_NC[:, 0]


@pytest.mark.parametrize("strength", [0.05, 3.0])
@pytest.mark.parametrize(
    ("scale", "shift"), [(1.0, 0.0), (10.0 ** np.arange(-4, 4, 0.5), 0.0), (1.0, 5.0 - np.arange(16))]
)
def test_a_fitted_head_decides_as_the_probe_on_standardised_features(strength, scale, shift):
    features_NE, labels = points(scale=scale, shift=shift)
    classifier, judge = fresh(), probe(features_NE, labels, strength)
    fit_head(classifier, features_NE, labels, strength=strength)
    wanted = torch.from_numpy(judge.decision_function(features_NE)).float()
    assert differ(margin(classifier, features_NE), wanted) < 1e-5
    probability_NC = classifier.head(torch.from_numpy(features_NE)).softmax(-1).detach()
    assert probability_NC.numpy() == pytest.approx(judge.predict_proba(features_NE), abs=1e-5)


def test_the_comparison_above_tells_a_head_that_forgot_the_mean_or_has_another_strength():
    features_NE, labels = points(shift=5.0 - np.arange(16))
    classifier, judge = fresh(), probe(features_NE, labels)
    wanted = torch.from_numpy(judge.decision_function(features_NE)).float()
    fit_head(classifier, features_NE, labels, strength=0.06)
    assert differ(margin(classifier, features_NE), wanted) > 1e-3
    fit_head(classifier, features_NE, labels)
    assert differ(margin(classifier, features_NE), wanted) < 1e-5
    with torch.no_grad():
        classifier.head.bias.copy_(torch.tensor([-0.5, 0.5]) * judge[-1].intercept_[0])
    assert differ(margin(classifier, features_NE), wanted) > 1e-3


@pytest.mark.parametrize(("objective", "strength"), [("masked", 0.05), ("causal", 0.05), ("masked", 1e-4)])
def test_without_an_epoch_the_head_is_the_probe_and_nothing_else_has_changed(objective, strength):
    classifier = fresh(objective)
    before = copied(classifier)
    assert fine_tune(classifier, TEXTS, LABELS, TOKENIZER, how(epochs=0, head_strength=strength)) == []
    assert moved(classifier, before) == {"head.weight", "head.bias"}
    assert not classifier.training
    features_NE, other_NE = (
        frozen_features(classifier.body, part, TOKENIZER) for part in (TEXTS, [text[::-1] for text in TEXTS])
    )
    for part_NE, texts in ((features_NE, TEXTS), (other_NE, [text[::-1] for text in TEXTS])):
        found = (predictions(classifier, texts, TOKENIZER).argmax(1) == LABELS).mean()
        assert found == probe_accuracy(features_NE, np.array(LABELS), part_NE, np.array(LABELS), strength=strength)
    judge = probe(features_NE, LABELS, strength)
    logits = torch.from_numpy(judge.decision_function(features_NE)).float()
    assert differ(margin(classifier, features_NE), logits) < 1e-4


def test_a_head_that_is_not_fitted_first_bets_evenly():
    classifier, losses = tuned(how(epochs=0, head_first=False))
    assert losses == []
    assert (predictions(classifier, TEXTS, TOKENIZER) == 0.5).all()


def test_training_begins_at_the_loss_of_the_probe_where_the_head_is_fitted_first_and_at_an_even_bet_where_not():
    still = {"rate": 1e-12, "epochs": 1, "dropout": 0.0}
    classifier, (begun,) = tuned(how(**still))
    features_NE = frozen_features(classifier.body, TEXTS, TOKENIZER)
    probability_NC = probe(features_NE, LABELS).predict_proba(features_NE)
    of_probe = -np.log(probability_NC[np.arange(len(LABELS)), LABELS]).mean()
    assert begun == pytest.approx(of_probe, rel=1e-4)
    assert of_probe < math.log(2) - 0.01
    assert tuned(how(**still, head_first=False))[1] == pytest.approx([math.log(2)])


# ---------------------------------------------------------------- predictions


def test_a_prediction_is_the_softmax_of_the_logits_and_does_not_depend_on_padding_or_on_its_batch():
    classifier, _ = tuned(how(epochs=1))
    whole = predictions(classifier, TEXTS, TOKENIZER)
    assert whole.shape == (len(TEXTS), 2) and whole.dtype == np.float32
    assert whole.sum(1) == pytest.approx(1, abs=1e-6)
    for size in (1, 5):
        assert predictions(classifier, TEXTS, TOKENIZER, batch_size=size) == pytest.approx(whole, abs=1e-5)
    vocabulary = TOKENIZER.vocabulary
    for n in (0, 1):
        ids_BT = pad([TOKENIZER.encode(TEXTS[n])], vocabulary, frame=("bos", "eos"))
        padded_BT = F.pad(ids_BT, (0, 9), value=vocabulary.pad)
        for rows_BT in (ids_BT, padded_BT):
            with torch.no_grad():
                logits_BC = classifier(rows_BT, rows_BT != vocabulary.pad)
            assert logits_BC.softmax(-1)[0].numpy() == pytest.approx(whole[n], abs=1e-5)
        with torch.no_grad():  # the control: padding that is taken for text
            assert differ(classifier(padded_BT, padded_BT >= 0), logits_BC) > 1e-3


def test_a_prediction_reads_the_first_tokens_alone():
    classifier, _ = tuned(how(epochs=0))
    long = " ".join(TEXTS)
    ids = TOKENIZER.encode(long)
    assert len(ids) > COMPARISON_TOKENS + 20
    read, less = (TOKENIZER.decode(ids[:n]) for n in (COMPARISON_TOKENS, COMPARISON_TOKENS - 3))
    whole, same, other = predictions(classifier, [long, read, less], TOKENIZER, batch_size=1)
    assert (whole == same).all()
    assert (whole != other).any()


def test_more_than_two_classes_are_told_apart_without_a_fitted_head():
    labels = [n % 3 for n in range(len(TEXTS))]
    classifier, losses = tuned(how(epochs=12, rate=1e-2, head_first=False, dropout=0.0), labels=labels, n_classes=3)
    found = predictions(classifier, TEXTS, TOKENIZER)
    assert found.shape == (len(TEXTS), 3)
    assert found.sum(1) == pytest.approx(1, abs=1e-6)
    assert losses[0] == pytest.approx(math.log(3), rel=0.2)
    assert losses[-1] < 0.95 * losses[0]


# ---------------------------------------------------------------- training


def in_a_plain_loop(classifier, how, *, clip=1.0, warmup=0.1):
    """The same training, written down a second time. No dropout."""
    matrices = [p for p in classifier.parameters() if p.dim() > 1]
    vectors = [p for p in classifier.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": how.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        betas=(0.9, 0.999),
    )
    total = how.epochs * -(-len(TEXTS) // how.batch_size)
    rising, number, losses, generator = int(warmup * total), 0, [], seeded(how.seed)
    for _ in range(how.epochs):
        order, spent = torch.randperm(len(TEXTS), generator=generator).tolist(), 0.0
        for start in range(0, len(order), how.batch_size):
            rows = order[start : start + how.batch_size]
            ids_BT = pad([TOKENIZER.encode(TEXTS[n]) for n in rows], TOKENIZER.vocabulary, length=128,
                         frame=("bos", "eos"))  # fmt: skip
            logits_BC = classifier(ids_BT, ids_BT != TOKENIZER.vocabulary.pad)
            loss = F.cross_entropy(logits_BC, torch.tensor([LABELS[n] for n in rows]))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(classifier.parameters(), clip)
            share = (number + 1) / rising if number < rising else 1 - (number - rising) / (total - rising)
            for group in optimizer.param_groups:
                group["lr"] = how.rate * share
            optimizer.step()
            spent += loss.item() * len(rows)
            number += 1
        losses.append(spent / len(order))
    return losses


PLAIN = how(epochs=7, head_first=False, dropout=0.0, weight_decay=0.5, seed=3)  # 21 steps, 2 of them to warm up


@cache
def tuned_plainly():
    return tuned(PLAIN)


def test_fine_tuning_is_a_plain_loop():
    classifier, losses = tuned_plainly()
    twin = fresh()
    assert in_a_plain_loop(twin, PLAIN) == pytest.approx(losses, rel=1e-4)
    for name, tensor in twin.state_dict().items():
        assert differ(classifier.state_dict()[name], tensor) < 1e-3, name


@pytest.mark.parametrize("change", [{"clip": 0.1}, {"warmup": 0.0}])
def test_the_comparison_above_tells_another_loop(change):
    assert in_a_plain_loop(fresh(), PLAIN, **change) != pytest.approx(tuned_plainly()[1], rel=1e-4)


def test_training_reads_the_first_tokens_alone():
    long = [" ".join([text, *TEXTS]) for text in TEXTS[:6]]
    ids = TOKENIZER.encode_all(long)
    read, less = ([TOKENIZER.decode(row[:n]) for row in ids] for n in (COMPARISON_TOKENS, COMPARISON_TOKENS - 1))
    whole, same, other = (
        tuned(how(epochs=2, batch_size=3, head_first=False), texts=texts, labels=[0, 1] * 3)[1]
        for texts in (long, read, less)
    )
    assert whole == same != other


def test_training_is_fixed_by_its_seed_whatever_else_draws_and_leaves_the_global_generators_as_they_were():
    results = {}
    for name, seed, elsewhere in (("one", 0, 1), ("again", 0, 2), ("other seed", 1, 1)):
        classifier = fresh()
        torch.manual_seed(elsewhere)
        before, of_numpy = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
        losses = fine_tune(classifier, TEXTS, LABELS, TOKENIZER, how(seed=seed, dropout=0.3))
        assert torch.equal(torch.get_rng_state(), before)
        assert (np.random.get_state()[1] == of_numpy).all()  # noqa: NPY002
        results[name] = (losses, copied(classifier))
    assert results["one"][0] == results["again"][0] != results["other seed"][0]
    for name, tensor in results["one"][1].items():
        assert torch.equal(tensor, results["again"][1][name]), name


def test_the_seed_decides_both_the_order_and_the_dropout():
    together = {"batch_size": len(TEXTS), "epochs": 1, "head_first": True}
    quiet = [tuned(how(**together, dropout=0.0, seed=seed))[1] for seed in (0, 1)]
    assert quiet[0] == pytest.approx(quiet[1], rel=1e-6)
    noisy = [tuned(how(**together, dropout=0.5, seed=seed))[1] for seed in (0, 1)]
    assert noisy[0] != pytest.approx(noisy[1], rel=1e-3)
    in_order = [tuned(how(dropout=0.0, batch_size=3, seed=seed))[1] for seed in (0, 1)]
    assert in_order[0] != pytest.approx(in_order[1], rel=1e-6)


def shares(classifier):
    return [layer.p for layer in classifier.body.modules() if isinstance(layer, nn.Dropout)]


def test_dropout_is_that_of_the_training_inside_and_its_own_behind_it():
    classifier, during = fresh(dropout=0.2), []
    first = next(layer for layer in classifier.modules() if isinstance(layer, nn.Dropout))
    first.p = 0.35
    before = shares(classifier)
    assert len(before) > 3 and set(before) == {0.35, 0.2}
    first.register_forward_hook(lambda layer, *_: during.append((layer.training, layer.p)))
    fine_tune(classifier, TEXTS, LABELS, TOKENIZER, how(epochs=1, dropout=0.05))
    assert Counter(during) == {(False, 0.35): 1, (True, 0.05): 3}  # the features of the probe, then three batches
    assert shares(classifier) == before
    assert not classifier.training


def test_a_loss_that_is_not_finite_is_said_and_the_dropout_comes_back():
    classifier = fresh(dropout=0.2)
    with pytest.raises(FloatingPointError, match=r"the loss is (nan|inf): lower the rate, now at"):
        fine_tune(classifier, TEXTS, LABELS, TOKENIZER, how(rate=1e30, dropout=0.05))
    assert set(shares(classifier)) == {0.2}
    assert not classifier.training


@pytest.mark.parametrize("objective", ["masked", "causal"])
def test_every_parameter_moves_but_those_of_the_prediction_head(objective):
    classifier = fresh(objective)
    before = copied(classifier)
    fine_tune(classifier, TEXTS, LABELS, TOKENIZER, how(epochs=1))
    unread = {name for name in before if ".cls." in name}
    assert moved(classifier, before) == before.keys() - unread
    assert bool(unread) == (objective == "masked")


def test_what_is_frozen_stays():
    classifier = fresh()
    frozen = {f"body.{name}" for name, _ in classifier.body.named_parameters() if "layer.1" not in name}
    for name, parameter in classifier.named_parameters():
        parameter.requires_grad = name not in frozen
    before = copied(classifier)
    fine_tune(classifier, TEXTS, LABELS, TOKENIZER, how(epochs=1))
    assert moved(classifier, before) == before.keys() - frozen
    for parameter in classifier.body.parameters():
        parameter.requires_grad = False
    before = copied(classifier)
    fine_tune(classifier, TEXTS, LABELS, TOKENIZER, how(epochs=1))
    assert moved(classifier, before) == {"head.weight", "head.bias"}


@pytest.mark.parametrize("head_first", [True, False])
def test_the_loss_falls_on_real_reviews_and_at_no_rate_worth_the_name_it_does_not(head_first):
    classifier, losses = tuned(how(epochs=10, rate=3e-3, dropout=0.0, head_first=head_first))
    assert len(losses) == 10
    assert losses[-1] < 0.9 * losses[0]
    assert (predictions(classifier, TEXTS, TOKENIZER).argmax(1) == LABELS).mean() > 0.7
    still = tuned(how(epochs=2, rate=1e-12, dropout=0.0, head_first=head_first))[1]
    assert still[1] == pytest.approx(still[0], rel=1e-5)


def test_labels_may_come_as_an_array():
    assert tuned(how(epochs=1), labels=np.array(LABELS))[1] == tuned(how(epochs=1))[1]


# ---------------------------------------------------------------- refused


def tuning(texts=TEXTS, labels=LABELS, n_classes=2, **changes):
    return lambda: fine_tune(fresh(n_classes=n_classes), texts, labels, TOKENIZER, how(**changes))


ONE_KIND = [1] * len(TEXTS)
REFUSED = [
    ("rate 0", lambda: FineTuning(rate=0), "rate is 0: give a learning rate above 0, such as 3e-4"),
    ("rate nan", lambda: FineTuning(rate=math.nan), "rate is nan"),
    ("rate infinite", lambda: FineTuning(rate=math.inf), "rate is inf"),
    ("epochs below 0", lambda: FineTuning(epochs=-1), "epochs -1, batch_size 16: give at least 0 and 1"),
    ("batch of none", lambda: FineTuning(batch_size=0), "batch_size 0: give at least 0 and 1"),
    ("dropout of all", lambda: FineTuning(dropout=1.0), "dropout is 1.0: give a share of at least 0 and below 1"),
    ("dropout below 0", lambda: FineTuning(dropout=-0.1), "dropout is -0.1"),
    ("dropout nan", lambda: FineTuning(dropout=math.nan), "dropout is nan"),
    ("decay below 0", lambda: FineTuning(weight_decay=-1), "weight_decay is -1: give a number of at least 0"),
    ("decay nan", lambda: FineTuning(weight_decay=math.nan), "weight_decay is nan"),
    ("strength 0", lambda: FineTuning(head_strength=0), "head_strength is 0: give a number above 0"),
    ("seed below 0", lambda: FineTuning(seed=-1), "give one or more whole numbers from 0 up"),
    ("no text", tuning([], []), "0 texts and 0 labels: give one label for each text, and at least one"),
    ("label missing", tuning(labels=LABELS[1:]), "16 texts and 15 labels: give one label for each text"),
    ("one kind", tuning(labels=ONE_KIND), "labels are [1]: give texts of both kinds, labelled 0 and 1"),
    ("label unknown", tuning(labels=[None, *LABELS[1:]]), "label None is no class: this classifier tells 0 to 1 apart"),
    ("label of none", tuning(labels=[2, *LABELS[1:]], head_first=False), "label 2 is no class"),
    ("label ignored", tuning(labels=[-100, *LABELS[1:]], head_first=False), "label -100 is no class"),
    ("three classes", tuning(n_classes=3), "the head has 3 classes: fit one of 2, or train with head_first=False"),
    ("kinds unknown", lambda: fit_head(fresh(), points()[0], [None, 1] * 30), "labels are [1, None]"),
    ("nothing to predict", lambda: predictions(fresh(), [], TOKENIZER), "give at least one of each"),
]


@pytest.mark.parametrize(("act", "words"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_refused_in_words_that_help(act, words):
    with pytest.raises(ValueError) as refusal:
        act()
    assert words in str(refusal.value)


def test_one_kind_is_enough_where_no_probe_is_fitted():
    """The control: it is the probe that needs both."""
    assert tuned(how(epochs=1, head_first=False), labels=ONE_KIND)[1][0] == pytest.approx(math.log(2), rel=0.5)


def test_a_feature_that_never_moves_is_left_out_of_a_fitted_head_however_small_its_spread():
    features_NE = torch.randn(16, 16, generator=seeded(3)).numpy()
    features_NE[:, 3] = 1e-3
    features_NE[0, 3] += 1e-9  # as one channel of MiniLM: a spread of rounding alone
    labels = [0, 1] * 8
    classifier = fresh()
    fit_head(classifier, features_NE, labels)
    assert classifier.head.weight[:, 3].abs().max() == 0
    assert 0 < classifier.head.weight.abs().max() < 10
