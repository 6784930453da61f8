"""What the shipped decoder is worth beside counting and compressing, and whether its samples hold up."""

from collections.abc import Callable
from pathlib import Path

from course_lib import data
from course_lib.data import RECORDS_FOLDER, as_stream, course_tokenizer, holds_slur, normalize
from course_lib.evaluation import (
    COMPRESSORS,
    Bigram,
    bits_per_byte,
    compressed_bits_per_byte,
    copied_share,
    distinct_share,
    stream_nats,
    uniform_loss,
    unigram_loss,
)
from course_lib.files import sha256_of
from course_lib.generation import generate
from course_lib.pretrained import CHECKPOINTS_FOLDER, load_checkpoint
from course_lib.records import Record
from course_lib.runtime import pick_device, seeded

RUNGS = ("decoder_early", "decoder_middle", "decoder")
SAMPLES, SAMPLE_TOKENS, DISTINCT, COPIED = 200, 60, 3, 12


def record_language(*, path: Path = RECORDS_FOLDER / "language.jsonl", progress: Callable[[str], None] = print) -> Path:
    """Bits per byte and nats per token of held-out reviews, for every rival and rung; then 200 samples of the decoder
    beside 200 stretches of held-out reviews: distinct 3-grams, and 12-grams that stand in the training text.

    Raises ValueError where the file was begun with other checkpoints.
    """
    about = {"checkpoints_sha256": {name: sha256_of(CHECKPOINTS_FOLDER / name / "model.safetensors") for name in RUNGS}}
    record = Record(path, command="course record language", about=about)
    record.check_about()
    training = [normalize(text) for text in data.training_texts()]
    held_out = [normalize(review.text) for review in data.reviews_of("dev")]
    n_bytes = sum(len(text.encode()) for text in held_out)
    train_N, test_N = (as_stream(texts, course_tokenizer()) for texts in (training, held_out))
    n_targets, vocabulary = len(test_N) - 1, course_tokenizer().vocabulary

    def add(name: str, metric: str, value: float) -> None:
        record.add(name=name, seed=0, step=0, metric=metric, value=value)
        progress(f"{name}: {metric} {value:.4f}")

    def add_nats(name: str, nats: float) -> None:
        add(name, "nats_per_token", nats / n_targets)
        add(name, "bits_per_byte", bits_per_byte(nats, n_bytes))

    add_nats("uniform", uniform_loss(vocabulary) * n_targets)
    add_nats("unigram", unigram_loss(train_N, test_N[1:], vocabulary) * n_targets)
    add_nats("bigram", float(Bigram.fit(train_N, vocabulary).nats(test_N).sum()))
    for name in RUNGS:
        add_nats(name, float(stream_nats(load_checkpoint(name).to(pick_device()), test_N).sum()))
    train_ids = train_N.tolist()
    for name, texts in (("samples", samples()), ("reviews", _stretches(held_out))):
        add(name, f"distinct_{DISTINCT}", distinct_share(texts, DISTINCT))
        add(name, f"copied_{COPIED}", copied_share(texts, train_ids, COPIED))
    for name in COMPRESSORS:
        add(name, "bits_per_byte", compressed_bits_per_byte(name, "\n".join(training), "\n".join(held_out)))
    return path


def samples(count: int = SAMPLES, length: int = SAMPLE_TOKENS, *, seed: int = 0) -> list[list[int]]:
    """Texts that the decoder writes from nothing, at temperature 1 and without cutting its distribution; one that holds
    a slur is drawn again."""
    model, tokenizer = load_checkpoint("decoder").to(pick_device()), course_tokenizer()
    generator, found = seeded(seed), []
    while len(found) < count:
        drawn = generate(
            model,
            [[tokenizer.vocabulary.bos]] * 50,
            tokenizer.vocabulary,
            max_new_tokens=length,
            stop_ids=(),
            generator=generator,
        )
        found += [ids for ids in drawn if len(ids) == length and not holds_slur(tokenizer.decode(ids))]
    return found[:count]


def _stretches(texts: list[str]) -> list[list[int]]:
    """The beginnings of as many real reviews, as long as the samples."""
    long_enough = (ids for ids in course_tokenizer().encode_all(texts) if len(ids) >= SAMPLE_TOKENS)
    return [ids[:SAMPLE_TOKENS] for ids, _ in zip(long_enough, range(SAMPLES), strict=False)]
