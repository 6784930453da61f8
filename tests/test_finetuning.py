"""A head on a model: it begins as the probe that it was fitted as, learns as a plain loop does, and leaves nothing else
changed."""

import json
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
from course_lib.finetuning import (
    Classifier,
    FineTuning,
    Padding,
    epochs,
    fine_tune,
    fit_head,
    predictions,
    tuning,
)
from course_lib.optimizers import make_optimizer
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


# ---------------------------------------------------------------- epoch by epoch

NOISY = how(dropout=0.3, epochs=3, seed=5)
FLIPPED = [1 - label for label in LABELS]  # what is learned makes these worse, epoch by epoch


def watched(settings=NOISY, *, between=lambda classifier: None, start=None, **options):
    """A fresh classifier, its records, and its weights after each of them. start: seeds torch's global generator."""
    classifier, records, weights = fresh(), [], []
    if start is not None:
        torch.manual_seed(start)
    for record in epochs(classifier, TEXTS, LABELS, TOKENIZER, settings, **options):
        records.append(record)
        weights.append(copied(classifier))
        between(classifier)
    return classifier, records, weights


def same(some, other) -> bool:
    """To the bit."""
    return some.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in some.items())


@cache
def undisturbed():
    return watched()


def test_fine_tuning_is_all_epochs_to_the_bit():
    classifier, records, weights = undisturbed()
    whole, losses = tuned(NOISY)
    assert losses == [record.loss for record in records]
    assert same(whole.state_dict(), classifier.state_dict())
    assert same(whole.state_dict(), weights[-1])
    assert not same(weights[0], weights[-1])


def in_one_go(*, reseed=False):
    """The same epochs in one loop that never stops in between, with dropout. reseed: the slip of a generator that
    begins its randomness anew in each epoch."""
    classifier, texts = fresh(), TOKENIZER.encode_all(TEXTS)
    fit_head(classifier, frozen_features(classifier, TEXTS, TOKENIZER), LABELS, strength=NOISY.head_strength)
    for layer in classifier.body.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = NOISY.dropout
    optimizer = make_optimizer(classifier, weight_decay=NOISY.weight_decay, betas=(0.9, 0.999))
    losses, order = [], seeded(NOISY.seed)
    classifier.train()
    with torch.random.fork_rng():
        torch.manual_seed(NOISY.seed)
        for _ in range(NOISY.epochs):
            if reseed:
                torch.manual_seed(NOISY.seed)
            for rows in torch.randperm(len(TEXTS), generator=order).split(NOISY.batch_size):
                ids_BT = pad([texts[n] for n in rows.tolist()], TOKENIZER.vocabulary, length=128, frame=("bos", "eos"))
                logits_BC = classifier(ids_BT, ids_BT != TOKENIZER.vocabulary.pad)
                loss = F.cross_entropy(logits_BC, torch.tensor([LABELS[n] for n in rows.tolist()]))
                loss.backward()
                nn.utils.clip_grad_norm_(classifier.parameters(), 1.0)
                for group in optimizer.param_groups:
                    group["lr"] = NOISY.rate * (1 - len(losses) / 9)
                optimizer.step()
                optimizer.zero_grad()
                losses.append(loss.item())
    return losses


def test_dropout_goes_on_from_epoch_to_epoch_as_in_one_loop():
    losses = [loss for record in undisturbed()[1] for loss in record.losses]
    assert in_one_go() == pytest.approx(losses, rel=1e-5)
    again = in_one_go(reseed=True)
    assert again[:3] == pytest.approx(losses[:3], rel=1e-5)  # the control: the first epoch tells nothing
    assert again[3:] != pytest.approx(losses[3:], rel=1e-4)


def test_what_the_caller_does_between_two_records_changes_nothing_and_is_not_changed():
    drawn, expected = [], []

    def disturb(classifier):
        drawn.append(torch.rand(3))
        predictions(classifier, TEXTS[:4], TOKENIZER)
        classifier.train()
        with torch.no_grad():
            classifier(torch.tensor([[2, 200, 3]]), torch.ones(1, 3) > 0)  # draws dropout of its own
        torch.manual_seed(len(drawn))

    for seed in (11, 1, 2):
        torch.manual_seed(seed)
        expected.append(torch.rand(3))
    classifier, records, weights = watched(between=disturb, start=11)
    assert records == undisturbed()[1]
    assert same(weights[-1], undisturbed()[2][-1]) and same(classifier.state_dict(), weights[-1])
    assert torch.equal(torch.stack(drawn), torch.stack(expected))


