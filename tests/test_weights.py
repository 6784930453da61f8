"""Tensors and settings as files: what is written comes back to the bit and opens in safetensors' own code, and what is
damaged is named.
"""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from course_lib.runtime import seeded
from course_lib.weights import read_notes, read_settings, read_tensors, to_safetensors

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.bool]
WILD = torch.tensor([0.0, -0.0, float("inf"), float("nan"), 1e-42])  # 1e-42 is no normal number
TENSORS = {
    "a weight": torch.randn(3, 4, generator=seeded(0)),
    "wild": WILD,
    "a scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 3),
    "layer.0.weight é": torch.arange(4),
}


def bits(tensor):
    """A tensor's numbers as bytes, so that NaN is itself and -0 is not 0."""
    return tensor.contiguous().flatten().view(torch.uint8)


def alike(some, others):
    return some.keys() == others.keys() and all(
        (t.dtype, t.shape) == (others[name].dtype, others[name].shape) and torch.equal(bits(t), bits(others[name]))
        for name, t in some.items()
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize("reader", [read_tensors, load_file], ids=["ours", "safetensors"])
def test_tensors_come_back_to_the_bit(path, reader):
    path.write_bytes(to_safetensors(TENSORS))
    assert alike(reader(path), TENSORS)


def test_the_check_above_sees_one_bit(path):
    for name, wrong in {"wild": WILD.abs(), "a scalar": torch.tensor([2.5]), "empty": torch.zeros(3, 0)}.items():
        path.write_bytes(to_safetensors(TENSORS | {name: wrong}))
        assert not alike(read_tensors(path), TENSORS)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_number_format_comes_back_as_itself(path, dtype):
    tensors = {"x": torch.tensor([0, 1, 1, 0]).to(dtype)}
    path.write_bytes(to_safetensors(tensors))
    assert alike(read_tensors(path), tensors)


def test_the_file_says_that_it_is_torchs_and_the_same_tensors_are_the_same_bytes(path):
    path.write_bytes(to_safetensors(TENSORS))
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert set(file.keys()) == set(TENSORS)
    assert to_safetensors({name: tensor.clone() for name, tensor in TENSORS.items()}) == path.read_bytes()


def test_notes_come_back_beside_the_format_and_change_no_tensor(path):
    notes = {"rank": "8", "targets": '["query", "é"]', "empty": ""}
    path.write_bytes(to_safetensors(TENSORS, **notes))
    assert read_notes(path) == {"format": "pt", **notes}
    assert alike(read_tensors(path), TENSORS)
    path.write_bytes(to_safetensors(TENSORS))
    assert read_notes(path) == {"format": "pt"}
    save_file({"x": torch.ones(2)}, path)  # as others write it
    assert read_notes(path) == {}


@pytest.mark.parametrize(
    "view", [lambda x: x.T, lambda x: x[:, 1:], lambda x: x[::2], lambda x: x[:1].expand(5, 4), lambda x: x.flip(0)],
    ids=["turned", "cut", "every other", "spread", "reversed"],
)  # fmt: skip
def test_what_lies_scattered_in_memory_is_written_as_it_reads(path, view):
    scattered = view(TENSORS["a weight"])
    path.write_bytes(to_safetensors({"x": scattered}))
    assert torch.equal(read_tensors(path)["x"], scattered)


def test_parameters_are_written_without_their_gradients_and_stay_as_they_are(path):
    layer = torch.nn.Linear(3, 2)
    layer(torch.ones(1, 3)).sum().backward()
    gradient = layer.weight.grad.clone()
    path.write_bytes(to_safetensors(dict(layer.named_parameters())))
    found = read_tensors(path)
    assert set(found) == {"weight", "bias"} and not any(tensor.requires_grad for tensor in found.values())
    assert torch.equal(found["weight"], layer.weight) and torch.equal(layer.weight.grad, gradient)
    found["weight"].zero_()  # the file's own memory: writing to it changes neither layer nor file
    assert layer.weight.any() and read_tensors(path)["weight"].any()


def test_weights_that_are_not_there_are_missed_beside_the_settings_that_are(path):
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors is not there: .* beside its config\.json"):
        read_tensors(path)
    path.with_name("adapter_config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"not there: .* beside its adapter_config\.json"):
        read_tensors(path)
    with pytest.raises(FileNotFoundError, match="is not there"):
        read_tensors(path.parent)  # a folder is no file


WHOLE = to_safetensors({"x": torch.ones(4)})


@pytest.mark.parametrize(
    "content", [b"", WHOLE[:5], WHOLE[:-1], WHOLE + b"x", b"\xff" * 8 + WHOLE[8:], b"version https://git-lfs\n"],
    ids=["empty", "cut in its length", "cut in a tensor", "longer", "a wild length", "a pointer"],
)  # fmt: skip
def test_a_damaged_file_of_tensors_is_named(path, content):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged or cut off \(.+\): copy it again"):
        read_tensors(path)


@pytest.mark.parametrize("settings", [{}, {"rank": 8, "targets": ["query"], "path": None, "name": "é 日本", "x": 0.1}])
def test_settings_are_what_json_says(tmp_path, settings):
    path = tmp_path / "config.json"
    for written in (json.dumps(settings), json.dumps(settings, indent=2, ensure_ascii=False)):
        path.write_text(written, "utf-8")
        assert read_settings(path) == settings


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", r"config\.json is damaged \(Expecting value.*\): copy the folder again"),
        (b'{"rank": 8', r"config\.json is damaged \(.*line 1 column 11.*\): copy the folder again"),
        (b"[8]", r"config\.json holds no settings but a list: copy the folder again"),
        (b"8", r"config\.json holds no settings but a int"),
        (b'{"name": "\xff"}', r"config\.json, line 1, is not UTF-8"),
    ],
)
def test_damaged_settings_are_named(tmp_path, content, words):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words):
        read_settings(path)


def test_settings_that_are_not_there_are_missed(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json is not there"):
        read_settings(tmp_path / "config.json")
