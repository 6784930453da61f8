"""Weights and settings as files: safetensors and JSON, as the Hugging Face world keeps them."""

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from course_lib.files import read_text


def to_safetensors(tensors: Mapping[str, Tensor], **notes: str) -> bytes:
    """Tensors as the content of a safetensors file, with notes that `read_notes` gives back."""
    return save({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, metadata={"format": "pt"} | notes)


def read_notes(path: Path) -> dict[str, str]:
    """The notes in a safetensors file that `read_tensors` reads."""
    with safe_open(path, "pt") as file:
        return file.metadata() or {}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU.

    Raises FileNotFoundError if it is not there, ValueError if it is damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there: the folder needs the weights beside its {_beside(path)}")
    try:
        return load(path.read_bytes())
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or cut off ({error}): copy it again") from None


def read_settings(path: Path) -> dict:
    """The settings that a JSON file holds.

    Raises FileNotFoundError if it is not there, ValueError if it is damaged or holds something else.
    """
    try:
        settings = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged ({error}): copy the folder again") from None
    if not isinstance(settings, dict):
        raise ValueError(f"{path} holds no settings but a {type(settings).__name__}: copy the folder again")
    return settings


def _beside(path: Path) -> str:
    return next((file.name for file in path.parent.glob("*config.json")), "config.json")
