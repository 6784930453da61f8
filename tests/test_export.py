"""What an export writes, and what it refuses; that it opens elsewhere, tests/parity/test_export.py proves."""

import json

import pytest
import torch
from tiny import tiny

from course_lib import cli
from course_lib.data import course_tokenizer, reviews_of
from course_lib.pretrained import load_model, save_model
from course_lib.runs import FineTune, export, finetune, load_tuned


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """{strategy: the folder of a classifier's run}."""
    folder = tmp_path_factory.mktemp("runs")
    save_model(tiny("masked", max_len=64, n_layers=1), folder / "encoder", course_tokenizer())
    rows = [{"text": one.text[:60], "label": one.label} for one in reviews_of("dev", "rotten_tomatoes")[:50]]
    (folder / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("course_lib.runtime.fast_dtype", lambda device: torch.float32)
        for kind in ("lora", "bitfit", "adapter"):
            source = {"data": str(folder / "texts.jsonl"), "base": str(folder / "encoder")}
            run = FineTune(**source, strategy=kind, epochs=1, rate=2e-2, max_tokens=40)
            made[kind] = finetune(run, folder / kind, device="cpu", progress=lambda line: None).folder
    return made


def test_the_command_says_what_stands_in_the_folder(runs, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(["export", str(runs["lora"]), str(out)]) == 0
    said = capsys.readouterr().out
    lines = said.split("opens in transformers:\n\n")[1]
    assert lines in (out / "README.md").read_text("utf-8") and repr(str(out)) in lines
    assert {path.name for path in out.iterdir()} == {
        *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "head.safetensors"),
        "README.md",
    }
    assert json.loads((out / "config.json").read_text())["id2label"] == {"0": "0", "1": "1"}


def test_a_merged_model_is_the_tuned_one_and_one_left_apart_is_its_base(runs, tmp_path):
    ids_BT = torch.randint(107, 8192, (2, 9))
    tuned = load_tuned(runs["lora"], device="cpu").classifier.body(ids_BT).hidden_states[-1]
    base = load_model(runs["lora"].parent / "encoder")(ids_BT).hidden_states[-1]
    assert (tuned - base).abs().max() > 1e-3
    assert cli.main(["export", str(runs["lora"]), str(tmp_path / "apart"), "--no-merge"]) == 0
    merged, apart = export(runs["lora"], tmp_path / "merged").folder, tmp_path / "apart"
    assert torch.allclose(load_model(merged)(ids_BT).hidden_states[-1], tuned, atol=1e-5)
    assert torch.equal(load_model(apart)(ids_BT).hidden_states[-1], base)
    assert (apart / "adapter" / "adapter_config.json").is_file() and not (merged / "adapter").exists()


def test_what_neither_library_knows_is_refused_and_nothing_written(runs, tmp_path):
    with pytest.raises(ValueError, match="by adapter layers, which transformers and peft do not have: use it with"):
        export(runs["adapter"], tmp_path / "out")
    with pytest.raises(ValueError, match=r"fine-tuned by bitfit, and has no adapter .* leave out --no-merge"):
        export(runs["bitfit"], tmp_path / "out", merge=False)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="is not empty: choose another folder to export to"):
        export(runs["bitfit"], runs["lora"])
