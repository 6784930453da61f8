"""Tiny random models of every family, what they are fed and how they are trained: what the tests of fine-tuning
strategies share. Every model is shaken away from where it began, so that biases and norms count."""

import torch
from few import few
from tiny import shaken
from torch import nn
from torch.nn import functional as F

from course_lib.finetuning import Classifier
from course_lib.layers import TransformerConfig
from course_lib.model import Decoder, Encoder, EncoderDecoder, LanguageModel
from course_lib.optimizers import make_optimizer
from course_lib.peft import Adapter, BitFit, Full, LoRA, Prefix, apply
from course_lib.peft.prefix import PrefixKeysValues
from course_lib.peft.slots import is_added, parts_of
from course_lib.runtime import seeded

VOCAB, WIDTH, LAYERS, HEADS, INNER, MAX_LEN = 60, 16, 2, 2, 24, 32
CONFIG = TransformerConfig(VOCAB, WIDTH, LAYERS, HEADS, INNER, MAX_LEN)
ROTARY = CONFIG.with_(positions="rotary")
IDS_BT = torch.randint(5, VOCAB, (3, 7), generator=seeded(1))
WRITTEN_BS = torch.randint(5, VOCAB, (3, 4), generator=seeded(2))
REAL_BT = torch.arange(7) < torch.tensor([7, 5, 2])[:, None]
X_NI = torch.randn(5, 6, generator=seeded(3))

STRATEGIES = {
    "full": Full(),
    "lora": LoRA(rank=3, alpha=7),
    "prefix": Prefix(length=4, hidden=5),
    "adapter": Adapter(bottleneck=3),
    "bitfit": BitFit(),
}
OURS = {
    "decoder": lambda: Decoder(CONFIG),
    "encoder": lambda: Encoder(CONFIG),
    "rotary encoder": lambda: Encoder(ROTARY),
    "encoder-decoder": lambda: EncoderDecoder(CONFIG),
}
MODELS = OURS | {
    "classifier": lambda: Classifier(Encoder(CONFIG, head=False)),
    "writing classifier": lambda: Classifier(Decoder(CONFIG)),
    "plain": lambda: nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 4)),
}
THEIRS = ("gpt2", "bert", "llama")
CASES = [(family, kind) for family in OURS for kind in STRATEGIES] + [
    ("plain", kind) for kind in ("full", "lora", "bitfit")
]
THEIR_CASES = [(family, kind) for family in THEIRS for kind in STRATEGIES if (family, kind) != ("llama", "bitfit")]


def mostly_slow(cases):
    """Cases (family, kind), of which `make quick` runs those of the decoder and of the plain module."""
    cases = list(cases)
    return few(cases, *(case for case in cases if case[0] in ("decoder", "plain")))


def make(family, seed=0):
    """A model of a family, the same weights every time."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return shaken(theirs(family) if family in THEIRS else MODELS[family](), 0.2).eval()


def theirs(family, **changes):
    """A model in the code of transformers, in its smallest size."""
    import transformers

    sizes = {"vocab_size": VOCAB, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
             "intermediate_size": INNER, "max_position_embeddings": MAX_LEN}  # fmt: skip
    if family == "gpt2":
        names = {"intermediate_size": "n_inner"}
        sizes = {names.get(name, name): size for name, size in sizes.items()}
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **NO_IDS, **NO_DROPOUT_GPT2, **changes))
    if family == "bert":
        rates = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0)
        return transformers.BertForMaskedLM(transformers.BertConfig(**sizes, **rates, **changes))
    grouped = {"num_attention_heads": 4, "num_key_value_heads": 2}  # two queries share their keys and values
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**(sizes | grouped | NO_IDS | changes)))


NO_IDS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
NO_DROPOUT_GPT2 = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)


def adapted(family, strategy, *, weights=None, **options):
    """A model with a strategy applied, and what `apply` says. weights: a seed for what it trains; as it begins without
    one."""
    model = make(family)
    strategy = STRATEGIES[strategy] if isinstance(strategy, str) else strategy
    applied = apply(model, strategy, **options)
    return (model if weights is None else scramble(model, weights)), applied


@torch.no_grad()
def scramble(model, seed=5, size=0.3):
    """Give random values to all that trains."""
    for number, parameter in enumerate(p for p in model.parameters() if p.requires_grad):
        parameter.copy_(size * torch.randn(parameter.shape, generator=seeded(seed, number)))
    return model


def said(model, **options):
    """What a model computes of the same input every time: its logits, or what a plain module gives."""
    if isinstance(model, Classifier):
        return model(IDS_BT, REAL_BT)
    if isinstance(model, EncoderDecoder):
        return model(IDS_BT, WRITTEN_BS).logits
    if isinstance(model, LanguageModel):
        return model(IDS_BT, **options).logits
    if hasattr(model, "config"):
        return model(input_ids=IDS_BT, **options).logits
    return model(X_NI.to(next(model.parameters()).dtype))


def loss_of(model):
    """Cross-entropy against labels that are as good as any."""
    logits_NC = said(model).float().flatten(0, -2)
    return F.cross_entropy(logits_NC, torch.arange(len(logits_NC)) % logits_NC.shape[1])


def train(model, steps=3, rate=1e-2):
    """A few real steps."""
    optimizer = make_optimizer(model)
    for group in optimizer.param_groups:
        group["lr"] = rate
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()
    return model


def gradients(model):
    """{name: gradient} after one backward pass; None where there is none."""
    model.zero_grad(set_to_none=True)
    loss_of(model).backward()
    return {name: p.grad for name, p in model.named_parameters()}


def own_weights(model):
    """A copy of the model's own parameters, without what was added to it."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if not is_added(name)}


def unequal(some, other):
    """Names under which two collections of tensors are not equal to the bit."""
    return sorted(n for n in some.keys() | other.keys() if n not in some or n not in other
                  or not torch.equal(some[n], other[n]))  # fmt: skip


def looks(model):
    """All that is seen of a model from outside but its weights: names, what trains, attributes, hooks."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_backward_hooks")
    n_hooks = {kind: sum(len(getattr(module, kind)) for module in model.modules()) for kind in kinds}
    trains = {name: p.requires_grad for name, p in model.named_parameters()}
    return list(model.state_dict()), trains, sorted(vars(model)), n_hooks


def prefixes(model, name="default"):
    """The prefixes on a model: two on an encoder-decoder, one on any other."""
    return [part for part in parts_of(model, name).values() if isinstance(part, PrefixKeysValues)]
