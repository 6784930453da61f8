"""Named parts beside a module, one of which acts when the module is called. The module's own code, names and weights
stay as they are: parts are added, and taken away, from outside.
"""

from typing import Any

from torch import Tensor, nn

PLACE = "adapters"  # the name under which a module holds its parts


class Part(nn.Module):
    """What a strategy adds to a module. Either of these is overridden."""

    def before(self, host: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """The arguments that the host is called with instead."""
        return args, kwargs

    def after(self, x: Tensor, output: Any) -> Any:
        """What the host gives back instead of its own output for `x`, its first argument."""
        return output


class Slot(nn.ModuleDict):
    """The parts of one module by their adapters' names. active: which one acts, None for none."""

    def __init__(self) -> None:
        super().__init__()
        self.active: str | None = None
        self.handles: list[Any] = []

    @property
    def acting(self) -> Part | None:
        return self[self.active] if self.active is not None else None


def plug_in(host: nn.Module, name: str, part: Part) -> None:
    """Add a part to a module; it acts once its adapter is switched on."""
    if not hasattr(host, PLACE):
        slot = Slot()
        host.add_module(PLACE, slot)
        slot.handles = [
            host.register_forward_pre_hook(_before, with_kwargs=True),
            host.register_forward_hook(_after, with_kwargs=True),
        ]
    getattr(host, PLACE)[name] = part.train(host.training)


def pull_out(host: nn.Module, name: str) -> None:
    """Take a part away; with the last one nothing remains of the slot."""
    slot = getattr(host, PLACE)
    slot.active = None if slot.active == name else slot.active
    del slot[name]
    if not len(slot):
        for handle in slot.handles:
            handle.remove()
        delattr(host, PLACE)


def is_name(name: str) -> bool:
    """Whether an adapter can be called so: a ModuleDict's own attributes and dots are taken."""
    return bool(name) and "." not in name and not hasattr(Slot(), name)


def slots_of(model: nn.Module) -> dict[str, Slot]:
    """{the host's name: its slot}."""
    return {n.removesuffix(PLACE).rstrip("."): m for n, m in model.named_modules() if isinstance(m, Slot)}


def parts_of(model: nn.Module, name: str) -> dict[str, Part]:
    """{the host's name: its part} of one adapter."""
    return {host: slot[name] for host, slot in slots_of(model).items() if name in slot}


def is_added(name: str) -> bool:
    """Whether a parameter or module of this name was added to the model."""
    return PLACE in name.split(".")


# functions of the module, not closures: a copy of the model then works on its own parts
def _before(host: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
    part = getattr(host, PLACE).acting
    return None if part is None or type(part).before is Part.before else part.before(host, args, kwargs)


def _after(host: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
    part = getattr(host, PLACE).acting
    if part is None or type(part).after is Part.after:
        return output
    return part.after(args[0] if args else next(iter(kwargs.values())), output)
