"""MiniLM that reads on: it begins as MiniLM, only its adapter and its new head learn, from training texts alone, and
the one that is shipped tells sentiment better before it has seen a label."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from course_lib.data import reviews_of
from course_lib.evaluation import frozen_features, labelled_sample
from course_lib.peft import apply
from course_lib.pretrained import load_minilm
from course_lib.runs import reading
from course_lib.runs.reading import HEAD, Reading, bare_reader, load_reader, read_on

IDS_BT = torch.tensor([[101, 2023, 2143, 2001, 103, 1012, 102]])  # [CLS] this film was [MASK] . [SEP]
SHORT = replace(Reading(), steps=2, batch_size=2)


def hidden(model):
    with torch.no_grad():
        return model.eval()(IDS_BT).hidden_states[-1]


@pytest.mark.slow
def test_the_reader_begins_as_minilm():
    assert torch.equal(hidden(bare_reader()[0]), hidden(load_minilm()[0]))


@pytest.mark.slow
def test_only_adapter_and_head_learn_from_training_texts_alone(monkeypatch):
    asked = []
    texts = [review.text for review in reviews_of("train")[:40]]
    monkeypatch.setattr(reading, "training_texts", lambda: asked.append("train") or texts)
    reader, tokenizer = bare_reader()
    apply(reader, SHORT.strategy, modules_to_save=[HEAD])
    before = {name: weight.clone() for name, weight in reader.named_parameters()}
    rows = list(read_on(reader, tokenizer, SHORT))
    assert [row.step for row in rows] == [1, 2] and asked == ["train"]
    moved = {name for name, weight in reader.named_parameters() if not torch.equal(weight, before[name])}
    assert moved and all(name.startswith(HEAD) or ".adapters." in name for name in moved)


@pytest.mark.slow
def test_the_shipped_reader_fills_in_a_word_of_praise_or_blame():
    reader, tokenizer = bare_reader()
    reading.load_adapter(reader, reading.READER_FOLDER)
    body, _ = load_reader()
    assert torch.allclose(hidden(body), hidden(reader), atol=1e-4)
    assert not torch.allclose(hidden(body), hidden(load_minilm()[0]), atol=0.1)  # the control
    with torch.no_grad():
        likeliest = reader.eval()(IDS_BT).logits[0, 4].topk(5).indices.tolist()
    assert {tokenizer.token(i) for i in likeliest} & {"good", "great", "bad", "terrible", "awful", "boring"}


@pytest.mark.slow
def test_what_it_has_read_tells_sentiment_better_before_any_label():
    train, tests = reviews_of("train", "imdb")[:2000], reviews_of("dev", "imdb")[:400]
    wanted = np.array([review.label for review in tests])
    right = {}
    for name, (body, tokenizer) in {"minilm": load_minilm(), "reader": load_reader()}.items():
        on_tests_NE = frozen_features(body, [review.text for review in tests], tokenizer)
        right[name] = 0.0
        for seed in range(2):
            sample = labelled_sample(train, 100, seed)
            on_sample_NE = frozen_features(body, [review.text for review in sample], tokenizer)
            probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
            probe.fit(on_sample_NE, [review.label for review in sample])
            right[name] += (probe.predict(on_tests_NE) == wanted).mean() / 2
    assert right["reader"] > right["minilm"] + 0.01
