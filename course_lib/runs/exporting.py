"""A finished run as a folder that `transformers` opens, with the lines that open it. What was fine-tuned becomes a part
of the model; a prefix, which no weight can hold, lies beside it in `adapter`, for `peft`.

None of the Auto classes has a classifier with one linear layer on a mean of hidden states: the head lies in a file of
its own, `head.safetensors` (weight [C, E], bias [C]), and the lines apply it. Axes: C class, E channel of the model.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from course_lib.files import write_atomically
from course_lib.model import Decoder, LanguageModel
from course_lib.peft import merge_and_unload, remove, save_adapter
from course_lib.peft.strategy import adaptation
from course_lib.pretrained import load_model, model_files
from course_lib.runs.finetuning.tuned import (
    ADAPTER,
    TEMPERATURE,
    TOKENIZER,
    TOP_P,
    Tuned,
    TunedClassifier,
    TunedWriter,
    load_tuned,
)
from course_lib.runs.folders import PRETRAINING, kind_of
from course_lib.tokenizer import Tokenizer, load_tokenizer
from course_lib.weights import to_safetensors

HEAD = "head.safetensors"
POOLED = {
    "mean": "(hidden * is_real[..., None]).sum(1) / is_real.sum(1, keepdim=True)",
    "cls": "hidden[:, 0]",
    "last": "hidden[torch.arange(len(texts)), is_real.sum(1) - 1]",
}
PUT_ON = 'model = PeftModel.from_pretrained(model, f"{folder}/adapter").eval()'


@dataclass(frozen=True)
class Export:
    """An exported run. lines: Python that opens and uses it, with `transformers` and, for an adapter, `peft`."""

    folder: Path
    lines: str

    def __str__(self) -> str:
        return f"{self.folder} opens in transformers:\n\n{self.lines}"


def export(run: Path | str, out: Path | str, *, merge: bool = True) -> Export:
    """Write a finished run for `transformers`: config.json, model.safetensors, its tokenizer, and a README.md with the
    lines that open it; of a classifier also `head.safetensors`. merge: make LoRA a part of the model; else it lies
    beside the base in `adapter`, for `peft`, as a prefix always does.

    The tokenizer of what was fine-tuned frames and cuts a text as training did, and reads "[MASK]" in it as text.
    Raises ValueError for a folder that is not empty, a run that is not finished, adapter layers, which neither library
    knows, and merge=False where there is no LoRA or prefix; what `load_tuned` and `load_model` raise.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is not empty: choose another folder to export to")
    if kind_of(run) == PRETRAINING:
        _check_kind(None, run, merge)
        files, lines = _of_pretrained(Path(run) / "model", out)
    else:
        files, lines = _of_tuned(load_tuned(run, device="cpu"), run, out, merge)
    for name, content in files.items():
        write_atomically(out / name, content)
    write_atomically(out / "README.md", f"# How to open this folder\n\n```python\n{lines}\n```\n")
    return Export(out, lines)


def _of_pretrained(folder: Path, out: Path) -> tuple[dict[str, bytes], str]:
    model = load_model(folder)
    return model_files(model, load_tokenizer(folder / TOKENIZER)), _opening(_with_head(model), out, is_beside=False)


def _of_tuned(tuned: Tuned, run: Path | str, out: Path, merge: bool) -> tuple[dict[str, bytes], str]:
    """The files of its model, and the lines; an adapter that stays beside the model is written already."""
    model = tuned.classifier if isinstance(tuned, TunedClassifier) else tuned.decoder
    applied = adaptation(model).lookup()
    kind = applied.strategy.kind
    _check_kind(kind, run, merge)
    is_beside = kind == "prefix" or not merge
    files = {}
    if isinstance(tuned, TunedClassifier):  # before its adapter is taken away, and the trained head with it
        files[HEAD] = to_safetensors({"weight": tuned.classifier.head.weight, "bias": tuned.classifier.head.bias})
    if is_beside:
        save_adapter(model, out / ADAPTER)
        remove(model, applied.name)
    else:
        merge_and_unload(model)
    if isinstance(tuned, TunedClassifier):
        return _classifier_files(tuned) | files, _classifier_lines(tuned, out, is_beside)
    return _writer_files(tuned, is_cached=kind != "prefix"), _writer_lines(out, is_beside)


def _classifier_files(tuned: TunedClassifier) -> dict[str, bytes]:
    names = dict(enumerate(tuned.classes))
    settings = {"id2label": names, "label2id": {name: n for n, name in names.items()}}
    first, last = tuned.tokenizer.vocabulary.frame
    tokenizer = tuned.tokenizer.framed(first, "text", last)
    return _with_settings(tuned.classifier.body, tokenizer, tuned.max_tokens + 2, **settings)


