"""Heads: one vector a text whatever stands beside it, a classifier that padding does not move, a writer that shares its
table of words with the body."""

from types import SimpleNamespace

import pytest
import torch
from tiny import differ, tiny
from torch import nn
from torch.nn import functional as F

from course_lib import masks, objectives
from course_lib.finetuning import (
    POOLINGS,
    ClassificationCollator,
    Classifier,
    Encoded,
    GenerationCollator,
    Padding,
    Seq2SeqCollator,
    Writer,
    as_batch,
    pack,
    pool,
)
from course_lib.finetuning.heads import encode, width_of
from course_lib.model import Decoder
from course_lib.optimizers import make_optimizer
from course_lib.runtime import seeded
from course_lib.training import batch_loss, step
from course_lib.vocabulary import Vocabulary

VOCABULARY = Vocabulary(200, pad=0, unk=1, bos=2, eos=3, cls=4, sep=5, mask=6)
ROWS = [torch.randint(10, 200, (length,), generator=seeded(3, length)).tolist() for length in (3, 9, 5, 1)]
BODIES = [("masked", "rotary"), ("masked", "learned"), ("causal", "learned"), ("span", "rotary")]


def body_of(objective="masked", positions=None, **changes):
    return tiny(objective, positions, vocab_size=200, n_layers=2, **changes).eval()


def classifier_of(body, n_classes=3, **options):
    """With a head that decides something."""
    classifier = Classifier(body, n_classes, **options).eval()
    nn.init.normal_(classifier.head.weight, generator=seeded(1))
    return classifier


def classified(rows=ROWS, side="right"):
    """input_ids [B, T] and which of them are real."""
    batch = ClassificationCollator(VOCABULARY, Padding(side=side))([{"input_ids": row} for row in rows])
    return batch["input_ids"], batch["attention_mask"].bool()


# ---------------------------------------------------------------- pooling

HIDDEN_BTE = torch.randn(4, 9, 5, generator=seeded(2))
LENGTHS = (9, 4, 1, 6)


def real(side):
    place_T = torch.arange(9) if side == "right" else torch.arange(9).flip(0)
    return place_T < torch.tensor(LENGTHS)[:, None]


OF_A_TEXT = {"mean": lambda rows: rows.mean(0), "cls": lambda rows: rows[0], "last": lambda rows: rows[-1]}


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("how", POOLINGS)
def test_pooling_reads_the_real_tokens_of_each_text_alone(how, side):
    is_real_BT = real(side)
    pooled_BE = pool(HIDDEN_BTE, is_real_BT, how)
    wanted = [OF_A_TEXT[how](hidden_TE[is_real_T]) for hidden_TE, is_real_T in zip(HIDDEN_BTE, is_real_BT, strict=True)]
    assert differ(pooled_BE, torch.stack(wanted)) < 1e-6
    loud_BTE = HIDDEN_BTE.masked_fill(~is_real_BT[..., None], 1e6)
    assert torch.equal(pool(loud_BTE, is_real_BT, how), pooled_BE)
    assert torch.equal(pool(HIDDEN_BTE, is_real_BT.long(), how), pooled_BE)  # as an attention_mask has it


@pytest.mark.parametrize(
    ("how", "side", "wrong"),
    [
        ("mean", "right", lambda hidden_BTE: hidden_BTE.mean(1)),
        ("cls", "left", lambda hidden_BTE: hidden_BTE[:, 0]),
        ("last", "right", lambda hidden_BTE: hidden_BTE[:, -1]),
    ],
)
def test_the_obvious_ways_to_pool_read_padding(how, side, wrong):
    """The control. Each is right where no text is padded on that side."""
    assert differ(wrong(HIDDEN_BTE), pool(HIDDEN_BTE, real(side), how)) > 0.1
    assert differ(wrong(HIDDEN_BTE), pool(HIDDEN_BTE, torch.ones(4, 9) > 0, how)) < 1e-6


@pytest.mark.parametrize("how", POOLINGS)
def test_a_gap_within_a_text_is_not_read(how):
    is_real_BT = torch.rand(4, 9, generator=seeded(5)) < 0.5
    wanted = [OF_A_TEXT[how](hidden_TE[is_real_T]) for hidden_TE, is_real_T in zip(HIDDEN_BTE, is_real_BT, strict=True)]
    assert not is_real_BT.all(1).any()
    assert differ(pool(HIDDEN_BTE, is_real_BT, how), torch.stack(wanted)) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_pooling_keeps_the_number_format(dtype):
    assert {pool(HIDDEN_BTE.to(dtype), real("right"), how).dtype for how in POOLINGS} == {dtype}