def test_between_two_records_the_global_generator_is_as_it_was():
    torch.manual_seed(3)
    before, seen = torch.get_rng_state(), []
    watched(between=lambda _: seen.append(torch.equal(torch.get_rng_state(), before)), start=3)
    assert seen == [True] * 3
    assert torch.equal(torch.get_rng_state(), before)


def test_between_two_records_the_classifier_is_ready_for_evaluation_with_its_own_dropout():
    classifier, seen = fresh(dropout=0.2), []
    for _ in epochs(classifier, TEXTS, LABELS, TOKENIZER, how(epochs=2, dropout=0.4)):
        seen.append((classifier.training, set(shares(classifier))))
    assert seen == [(False, {0.2})] * 2
    run = epochs(classifier, TEXTS, LABELS, TOKENIZER, how(epochs=2, dropout=0.4))
    next(run)
    run.close()  # whoever has seen enough leaves
    assert (classifier.training, set(shares(classifier))) == (False, {0.2})


def test_nothing_is_trained_or_refused_before_the_first_record_is_asked_for():
    classifier = fresh()
    before = copied(classifier)
    run = epochs(classifier, TEXTS, LABELS, TOKENIZER, how())
    refused = epochs(classifier, [], [], TOKENIZER, how())
    assert same(classifier.state_dict(), before)
    with pytest.raises(ValueError, match="0 texts and 0 labels"):
        next(refused)
    assert next(run).number == 1
    assert not same(classifier.state_dict(), before)


def test_a_record_says_what_its_epoch_did():
    _, records, _ = undisturbed()
    assert [record.number for record in records] == [1, 2, 3]
    lengths = [len(ids) + 2 for ids in TOKENIZER.encode_all(TEXTS)]
    for record in records:
        assert len(record.losses) == 3
        first, second, third = record.losses
        assert record.loss == pytest.approx((6 * first + 6 * second + 4 * third) / 16)
        assert record.loss != pytest.approx(sum(record.losses) / 3, rel=1e-6)  # the control: a batch is smaller
        assert record.tokens - record.padding == sum(lengths)
        assert record.padding > 0
        assert (record.held_out, record.accuracy, record.is_best) == (None, None, False)
    assert len({record.tokens for record in records}) > 1  # other batches, other padding


def test_padding_to_the_most_reads_more_and_learns_the_same():
    quiet = {"dropout": 0.0, "max_tokens": 40}
    (classifier, short, _), (twin, long, _) = (watched(how(**quiet, pad_to_most=most)) for most in (False, True))
    assert [record.tokens for record in long] == [16 * 42] * 3
    assert [r.tokens - r.padding for r in long] == [r.tokens - r.padding for r in short]
    assert all(some.padding < other.padding for some, other in zip(short, long, strict=True))
    assert [r.loss for r in long] == pytest.approx([r.loss for r in short], rel=1e-4)
    for name, tensor in twin.state_dict().items():
        assert differ(classifier.state_dict()[name], tensor) < 1e-3, name


@pytest.mark.slow
def test_batches_of_like_length_pad_less_and_read_every_text_once_an_epoch():
    (_, mixed, _), (_, grouped, _) = (watched(how(batch_size=4, length_grouped=alike)) for alike in (False, True))
    assert [r.tokens - r.padding for r in grouped] == [r.tokens - r.padding for r in mixed]
    assert max(r.padding for r in grouped) < 0.5 * min(r.padding for r in mixed)
    assert [len(r.losses) for r in grouped] == [4] * 3
    assert len({r.losses for r in grouped}) == 3
    again = watched(how(batch_size=4, length_grouped=True))[1]
    assert again == grouped
    assert watched(how(batch_size=4, length_grouped=True, seed=1))[1] != grouped


