"""Little real runs of the course, exported, opened by `transformers` and `peft` with the lines that the export itself
gives, say what they say here, to the rounding of fp32, and read every text as the same tokens."""

import contextlib
import io
import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import differ, tiny

from course_lib.data import course_tokenizer, pad, reviews_of
from course_lib.finetuning import Instruction, encode_prompt, prompt_of
from course_lib.layers import TransformerConfig
from course_lib.pretrained import load_model, save_model
from course_lib.runs import FineTune, export, finetune, load_tuned, pretrain
from course_lib.runs.recipes import Pretraining

transformers = pytest.importorskip("transformers", reason="install the extra [interop] for the parity tests")
peft = pytest.importorskip("peft", reason="install the extra [interop] for the parity tests")

pytestmark = pytest.mark.slow

TOLERANCE = 1e-5  # relative to the largest value compared, fp32
CLASSIFIED = ["a good film", "two hours of nothing at all , and then the end . " * 20, "[MASK] [CLS] [EOS] <s> ok",
              "👍🏽 👨‍👩‍👧", "Ünïcödé ﬁlm ½ <br />日本語", "x" * 900]  # fmt: skip
NASTY = ["", " ", "[PAD]", "a [MASK] b[SEP]c", "<extra_id_0> and <|endoftext|>", "a\x00b\tc\r\n d  e", "e\u0301\u200d",
         "##ing [UNK]", "don't , ca n't . ( x ) !", "word " * 3000, *CLASSIFIED]  # fmt: skip
ASKED = [Instruction("Repeat the words.", "[EOS] a good film"), Instruction("Write a positive review."),
         Instruction("Is it good?", "👍🏽 日本語 ½\n\n ok")]  # fmt: skip
MERGED, BESIDE = ("full", "bitfit", "lora"), ("lora", "prefix")
WAYS = [(kind, True) for kind in MERGED] + [(kind, False) for kind in BESIDE]
LENGTH, TEXT = 128, 48


@pytest.fixture(scope="module", autouse=True)
def quick_and_in_fp32():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("course_lib.runtime.fast_dtype", lambda device: torch.float32)
        patch.setattr("course_lib.files.os.fsync", lambda descriptor: None)
        patch.setattr("course_lib.records._commit", lambda: "unknown")
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Bases of every layout, a file to classify, one of instructions, and one to pre-train on."""
    folder = tmp_path_factory.mktemp("data")
    for name, objective, positions in [("roformer", "masked", "rotary"), ("bert", "masked", "learned"),
                                       ("gpt2", "causal", "learned")]:  # fmt: skip
        save_model(tiny(objective, positions, max_len=LENGTH, n_layers=2), folder / name, course_tokenizer())
    reviews = reviews_of("dev", "rotten_tomatoes")[:50]
    rows = [{"text": one.text[:80], "label": ("bad", "good")[one.label]} for one in reviews]
    asked = [{"instruction": "Repeat.", "input": one.text[:20], "output": one.text[:20]} for one in reviews]
    for name, lines in {"texts": rows, "asked": asked}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    (folder / "own.txt").write_text("\n\n".join(one.text for one in reviews_of("train", "imdb")[:30]), "utf-8")
    return folder


@pytest.fixture(scope="module")
def tuned(data, tmp_path_factory):
    """The folder of a run, made when it is first asked for."""
    folder, known = tmp_path_factory.mktemp("runs"), {}

    def made(base, kind, examples="texts", **settings):
        name = "-".join([base, kind, examples, *settings.values()])
        if name not in known:
            source = {"data": str(data / f"{examples}.jsonl"), "base": str(data / base)}
            read = TEXT if examples == "texts" else LENGTH - 30
            run = FineTune(**source, strategy=kind, epochs=2, rate=2e-2, max_tokens=read, **settings)
            known[name] = finetune(run, folder / name, device="cpu", progress=lambda line: None).folder
        return known[name]

    return made


def opened(exported, texts=None):
    """What the lines of an export have made: {name: value}, and what they said. texts: read instead of their own."""
    lines = re.search("```python\n(.*)```", (exported.folder / "README.md").read_text("utf-8"), re.DOTALL)[1]
    assert lines == exported.lines + "\n"
    if texts is not None:
        before, after = re.split(r'texts = \["a moving.*', lines)
        lines = f"{before}texts = {texts!r}{after}"
    made, said = {}, io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(lines, "README.md", "exec"), made)
    return made | {"said": said.getvalue()}


def logits_here(classifier, texts):
    """By the course's own model, framed and cut as it learned."""
    vocabulary, cut = classifier.tokenizer.vocabulary, classifier.max_tokens
    rows = [ids[:cut] for ids in classifier.tokenizer.encode_all([" ".join(text.split()) for text in texts])]
    ids_BT = pad(rows, vocabulary, length=cut + 2, frame=vocabulary.frame)
    with torch.no_grad():
        return classifier.classifier(ids_BT, ids_BT != vocabulary.pad), ids_BT


