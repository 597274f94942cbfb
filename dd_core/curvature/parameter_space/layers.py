"""Which parameters take part: layers chosen by name or regular expression."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from dd_core.errors import UserError


@dataclass(frozen=True)
class ChosenLayers:
    """The layers (modules that own parameters) a Hessian is restricted to.

    Attributes:
        names: of the layers, in the order of the model.
        parameters: of these layers by full name, in the order of the model.
    """

    names: tuple[str, ...]
    parameters: dict[str, Tensor]

    @property
    def num_parameters(self) -> int:
        """Rows of the Hessian."""
        return sum(parameter.numel() for parameter in self.parameters.values())


def choose_layers(model: nn.Module, patterns: Iterable[str] = ()) -> ChosenLayers:
    """The layers of which at least one pattern matches the whole name, or the whole name of a module around them.

    Args:
        model: any module.
        patterns: names ("blocks.0.conv1"; "blocks.0" for all layers in it) or regular expressions; none for all.

    Raises:
        UserError: a pattern matches nothing or is no regular expression, or the model has no parameters.
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
    parameters = {full: p for name in owned if name in chosen for full, p in owned[name].items()}
    return ChosenLayers(tuple(name for name in owned if name in chosen), parameters)


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
