"""Rows of tests/test_bad_input.py's table for layers, models, their files, training, evaluation, records and runs."""

import json
import math
from dataclasses import replace

import numpy as np
import torch
from safetensors.torch import save_file
from tiny import CONFIG, corrupted, dataset, packed, tiny

from course_lib.architectures import architecture
from course_lib.checkpoint import Checkpoints
from course_lib.data import Packed, Review, course_tokenizer
from course_lib.evaluation import (
    first_tokens,
    frozen_features,
    labelled_sample,
    mean_interval,
    proportion_interval,
    unigram_loss,
)
from course_lib.files import write_folder
from course_lib.layers import attend
from course_lib.losses import token_loss
from course_lib.model import Decoder, Encoder
from course_lib.optimizers import make_optimizer
from course_lib.parallel import make_engine, torchrun
from course_lib.pretrained import load_model, save_model
from course_lib.records import Record
from course_lib.runs import Laboratory, record, record_objectives
from course_lib.runs.pretraining import pretrain
from course_lib.runs.ranks import check
from course_lib.runs.recipes import Pretraining
from course_lib.schedules import Schedule
from course_lib.stopping import EarlyStopping
from course_lib.training import held_out_loss, new_model, step, train
from course_lib.vocabulary import IGNORE_INDEX, Vocabulary

LOGITS_NV, LABELS_N = torch.zeros(4, 9), torch.zeros(4, dtype=torch.long)
REVIEWS = [Review(f"text {n}", n % 2, "made up") for n in range(10)]
FP32 = torch.float32


def config(**changes):
    return lambda _: CONFIG.with_(**changes)


def model(objective="masked", ids=None, **changes):
    """A small model's predictions for a batch of its objective, with other ids."""

    def predict(_):
        batch = corrupted(objective, packed().ids_NT[:2])
        tiny(objective, **changes).target_logits(batch if ids is None else replace(batch, input_ids_BT=ids))

    return predict


def predicts(objective, batch_of):
    return lambda _: tiny(objective).target_logits(corrupted(batch_of, packed().ids_NT[:2]))


def trained(steps=1, *, rate=1e-3, batches=None, **more):
    def run(_):
        given = dataset("masked") if batches is None else batches
        return list(train(tiny("masked"), given, steps=steps, rate=rate, dtype=FP32, **more))

    return run


def without_targets():
    batch = corrupted("masked", packed().ids_NT[:2])
    return replace(batch, labels_BL=torch.full_like(batch.labels_BL, IGNORE_INDEX))


def one_step(batches, **more):
    def run(_):
        small = tiny("masked")
        return step(small, make_optimizer(small), batches, **({"rate": 1e-3, "dtype": FP32} | more))

    return run


def folder_of(objective="causal", *, weights=None, **settings):
    """load_model on a saved folder whose tensors or settings were changed afterwards."""

    def load(folder):
        kept = save_model(tiny(objective), folder / "model")
        path = kept / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))
        if weights is not None:
            save_file(weights, kept / "model.safetensors")
        return load_model(kept)

    return load


def cut_off(folder):
    path = save_model(tiny("causal"), folder / "model") / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    return load_model(path.parent)


def saved_with_too_many_tokens(folder):
    return save_model(Decoder(CONFIG.with_(vocab_size=50)), folder / "out", course_tokenizer())


def row(**changes):
    """A record's row, written to a file that must not be there afterwards."""
    keys = {"name": "masked", "seed": 0, "step": 1, "metric": "loss", "value": 1.0} | changes
    return lambda folder: Record(folder / "out.jsonl").add(**{k: v for k, v in keys.items() if v is not None})


def schedule(**changes):
    return lambda _: Schedule(**({"shape": "cosine", "peak": 1e-3, "total": 100} | changes))


def pretrained(*, resume=False, **changes):
    """A run's first row, in a folder that must not be there afterwards."""
    return lambda folder: next(pretrain(Pretraining(**changes), folder / "out", resume=resume, device="cpu"))


def saved_file(name):
    return lambda folder: Checkpoints(folder / "out").save(1, {name: b""}, {}, about={})


def ranks_of(**changes):
    """The look at a run before its ranks are started."""
    how = {"count": 2, "engine": "ddp", "resume": False, "device": "cpu"}
    return lambda folder: check(Pretraining(), folder / "out", **(how | changes))


def saved_state(**state):
    return lambda folder: Checkpoints(folder / "out").save(1, {}, state, about={})