def test_pooling_is_the_mean_unless_told_otherwise():
    assert torch.equal(pool(HIDDEN_BTE, real("left")), pool(HIDDEN_BTE, real("left"), "mean"))


# ---------------------------------------------------------------- the classifier


def logits_of(classifier, rows, side="right"):
    with torch.no_grad():
        return classifier(*classified(rows, side))


def alone(classifier, rows=ROWS):
    return torch.cat([logits_of(classifier, [row]) for row in rows])


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("body", BODIES)
def test_a_batch_of_texts_is_classified_as_each_alone(body, pooling):
    classifier = classifier_of(body_of(*body), pooling=pooling, inner="tanh")
    assert differ(logits_of(classifier, ROWS), alone(classifier)) < 1e-5


@pytest.mark.parametrize(  # but for a decoder's first token, which has seen the same in every text
    ("body", "pooling"), [(b, how) for b in BODIES for how in POOLINGS if (b[0], how) != ("causal", "cls")]
)
def test_the_comparison_above_tells_padding_that_is_read(body, pooling):
    classifier = classifier_of(body_of(*body), pooling=pooling)
    ids_BT, is_real_BT = classified()
    with torch.no_grad():
        hidden_BTE = encode(classifier.body, ids_BT, torch.ones_like(is_real_BT))
        seen = classifier.head(pool(hidden_BTE, torch.ones_like(is_real_BT), pooling))
    assert differ(seen, alone(classifier)) > 1e-2


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("body", BODIES)
def test_nor_does_padding_before_the_texts_change_anything(body, pooling):
    classifier = classifier_of(body_of(*body), pooling=pooling)
    if not isinstance(classifier.body, Decoder) and classifier.body.config.positions == "learned":
        with pytest.raises(ValueError, match="pad on the right"):
            logits_of(classifier, ROWS, "left")
        return
    assert differ(logits_of(classifier, ROWS, "left"), alone(classifier)) < 1e-5


def test_a_decoder_pools_what_has_seen_the_text_and_nothing_behind():
    body = body_of("causal")
    more = [ROWS[1], [*ROWS[1][:-1], 77]]
    ids_BT, is_real_BT = classified(more)
    with torch.no_grad():
        hidden_BTE = encode(body, ids_BT, is_real_BT)
    assert differ(hidden_BTE[0, :9], hidden_BTE[1, :9]) < 1e-5  # [BOS] and all tokens but the last
    for how, is_seen in {"cls": False, "mean": True, "last": True}.items():
        first_E, second_E = pool(hidden_BTE, is_real_BT, how)
        assert (differ(first_E, second_E) > 1e-3) == is_seen


@pytest.mark.parametrize("inner", ["plain", "tanh"])
def test_a_head_stands_on_the_device_of_its_body(inner):
    away = torch.device("meta")  # of no machine, and of every one
    for model in (Classifier(body_of().to(away), inner=inner), Writer(body_of().to(away), tied=False)):
        assert {parameter.device for parameter in model.parameters()} == {away}


def test_a_new_classifier_bets_evenly_and_its_body_learns_once_its_head_has():
    classifier = Classifier(body_of(), 5)
    assert torch.equal(logits_of(classifier, ROWS), torch.zeros(4, 5))
    for is_still in (True, False):
        classifier.zero_grad()
        F.cross_entropy(classifier(*classified()), torch.tensor([0, 1, 2, 3])).backward()
        gradient = classifier.body.embeddings.word_embeddings.weight.grad
        assert (gradient.abs().max() == 0) == is_still
        assert classifier.head.weight.grad.abs().max() > 0
        with torch.no_grad():
            classifier.head.weight -= classifier.head.weight.grad


@pytest.mark.parametrize("pooling", POOLINGS)
def test_the_inner_layer_is_dense_and_tanh_on_the_pooled_vector(pooling):
    classifier = classifier_of(body_of(), pooling=pooling, inner="tanh")
    ids_BT, is_real_BT = classified()
    with torch.no_grad():
        pooled_BE = pool(encode(classifier.body, ids_BT, is_real_BT), is_real_BT, pooling)
        dense = classifier.inner[0]
        wanted_BE = torch.tanh(pooled_BE @ dense.weight.T + dense.bias)
        assert differ(classifier.features(ids_BT, is_real_BT), wanted_BE) < 1e-6
        assert differ(logits_of(classifier, ROWS), wanted_BE @ classifier.head.weight.T) < 1e-5
        plain = Classifier(classifier.body, pooling=pooling)
        assert torch.equal(plain.features(ids_BT, is_real_BT), pooled_BE)