@pytest.mark.slow
def test_the_most_tokens_that_are_read_are_the_first():
    cut = {text: TOKENIZER.decode(ids[:7]) for text, ids in zip(TEXTS, TOKENIZER.encode_all(TEXTS), strict=True)}
    kept = [text for text in TEXTS if TOKENIZER.encode(cut[text]) == TOKENIZER.encode(text)[:7]]  # no word cut in two
    labels = [LABELS[TEXTS.index(text)] for text in kept]
    assert len(kept) > 8 and set(labels) == {0, 1}

    shorter = [cut[text] for text in kept]

    def run(texts, most, head_first=False):
        settings = how(max_tokens=most, dropout=0.0, epochs=2, head_first=head_first)
        return list(epochs(fresh(), texts, labels, TOKENIZER, settings))

    of_seven = run(kept, 7)
    assert of_seven == run(shorter, 7)
    assert [r.losses for r in of_seven] == [pytest.approx(r.losses) for r in run(shorter, 126)]
    assert [r.losses for r in of_seven] != [pytest.approx(r.losses, rel=1e-3) for r in run(kept, 126)]
    assert [r.tokens - r.padding for r in of_seven] == [9 * len(kept)] * 2
    fitted, wanted, other = run(kept, 7, True), run(shorter, 126, True), run(kept, 126, True)
    assert fitted[0].losses == pytest.approx(wanted[0].losses, rel=1e-3)  # the probe's solver rounds
    assert fitted[0].losses != pytest.approx(other[0].losses, rel=1e-2)


# ---------------------------------------------------------------- texts held out


@pytest.mark.parametrize("max_tokens", [126, 7])
def test_after_each_epoch_the_held_out_texts_are_measured(max_tokens):
    others, labels = [text[::-1] for text in TEXTS[:9]], LABELS[:9]
    wanted = []

    def measure(classifier):
        given_NC = predictions(classifier, others, TOKENIZER, max_tokens=max_tokens)
        loss = -np.log(given_NC[np.arange(9), labels].astype(float)).mean()
        wanted.append((loss, (given_NC.argmax(1) == labels).mean()))

    settings = how(max_tokens=max_tokens, rate=3e-3)
    _, records, _ = watched(settings, between=measure, held_out=(others, labels))
    assert [r.held_out for r in records] == pytest.approx([loss for loss, _ in wanted], rel=1e-6)
    assert [r.accuracy for r in records] == pytest.approx([right for _, right in wanted])
    lowest = [min(r.held_out for r in records[: n + 1]) for n in range(3)]
    assert [r.is_best for r in records] == [r.held_out == low for r, low in zip(records, lowest, strict=True)]


def test_held_out_texts_are_measured_and_not_learned():
    _, records, weights = watched(held_out=(TEXTS[:5], LABELS[:5]))
    assert [r.losses for r in records] == [r.losses for r in undisturbed()[1]]
    assert all(same(*pair) for pair in zip(weights, undisturbed()[2], strict=True))


@pytest.mark.parametrize(("labels", "is_last"), [(FLIPPED, False), (LABELS, True)])
def test_behind_the_last_epoch_the_classifier_is_what_it_was_after_the_best_to_the_bit(labels, is_last):
    classifier, records, weights = watched(how(rate=3e-3, epochs=4, dropout=0.0), held_out=(TEXTS, labels))
    best = min(range(4), key=lambda n: records[n].held_out)
    assert (best == 3) == is_last
    assert [same(classifier.state_dict(), after) for after in weights] == [n == best for n in range(4)]


def measuring(monkeypatch, *losses):
    """The held-out losses come as they are told, whatever the classifier gives."""
    coming = iter(losses)
    monkeypatch.setattr(tuning, "_measured", lambda *_: {"held_out": next(coming), "accuracy": 0.5})


@pytest.mark.parametrize(
    ("losses", "patience", "n_epochs", "best"),
    [
        ([0.9, 0.5, 0.7, 0.6, 0.8, 0.55], None, 6, 2),
        ([0.9, 0.5, 0.7, 0.6, 0.8, 0.55], 4, 6, 2),
        ([0.9, 0.5, 0.7, 0.6, 0.8, 0.55], 3, 5, 2),
        ([0.9, 0.5, 0.7, 0.6, 0.8, 0.55], 1, 3, 2),
        ([0.9, 1.0, 0.8, 1.0, 0.7, 1.0], 2, 6, 5),  # a better one begins the wait anew
        ([0.5, 0.6, 0.7, 0.8, 0.9, 1.0], 2, 3, 1),
        ([0.9, 0.8, 0.7, 0.6, 0.5, 0.4], 1, 6, 6),
        ([0.9, math.nan, 0.8, math.nan, math.nan, 0.7], 2, 5, 3),
        ([math.nan, 0.8, 0.9, 0.9, 0.9, 0.9], 3, 5, 2),
    ],
)
def test_patience_ends_the_training_after_so_many_epochs_without_a_better_one(
    losses, patience, n_epochs, best, monkeypatch
):
    measuring(monkeypatch, *losses)
    settings = how(epochs=6, patience=patience, batch_size=16)
    classifier, records, weights = watched(settings, held_out=(TEXTS[:2], LABELS[:2]))
    assert len(records) == n_epochs
    assert [n + 1 for n, record in enumerate(records) if record.is_best][-1] == best
    assert same(classifier.state_dict(), weights[best - 1])
    assert not classifier.training
    others = [n for n in range(n_epochs) if n != best - 1]
    assert not any(same(classifier.state_dict(), weights[n]) for n in others)


