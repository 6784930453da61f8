"""Frozen layers: what they remember is what they compute, once for each text, and what stands on them learns as if they
had computed it every time."""

import copy

import pytest
import torch
from tiny import differ, tiny

from course_lib.data import pad
from course_lib.evaluation.attributions import token_attributions
from course_lib.finetuning import Classifier, FineTuning, PartlyFrozen, fine_tune
from course_lib.model import Encoder
from course_lib.peft import LoRA, Prefix, apply
from course_lib.pretrained import minilm
from course_lib.runtime import seeded
from course_lib.vocabulary import Vocabulary

VOCABULARY = Vocabulary(200, pad=0, unk=1, bos=2, eos=3, cls=4, sep=5, mask=6)
ROWS = [torch.randint(10, 200, (length,), generator=seeded(3, length)).tolist() for length in (3, 9, 5, 1)]
TEXTS = ["a good film", "a bad film that is long", "good", "dull and loud and long", "fine", "never again"]
LABELS = [1, 0, 1, 0, 1, 0]
HOW = FineTuning(rate=1e-2, epochs=5, batch_size=2, head_first=False, dropout=0.0, max_tokens=16)


class Words:
    """A tokenizer of whole words."""

    vocabulary = VOCABULARY

    def encode_all(self, texts):
        return [[10 + sum(map(ord, word)) % 190 for word in text.split()] for text in texts]


def body_of(positions="rotary", **changes):
    return tiny("masked", positions, vocab_size=200, n_layers=4, **changes).eval()


def batch_of(rows=ROWS, length=None):
    ids_BT = pad(rows, VOCABULARY, length=length)
    return ids_BT, ids_BT != VOCABULARY.pad


def counted(body):
    """How many texts its first layer has read, so far, in a list of one number."""
    read = [0]

    def count(_, inputs):
        read[0] += len(inputs[0])

    body.encoder["layer"][0].register_forward_pre_hook(count)
    return read


@pytest.mark.parametrize("positions", ["rotary", "learned"])
@pytest.mark.parametrize("n_frozen", [1, 3, 4])
def test_it_says_what_the_whole_encoder_says_in_any_batch_and_again_from_memory(positions, n_frozen):
    body = body_of(positions)
    ids_BT, is_real_BT = batch_of()
    wanted_BTE = body.encode(ids_BT, is_real_BT)
    partly = PartlyFrozen(body, n_frozen)
    first_BTE, again_BTE = (partly.encode(ids_BT, is_real_BT) for _ in range(2))
    assert differ(first_BTE[is_real_BT], wanted_BTE[is_real_BT]) < 1e-5
    assert torch.equal(first_BTE, again_BTE)
    for n in (3, 0, 1):  # alone: shorter than in the batch where it was remembered
        alone_BT, real_BT = batch_of([ROWS[n]])
        assert differ(partly.encode(alone_BT, real_BT)[0], wanted_BTE[n][is_real_BT[n]]) < 1e-5
    other_BTE = PartlyFrozen(body_of(positions, shake=0.2), n_frozen).encode(ids_BT, is_real_BT)
    assert differ(other_BTE[is_real_BT], wanted_BTE[is_real_BT]) > 1e-2  # the control: other weights, other memory


def test_a_frozen_layer_reads_each_text_once_over_all_epochs_and_copies():
    body = body_of()
    read, partly = counted(body), PartlyFrozen(body, 2)
    fine_tune(Classifier(copy.deepcopy(partly)), TEXTS, LABELS, Words(), HOW)
    fine_tune(Classifier(copy.deepcopy(partly)), TEXTS, LABELS, Words(), HOW)
    assert len(partly.remembered) == len(TEXTS)
    assert read == [len(TEXTS)]
    whole = Classifier(body)
    fine_tune(whole, TEXTS, LABELS, Words(), HOW)
    assert read == [len(TEXTS) * (1 + HOW.epochs)]  # the control: without memory it reads all, each time