def test_dropout_strikes_the_vector_that_the_last_layer_reads_while_training_alone():
    classifier = classifier_of(body_of(), n_classes=16, dropout=0.25)
    with torch.no_grad():
        classifier.head.weight.copy_(torch.eye(16))
    ids_BT, is_real_BT = classified()
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        features_BE = classifier.features(ids_BT, is_real_BT)
        assert torch.equal(classifier(ids_BT, is_real_BT), features_BE)
        classifier.train()
        struck_BE = classifier(ids_BT, is_real_BT)
        assert torch.equal(classifier.features(ids_BT, is_real_BT), features_BE)
    is_struck_BE = struck_BE == 0
    assert 0 < is_struck_BE.float().mean() < 0.5
    assert differ(struck_BE[~is_struck_BE], features_BE[~is_struck_BE] / 0.75) < 1e-6


@pytest.mark.parametrize("name", ["d_model", "hidden_size", "n_embd"])
def test_a_width_is_read_from_the_config_by_any_of_its_names(name):
    body = nn.Linear(1, 1)
    body.config = SimpleNamespace(**{name: 7})
    assert width_of(body) == 7
    assert Classifier(body, 4).head.weight.shape == (4, 7)


class Bare(nn.Module):
    """As a model of `transformers` without its head is called. It hands back where its tokens stand."""

    def __init__(self, width=2):
        super().__init__()
        self.config = SimpleNamespace(hidden_size=width, vocab_size=200)
        self.words = nn.Embedding(200, width)
        self.asked = []

    def forward(self, *, input_ids, attention_mask):
        self.asked.append(attention_mask)
        place_BT = attention_mask.cumsum(1).float() if attention_mask.dim() == 2 else input_ids.float()
        return SimpleNamespace(last_hidden_state=torch.stack([place_BT, input_ids.float()], -1))


class Headed(nn.Module):
    def __init__(self):
        super().__init__()
        self.base_model = Bare()
        self.config = self.base_model.config

    def forward(self, **given):
        raise AssertionError("the head is not wanted")


@pytest.mark.parametrize("make", [Bare, Headed])
def test_a_body_of_the_other_world_is_asked_by_its_names_and_without_its_head(make):
    body = make()
    ids_BT, is_real_BT = classified()
    hidden_BTE = encode(body, ids_BT, is_real_BT)
    assert torch.equal(hidden_BTE[..., 1].long(), ids_BT)
    asked = getattr(body, "base_model", body).asked[0]
    assert asked.dtype == torch.int64
    assert torch.equal(asked.bool(), is_real_BT)


# ---------------------------------------------------------------- the writer


def written(batch=None, rows=ROWS):
    """A causal batch of prompts of 1 token with their responses."""
    collate = GenerationCollator(VOCABULARY, Padding(), learn="all")
    return batch or as_batch(collate([{"prompt": row[:1], "response": row[1:]} for row in rows]))


def test_a_tied_writer_on_the_courses_decoder_is_that_decoder():
    """Its own output layer is its word embeddings too: the two must agree."""
    body = body_of("causal")
    with torch.no_grad():
        assert torch.equal(Writer(body).target_logits(written()), body.target_logits(written()))
        assert differ(Writer(body, tied=False).target_logits(written()), body.target_logits(written())) > 0.1


@pytest.mark.parametrize("objective", ["causal", "masked"])
@pytest.mark.parametrize("tied", [True, False])
def test_the_logits_at_the_targets_are_those_of_all_positions(objective, tied):
    writer, batch = Writer(body_of(objective), tied=tied), written()
    with torch.no_grad():
        everywhere_BTV = writer(batch.input_ids_BT, batch.may_attend_BQK)
        assert everywhere_BTV.shape == (*batch.input_ids_BT.shape, 200)
        assert differ(writer.target_logits(batch), everywhere_BTV[batch.is_target_BL]) < 1e-6


@pytest.mark.parametrize("objective", ["causal", "masked"])
def test_a_writer_sees_what_it_may_attend_to_and_no_more(objective):
    """An encoder writes as a decoder does, once it may not look ahead."""
    writer, batch = Writer(body_of(objective)), written(rows=[ROWS[1]])
    other_BT = batch.input_ids_BT.clone()
    other_BT[:, 6:] = 50
    with torch.no_grad():
        causal = [writer(ids_BT, masks.causal(11)) for ids_BT in (batch.input_ids_BT, other_BT)]
        free = [writer(ids_BT, torch.ones(1, 1, 11) > 0) for ids_BT in (batch.input_ids_BT, other_BT)]
    assert torch.equal(causal[0][:, :6], causal[1][:, :6])
    assert not torch.equal(causal[0][:, 6:], causal[1][:, 6:])
    if objective == "masked":  # a decoder is handed what it is handed, too
        assert differ(free[0][:, :6], free[1][:, :6]) > 1e-3


