"""Where each layout has its parts."""

from typing import NamedTuple


class Names(NamedTuple):
    """Names of modules. first_norm: of the embeddings. norms: of a block's two halves. last_norm: after all blocks."""

    blocks: str
    words: str
    positions: str | None
    first_norm: str | None
    queries_keys_values: tuple[str, str, str]
    mixed: str  # the layer that reads what attention gives
    into: tuple[str, ...]  # the layers that read a feed-forward's input
    inner: str  # the layer that reads its inside
    norms: tuple[str, str]
    last_norm: str | None
    output: str


BERT = Names(
    blocks="encoder.layer",
    words="embeddings.word_embeddings",
    positions="embeddings.position_embeddings",
    first_norm="embeddings.LayerNorm",
    queries_keys_values=("attention.self.query", "attention.self.key", "attention.self.value"),
    mixed="attention.output.dense",
    into=("intermediate.dense",),
    inner="output.dense",
    norms=("attention.output.LayerNorm", "output.LayerNorm"),
    last_norm=None,
    output="embeddings.word_embeddings",
)
GPT2 = Names(
    blocks="transformer.h",
    words="transformer.wte",
    positions="transformer.wpe",
    first_norm=None,
    queries_keys_values=("attn.c_attn",) * 3,
    mixed="attn.c_proj",
    into=("mlp.c_fc",),
    inner="mlp.c_proj",
    norms=("ln_1", "ln_2"),
    last_norm="transformer.ln_f",
    output="transformer.wte",
)
LLAMA = Names(
    blocks="layers",
    words="embed_tokens",
    positions=None,
    first_norm=None,
    queries_keys_values=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    mixed="self_attn.o_proj",
    into=("mlp.gate_proj", "mlp.up_proj"),
    inner="mlp.down_proj",
    norms=("input_layernorm", "post_attention_layernorm"),
    last_norm="norm",
    output="lm_head",
)
NAMES = {"bert": BERT, "roformer": BERT._replace(positions=None), "gpt2": GPT2, "llama": LLAMA}