def _writer_files(tuned: TunedWriter, *, is_cached: bool) -> dict[str, bytes]:
    vocabulary = tuned.tokenizer.vocabulary
    files = _with_settings(tuned.decoder, tuned.tokenizer.framed("bos", "text"), tuned.room)
    how = {
        **{f"{role}_token_id": getattr(vocabulary, role) for role in ("bos", "eos", "pad")},
        "max_new_tokens": tuned.max_new_tokens,
        "do_sample": True,
        "temperature": TEMPERATURE,
        "top_k": 0,
        "top_p": TOP_P,
        "suppress_tokens": [i for i in vocabulary.special_ids if i != vocabulary.eos],
        "use_cache": is_cached,  # with a cache, peft loses a prefix
    }
    return files | {"generation_config.json": _json(how)}


def _with_settings(model: LanguageModel, tokenizer: Tokenizer, longest: int, **settings: object) -> dict[str, bytes]:
    """The files of a model whose tokenizer cuts texts to `longest` tokens and reads no special token in them."""
    files = model_files(model, tokenizer)
    files["config.json"] = _json(json.loads(files["config.json"]) | settings)
    reading = {"model_max_length": longest, "split_special_tokens": True}
    files["tokenizer_config.json"] = _json(json.loads(files["tokenizer_config.json"]) | reading)
    return files


def _check_kind(kind: str | None, run: Path | str, merge: bool) -> None:
    if kind == "adapter":
        raise ValueError(
            f"{run} was fine-tuned by adapter layers, which transformers and peft do not have: use it with `course "
            "predict`, or fine-tune by lora, prefix, bitfit or full"
        )
    if not merge and kind not in ("lora", "prefix"):
        what = "was pre-trained" if kind is None else f"was fine-tuned by {kind}"
        raise ValueError(f"{run} {what}, and has no adapter that could lie beside its model: leave out --no-merge")


def _with_head(model: LanguageModel) -> str:
    """The Auto class of a model with all that it has."""
    if isinstance(model, Decoder):
        return "AutoModelForCausalLM"
    return "AutoModelForMaskedLM" if any(name.startswith("cls.") for name in model.state_dict()) else "AutoModel"


def _opening(name: str, out: Path, is_beside: bool, **more: str) -> str:
    """Imports, tokenizer and model. name: of the Auto class."""
    imports = ["from peft import PeftModel"] if is_beside else []
    imports += [f"from {package} import {what}" for package, what in more.items()]
    return "\n".join([
        *imports,
        f"from transformers import {name}, AutoTokenizer",
        "",
        f"folder = {str(out)!r}",
        "tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)",
        f"model = {name}.from_pretrained(folder, local_files_only=True).eval()",
        *([PUT_ON] if is_beside else []),
    ])  # fmt: skip


def _classifier_lines(tuned: TunedClassifier, out: Path, is_beside: bool) -> str:
    name = _with_head(tuned.classifier.body) if is_beside else "AutoModel"  # an adapter's file names all of its model
    opening = _opening(name, out, is_beside, **{"safetensors.torch": "load_file"})
    return f"""import re

import torch
{opening}
head = load_file(f"{{folder}}/{HEAD}")

texts = ["a moving , funny and beautiful film", "two hours that I will never get back"]
texts = [" ".join(re.sub(r"<br\\s*/?>", " ", text, flags=re.I).split()) for text in texts]
batch = tokenizer(texts, truncation=True, padding=True, return_tensors="pt")
is_real = batch["attention_mask"].bool()
with torch.no_grad():
    inputs = {{name: batch[name] for name in ("input_ids", "attention_mask")}}
    hidden = model(**inputs, output_hidden_states=True).hidden_states[-1]
    pooled = {POOLED[tuned.classifier.pooling]}
    logits = pooled @ head["weight"].T + head["bias"]
for text, row in zip(texts, logits.softmax(-1)):
    print(model.config.id2label[int(row.argmax())], f"{{row.max():.4f}}", text)"""


def _writer_lines(out: Path, is_beside: bool) -> str:
    return f"""{_opening("AutoModelForCausalLM", out, is_beside)}

prompt = "### Instruction:\\nWrite a positive review.\\n\\n### Response:\\n"
batch = tokenizer(prompt, return_tensors="pt")
row = model.generate(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])[0]
print(tokenizer.decode(row[batch["input_ids"].shape[1] :], skip_special_tokens=True).strip())"""


def _json(settings: dict) -> bytes:
    return json.dumps(settings, indent=2).encode()
