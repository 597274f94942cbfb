"""Private copies of users' networks: out of their wrappers, with parameters of their own, giving logits alone."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dd_core.curvature.evaluation import first_line
from dd_core.errors import UserError

Output = str | int | None


def private_copy(
    model: nn.Module, *, output: Output = None, dtype: torch.dtype | None = None, share_weights: bool = True
) -> nn.Module:
    """The network without its wrappers, with parameters of its own that have the same values and flags.

    Args:
        model: any module; it is not run.
        output: which of its outputs are the logits, where it gives several: a key, a position or an attribute.
        dtype: of the copy's floating tensors, default as they are.
        share_weights: let the copy use the model's memory where the dtype is the same; else later changes of the
            model's weights are not seen.

    Raises:
        UserError: it cannot be copied, or not be differentiated.
    """
    refuse_unfit(model)
    memo: dict[int, Any] = {}
    for module in model.modules():
        # Tensors that are results, such as the weight of a pruned layer, cannot be copied by deepcopy.
        for tensor in (*module._parameters.values(), *module._buffers.values(), *vars(module).values()):
            if isinstance(tensor, Tensor) and id(tensor) not in memo:
                memo[id(tensor)] = _same_values(tensor, dtype, share_weights)
        memo[id(vars(module).get("_compiled_call_impl"))] = None  # module.compile()
    try:
        for module in reversed(list(model.modules())):  # what is inside comes first
            if _unwrapped(module) is not module:
                memo[id(module)] = copy.deepcopy(_unwrapped(module), memo)
        network: nn.Module = copy.deepcopy(model, memo)
    except UserError:
        raise
    except Exception as error:  # of a user's __deepcopy__, or a lock, a file or a generator among the attributes
        raise UserError(f"the model cannot be copied by copy.deepcopy ({first_line(error)})") from error
    for module in network.modules():
        compiled = getattr(vars(module).get("forward"), "_torchdynamo_orig_callable", None)
        if compiled is not None and compiled.__qualname__ == type(module).forward.__qualname__:
            del module.forward  # module.forward = torch.compile(module.forward)
    # A first layer that works in place would change the user's images, and cannot on images that need a gradient.
    network.register_forward_pre_hook(lambda _module, inputs: tuple(_cloned(value) for value in inputs))
    network.register_forward_hook(lambda _module, _inputs, result: _logits(result, output))
    return network


def _cloned(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _same_values(tensor: Tensor, dtype: torch.dtype | None, share: bool) -> Tensor:
    values = tensor.detach()
    if dtype is not None and values.is_floating_point() and values.dtype != dtype:
        values = values.to(dtype)
    elif not share or values.is_inference():
        values = values.clone()
    if not isinstance(tensor, nn.Parameter):
        return values
    return nn.Parameter(values, requires_grad=tensor.requires_grad)


def _unwrapped(module: nn.Module) -> nn.Module:
    """The network inside torch.compile's, DataParallel's and DistributedDataParallel's modules."""
    while True:
        if "_orig_mod" in module._modules:
            inside = module._modules["_orig_mod"]
        elif isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inside = module.module
        else:
            return module
        assert isinstance(inside, nn.Module)
        module = inside


def refuse_unfit(model: nn.Module) -> None:
    """Refuse what cannot be differentiated twice, whatever it computes.

    Raises:
        UserError: it names the layer or parameter.
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"the model must be a torch.nn.Module, not {type(model).__name__}")
    for name, module in model.named_modules():
        _refuse_unfit_layer(name, module)


def _refuse_unfit_layer(name: str, module: nn.Module) -> None:
    where = f"layer {name!r}" if name else "the model"
    if isinstance(module, torch.jit.ScriptModule):
        raise UserError(f"{where} is compiled by torch.jit, which allows no second derivative; pass the Python module")
    for own, parameter in module._parameters.items():
        if parameter is None:
            continue
        full = f"{name}.{own}".lstrip(".")
        if nn.parameter.is_lazy(parameter) or parameter.is_meta:
            raise UserError(f"parameter {full!r} has no values yet; run the model on an image, or load its weights")
        if parameter.is_complex():
            raise UserError(f"parameter {full!r} is complex; curvature is defined for real parameters")


def _logits(result: Any, output: Output) -> Tensor:
    """The logits among what a network gives.

    Raises:
        UserError: it gives several things and ``output`` names none of them.
    """
    if isinstance(result, Tensor):
        if output is None:
            return result
        raise UserError(f"output={output!r} is given, but the model gives one tensor; leave output out")
    values = _named(result)
    if isinstance(values.get(output), Tensor):
        return values[output]
    choice = f"one of {', '.join(map(repr, values))}" if values else "after making it give a tensor"
    wrong = "" if output is None else f", and {output!r} is no tensor in it"
    raise UserError(
        f"the model gives a {type(result).__name__} where logits are needed{wrong}; name them by output=..., {choice}"
    )


def _named(result: Any) -> dict[Any, Any]:
    """The parts of a network's output by key, position or attribute."""
    if isinstance(result, Mapping):
        return dict(result)
    if isinstance(result, tuple | list):
        return {**dict(enumerate(result)), **getattr(result, "_asdict", dict)()}
    return dict(getattr(result, "__dict__", {}))