def test_a_classifier_that_its_last_step_has_broken_is_said_where_texts_are_held_out():
    with pytest.raises(FloatingPointError, match="lower the rate"):
        watched(how(rate=1e30, epochs=1, batch_size=16), held_out=(TEXTS, LABELS))


def test_without_held_out_texts_patience_waits_for_nothing():
    assert len(tuned(how(epochs=4, patience=1))[1]) == 4


def test_stopping_early_leaves_the_rates_as_they_were_planned(monkeypatch):
    """A run that is stopped is the beginning of one that is not."""
    measuring(monkeypatch, 0.5, 0.6, 0.7, 0.8)
    _, stopped, _ = watched(how(epochs=3, patience=1, dropout=0.3, seed=5), held_out=(TEXTS[:2], LABELS[:2]))
    assert len(stopped) == 2
    assert [r.losses for r in stopped] == [r.losses for r in undisturbed()[1][:2]]


# ---------------------------------------------------------------- settings


def test_settings_are_described_so_that_they_can_be_made_again():
    early = {"rate", "epochs", "batch_size", "weight_decay", "dropout", "head_first", "head_strength", "seed"}
    assert set(FineTuning().described()) == early  # as records had it before there were more
    changes = {"max_tokens": 64, "length_grouped": True, "pad_to_most": True, "patience": 2}
    for name, value in changes.items():
        settings = FineTuning(rate=1e-2, **{name: value})
        assert set(settings.described()) == early | {name}
        assert settings.described()[name] == value
    for settings in (FineTuning(), FEW, FineTuning(**changes), FineTuning(seed=3, epochs=0)):
        assert FineTuning(**settings.described()) == settings
        assert json.loads(json.dumps(settings.described())) == settings.described()


def test_settings_say_how_rows_are_padded():
    assert FineTuning(max_tokens=9).padding == Padding(11)
    assert FineTuning(max_tokens=9, pad_to_most=True).padding == Padding(11, fill_to=11)
    assert FineTuning().padding == Padding(COMPARISON_TOKENS + 2)


# ---------------------------------------------------------------- refused


def training(texts=TEXTS, labels=LABELS, n_classes=2, held_out=None, **changes):
    return lambda: fine_tune(fresh(n_classes=n_classes), texts, labels, TOKENIZER, how(**changes), held_out=held_out)


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
    ("no text", training([], []), "0 texts and 0 labels: give one label for each text, and at least one"),
    ("label missing", training(labels=LABELS[1:]), "16 texts and 15 labels: give one label for each text"),
    ("one kind", training(labels=ONE_KIND), "labels are [1]: give texts of both kinds, labelled 0 and 1"),
    (
        "label unknown",
        training(labels=[None, *LABELS[1:]]),
        "label None is no class: this classifier tells 0 to 1 apart",
    ),
    ("label of none", training(labels=[2, *LABELS[1:]], head_first=False), "label 2 is no class"),
    ("label ignored", training(labels=[-100, *LABELS[1:]], head_first=False), "label -100 is no class"),
    ("three classes", training(n_classes=3), "the head has 3 classes: fit one of 2, or train with head_first=False"),
    ("kinds unknown", lambda: fit_head(fresh(), points()[0], [None, 1] * 30), "labels are [1, None]"),
    ("no token", lambda: FineTuning(max_tokens=0), "max_tokens is 0: read at least 1 token of a text, such as 126"),
    ("no patience", lambda: FineTuning(patience=0), "patience is 0: wait for at least 1 epoch, or None"),
    ("strength infinite", lambda: FineTuning(head_strength=math.inf), "head_strength is inf"),
    ("decay infinite", lambda: FineTuning(weight_decay=math.inf), "weight_decay is inf"),
    ("nothing held out", training(held_out=([], [])), "0 texts and 0 labels: give one label for each text"),
    ("label held out missing", training(held_out=(TEXTS, LABELS[1:])), "16 texts and 15 labels"),
    ("label held out unknown", training(held_out=(["a film"], [2])), "label 2 is no class: this classifier tells 0 to"),
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
