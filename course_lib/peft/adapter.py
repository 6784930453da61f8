"""Adapter layers (Houlsby et al., arXiv:1902.00751): behind each half of a block a small bottleneck with a skip."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from course_lib.peft.slots import Part
from course_lib.peft.strategy import Strategy
from course_lib.peft.targets import Targets, dimensions, find_targets

# the layer that ends each half of a block, in the layouts of BERT (and RoFormer), GPT-2 and Llama
SUBLAYERS = ("attention.output.dense", "output.dense", "attn.c_proj", "mlp.c_proj", "self_attn.o_proj", "mlp.down_proj")
INIT_STD = 0.01  # of section 3.6 there: small enough for a start near the identity


class Bottleneck(Part):
    """output + up(gelu(down(output))), of `width` channels in between."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(channels, width), nn.Linear(width, channels)
        for layer in (self.down, self.up):
            nn.init.trunc_normal_(layer.weight, std=INIT_STD, a=-2 * INIT_STD, b=2 * INIT_STD)
            nn.init.zeros_(layer.bias)

    def after(self, x: Tensor, output: Tensor) -> Tensor:
        inner = F.gelu(F.linear(output, *self._of(self.down, output)))
        return output + F.linear(inner, *self._of(self.up, output))

    @staticmethod
    def _of(layer: nn.Linear, x: Tensor) -> tuple[Tensor, Tensor]:
        return layer.weight.to(x.dtype), layer.bias.to(x.dtype)


@dataclass(frozen=True)
class Adapter(Strategy):
    """A bottleneck behind the attention and behind the feed-forward layer of every block, before dropout and residual
    sum (and behind cross-attention, where a block has it). The paper trains normalisations too; here they are frozen.

    bottleneck: its width in channels. targets: names (by their ends, or one regular expression) of the linear layers to
    stand behind; by default those that end the halves of blocks of BERT, RoFormer, GPT-2 and Llama.
    Raises ValueError for a width below 1; when applied, for a model without such layers.

    >>> from course_lib.peft import apply
    >>> print(apply(nn.ModuleDict({"mlp": nn.ModuleDict({"c_proj": nn.Linear(8, 4)})}), Adapter(bottleneck=2)))
    adapter 'default': 22 of 58 parameters train (37.9%), at 1 place
    """

    kind: ClassVar[str] = "adapter"

    bottleneck: int = 32
    targets: Targets = SUBLAYERS

    def __post_init__(self) -> None:
        if not isinstance(self.bottleneck, int) or self.bottleneck < 1:
            raise ValueError(f"bottleneck is {self.bottleneck!r}: give a whole number of at least 1, such as 32")

    def parts(self, model: nn.Module, modules_to_save: tuple[str, ...]) -> dict[str, Part]:
        found = find_targets(model, self.targets, excluded=modules_to_save)
        return {name: Bottleneck(dimensions(layer)[1], self.bottleneck) for name, layer in found.items()}