@pytest.mark.parametrize(("kind", "merge"), WAYS)
@pytest.mark.parametrize("base", ["roformer", "bert", "gpt2"])
def test_a_classifier_says_the_same_there(base, kind, merge, tuned, tmp_path):
    run = tuned(base, kind)
    here, exported = load_tuned(run, device="cpu"), export(run, tmp_path / "out", merge=merge)
    there = opened(exported, texts=CLASSIFIED)
    logits_BC, ids_BT = logits_here(here, there["texts"])
    assert torch.equal(there["batch"]["input_ids"], ids_BT[:, : there["batch"]["input_ids"].shape[1]])
    assert differ(there["logits"], logits_BC) < TOLERANCE
    assert [line.split()[0] for line in there["said"].splitlines()] == [one.label for one in here.predict(CLASSIFIED)]
    fresh = load_tuned(tuned(base, "full" if kind != "full" else "lora"), device="cpu")
    assert differ(there["logits"], logits_here(fresh, there["texts"])[0]) > 100 * TOLERANCE  # another run's is not it


@pytest.mark.parametrize("pooling", ["cls", "last"])
def test_every_pooling_is_in_the_lines(pooling, tuned, tmp_path):
    run = tuned("roformer", "lora", pooling=pooling)
    there = opened(export(run, tmp_path / "out"), texts=CLASSIFIED[:4])
    assert differ(there["logits"], logits_here(load_tuned(run, device="cpu"), CLASSIFIED[:4])[0]) < TOLERANCE


@pytest.mark.parametrize("name", ["model.safetensors", "head.safetensors", "adapter/adapter_model.safetensors"])
def test_a_changed_weight_is_noticed(name, tuned, tmp_path):
    run = tuned("roformer", "lora")
    exported = export(run, tmp_path / "out", merge=False)
    tensors = load_file(exported.folder / name)
    key = min(key for key in tensors if "query" in key or key == "weight")
    tensors[key][0] += 0.05
    save_file(tensors, exported.folder / name, metadata={"format": "pt"})
    there = opened(exported, texts=CLASSIFIED)
    assert differ(there["logits"], logits_here(load_tuned(run, device="cpu"), CLASSIFIED)[0]) > 10 * TOLERANCE


@pytest.mark.parametrize(("kind", "merge"), WAYS)
def test_a_writer_says_the_same_there_and_writes_the_same(kind, merge, tuned, tmp_path):
    run = tuned("gpt2", kind, "asked")
    here, exported = load_tuned(run, device="cpu"), export(run, tmp_path / "out", merge=merge)
    there = opened(exported)
    for one in ASKED:
        ids = there["tokenizer"](prompt_of(one)).input_ids
        assert ids == encode_prompt(one, here.tokenizer, room=here.room)
        with torch.no_grad():
            logits = there["model"](input_ids=torch.tensor([ids])).logits
            assert differ(logits, here.decoder(torch.tensor([ids])).logits) < TOLERANCE
            row = there["model"].generate(input_ids=torch.tensor([ids]), do_sample=False)[0]
        said = there["tokenizer"].decode(row[len(ids) :], skip_special_tokens=True).strip()
        assert said == here.write([one], temperature=0)[0]


