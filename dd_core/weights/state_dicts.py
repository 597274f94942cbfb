"""Weights in files of others: read without running any code of theirs, and brought under the names of our network.

What is read: files of ``torch.save`` with a state_dict, alone or in a dictionary beside other things, and safetensors.
What is dropped: prefixes that wrappers add (``module.``, ``_orig_mod.``) and the counters of batches of BatchNorm.
"""

import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from dd_core.errors import StaleError, UserError
from dd_core.store.checkpoints import read_tensors

# Where programs put the state_dict, in the order in which it is looked for.
WRAPPERS = ("state_dict", "model", "model_state_dict", "model_weights")
# Of DistributedDataParallel and AveragedModel, and of torch.compile.
_PREFIXES = ("module.", "_orig_mod.")
# Counters that wrappers and BatchNorm keep; no output in eval mode depends on them.
_COUNTERS = re.compile(r"(.*\.)?num_batches_tracked|n_averaged")
_SHOWN = 3


@dataclass(frozen=True)
class Expected:
    """What the tensors of one network must be.

    Attributes:
        shapes, dtypes: by name.
        num_classes: of its last layer.
        what: the network, for people.
    """

    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, torch.dtype]
    num_classes: int
    what: str


def read_state(path: Path, key: str | None, expected: Expected) -> dict[str, Tensor]:
    """The weights of one network.

    Args:
        path: of the file.
        key: where in its dictionary the weights are, dots between several keys; None: at one of ``WRAPPERS``, or the
            dictionary is the state_dict.
        expected: names, shapes and types.

    Raises:
        UserError: it is damaged, needs code to be read, or is of another network; the sentence names the file.
    """
    state = _chosen(path, _content(path), key)
    return _fitting(path, _renamed(path, state, expected), expected)


def _content(path: Path) -> Any:
    """What a file holds, tensors mapped into memory where its form allows it."""
    if path.suffix == ".safetensors":
        try:
            return read_tensors(path)[0]
        except StaleError as error:
            raise UserError(str(error)) from error
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except UnpicklingError as error:
        if code := re.search(r"Unsupported (?:global: GLOBAL |class |operand )(\S+)", str(error)):
            raise UserError(
                f"{path}: holds Python objects beside tensors ({code[1]}), and reading these could run any code; save "
                "the weights alone: torch.save(model.state_dict(), path)"
            ) from error
        raise UserError(f"{path}: is no whole file of torch.save") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    except Exception as error:  # of a file that was cut off or is none, torch raises whatever it stumbles over
        raise UserError(f"{path}: is no whole file of torch.save") from error


def _chosen(path: Path, content: Any, key: str | None) -> dict[str, Tensor]:
    """The state_dict in a content."""
    if key is not None:
        for part in key.split("."):
            if not isinstance(content, Mapping) or part not in content:
                raise UserError(f"{path}: has no key {key}; {_keys(content)}")
            content = content[part]
    state = _state_in(content)
    if state is None:
        where = f"what is at {key}" if key else "it"
        raise UserError(f"{path}: {where} is no state_dict, names and tensors; {_keys(content)}; choose one by --key")
    return dict(state)


def _state_in(content: Any) -> Mapping[str, Any] | None:
    """The state_dict in what may wrap it; wrappers first, as a best accuracy beside them may be a tensor, too."""
    if not isinstance(content, Mapping):
        return None
    for name in WRAPPERS:
        if (inner := _state_in(content.get(name))) is not None:
            return inner
    values = list(content.values())
    is_state = any(isinstance(v, Tensor) for v in values) and not any(isinstance(v, Mapping) for v in values)
    return content if is_state else None


def _keys(content: Any) -> str:
    if not isinstance(content, Mapping):
        return f"there is a {type(content).__name__}"
    return f"its keys are {_some(list(map(str, content)))}"


def _renamed(path: Path, state: Mapping[str, Any], expected: Expected) -> dict[str, Tensor]:
    """Tensors by the names that our network has."""
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        own = str(name)
        while own not in expected.shapes and own.startswith(_PREFIXES):
            own = own.partition(".")[2]
        if own not in expected.shapes and _COUNTERS.fullmatch(own):
            continue
        if not isinstance(value, Tensor):
            raise UserError(f"{path}: {name} is no tensor but {type(value).__name__}")
        if own in renamed:
            raise UserError(f"{path}: has {own} twice, with and without a prefix")
        renamed[own] = value
    return renamed


def _fitting(path: Path, state: dict[str, Tensor], expected: Expected) -> dict[str, Tensor]:
    """The tensors, if they are those of the network; of its types."""
    odd = {n: tuple(t.shape) for n, t in state.items() if n in expected.shapes and tuple(t.shape) != expected.shapes[n]}
    missing = [name for name in expected.shapes if name not in state]
    strange = [name for name in state if name not in expected.shapes]
    if not missing and not strange and odd and (classes := _classes(odd, expected)) is not None:
        raise UserError(f"{path}: is of {classes} classes, and {expected.what} has {expected.num_classes}")
    if odd or missing or strange:
        shapes = [f"{name} is {odd[name]} and should be {expected.shapes[name]}" for name in odd]
        reasons = [f"it lacks {_some(missing)}"] * bool(missing) + [f"it has {_some(strange)}"] * bool(strange)
        reasons += [_some(shapes)] * bool(shapes)
        raise UserError(f"{path}: is of another network than {expected.what}: {'; '.join(reasons)}")
    for name, tensor in state.items():
        dtype = expected.dtypes[name]
        if tensor.is_floating_point() != dtype.is_floating_point:
            raise UserError(f"{path}: {name} is {tensor.dtype}, and should be {dtype}")
        state[name] = tensor = tensor.to(dtype)
        if dtype.is_floating_point and not tensor.isfinite().all():
            raise UserError(f"{path}: {name} has values that are not finite; leave this file out")
    return state


def _classes(odd: Mapping[str, tuple[int, ...]], expected: Expected) -> int | None:
    """How many classes a network has that differs in nothing else."""
    numbers = set()
    for name, shape in odd.items():
        own = expected.shapes[name]
        if not shape or own[0] != expected.num_classes or shape[1:] != own[1:]:
            return None
        numbers.add(shape[0])
    return numbers.pop() if len(numbers) == 1 else None


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} others" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
