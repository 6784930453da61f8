"""What fine-tuning leaves in a folder, `settings.json` and `adapter`, and what reads it: a classifier that predicts, or
a decoder that writes.    Axes: N text, C class.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from course_lib.data import DATA_FOLDER, clean
from course_lib.files import not_there, sha256_of, write_atomically
from course_lib.finetuning import Classifier, Instruction, encode_prompt, predictions
from course_lib.generation import generate
from course_lib.model import Decoder, LanguageModel
from course_lib.peft import load_adapter, save_adapter
from course_lib.pretrained import CHECKPOINTS_FOLDER, load_model, minilm_folder
from course_lib.runs.finetuning.examples import CLASSIFICATION, INSTRUCTIONS, read_asked
from course_lib.runtime import pick_device, seeded
from course_lib.tokenizer import Tokenizer, load_tokenizer
from course_lib.weights import read_settings

SETTINGS, ADAPTER, WEIGHTS, TOKENIZER = "settings.json", "adapter", "model.safetensors", "tokenizer.json"
NAMED_BASES = ("minilm", "encoder", "decoder")
TEMPERATURE, TOP_P = 0.7, 0.9  # how a writer draws, unless it is told otherwise
ROWS = 50  # prompts answered at a time


@dataclass(frozen=True)
class Base:
    """A pre-trained model with its tokenizer. name: one of NAMED_BASES, or the folder's whole path. sha256: of the
    files of its weights and of its tokenizer."""

    name: str
    model: LanguageModel
    tokenizer: Tokenizer
    sha256: tuple[str, str]


def load_base(name: str) -> Base:
    """One of NAMED_BASES, or a folder as `course pretrain` writes it (or its `model` inside): config.json,
    model.safetensors and tokenizer.json.

    Raises FileNotFoundError for what is not there, ValueError for what `load_model` or `load_tokenizer` refuses.
    """
    if name in NAMED_BASES:
        folder = minilm_folder() if name == "minilm" else CHECKPOINTS_FOLDER / name
        tokenizer = (folder if name == "minilm" else DATA_FOLDER) / TOKENIZER
    else:
        folder = _model_folder(name)
        name, tokenizer = str(folder), folder / TOKENIZER
        if not tokenizer.is_file():
            raise FileNotFoundError(f"{folder} lacks {TOKENIZER}: copy the one that the model was trained with there")
    model = load_model(folder)
    return Base(name, model, load_tokenizer(tokenizer), (sha256_of(folder / WEIGHTS), sha256_of(tokenizer)))


@dataclass(frozen=True)
class Prediction:
    """The likeliest class of a text, its probability, and that of every class."""

    label: str
    probability: float
    probabilities: Mapping[str, float]


@dataclass(frozen=True)
class TunedClassifier:
    """Tells classes apart. max_tokens: how much of a text it reads."""

    classifier: Classifier
    tokenizer: Tokenizer
    classes: tuple[str, ...]
    max_tokens: int

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [N, C]: of each class, for each text.

        Raises ValueError for no texts, or an empty one (with its number, from 1); TypeError for one text where a list
        of them belongs.
        """
        if isinstance(texts, str):
            raise TypeError(f"texts is a single str ({texts!r:.40}): give a list of texts")
        cleaned = [clean(text) for text in texts]
        if "" in cleaned:
            raise ValueError(f"text {cleaned.index('') + 1} is empty: give at least a word")
        return predictions(self.classifier, cleaned, self.tokenizer, max_tokens=self.max_tokens)

    def predict(self, texts: Sequence[str]) -> list[Prediction]:
        """The class of each text. Raises what `probabilities` raises."""
        found = []
        for row_C in self.probabilities(texts).tolist():
            shares = dict(zip(self.classes, row_C, strict=True))
            label = max(shares, key=shares.get)
            found.append(Prediction(label, shares[label], shares))
        return found


@dataclass(frozen=True)
class TunedWriter:
    """Follows instructions. max_tokens: of a prompt with its answer; max_new_tokens: of an answer."""

    decoder: Decoder
    tokenizer: Tokenizer
    max_tokens: int
    max_new_tokens: int

    @property
    def room(self) -> int:
        """Tokens of a prompt, [BOS] among them."""
        return self.max_tokens - self.max_new_tokens

    def write(
        self,
        instructions: Sequence[Instruction],
        *,
        temperature: float = TEMPERATURE,
        top_p: float | None = TOP_P,
        seed: int = 0,
    ) -> list[str]:
        """What the model answers to each instruction; temperature 0 is greedy. An input too long for the model loses
        its end.

        Raises ValueError for no instructions, one that is too long without its input, or options out of range.
        """
        if not instructions:
            raise ValueError("instructions are empty: give at least one")
        written = []
        for start in range(0, len(instructions), ROWS):
            asked = instructions[start : start + ROWS]
            rows = generate(
                self.decoder,
                [encode_prompt(one, self.tokenizer, room=self.room) for one in asked],
                self.tokenizer.vocabulary,
                max_new_tokens=self.max_new_tokens,
                temperature=temperature,
                top_p=top_p,
                generator=seeded(seed, start),
            )
            written += [self.tokenizer.decode(row).strip() for row in rows]
        return written


Tuned = TunedClassifier | TunedWriter


