"""Generation with a KV cache: beside the same without one, and beside transformers' generate on the same weights.

Greedy, 16 prompts of 64 tokens, 128 new ones each, none stopped early; all write the same tokens, which is checked.
"""

import time

import torch
from transformers import GPT2LMHeadModel, logging

from course_lib import masks
from course_lib.data import course_tokenizer, reviews_of
from course_lib.generation import generate
from course_lib.model import Decoder
from course_lib.pretrained import CHECKPOINTS_FOLDER, load_checkpoint
from course_lib.runtime import describe_machine

ROWS, PROMPT, NEW, ROUNDS = 16, 64, 128, 3


def main() -> None:
    logging.set_verbosity_error()
    print(describe_machine())
    tokenizer, model = course_tokenizer(), load_checkpoint("decoder").float()
    encoded = (ids for ids in tokenizer.encode_all([r.text for r in reviews_of("dev", "imdb")]) if len(ids) >= PROMPT)
    prompts = [next(encoded)[:PROMPT] for _ in range(ROWS)]
    theirs = GPT2LMHeadModel.from_pretrained(CHECKPOINTS_FOLDER / "decoder", dtype=torch.float32).eval()
    everything = {"allow_special": True, "stop_ids": (), "temperature": 0, "max_new_tokens": NEW}
    runs = {
        "with a cache": lambda: generate(model, prompts, tokenizer.vocabulary, **everything),
        "without a cache": lambda: without_cache(model, prompts),
        "transformers": lambda: theirs.generate(
            torch.tensor(prompts), max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, pad_token_id=0,
            attention_mask=torch.ones(ROWS, PROMPT, dtype=torch.long),
        )[:, PROMPT:].tolist(),
    }  # fmt: skip
    seconds, written = {name: [] for name in runs}, {}
    for _ in range(1 + ROUNDS):
        for name, run in runs.items():
            began = time.perf_counter()
            written[name] = run()
            seconds[name].append(time.perf_counter() - began)
    quickest = {name: min(times[1:]) for name, times in seconds.items()}
    for name in ("without a cache", "transformers"):
        pairs = zip(written["with a cache"], written[name], strict=True)
        same = sum(a == b for row in pairs for a, b in zip(*row, strict=True)) / (ROWS * NEW)
        ratio = quickest[name] / quickest["with a cache"]
        print(f"with a cache: {ratio:.2f}x as fast as {name}, {same:.1%} of the tokens equal")


@torch.no_grad()
def without_cache(model: Decoder, prompts: list[list[int]]) -> list[list[int]]:
    """Everything read again for each new token."""
    ids_BT = torch.tensor(prompts)
    for _ in range(NEW):
        wanted_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
        wanted_BT[:, -1] = True
        logits_BV = model(ids_BT, masks.causal(ids_BT.shape[1]), wanted_BT=wanted_BT).logits
        ids_BT = torch.cat([ids_BT, logits_BV.argmax(-1, keepdim=True)], dim=1)
    return ids_BT[:, PROMPT:].tolist()


if __name__ == "__main__":
    main()
