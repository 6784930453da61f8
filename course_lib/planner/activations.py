"""What a forward pass keeps for the backward pass, tensor by tensor, from a model's dimensions.

The idea is from arXiv:2205.05198, section 4.1; the tensors are those of course_lib.layers, whose attention is written
out (tests count them on models that run). A tensor is kept for a gradient that needs it: a linear layer's input only
where its weight trains or an update beside it reads the same, and nothing before the first number that trains.
Axes: B row of the batch, T position, K position that is looked at (those of a prefix among them), N position with a
prediction, H head, E channel of the model, F inner channel of a feed-forward layer, V the vocabulary.
"""

from collections import Counter
from dataclasses import dataclass

from torch import nn

from course_lib.architectures import Architecture
from course_lib.peft.adapter import Bottleneck
from course_lib.peft.lora import LowRankUpdate
from course_lib.peft.slots import PLACE, Part
from course_lib.peft.targets import dimensions
from course_lib.planner.counting import Adapted
from course_lib.planner.layouts import NAMES, Names
from course_lib.planner.precisions import Bytes

ID = 8  # bytes of a token's id, int64
INPUT = "the block's input"


@dataclass(frozen=True)
class Activations:
    """Bytes kept, {what: bytes}, by where: before the blocks, in each block, and after them, with the loss.

    stream: bytes of one block's input.
    """

    before: Counter[str]
    blocks: tuple[Counter[str], ...]
    after: Counter[str]
    stream: int

    @property
    def total(self) -> int:
        """At the end of a forward pass."""
        return sum(part.total() for part in (self.before, *self.blocks, self.after))

    @property
    def inputs_alone(self) -> int:
        """At the end of a forward pass in which each block keeps its input alone."""
        return self.before.total() + len(self.blocks) * self.stream + self.after.total()

    @property
    def checkpointed(self) -> int:
        """The most at a time where each block keeps its input alone and is computed again in the backward pass
        (arXiv:1604.06174): all inputs, and besides them one block's inside or, earlier, what comes after all blocks."""
        inside = max(block.total() - block[INPUT] for block in self.blocks)
        return self.before.total() + len(self.blocks) * self.stream + max(inside, self.after.total())