def word_table(body):
    return body.transformer["wte"] if hasattr(body, "transformer") else body.embeddings.word_embeddings


@pytest.mark.parametrize("objective", ["causal", "masked"])
def test_a_tied_head_is_the_table_of_words_and_training_moves_both(objective):
    writer = Writer(body_of(objective))
    assert writer.head.weight is word_table(writer.body).weight
    count = sum(parameter.numel() for parameter in writer.parameters())
    assert count == sum(parameter.numel() for parameter in writer.body.parameters())
    before_VE = writer.head.weight.detach().clone()
    step(writer, make_optimizer(writer, weight_decay=0.0), [written()], rate=1e-3, dtype=torch.float32)
    assert writer.head.weight is word_table(writer.body).weight
    assert (writer.head.weight != before_VE).any(1).all()  # also of words that nobody read: as outputs


@pytest.mark.parametrize(("objective", "positions"), [("causal", "learned"), ("masked", "learned")])
def test_the_table_of_words_is_told_from_one_of_as_many_positions(objective, positions):
    writer = Writer(body_of(objective, positions, max_len=200))
    assert writer.head.weight is word_table(writer.body).weight


def test_an_untied_head_is_another_table_and_each_moves_for_itself():
    writer = Writer(body_of("masked"), tied=False)
    table = word_table(writer.body)
    assert writer.head.weight.shape == table.weight.shape
    assert writer.head.weight.data_ptr() != table.weight.data_ptr()
    assert 0.015 < writer.head.weight.std() < 0.025
    before = [tensor.detach().clone() for tensor in (writer.head.weight, table.weight)]
    step(writer, make_optimizer(writer, weight_decay=0.0), [written()], rate=1e-3, dtype=torch.float32)
    assert (writer.head.weight != before[0]).any(1).all()
    read = torch.zeros(200).bool().index_fill_(0, written().input_ids_BT.unique(), True)
    assert not (table.weight != before[1]).any(1)[~read].any()  # no word that stands nowhere: it is an input alone
    assert (table.weight != before[1]).any(1)[read].any()


@pytest.mark.parametrize("tied", [True, False])
def test_training_a_writer_lowers_its_loss(tied):
    writer = Writer(body_of("masked", shake=0.0), tied=tied)
    optimizer = make_optimizer(writer, weight_decay=0.0)
    losses = [step(writer, optimizer, [written()], rate=1e-2, dtype=torch.float32)[0] for _ in range(15)]
    assert losses[-1] < 0.7 * losses[0]


def test_the_loss_of_a_batch_is_the_sum_of_its_examples_losses():
    for objective, positions in BODIES[:3]:
        writer = Writer(body_of(objective, positions))
        with torch.no_grad():
            together = batch_loss(writer, written())
            each = [batch_loss(writer, written(rows=[row])) for row in ROWS]
        assert together[1] == sum(count for _, count in each)
        assert together[0].item() == pytest.approx(sum(total.item() for total, _ in each), rel=1e-5)


@pytest.mark.parametrize("positions", ["learned"])
@pytest.mark.parametrize("objective", ["causal"])
def test_a_writer_reads_a_text_behind_padding_as_one_without(objective, positions):
    writer = Writer(body_of(objective, positions))
    collate = GenerationCollator(VOCABULARY, Padding(side="left"), learn="all")
    batch = as_batch(collate([{"prompt": row[:1], "response": row[1:]} for row in ROWS]))
    with torch.no_grad():
        wanted_NV = torch.cat([writer.target_logits(written(rows=[row])) for row in ROWS])
        assert differ(writer.target_logits(batch), wanted_NV) < 1e-5


@pytest.mark.parametrize("objective", ["causal"])
def test_a_writer_reads_packed_examples_as_each_alone(objective):
    writer = Writer(body_of(objective, "learned"))
    encoded = [Encoded(tuple(row), (False, *[True] * (len(row) - 1))) for row in ROWS[:3]]
    with torch.no_grad():
        packed_NV = writer.target_logits(as_batch(pack(encoded, 20, VOCABULARY)))
        longest_first = sorted(encoded, key=lambda example: -len(example.input_ids))
        each = [writer.target_logits(as_batch(pack([example], 20, VOCABULARY))) for example in longest_first]
    assert differ(packed_NV, torch.cat(each)) < 1e-5