@pytest.mark.parametrize("objective", ["causal", "masked"])
def test_what_was_pretrained_says_the_same_there(objective, data, tmp_path):
    config = TransformerConfig(vocab_size=8192, d_model=16, n_layers=2, n_heads=2, d_ff=32, max_len=LENGTH)
    config = config.with_(positions="rotary") if objective == "masked" else config
    run = Pretraining(name="small", objective=objective, tokens=32 * 4 * 6, row_length=32, batch_size=4, warmup=2,
                      peak_rate=1e-2, config=config, text=str(data / "own.txt"), held_out_batches=2)  # fmt: skip
    assert len(list(pretrain(run, tmp_path / "run", device="cpu"))) == run.steps
    ids_BT, model = torch.randint(107, 8192, (3, 33)), load_model(tmp_path / "run" / "model")
    name = "AutoModelForCausalLM" if objective == "causal" else "AutoModelForMaskedLM"
    auto = getattr(transformers, name).from_pretrained(tmp_path / "run" / "model", local_files_only=True)
    there = opened(export(tmp_path / "run", tmp_path / "out"))
    with torch.no_grad():
        for theirs in (auto.eval(), there["model"]):
            assert differ(theirs(ids_BT).logits, model(ids_BT).logits) < TOLERANCE
    bare = transformers.AutoModel.from_pretrained(tmp_path / "out", local_files_only=True).eval()
    with torch.no_grad():
        assert differ(bare(ids_BT).last_hidden_state, model(ids_BT).hidden_states[-1]) < TOLERANCE
        ends = ("0.attn.c_proj.bias", "0.output.dense.bias")
        next(p for n, p in there["model"].named_parameters() if n.endswith(ends))[0] += 0.5
        assert differ(there["model"](ids_BT).logits, model(ids_BT).logits) > 10 * TOLERANCE


def test_nasty_texts_are_the_same_tokens_there(data, tuned, tmp_path):
    """What was pre-trained reads "[MASK]" in a text as the token, as its lines may want it, unless it is told not to;
    what was fine-tuned never does."""
    ours = course_tokenizer()
    for base in ("roformer", "gpt2"):
        theirs = transformers.AutoTokenizer.from_pretrained(data / base, local_files_only=True)
        for text in NASTY:
            assert theirs(text).input_ids == ours.encode(text, special=True)
            assert theirs(text, split_special_tokens=True).input_ids == ours.encode(text)
    assert any(ours.encode(text) != ours.encode(text, special=True) for text in NASTY)  # the two are not the same
    export(tuned("roformer", "lora"), tmp_path / "out")
    theirs, vocabulary = transformers.AutoTokenizer.from_pretrained(tmp_path / "out"), ours.vocabulary
    for text in NASTY:
        assert theirs(text, truncation=False).input_ids == [vocabulary.bos, *ours.encode(text), vocabulary.eos]
    assert len({len(theirs(text, truncation=True).input_ids) <= TEXT + 2 for text in NASTY}) == 1


def test_the_real_minilm_tuned_here_classifies_there(tmp_path):
    run = FineTune(source="rotten_tomatoes", labels=20, tests=20, epochs=1, max_tokens=40)
    finetune(run, tmp_path / "run", device="cpu", progress=lambda line: None)
    here = load_tuned(tmp_path / "run", device="cpu")
    for merge in (True, False):
        there = opened(export(tmp_path / "run", tmp_path / f"out {merge}", merge=merge), texts=CLASSIFIED)
        logits_BC, ids_BT = logits_here(here, there["texts"])
        assert torch.equal(there["batch"]["input_ids"], ids_BT[:, : there["batch"]["input_ids"].shape[1]])
        assert differ(there["logits"], logits_BC) < TOLERANCE