@dataclass(frozen=True)
class Pass:
    """One forward pass over a batch [B, T], with N predictions in all.

    fused: attention by a kernel that computes its weights again in the backward pass (arXiv:2205.14135): kept are its
    results and one number for each query. has_row_masks: whether each row has its own [T, K] of who may attend, as rows
    that are padded or packed from several documents; else a decoder's rows share one, an encoder's have one [K] each.
    has_dropout: whether the model drops anything, as the published BERT and GPT-2; what LoRA drops itself is left out.
    """

    adapted: Adapted
    recipe: Bytes
    batch_size: int
    length: int
    n_predicted: int
    fused: bool = False
    has_row_masks: bool = False
    has_dropout: bool = False

    def activations(self) -> Activations:
        """Everything kept, with `token_loss` of course_lib.training as the loss.

        For layout "llama" the rule is the same, for the layers of its paper, keys and values not repeated for the heads
        that share them. Nothing in the course runs that model: no test has counted its tensors.

        >>> from course_lib.architectures import architecture
        >>> from course_lib.peft import Full
        >>> from course_lib.planner.precisions import PRECISIONS
        >>> adapted = Adapted.of(architecture("GPT-2"), Full())
        >>> kept = Pass(adapted, PRECISIONS["fp32"], batch_size=1, length=1024, n_predicted=1024).activations()
        >>> kept.blocks[-1]["attention weights"] == 12 * 1024 * 1024 * 4  # heads, queries, keys, bytes
        True
        """
        before, has_gradient = self._before()
        blocks = []
        for times, block in self.adapted.blocks:
            kept, has_gradient = self._block(block, has_gradient)
            blocks += [kept] * times
        return Activations(before, tuple(blocks), self._after(has_gradient), self._stream())

    @property
    def _a(self) -> Architecture:
        return self.adapted.architecture

    @property
    def _names(self) -> Names:
        return NAMES[self._a.layout]

    @property
    def _n_rows(self) -> int:
        return self.batch_size * self.length

    def _stream(self) -> int:
        return self._n_rows * self._a.d_model * self.recipe.stream

    def _before(self) -> tuple[Counter[str], bool]:
        """Of the embeddings, and whether the first block's input has a gradient."""
        kept, names, model = Counter(), self._names, self.adapted.model
        has_gradient = _trains(model.get_submodule(names.words))
        if has_gradient:
            kept["ids"] = self._n_rows * ID
            kept["positions"] = self.length * ID if names.positions else 0
        if names.first_norm:
            norm = model.get_submodule(names.first_norm)
            kept += self._norm("sum of embeddings", norm, has_gradient)
            has_gradient |= _trains(norm)
        return kept + self._dropped(self._n_rows * self._a.d_model, self.recipe.stream, has_gradient), has_gradient

    def _block(self, block: nn.Module, has_gradient: bool) -> tuple[Counter[str], bool]:
        """Of a block, and whether its output has a gradient. BERT normalises after each half, the others before."""
        kept, is_post_norm = Counter(), self._names.first_norm is not None
        sums = ("sum after attention", "sum after feed-forward") if is_post_norm else (INPUT, "sum after attention")
        for half, name, summed in zip((self._attention, self._feed_forward), self._names.norms, sums, strict=True):
            norm = block.get_submodule(name)
            if is_post_norm:
                inside, comes_back = half(block, has_gradient)
                has_gradient |= comes_back
                kept += inside + self._norm(summed, norm, has_gradient)
                has_gradient |= _trains(norm)
            else:
                kept += self._norm(summed, norm, has_gradient)
                inside, comes_back = half(block, has_gradient or _trains(norm))
                kept += inside
                has_gradient |= comes_back
        return kept, has_gradient

    def _after(self, has_gradient: bool) -> Counter[str]:
        """Of the last normalisation or a masked model's head, of the output layer and of the loss."""
        kept, model, a = Counter(), self.adapted.model, self._a
        if self._names.last_norm:
            kept += self._norm("sum after all blocks", model.get_submodule(self._names.last_norm), has_gradient)
        if not self.n_predicted:
            return kept
        each = self.n_predicted * self.recipe.products
        kept["which are predicted"] = self._n_rows
        if a.head and not self._names.last_norm:
            dense = model.get_submodule("cls.predictions.transform.dense")
            kept += self._read("read by the head", [dense], self.n_predicted, has_gradient)
            kept["inside the head"] = 2 * each * a.d_model  # before and after its nonlinearity
            kept["statistics"] += 2 * self.n_predicted * self.recipe.stream
        weight = model.get_submodule(self._names.output).weight
        kept["read by the output layer"] = each * a.d_model if weight.requires_grad else 0
        kept["copies of weights"] += weight.numel() * self.recipe.products if self.recipe.casts else 0
        kept["gradient of the logits"] = each * a.vocab_size
        return kept

    def _norm(self, summed: str, norm: nn.Module, has_gradient: bool) -> Counter[str]:
        if not (has_gradient or _trains(norm)):
            return Counter()
        each = 1 if isinstance(norm, nn.RMSNorm) else 2  # root mean square, or mean and deviation
        return Counter({summed: self._stream(), "statistics": each * self._n_rows * self.recipe.stream})

    def _read(self, what: str, layers: list[nn.Module], n_rows: int, has_gradient: bool) -> Counter[str]:
        """The input of linear layers that read the same, and what strategies have put beside them. Under autocast each
        layer has its own copy of its input and, for the gradient of its input, of its weight."""
        size = self.recipe.products
        readers = sum(layer.weight.requires_grad or isinstance(_part(layer), LowRankUpdate) for layer in layers)
        readers = readers if self.recipe.casts else min(readers, 1)
        kept = Counter({what: readers * n_rows * dimensions(layers[0])[0] * size})
        for layer in layers:
            copied = [layer.weight] if has_gradient else []
            part = _part(layer)
            if isinstance(part, LowRankUpdate):
                kept["inside updates"] += n_rows * len(part.A) * size
                copied += [part.A, part.B] if has_gradient else [part.B]
            if isinstance(part, Bottleneck):
                kept["inside adapter layers"] += n_rows * (part.up.out_features + 2 * part.up.in_features) * size
                copied += [part.down.weight, part.up.weight] if has_gradient else [part.up.weight]
            if self.recipe.casts:
                kept["copies of weights"] += sum(weight.numel() for weight in copied) * size
        return kept

    def _attention(self, block: nn.Module, has_gradient: bool) -> tuple[Counter[str], bool]:
        """Of attention up to its residual sum, and whether its result has a gradient."""
        layers = [block.get_submodule(name) for name in self._names.queries_keys_values]
        is_input = self._names.first_norm is not None and not self.recipe.casts  # read as it comes
        what = INPUT if is_input else "read by queries, keys and values"
        kept = self._read(what, list(dict.fromkeys(layers)), self._n_rows, has_gradient)
        query, key, value = (has_gradient or _trains(layer) for layer in layers)
        if self._a.layout in ("roformer", "llama"):  # cosines and sines
            turned = 2 * (query + key) * self.length * (self._a.d_model // self._a.n_heads)
            kept["turns"] = turned * self.recipe.products
        key, value = key or self.adapted.prefix > 0, value or self.adapted.prefix > 0
        if query or key or value:
            kept += self._fused() if self.fused else self._written_out(query, key)
        mixed = block.get_submodule(self._names.mixed)
        read = self._read("mixed values", [mixed], self._n_rows, query or key or value)
        if self.fused:
            del read["mixed values"]  # kept already
        has_gradient = query or key or value or _trains(mixed)
        return kept + read + self._dropped_residual(has_gradient), has_gradient

    def _written_out(self, query: bool, key: bool) -> Counter[str]:
        """What `attend` keeps, where queries or keys have a gradient (or else values alone)."""
        a, n_keys = self._a, self.length + self.adapted.prefix
        wide, narrow, n_scores = self._sizes()
        kept = Counter()
        kept["queries"] = wide if key else 0
        if self.adapted.prefix and a.layout == "gpt2" and 1 in (self.batch_size, a.n_heads):
            kept["queries"] *= 3  # no copy is made, and queries keep the fused layer's whole output
        kept["keys"] = narrow if query else 0
        kept["values"] = narrow if query or key else 0
        recipe, has_scores_gradient = self.recipe, query or key
        if has_scores_gradient or not self.has_dropout:
            kept["attention weights"] = n_scores * recipe.per_score
        kept += self._dropped(n_scores, recipe.products, has_scores_gradient)
        # the product with the values reads another tensor where weights are dropped, or where a prefix, which is fp32,
        # makes all that is joined to it fp32; under the softmax of "cuda", per_score counts that one
        if (self.has_dropout and recipe.scores is None) or (recipe.casts and self.adapted.prefix):
            kept["attention weights"] += n_scores * recipe.products
        is_decoder = a.layout in ("gpt2", "llama")
        masks = self.batch_size if self.has_row_masks or not is_decoder else 1
        looking = self.length if self.has_row_masks or is_decoder else 1
        kept["who may attend"] = masks * looking * (n_keys if query or key else 0) + masks * looking
        return kept

    def _fused(self) -> Counter[str]:
        wide, narrow, _ = self._sizes()
        sums = self._n_rows * self._a.n_heads * 4
        return Counter({"queries": wide, "keys": narrow, "values": narrow, "mixed values": wide, "sums": sums})

    def _sizes(self) -> tuple[int, int, int]:
        """Bytes of queries, bytes of keys or values, and the number of attention weights."""
        a, size, n_keys = self._a, self.recipe.products, self.length + self.adapted.prefix
        narrow = self.batch_size * n_keys * a.kv_width * size
        return self._n_rows * a.d_model * size, narrow, self._n_rows * a.n_heads * n_keys

    def _feed_forward(self, block: nn.Module, has_gradient: bool) -> tuple[Counter[str], bool]:
        """Of a feed-forward layer up to its residual sum, and whether its result has a gradient."""
        into = [block.get_submodule(name) for name in self._names.into]
        inner = block.get_submodule(self._names.inner)
        kept = self._read("read by the feed-forward", into, self._n_rows, has_gradient)
        has_gradient = has_gradient or any(_trains(layer) for layer in into)
        if has_gradient:  # where it is gated: what opens the gate, the gate, and what goes through
            each = 3 if len(into) == 2 else 1
            kept["around the nonlinearity"] = each * self._n_rows * self._a.d_ff * self.recipe.products
        kept += self._read("inner activations", [inner], self._n_rows, has_gradient)
        has_gradient |= _trains(inner)
        return kept + self._dropped_residual(has_gradient), has_gradient

    def _dropped(self, numbers: int, size: int, has_gradient: bool) -> Counter[str]:
        """What dropout multiplies by; on a CPU in the format of what is dropped."""
        size = size if self.recipe.masks is None else self.recipe.masks
        return Counter({"dropout": numbers * size if self.has_dropout and has_gradient else 0})

    def _dropped_residual(self, has_gradient: bool) -> Counter[str]:
        return self._dropped(self._n_rows * self._a.d_model, self.recipe.products, has_gradient)


def _trains(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _part(layer: nn.Module) -> Part | None:
    return getattr(layer, PLACE).acting if hasattr(layer, PLACE) else None