def test_what_stands_on_it_learns_as_on_frozen_layers_that_compute_every_time():
    body = body_of()
    as_ever = Classifier(copy.deepcopy(body))
    for part in (as_ever.body.embeddings, *as_ever.body.encoder["layer"][:2]):
        part.requires_grad_(False)
    remembering, too_high = (Classifier(PartlyFrozen(body, n)) for n in (2, 3))
    losses = [fine_tune(c, TEXTS, LABELS, Words(), HOW) for c in (as_ever, remembering, too_high)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    assert losses[2] != pytest.approx(losses[0], abs=1e-3)  # the control
    learned, before = remembering.body.body.state_dict(), body.state_dict()
    assert differ(learned["encoder.layer.3.output.dense.weight"], as_ever.body.state_dict()[
        "encoder.layer.3.output.dense.weight"]) < 1e-4  # fmt: skip
    moved = {name for name, weight in learned.items() if not torch.equal(weight, before[name])}
    assert moved and all(name.startswith(("encoder.layer.2.", "encoder.layer.3.")) for name in moved)


def test_the_whole_encoder_with_what_was_learned_is_its_body():
    partly = PartlyFrozen(body_of(), 2)
    classifier = Classifier(partly)
    fine_tune(classifier, TEXTS, LABELS, Words(), HOW)
    ids_BT, is_real_BT = batch_of()
    whole = Classifier(partly.body).eval()
    whole.head = classifier.head
    assert differ(whole(ids_BT, is_real_BT), classifier(ids_BT, is_real_BT)) < 1e-5
    assert type(partly.body) is Encoder


def test_frozen_layers_compute_without_dropout_while_the_others_are_trained():
    partly = PartlyFrozen(body_of(dropout=0.5), 3)
    ids_BT, is_real_BT = batch_of()
    wanted_BTE = partly._from_below(ids_BT, is_real_BT)
    partly.remembered.clear()
    partly.train()
    assert torch.equal(partly._from_below(ids_BT, is_real_BT), wanted_BTE)
    assert partly.training and partly.body.encoder["layer"][0].training
    assert not torch.equal(*(partly.encode(ids_BT, is_real_BT) for _ in range(2)))  # the uppermost layer draws


@pytest.mark.parametrize("n_frozen", [0, 5, -1, 2.0, None])
def test_a_number_of_layers_that_the_encoder_does_not_have_is_refused(n_frozen):
    with pytest.raises(ValueError, match=r"n_frozen is .*: freeze 1 to 4 of the encoder's layers"):
        PartlyFrozen(body_of(), n_frozen)


def test_another_model_and_a_frozen_layer_that_is_trained_are_refused():
    decoder = tiny("causal", vocab_size=200)
    with pytest.raises(ValueError, match="this is a Decoder: give an Encoder"):
        PartlyFrozen(decoder, 1)
    partly = PartlyFrozen(body_of(), 2)
    with pytest.raises(ValueError, match="this is a PartlyFrozen"):
        PartlyFrozen(partly, 1)
    for frozen in (partly.body.embeddings, partly.body.encoder["layer"][1]):
        frozen.requires_grad_(True)
        with pytest.raises(ValueError, match="a frozen layer has a parameter that is trained"):
            partly.encode(*batch_of())
        frozen.requires_grad_(False)
    partly.encode(*batch_of())  # the control
    apply(partly, LoRA(rank=2))
    with pytest.raises(ValueError, match="a frozen layer has a parameter that is trained"):
        partly.encode(*batch_of())


def test_the_encoder_that_was_given_stays_as_it_was():
    body = body_of()
    PartlyFrozen(body, 2).body.encoder["layer"][3].requires_grad_(False)
    assert all(parameter.requires_grad for parameter in body.parameters())


def test_a_prefix_attributions_and_a_forward_pass_are_told_to_take_the_whole_encoder():
    classifier = Classifier(PartlyFrozen(body_of(), 2))
    ids_BT, is_real_BT = batch_of()
    classifier(ids_BT, is_real_BT)
    with pytest.raises(ValueError, match=r"encode and features alone: use the whole encoder, its \.body"):
        classifier.body(ids_BT)
    with pytest.raises(ValueError, match="attributions need every layer"):
        token_attributions(classifier, ROWS[1], baseline_id=0)
    classifier(ids_BT, is_real_BT)  # the control: nothing stays behind
    apply(classifier, Prefix(length=2), modules_to_save=["head"])
    with pytest.raises(ValueError, match="a prefix or attributions"):
        classifier(ids_BT, is_real_BT)


def test_texts_are_told_apart_by_order_and_place_and_one_that_comes_twice_is_read_once():
    body = body_of("learned")
    read = counted(body)
    partly = PartlyFrozen(body, 2)
    rows = torch.tensor([[4, 10, 11, 12], [4, 12, 11, 10], [4, 10, 11, 0], [4, 10, 11, 12], [4, 10, 0, 11]])
    is_real_BT = rows != 0  # the last row has a hole
    found_BTE = partly.encode(rows, is_real_BT)
    assert read == [4] and len(partly.remembered) == 4
    wanted_BTE = body.encode(rows, is_real_BT)
    assert differ(found_BTE[is_real_BT], wanted_BTE[is_real_BT]) < 1e-5
    assert differ(wanted_BTE[4][is_real_BT[4]], wanted_BTE[2][is_real_BT[2]]) > 1e-2  # the control: a hole moves places


def test_minilm_says_the_same_of_real_sentences():
    body, tokenizer = minilm()
    rows = tokenizer.encode_all(["a good film, and not a long one", "dull"])
    ids_BT = pad(rows, tokenizer.vocabulary)
    is_real_BT = ids_BT != tokenizer.vocabulary.pad
    with torch.no_grad():
        wanted_BTE = body.encode(ids_BT, is_real_BT)
        found_BTE = PartlyFrozen(body, 4).encode(ids_BT, is_real_BT)
    assert differ(found_BTE[is_real_BT], wanted_BTE[is_real_BT]) < 1e-5
