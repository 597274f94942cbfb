"""Which parameters take part: layers chosen by name or regular expression."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from dd_core.errors import UserError


@dataclass(frozen=True)
class ChosenLayers:
    """The layers (modules that own parameters) a Hessian is restricted to.

    Attributes:
        names: of the layers, in the order of the model.
        parameters: of these layers by full name, in the order of the model; one that several layers share is there
            once, by its first name.
        frozen: names of those of these layers that do not require gradients, and are left out.
    """

    names: tuple[str, ...]
    parameters: dict[str, nn.Parameter]
    frozen: tuple[str, ...] = ()

    @property
    def num_parameters(self) -> int:
        """Rows of the Hessian."""
        return sum(parameter.numel() for parameter in self.parameters.values())


def choose_layers(model: nn.Module, patterns: Iterable[str] = ()) -> ChosenLayers:
    """The layers of which at least one pattern matches the whole name, or the whole name of a module around them.

    Parameters that do not require gradients are left out, and layers that have no others.

    Args:
        model: any module.
        patterns: names ("blocks.0.conv1"; "blocks.0" for all layers in it) or regular expressions; none for all.

    Raises:
        UserError: a pattern matches nothing or is no regular expression, or there are no parameters, or all are frozen.
    """
    owned = {
        name: {f"{name}.{own}".lstrip("."): p for own, p in module.named_parameters(recurse=False)}
        for name, module in model.named_modules()
    }
    owned = {name: parameters for name, parameters in owned.items() if parameters}
    if not owned:
        raise UserError("the model has no parameters, so its loss has no Hessian; pass a network with weights")
    patterns = tuple(patterns)
    chosen = {name for pattern in patterns for name in _matches(pattern, list(owned))} if patterns else set(owned)
    everything = {full: (name, p) for name in owned if name in chosen for full, p in owned[name].items()}
    distinct = {id(p): full for full, (_, p) in reversed(everything.items())}  # the first name stays
    learned = {full: p for full, (_, p) in everything.items() if p.requires_grad and distinct[id(p)] == full}
    frozen = tuple(full for full, (_, p) in everything.items() if not p.requires_grad)
    if not learned:
        raise UserError(
            f"all parameters of the chosen layers are frozen (requires_grad=False), such as {frozen[0]!r}, so the "
            "Hessian has no rows; call requires_grad_(True) on those that shall count"
        )
    layers = {everything[full][0]: None for full in learned}
    return ChosenLayers(tuple(layers), learned, frozen)


def _matches(pattern: str, names: list[str]) -> list[str]:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UserError(f"layers: {pattern!r} is not a regular expression ({error})") from error
    found = [name for name in names if any(expression.fullmatch(part) for part in _with_parents(name))]
    if not found:
        raise UserError(f"layers: {pattern!r} matches no layer; the layers are {', '.join(names)}")
    return found


def _with_parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]