def seq2seq():
    """With as many positions to predict as to read: nothing else gives it away."""
    return as_batch(Seq2SeqCollator(VOCABULARY)([{"source": row[:-1], "target": row} for row in ROWS[:3]]))


def test_a_batch_for_an_encoder_decoder_is_refused():
    assert seq2seq().input_ids_BT.shape == seq2seq().labels_BL.shape
    with pytest.raises(ValueError, match=r"EncoderDecoder"):
        Writer(body_of("masked")).target_logits(seq2seq())


def test_an_encoder_decoder_which_writes_already_is_refused():
    with pytest.raises(ValueError, match=r"EncoderDecoder"):
        Writer(body_of("span"))


def test_a_writer_trains_on_the_objectives_of_the_course_too():
    """Whatever the objective, where a head of another kind stood: here masked prediction."""
    ids_BT, _ = classified()
    batch = objectives.masked(ids_BT, VOCABULARY, mask_prob=0.5, generator=seeded(0))
    writer = Writer(body_of("masked"))
    loss, targets, _ = step(writer, make_optimizer(writer), [batch], rate=1e-3, dtype=torch.float32)
    assert targets == int(batch.is_target_BL.sum()) and 0 < loss < 100


def test_a_body_of_other_width_than_its_words_wants_a_head_of_its_own():
    body = Bare()
    body.config.hidden_size = 3
    with pytest.raises(ValueError, match=r"the word embeddings have 2 channels and the model 3: tied=False"):
        Writer(body)
    assert Writer(body, tied=False).head.weight.shape == (200, 3)


def test_a_bare_body_is_told_who_may_attend_to_whom_by_numbers_to_add():
    """[B, 1, Q, K], as `transformers` takes it: 0 where one may look, the lowest number where not."""
    writer, batch = Writer(Bare()), written()
    writer.target_logits(batch)
    added = writer.body.asked[0]
    assert added.shape == (4, 1, 11, 11)
    wanted = batch.may_attend_BQK.expand(4, 11, 11)
    assert torch.equal(added[:, 0] == 0, wanted)
    assert (added[:, 0][~wanted] == torch.finfo(torch.float32).min).all()
    writer(batch.input_ids_BT, masks.causal(11))  # one mask for all rows
    assert writer.body.asked[1].shape == (4, 1, 11, 11)


def without_words():
    body = nn.Linear(2, 2)
    body.config = SimpleNamespace(hidden_size=2, vocab_size=200)
    return body


REFUSED = [
    ("unknown pooling", lambda: pool(HIDDEN_BTE, real("left"), "max"), "pooling 'max' is unknown: choose one of mean,"),
    (
        "padding alone",
        lambda: pool(HIDDEN_BTE, HIDDEN_BTE[..., 0] > 9),
        "a text is padding alone: give it at least one",
    ),
    ("one of padding", lambda: pool(HIDDEN_BTE, real("left") & (torch.arange(4) > 0)[:, None]), "padding alone"),
    ("classifier's pooling", lambda: Classifier(Bare(), pooling="first"), "pooling 'first' is unknown: choose one of"),
    ("unknown inner layer", lambda: Classifier(Bare(), inner="relu"), "inner is 'relu': choose 'plain' or 'tanh'"),
    ("one class", lambda: Classifier(Bare(), 1), "n_classes is 1: give the number of classes, at least 2"),
    ("classes by name", lambda: Classifier(Bare(), ["no", "yes"]), "n_classes is ['no', 'yes']: give the number"),
    ("half a class", lambda: Classifier(Bare(), 2.5), "n_classes is 2.5"),
    ("dropout of all", lambda: Classifier(Bare(), dropout=1.0), "dropout is 1.0: give a share of at least 0 and below"),
    ("dropout nan", lambda: Classifier(Bare(), dropout=float("nan")), "dropout is nan"),
    ("dropout below 0", lambda: Classifier(Bare(), dropout=-0.1), "dropout is -0.1"),
    ("no config", lambda: Classifier(nn.Linear(2, 2)), "this Linear has no config with d_model, hidden_size or n_embd"),
    ("writer, no config", lambda: Writer(nn.Linear(2, 2)), "this Linear has no config with d_model"),
    ("no words", lambda: Writer(without_words()), "this Linear has no table of word embeddings: give a language model"),
]


@pytest.mark.parametrize(("act", "words"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_refused_in_words_that_help(act, words):
    with pytest.raises(ValueError) as refusal:
        act()
    assert words in str(refusal.value)
