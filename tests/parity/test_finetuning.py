"""Heads and collators beside `transformers`: its bodies under our heads, and our batches in its models, which move
labels and mask padding by themselves. The same weights must give the same loss: labels are moved once in all."""

import pytest
import torch
from tiny import differ, shaken, tiny
from torch import nn

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
)
from course_lib.finetuning.heads import encode
from course_lib.losses import token_loss
from course_lib.objectives import Batch
from course_lib.optimizers import make_optimizer
from course_lib.pretrained import load_model, save_model
from course_lib.runtime import seeded
from course_lib.spans import shift_right
from course_lib.training import batch_loss, step
from course_lib.vocabulary import IGNORE_INDEX, Vocabulary

transformers = pytest.importorskip("transformers", reason="install the extra [interop] for the parity tests")

pytestmark = pytest.mark.slow

TOLERANCE = 1e-5  # relative to the largest value compared, fp32
VOCABULARY = Vocabulary(200, pad=0, unk=1, bos=2, eos=3, cls=4, sep=5, mask=6)
ROWS = [torch.randint(10, 200, (n,), generator=seeded(3, n)).tolist() for n in (5, 11, 7, 2)]
EXAMPLES = [(row[: 1 + n], row[1 + n :]) for n, row in enumerate(ROWS)]
NO_SPECIAL = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
GPT2 = {"vocab_size": 200, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 48, **NO_SPECIAL}
BERT = {"vocab_size": 200, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
DISTIL = {"vocab_size": 200, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "max_position_embeddings": 48}
BODIES = {
    "BertModel": lambda t: t.BertModel(t.BertConfig(**BERT)),
    "BertForMaskedLM": lambda t: t.BertForMaskedLM(t.BertConfig(**BERT)),
    "GPT2Model": lambda t: t.GPT2Model(t.GPT2Config(**GPT2)),
    "GPT2LMHeadModel": lambda t: t.GPT2LMHeadModel(t.GPT2Config(**GPT2)),
    "DistilBertModel": lambda t: t.DistilBertModel(t.DistilBertConfig(**DISTIL)),
}


def made(name):
    """A model of theirs whose weights are random, but the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return shaken(BODIES[name](transformers), 0.3).eval()


# ---------------------------------------------------------------- a classifier on their bodies


def classified(classifier, rows, side="right"):
    batch = ClassificationCollator(VOCABULARY, Padding(side=side))([{"input_ids": row} for row in rows])
    with torch.no_grad():
        return classifier(batch["input_ids"], batch["attention_mask"].bool())


def classifier_on(body, pooling):
    classifier = Classifier(body, 3, pooling=pooling, inner="tanh").eval()
    nn.init.normal_(classifier.head.weight, generator=seeded(1))
    return classifier


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("name", BODIES)
def test_a_batch_of_texts_is_classified_as_each_alone(name, pooling):
    classifier = classifier_on(made(name), pooling)
    alone = torch.cat([classified(classifier, [row]) for row in ROWS])
    assert differ(classified(classifier, ROWS), alone) < TOLERANCE
    if not (name.startswith("GPT2") and pooling == "cls"):  # whose first token sees the same in every text
        assert differ(classified(classifier, ROWS).roll(1, 0), alone) > 0.01  # the control


@pytest.mark.parametrize("name", BODIES)
def test_nor_does_padding_before_the_texts_change_anything(name):
    classifier = classifier_on(made(name), "mean")
    alone = torch.cat([classified(classifier, [row]) for row in ROWS])
    assert differ(classified(classifier, ROWS, "left"), alone) < TOLERANCE


@pytest.mark.parametrize("layout", ["bert", "gpt2"])
def test_our_body_and_theirs_with_the_same_weights_are_one_body_to_a_head(layout, tmp_path):
    ours = tiny("masked" if layout == "bert" else "causal", "learned", vocab_size=200, n_layers=2).eval()
    save_model(ours, tmp_path)
    theirs = transformers.AutoModel.from_pretrained(tmp_path, local_files_only=True).eval()
    for pooling in POOLINGS:
        some, other = classifier_on(ours, pooling), classifier_on(theirs, pooling)
        other.inner.load_state_dict(some.inner.state_dict())
        assert differ(classified(some, ROWS), classified(other, ROWS)) < TOLERANCE


def test_the_body_of_a_model_with_a_head_is_read_below_its_head():
    model = made("BertForMaskedLM")
    ids_BT = torch.tensor([[2, *ROWS[0], 3]])
    with torch.no_grad():
        wanted = model(ids_BT, output_hidden_states=True).hidden_states[-1]
        assert differ(encode(model, ids_BT, torch.ones_like(ids_BT)), wanted) < TOLERANCE


# ---------------------------------------------------------------- a writer on their bodies


def prompted(side="right", learn="response", rows=EXAMPLES):
    collate = GenerationCollator(VOCABULARY, Padding(side=side), learn)
    return collate([{"prompt": prompt, "response": response} for prompt, response in rows])


def test_a_tied_writer_makes_gpt2lmhead_of_the_bare_gpt2():
    theirs = made("GPT2LMHeadModel")
    writer = Writer(theirs.transformer)
    collated = prompted()
    with torch.no_grad():
        wanted_BTV = theirs(collated["input_ids"], attention_mask=collated["attention_mask"]).logits
        given_BTV = writer(collated["input_ids"], as_batch(collated).may_attend_BQK)
    is_real_BT = collated["attention_mask"].bool()
    assert differ(given_BTV[is_real_BT], wanted_BTV[is_real_BT]) < TOLERANCE
    assert writer.head.weight is theirs.transformer.wte.weight
    with torch.no_grad():  # the control
        untied_BTV = Writer(theirs.transformer, tied=False)(collated["input_ids"], as_batch(collated).may_attend_BQK)
    assert differ(untied_BTV[is_real_BT], wanted_BTV[is_real_BT]) > 0.1


@pytest.mark.parametrize("name", BODIES)
def test_a_writer_never_sees_what_it_is_to_write(name):
    writer = Writer(made(name))
    collated = prompted(learn="all")
    other = {key: tensor.clone() for key, tensor in collated.items()}
    other["input_ids"][1, 8:] = 77  # of the longest
    with torch.no_grad():
        some, changed = (writer(c["input_ids"], as_batch(c).may_attend_BQK) for c in (collated, other))
        all_BQK = torch.ones(1, 1, 13, dtype=torch.bool)
        free, leaked = (writer(c["input_ids"], all_BQK) for c in (collated, other))
    assert differ(some[1, :8], changed[1, :8]) < TOLERANCE
    assert differ(some[1, 8:], changed[1, 8:]) > 1e-3
    if "GPT2" not in name:  # the control, of bodies that look ahead where they may
        assert differ(free[1, :8], leaked[1, :8]) > 1e-3


@pytest.mark.parametrize("name", BODIES)
def test_a_writers_batch_equals_its_examples_alone(name):
    writer = Writer(made(name))
    with torch.no_grad():
        together_NV = writer.target_logits(as_batch(prompted(learn="all")))
        alone_NV = torch.cat([writer.target_logits(as_batch(prompted(learn="all", rows=[row]))) for row in EXAMPLES])
    assert differ(together_NV, alone_NV) < TOLERANCE


PACKED = [Encoded((2, *row, 3), (False, *[True] * (len(row) + 1))) for row in ROWS[:3]]


@pytest.mark.parametrize("name", BODIES)
def test_a_writer_reads_packed_examples_as_each_alone(name):
    writer = Writer(made(name))
    longest_first = sorted(PACKED, key=lambda example: -len(example.input_ids))
    with torch.no_grad():
        packed_NV = writer.target_logits(as_batch(pack(PACKED, 30, VOCABULARY)))
        alone = [writer.target_logits(as_batch(pack([example], 30, VOCABULARY))) for example in longest_first]
    assert differ(packed_NV, torch.cat(alone)) < TOLERANCE


@pytest.mark.parametrize("name", BODIES)
def test_no_packed_example_sees_another_through_a_writer(name):
    writer = Writer(made(name))
    changed = [Encoded((2, *[i % 180 + 15 for i in PACKED[1].input_ids[1:-1]], 3), PACKED[1].completion_mask)]
    with torch.no_grad():  # the longest, which stands first
        some, other = (
            as_batch(pack(examples, 30, VOCABULARY)) for examples in (PACKED, [PACKED[0], *changed, PACKED[2]])
        )
        first = len(ROWS[1]) + 1
        some_NV, other_NV = writer.target_logits(some), writer.target_logits(other)
    assert differ(some_NV[first:], other_NV[first:]) < 1e-6
    assert differ(some_NV[:first], other_NV[:first]) > 0.01
    leaking = [
        Batch(b.input_ids_BT, b.labels_BL, torch.ones(1, 30, 30, dtype=torch.bool).tril()) for b in (some, other)
    ]
    with torch.no_grad():
        some_NV, other_NV = (writer.target_logits(batch) for batch in leaking)
    assert differ(some_NV[first:], other_NV[first:]) > 1e-3


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", BODIES)
def test_a_step_moves_the_head_and_a_tied_one_with_its_words(name, tied):
    writer = Writer(made(name), tied=tied).train()
    table = writer.body.get_input_embeddings().weight
    before = writer.head.weight.detach().clone()
    batch = as_batch(prompted(learn="all"))
    optimizer = make_optimizer(writer, weight_decay=0.0)
    losses = [step(writer, optimizer, [batch], rate=3e-3, dtype=torch.float32)[0] for _ in range(20)]
    assert losses[-1] < 0.8 * losses[0]
    assert (writer.head.weight is table) == tied
    assert writer.body.get_input_embeddings().weight is table
    assert (writer.head.weight != before).any(1).all()


# ---------------------------------------------------------------- our batches in their models


@pytest.fixture(scope="module")
def decoders(tmp_path_factory):
    """Our decoder, and what `transformers` makes of its files."""
    ours = tiny("causal", vocab_size=200, n_layers=2).eval()
    folder = save_model(ours, tmp_path_factory.mktemp("decoder"))
    return ours, transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval()


def summed(model, collated) -> float:
    """Their mean loss, times the labels that it is a mean over: those that are left once they have moved them."""
    with torch.no_grad():
        loss = model(**collated).loss
    labels = collated["labels"] if "decoder_input_ids" in collated else collated["labels"][:, 1:]
    return loss.item() * int((labels != IGNORE_INDEX).sum())


@pytest.mark.parametrize("learn", ["response", "all"])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_gpt2_gives_a_collated_batch_the_loss_that_our_decoder_gives_it(decoders, learn, count):
    ours, theirs = decoders
    collated = prompted(learn=learn, rows=EXAMPLES[:count])
    with torch.no_grad():
        total, targets = batch_loss(ours, as_batch(collated))
    assert targets == int((collated["labels"] != IGNORE_INDEX).sum())  # nothing is lost by moving
    assert summed(theirs, collated) == pytest.approx(total.item(), rel=TOLERANCE)


@pytest.mark.parametrize("learn", ["response", "all"])
def test_the_comparison_above_tells_labels_that_are_moved_twice(decoders, learn):
    ours, theirs = decoders
    collated = prompted(learn=learn)
    moved = collated | {"labels": shift_right(collated["labels"].flip(1), fill=IGNORE_INDEX).flip(1)}
    with torch.no_grad():
        once, twice = (batch_loss(ours, as_batch(given))[0].item() for given in (collated, moved))
    assert summed(theirs, moved) == pytest.approx(twice, rel=TOLERANCE)  # both twice: the same again
    assert summed(theirs, moved) != pytest.approx(once, rel=1e-3)
    assert summed(theirs, collated) != pytest.approx(twice, rel=1e-3)


def test_a_gpt2_of_theirs_loads_here_and_its_loss_stays(tmp_path):
    theirs = made("GPT2LMHeadModel")
    theirs.save_pretrained(tmp_path)
    with torch.no_grad():
        total, _ = batch_loss(load_model(tmp_path), as_batch(prompted()))
        written, _ = batch_loss(Writer(theirs.transformer), as_batch(prompted()))
    assert summed(theirs, prompted()) == pytest.approx(total.item(), rel=TOLERANCE)
    assert summed(theirs, prompted()) == pytest.approx(written.item(), rel=TOLERANCE)


def test_gpt2_takes_a_batch_padded_on_the_left_as_it_is(decoders):
    """`model(**batch)`, as the collators promise. With position_ids it does: the next test."""
    ours, theirs = decoders
    with torch.no_grad():
        total, _ = batch_loss(ours, as_batch(prompted("left")))
    assert summed(theirs, prompted("left")) == pytest.approx(total.item(), rel=TOLERANCE)


def test_gpt2_takes_a_batch_padded_on_the_left_with_the_positions_that_as_batch_counts(decoders):
    ours, theirs = decoders
    batch = as_batch(prompted("left"))
    with torch.no_grad():
        total, _ = batch_loss(ours, batch)
    positions = {"position_ids": batch.position_BT}
    assert summed(theirs, prompted("left") | positions) == pytest.approx(total.item(), rel=TOLERANCE)
    right, _ = batch_loss(ours, as_batch(prompted()))
    assert total.item() == pytest.approx(right.item(), rel=TOLERANCE)


def t5():
    config = transformers.T5Config(
        vocab_size=200, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=2, **NO_SPECIAL
    )
    return transformers.T5ForConditionalGeneration(config)


def bart():
    config = transformers.BartConfig(
        vocab_size=200, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=48,
        decoder_start_token_id=2, **NO_SPECIAL,
    )  # fmt: skip
    return transformers.BartForConditionalGeneration(config)


class Theirs(nn.Module):
    """An encoder-decoder of theirs that answers as ours do."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def target_logits(self, batch):
        logits_BSV = self.model(
            input_ids=batch.input_ids_BT,
            attention_mask=batch.may_attend_BQK[:, 0].long(),
            decoder_input_ids=batch.decoder_input_ids_BS,
        ).logits
        return logits_BSV[batch.is_target_BL]


def translated(rows=EXAMPLES, **padding):
    collate = Seq2SeqCollator(VOCABULARY, **padding)
    return collate([{"source": source, "target": target} for source, target in rows])


@pytest.mark.parametrize("make", [t5, bart])
def test_an_encoder_decoder_of_theirs_takes_a_batch_as_it_is_and_its_labels_are_not_moved(make):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = shaken(make(), 0.3).eval()
    collated = translated()
    with torch.no_grad():
        total, _ = batch_loss(Theirs(model), as_batch(collated))
    assert summed(model, collated) == pytest.approx(total.item(), rel=TOLERANCE)
    alone = sum(summed(model, translated([row])) for row in EXAMPLES)
    assert summed(model, collated) == pytest.approx(alone, rel=TOLERANCE)
    wide = translated(padding=Padding(multiple_of=16), target_padding=Padding(fill_to=20))
    assert summed(model, wide) == pytest.approx(alone, rel=TOLERANCE)
    without = {name: tensor for name, tensor in collated.items() if name != "decoder_input_ids"}
    own = without | {"decoder_input_ids": model.prepare_decoder_input_ids_from_labels(collated["labels"])}
    assert summed(model, own) == pytest.approx(alone, rel=TOLERANCE)  # what they read of labels is what we hand them
    moved = collated | {"labels": shift_right(collated["labels"].flip(1), fill=IGNORE_INDEX).flip(1)}
    assert summed(model, moved) != pytest.approx(alone, rel=1e-2)  # the control


def test_their_classifier_takes_a_batch_of_classes_as_it_is():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.BertConfig(**BERT, num_labels=3)
        model = shaken(transformers.BertForSequenceClassification(config), 0.3).eval()
    batch = ClassificationCollator(VOCABULARY)([{"input_ids": row, "label": n % 3} for n, row in enumerate(ROWS)])
    with torch.no_grad():
        given = model(**batch)
        total, count = token_loss(given.logits, batch["labels"])
    assert given.loss.item() == pytest.approx(total.item() / count, rel=TOLERANCE)