def damaged_record(folder):
    (folder / "run.jsonl").write_text('{"provenance": {}, "id": 0}\n{"name": \n{"name": \n')
    return Record(folder / "run.jsonl").rows()


def other_laboratory(folder):
    path = folder / "run.jsonl"
    path.write_text(json.dumps({"provenance": {"laboratory": {"tokens": 1}}, "id": 0}) + "\n")
    return record_objectives(path=path, laboratory=Laboratory(tokens=4096))


REFUSED_MODELS = [
    # configs and layers
    ("width that does not divide", config(d_model=100, n_heads=3), "d_model 100 is not divisible by n_heads 3"),
    ("no layers", config(n_layers=0), "n_layers is 0: give a whole number of at least 1"),
    ("width as a float", config(d_ff=1.5), "d_ff is 1.5: give a whole number"),
    ("unknown positions", config(positions="alibi"), ("positions is 'alibi'", "'learned' or 'rotary'")),
    ("odd heads that turn", config(d_model=6, positions="rotary"), ("a head has 3", "make it even")),
    ("unknown activation", config(activation="swish"), ("activation 'swish' is unknown", "gelu, gelu_new, relu")),
    ("dropout of everything", config(dropout=1.0), "dropout is 1.0: give a probability of at least 0 and below 1"),
    ("dropout nan", config(dropout=math.nan), "dropout is nan"),
    ("norm_eps 0", config(norm_eps=0.0), "norm_eps is 0.0: give a small number above 0"),
    (
        "a mask of 0 and 1",
        lambda _: attend(*[torch.ones(1, 1, 2, 2)] * 3, torch.ones(1, 2, 2, dtype=torch.long)),
        ("may_attend_BQK is torch.int64", "give bool [batch, query, key]"),
    ),
    (
        "a mask without a batch",
        lambda _: Decoder(CONFIG)(packed().ids_NT[:1], torch.ones(24, 24).tril().bool()),
        ("shape (24, 24)", "[batch, query, key]"),
    ),
    # models
    (
        "too long for a decoder",
        model("causal", max_len=23),
        ("length 24 exceeds max_len 23", "TransformerConfig.max_len"),
    ),
    ("too long for an encoder", model("masked", max_len=20), "sequence length 24 exceeds max_len 20"),
    ("too long for two streams", model("permuted", max_len=20), "sequence length 24 exceeds max_len 20"),
    ("too long for an encoder-decoder", model("infilled", max_len=9), "exceeds max_len 9"),
    ("id of another vocabulary", model(vocab_size=100), "lies outside the model's vocabulary of 100"),
    ("id below 0", model("causal", torch.tensor([[5, -1]])), "token id -1 lies outside the model's vocabulary of 8192"),
    ("model fed one row", lambda _: tiny("masked")(packed().ids_NT[0]), ("shape (24,)", "give [batch, length]")),
    ("model fed nothing", lambda _: tiny("causal")(packed().ids_NT[:0]), ("shape (0, 24)", "not empty")),
    ("permuted batch, one stream", predicts("masked", "permuted"), ("made for a TwoStream", "MODEL_OF_OBJECTIVE")),
    ("span batch, no decoder", predicts("causal", "span"), ("made for an EncoderDecoder", "this is a Decoder")),
    ("masked batch, two streams", predicts("permuted", "masked"), ("may_query_BQK", "MODEL_OF_OBJECTIVE")),
    ("causal batch, encoder-decoder", predicts("span", "causal"), ("decoder_input_ids_BS", "MODEL_OF_OBJECTIVE")),
    ("rotary decoder", lambda _: Decoder(CONFIG.with_(positions="rotary")), "GPT-2's layout has learned positions"),
    (
        "an encoder without a head predicts",
        lambda _: Encoder(CONFIG, head=False).target_logits(corrupted("masked", packed().ids_NT[:1])),
        "this Encoder has no head to predict with: make it with head=True",
    ),
    # models in files
    ("no config.json", lambda folder: load_model(folder), "config.json is not there"),
    ("unknown model_type", folder_of(model_type="llama"), ("type 'llama'", "the course reads gpt2, bert, roformer")),
    ("config that lacks a size", folder_of(n_embd=None), "does not say 'n_embd'"),
    (
        "variant that is unknown",
        folder_of(scale_attn_by_inverse_layer_idx=True),
        "scale_attn_by_inverse_layer_idx True",
    ),
    ("unknown activation in a file", folder_of(activation_function="silu"), "activation 'silu' is unknown"),
    ("tensor of another shape", folder_of(n_embd=32), ("transformer.wte.weight has shape (8192, 16)", "(8192, 32)")),
    ("tensor that is missing", folder_of(n_layer=4), "lacks the tensor transformer.h.3."),
    ("tensor without a place", folder_of(n_layer=2), ("transformer.h.2.", "has no place in a Decoder")),
    ("weights of nothing", folder_of(weights={"x": torch.ones(1)}), "lacks the tensor transformer.wte.weight"),
    ("weights cut off", cut_off, ("model.safetensors is damaged or cut off", "copy it again")),
    ("tokenizer larger than its model", saved_with_too_many_tokens, "the tokenizer has 8192 tokens and the model 50"),
    # training
    (
        "logits with three axes",
        lambda _: token_loss(LOGITS_NV[None], LABELS_N),
        ("logits_NV (1, 4, 9)", "flatten both"),
    ),
    ("labels of another number", lambda _: token_loss(LOGITS_NV, LABELS_N[:3]), ("labels_N (3,)", "[targets]")),
    ("label outside the logits", lambda _: token_loss(LOGITS_NV, LABELS_N + 9), "label 9 lies outside the 9 logits"),
    (
        "label -1 for none",
        lambda _: token_loss(LOGITS_NV, LABELS_N - 1),
        ("label -1 lies outside", "use -100 for none"),
    ),
    ("no step", trained(0), "steps is 0: take at least 1"),
    ("rate nan", trained(rate=math.nan), "rate is nan: give a learning rate"),
    ("rate below 0", trained(rate=lambda step: -1.0), "rate is -1.0"),
    ("clip 0", trained(clip=0.0), "clip is 0.0: give the largest norm"),
    (
        "fewer batches than steps",
        trained(2, batches=[corrupted("masked", packed().ids_NT[:2])]),
        "ended after 1 of 2 steps",
    ),
    ("batch without a target", one_step([without_targets()]), "the batch has no target: raise the share"),
    ("step without a batch", one_step([]), "the batch has no target"),
    (
        "held-out batches of nothing",
        lambda _: held_out_loss(tiny("masked"), [], dtype=FP32),
        "the batches have no target",
    ),
    ("device that is unknown", lambda _: new_model(Encoder, CONFIG, device="gpu"), "device 'gpu' is unknown"),
    ("no batch in a step", trained(accumulate=0), "accumulate is 0: take at least 1"),
    ("held-out loss after every 0 steps", trained(validate_every=0), "validate_every is 0: take at least 1"),
    ("no patience", lambda _: EarlyStopping(0), "patience is 0: wait for at least 1 measurement"),
    # schedules, optimizers
    ("unknown shape", schedule(shape="cosin"), ("shape 'cosin' is unknown", "linear, cosine")),
    ("peak rate 0", schedule(peak=0.0), ("peak is 0.0", "above 0, such as 1e-3")),
    ("floor above 1", schedule(floor=1.5), ("floor is 1.5", "between 0 and 1")),
    ("schedule of no step", schedule(total=0), "total is 0: a run takes at least 1 step"),
    ("warm-up beyond the run", schedule(warmup=101), ("warmup is 101 steps and the run has only 100", "shorten")),
    ("step before the first", lambda _: Schedule("cosine", 1e-3, 9)(-1), "step is -1: steps count from 0"),
    (
        "unknown optimizer",
        lambda _: make_optimizer(tiny("masked"), "sgd"),
        ("optimizer 'sgd' is unknown", "adamw, muon"),
    ),
    (
        "nothing to train",
        lambda _: make_optimizer(tiny("masked").requires_grad_(False)),
        ("no parameter of this Encoder is trained", "set requires_grad"),
    ),
    # folders, checkpoints, pre-training
    ("folder in a folder", lambda folder: write_folder(folder / "out", {"a/b": ""}), "'a/b' is no plain file name"),
    ("no checkpoint to stay", lambda folder: Checkpoints(folder / "out", 0), "keep is 0: the last checkpoint at least"),
    ("checkpoint's file elsewhere", saved_file("../x"), "'../x' is no plain file name"),
    (
        "file called as a checkpoint's",
        saved_file("state.pt"),
        ("'state.pt' is what a checkpoint calls", "another name"),
    ),
    ("state with an object", saved_state(who=Record), ("more than tensors and plain values", "leave that out")),
    ("state with a function", saved_state(who=lambda: 0), ("what cannot be written", "leave that out")),
    ("nothing to resume", pretrained(resume=True), "holds no checkpoint to go on from: start without --resume"),
    ("pre-training on nothing", pretrained(tokens=0), "tokens is 0, less than one step of 4096: give more"),
    ("pre-training with rows too long", pretrained(row_length=257), ("row_length 257 exceeds max_len 256", "shorten")),
    ("pre-training unknown", pretrained(objective="bert"), ("objective 'bert' is unknown", "causal, prefix")),
    ("pre-training on no file", pretrained(text="none.txt"), "none.txt"),
    # ranks
    ("no rank", lambda _: torchrun(["out.py"], ranks=0), "ranks is 0, restarts 0: start at least 1 rank"),
    ("negative restarts", lambda _: torchrun(["out.py"], restarts=-1), "restart 0 times or more"),
    ("unknown engine", lambda _: make_engine("zero", tiny("masked")), ("engine 'zero' is unknown", "ddp, fsdp")),
    ("ranks of an unknown engine", ranks_of(engine="zero"), ("engine 'zero' is unknown", "ddp, fsdp")),
    ("more ranks than rows", ranks_of(count=17), ("17 ranks share batches of 16", "no more than that")),
    ("ranks on no device", ranks_of(device="tpu"), "device 'tpu' is unknown: choose one of cpu, cuda, mps"),
    ("ranks with nothing to resume", ranks_of(resume=True), "holds no checkpoint to go on from: start without"),
    (
        "unknown architecture",
        lambda _: architecture("GPT-5"),
        ("architecture 'GPT-5' is unknown", "GPT-2, GPT-2 medium"),
    ),
    # evaluation
    ("more successes than trials", lambda _: proportion_interval(3, 2), "3 successes in 2 trials"),
    ("share of no trial", lambda _: proportion_interval(0, 0), "at least 1 trial"),
    ("spread of one seed", lambda _: mean_interval([0.7]), "1 value: a spread over seeds takes at least 2"),
    ("spread over nan", lambda _: mean_interval([0.7, math.nan]), "values hold nan: did one of the runs diverge?"),
    ("unigrams of no target", lambda _: unigram_loss(LABELS_N, LABELS_N[:0], Vocabulary(9)), "targets_N is empty"),
    ("unigrams of other ids", lambda _: unigram_loss(LABELS_N, LABELS_N + 9, Vocabulary(9)), "token id 9 lies outside"),
    ("comparison of no token", lambda _: first_tokens(["a film"], course_tokenizer(), 0), "count is 0"),
    ("features of no text", lambda _: frozen_features(tiny("masked"), [], course_tokenizer()), "0 texts"),
    ("odd number of labels", lambda _: labelled_sample(REVIEWS, 5, 0), ("count is 5", "even number from 2 to 10")),
    ("more labels than there are", lambda _: labelled_sample(REVIEWS, 12, 0), ("count is 12", "from 2 to 10")),
    # records and runs
    ("row with nan", row(value=np.nan), "value is nan: a row holds a finite number"),
    ("row with infinity", row(value=-math.inf), "value is -inf"),
    ("row without a seed", row(seed=None), "a row needs 'seed': give name, seed, step, metric"),
    ("damaged record", damaged_record, ("run.jsonl, line 2, is damaged", "record it again")),
    ("record that is not there", lambda folder: Record(folder / "none.jsonl").rows(), "none.jsonl is not there"),
    ("record begun by another run", other_laboratory, ("was begun with", "record it into another file")),
    ("unknown record", lambda _: record("objective"), ("record 'objective' is unknown", "tokenizer, objectives")),
    ("laboratory of an unknown objective", lambda _: Laboratory(objectives=("bert",)), "objective 'bert' is unknown"),
    ("laboratory without a budget", lambda _: Laboratory(tokens=4095), "tokens is 4095, less than one step of 32 rows"),
    ("laboratory without warm-up", lambda _: Laboratory(warmup=0), "warmup is 0"),
    ("model of an unknown objective", lambda _: Laboratory().model("bert"), "objective 'bert' is unknown"),
    (
        "laboratory with fewer rows than a batch",
        lambda _: Laboratory().dataset("masked", Packed(packed().ids_NT[:3], packed().document_ids_NT[:3])),
        ("batch_size is 32", "there are 3 rows"),
    ),
]