def save_tuned(tuned: Tuned, base: Base, folder: Path | str, **more: object) -> None:
    """Write what `load_tuned` reads; `settings.json` comes last, so that a folder with it is a whole one. more: what
    else a reader of the settings should know."""
    folder = Path(folder)
    if isinstance(tuned, TunedClassifier):
        model, kind = tuned.classifier, CLASSIFICATION
        settings = {"classes": tuned.classes, "pooling": model.pooling, "max_tokens": tuned.max_tokens}
    else:
        model, kind = tuned.decoder, INSTRUCTIONS
        settings = {"max_tokens": tuned.max_tokens, "max_new_tokens": tuned.max_new_tokens}
    save_adapter(model, folder / ADAPTER)
    weights, tokenizer = base.sha256
    about = {"kind": kind, "base": base.name, "base_sha256": weights, "tokenizer_sha256": tokenizer}
    content = json.dumps(about | settings | more, indent=2, ensure_ascii=False)
    write_atomically(folder / SETTINGS, content + "\n")


def load_tuned(folder: Path | str, *, device: str | None = None) -> Tuned:
    """What a folder of `course finetune` holds, ready to `predict` or to `write`: to the bit what was saved.

    Raises FileNotFoundError for a folder that is none of these, or a base that is gone; ValueError for damaged files,
    and for a base whose weights or tokenizer are not those that were fine-tuned.
    """
    folder, device = Path(folder), pick_device(device)
    if not folder.exists():
        raise not_there(folder)
    if not (folder / SETTINGS).is_file():
        raise FileNotFoundError(f"{folder} holds nothing fine-tuned (no {SETTINGS}): name what `course finetune` wrote")
    settings = read_settings(folder / SETTINGS)
    try:
        base = load_base(settings["base"])
        _check_same_base(folder, base, settings)
        if settings["kind"] == CLASSIFICATION:
            classes = tuple(settings["classes"])
            model = Classifier(base.model, len(classes), pooling=settings["pooling"])
            tuned = TunedClassifier(model, base.tokenizer, classes, settings["max_tokens"])
        else:
            model = base.model
            tuned = TunedWriter(model, base.tokenizer, settings["max_tokens"], settings["max_new_tokens"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder / SETTINGS} is damaged ({error}): fine-tune again into another folder") from None
    load_adapter(model, folder / ADAPTER)
    model.to(device).eval()
    return tuned


def answer_lines(
    folder: Path | str,
    texts: Sequence[str] = (),
    *,
    file: Path | str | None = None,
    about: str | None = None,
    temperature: float | None = None,
    seed: int | None = None,
    as_json: bool = False,
    device: str | None = None,
) -> list[str]:
    """What `course predict` prints. For each text its class, a tab and the probability, or what is written for each
    instruction; with as_json an object a line, with all that is known. file: with the texts, as `read_asked` reads it.
    about: the input of instructions.

    Raises ValueError for both texts and file, or none of them, for options of writing where a classifier is asked, and
    what `load_tuned`, `read_asked`, `predict` and `write` raise.
    """
    if bool(texts) == (file is not None):
        raise ValueError("give either texts or a file with them")
    tuned = load_tuned(folder, device=device)
    if isinstance(tuned, TunedClassifier):
        for name, value in {"input": about, "temperature": temperature, "seed": seed}.items():
            if value is not None:
                raise ValueError(f"{folder} holds a classifier, which does not write: leave out {name}")
        asked = read_asked(file, CLASSIFICATION) if file is not None else texts
        return _class_lines(tuned, asked, as_json)
    if file is not None:
        asked = read_asked(file, INSTRUCTIONS)
        asked = asked if about is None else [replace(one, input=about) for one in asked]
    else:
        asked = [Instruction(text.strip(), (about or "").strip()) for text in texts]
    written = tuned.write(asked, temperature=TEMPERATURE if temperature is None else temperature, seed=seed or 0)
    if not as_json:
        return written
    pairs = zip(asked, written, strict=True)
    return [_json_line(instruction=one.instruction, input=one.input, written=text) for one, text in pairs]


def _class_lines(tuned: TunedClassifier, texts: Sequence[str], as_json: bool) -> list[str]:
    found = tuned.predict(texts)
    if not as_json:
        return [f"{one.label}\t{one.probability:.4f}" for one in found]
    return [
        _json_line(text=text, label=one.label, probability=one.probability, probabilities=one.probabilities)
        for text, one in zip(texts, found, strict=True)
    ]


def _json_line(**fields: object) -> str:
    return json.dumps(fields, ensure_ascii=False)


def _model_folder(name: str) -> Path:
    folder = Path(name).resolve()
    if not folder.exists():
        raise FileNotFoundError(f"base {name!r} is neither one of {', '.join(NAMED_BASES)} nor a folder: check it")
    inner = folder / "model"
    return inner if (inner / "config.json").is_file() and not (folder / "config.json").is_file() else folder


def _check_same_base(folder: Path, base: Base, settings: Mapping) -> None:
    wanted = (settings["base_sha256"], settings["tokenizer_sha256"])
    for what, is_now, was in zip(("weights", "tokenizer"), base.sha256, wanted, strict=True):
        if is_now != was:
            raise ValueError(
                f"the {what} of the base {base.name} have sha256 {is_now[:12]}... and {folder} was fine-tuned on "
                f"{was[:12]}...: put the old ones back, or fine-tune again"
            )
