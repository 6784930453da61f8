"""Our writing on against `transformers`: the same tokens where nothing is drawn, the same distribution where it is."""

from itertools import product

import pytest
import torch
from tiny import packed, tiny

from course_lib.data import course_tokenizer
from course_lib.generation import generate, next_token_probabilities
from course_lib.pretrained import save_model
from course_lib.runtime import seeded

transformers = pytest.importorskip("transformers", reason="install the extra [interop] for the parity tests")

pytestmark = pytest.mark.slow

VOCABULARY = course_tokenizer().vocabulary
PAD = VOCABULARY.pad
NEW = 20
PROMPTS = [packed().ids_NT[n, :length].tolist() for n, length in enumerate((11, 3, 24, 1, 7))]


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    """Our model, and what `transformers` makes of its files."""
    model = tiny("causal").eval()
    folder = save_model(model, tmp_path_factory.mktemp("decoder"), course_tokenizer())
    twin = transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval()
    twin.generation_config.eos_token_id = None  # else it would stand in where a test names none
    return model, twin


def ours(model, prompts, *, penalty, stop=None):
    """Greedy; only [PAD] is banned, as theirs below."""
    stops = () if stop is None else (stop,)
    options = {"temperature": 0, "max_new_tokens": NEW, "repetition_penalty": penalty, "stop_ids": stops}
    return generate(model, prompts, VOCABULARY, banned_ids=[PAD], allow_special=True, **options)


def theirs(model, prompts, *, penalty, stop=None):
    """The same of `transformers`, rows padded on the left; what stands behind a stop is cut off, and the stop too."""
    length = max(map(len, prompts))
    ids_BT = torch.tensor([[PAD] * (length - len(prompt)) + prompt for prompt in prompts])
    config = transformers.GenerationConfig(
        do_sample=False, max_new_tokens=NEW, repetition_penalty=penalty, suppress_tokens=[PAD],
        eos_token_id=stop, pad_token_id=PAD,
    )  # fmt: skip
    out_BT = model.generate(ids_BT, attention_mask=(ids_BT != PAD).long(), generation_config=config)
    rows = out_BT[:, length:].tolist()
    return [row[: row.index(stop)] if stop in row else row for row in rows]


@pytest.mark.parametrize("penalty", [1.0, 1.3, 0.8])
def test_greedy_writes_the_same_tokens_one_prompt_at_a_time(twins, penalty):
    for prompt in PROMPTS:
        written = ours(twins[0], [prompt], penalty=penalty)
        assert written == theirs(twins[1], [prompt], penalty=penalty)
        assert len(written[0]) == NEW


@pytest.mark.parametrize("penalty", [1.0, 1.3, 0.8])
def test_greedy_writes_the_same_tokens_in_a_batch_of_prompts_of_different_lengths(twins, penalty):
    written = ours(twins[0], PROMPTS, penalty=penalty)
    assert written == theirs(twins[1], PROMPTS, penalty=penalty)
    assert len({tuple(row) for row in written}) == len(PROMPTS)


def test_a_row_ends_where_theirs_does(twins):
    stop = ours(twins[0], PROMPTS, penalty=1.3)[0][6]
    written = ours(twins[0], PROMPTS, penalty=1.3, stop=stop)
    assert written == theirs(twins[1], PROMPTS, penalty=1.3, stop=stop)
    assert len(written[0]) <= 6 < max(map(len, written))


def test_the_comparisons_above_see_another_penalty_and_a_wrong_weight(twins):
    penalised = ours(twins[0], PROMPTS, penalty=1.3)
    assert penalised != theirs(twins[1], PROMPTS, penalty=1.1)
    wrong = tiny("causal").eval()
    with torch.no_grad():
        wrong.transformer["wpe"].weight[25, :4] += 1.0  # one position
    assert ours(wrong, PROMPTS, penalty=1.3) != penalised


# ---------------------------------------------------------------- the distribution

LOGITS_BV = 3 * torch.randn(6, 300, generator=seeded(4), dtype=torch.float64)
SEEN_BT = torch.randint(0, 300, (6, 40), generator=seeded(5))
SEEN_BV = torch.zeros(6, 300, dtype=torch.bool).scatter_(1, SEEN_BT, True)


def processed(*, temperature, top_k, top_p, repetition_penalty, order=("penalty", "temperature", "top_k", "top_p")):
    """What a list of their processors makes of the scores."""
    known = {
        "penalty": transformers.RepetitionPenaltyLogitsProcessor(repetition_penalty),
        "temperature": transformers.TemperatureLogitsWarper(temperature),
        "top_k": transformers.TopKLogitsWarper(top_k) if top_k is not None else None,
        "top_p": transformers.TopPLogitsWarper(top_p) if top_p is not None else None,
    }
    processors = transformers.LogitsProcessorList(known[name] for name in order if known[name] is not None)
    return processors(SEEN_BT, LOGITS_BV.clone()).softmax(-1)


def difference(case, **changes) -> float:
    mine_BV = next_token_probabilities(LOGITS_BV, seen_BV=SEEN_BV, **case)
    return (mine_BV - processed(**case, **changes)).abs().max().item()


@pytest.mark.parametrize("penalty", [1.0, 1.4, 0.6])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
def test_the_distribution_is_that_of_their_processors(temperature, penalty):
    for top_k, top_p in product((None, 1, 8, 500), (None, 1e-6, 0.3, 0.9, 0.999, 1.0)):
        case = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "repetition_penalty": penalty}
        assert difference(case) < 1e-6, case
        mine_BV = next_token_probabilities(LOGITS_BV, seen_BV=SEEN_BV, **case)
        assert torch.equal(mine_BV > 0, processed(**case) > 0), case


@pytest.mark.parametrize(
    "order",
    [
        ("temperature", "top_k", "top_p"),  # without the penalty
        ("penalty", "top_k", "top_p", "temperature"),
        ("penalty", "temperature", "top_p", "top_k"),
        ("penalty", "temperature", "top_k"),
    ],
)
def test_the_comparison_above_sees_another_order(order):
    case = {"temperature": 1.7, "top_k": 8, "top_p": 0.6, "repetition_penalty": 1.4}
    assert difference(case) < 1e-6
    assert difference(case, order=order) > 1e-3
