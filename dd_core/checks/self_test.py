"""``python -m dd_core.checks.self_test``: are the convolutions of our networks computed rightly on this CPU?

Each kind of convolution that a network has (channels, kernel, stride, groups, size) is computed in channels-last memory
as in training, forwards and both gradients, and compared with float64, for which PyTorch uses other code. That happens
in forked children, since wrong code may end the process, hang, or corrupt what is computed later: how a child ends is
part of the verdict. Without ``--json`` the built-in architectures are tested and the result is printed.
"""

import argparse
import faulthandler
import json
import os
import signal
import sys
import warnings
from collections.abc import Callable, Collection
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dd_core.checks.machine import Network, describe, keep
from dd_core.models.build import build
from dd_core.models.stacking import Convolution
from dd_core.study.architectures import ARCHITECTURES

# Wrong kernels are off by more than a tenth; rounding, of Winograd's algorithm too, by less than these.
_LARGEST_ERROR = {"float32": 1e-3, "bfloat16": 0.05, "float16": 0.02}
_AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}
# Multiplications per pass: a few milliseconds in float64, for which there is no fast code.
_MOST_PRODUCTS = 1_000_000
_BATCH = 32
_REPEATS = 2
# After which a child hangs, also on a machine that does other things.
_SECONDS = 60
# oneDNN's variable has this name and, if that is not set, DNNL_MAX_CPU_ISA.
_VARIABLE = "ONEDNN_MAX_CPU_ISA"
_WAYS_OUT = ("AVX2", "AVX", "SSE41")


@dataclass(frozen=True)
class Kind:
    """A convolution; channels are those of one network."""

    inputs: int
    outputs: int
    kernel: int
    stride: int
    copies: int
    bias: bool
    side: int
    precision: str

    def __str__(self) -> str:
        """For people."""
        stacked = f", {self.copies} groups" if self.copies > 1 else ""
        return (
            f"a {self.kernel}x{self.kernel} convolution of {self.inputs} to {self.outputs} channels with stride "
            f"{self.stride} ({self.side}x{self.side} pixels{stacked}, {self.precision})"
        )


def kinds_of(network: Network) -> list[Kind]:
    """The convolutions of a network, each once. Computes a forward pass, so that it belongs into a child."""
    found: dict[Kind, None] = {}

    def note(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        assert isinstance(module, Convolution)
        copies, side = module.groups, arguments[0].shape[-1]
        channels = module.in_channels // copies, module.out_channels // copies
        geometry = int(module.kernel_size[0]), int(module.stride[0])
        found[Kind(*channels, *geometry, copies, module.bias is not None, side, network.precision)] = None

    with torch.no_grad():
        size, settings = (network.side, network.side), dict(network.settings)
        model = build(
            network.architecture, network.k, network.channels, 10, network.copies, settings=settings, size=size
        )
        for module in model.modules():
            if isinstance(module, Convolution):
                module.register_forward_pre_hook(note)
        model(torch.zeros(2, network.copies * network.channels, network.side, network.side))
    return list(found)


def fault_of(kind: Kind, make: Callable[..., nn.Conv2d] = Convolution) -> str:
    """What is wrong with a kind of convolution; empty if nothing is.

    Args:
        kind: what to compute.
        make: the layer, from our ``Convolution``'s arguments.
    """
    torch.manual_seed(0)
    layer = make(kind.inputs, kind.outputs, kind.kernel, kind.copies, stride=kind.stride, bias=kind.bias)
    if isinstance(layer, Convolution):
        layer.takes_products = True  # as where networks are trained
    products = (-(-kind.side // kind.stride)) ** 2 * kind.copies * kind.inputs * kind.outputs * kind.kernel**2
    batch = max(2, min(_BATCH, _MOST_PRODUCTS // products))
    images = torch.randn(batch, kind.copies * kind.inputs, kind.side, kind.side)
    exact = _derivatives(layer.double(), images.double(), torch.float64)
    layer = layer.float().to(memory_format=torch.channels_last)
    images = images.contiguous(memory_format=torch.channels_last)
    for _ in range(_REPEATS):
        found = _derivatives(layer, images, _AUTOCAST.get(kind.precision, torch.float32))
        for what, reference in exact.items():
            error = float((found[what].double() - reference).norm() / reference.norm())
            if not error < _LARGEST_ERROR[kind.precision]:
                return f"{what} of {kind} is off by {100 * error:.2g} %"
    return ""


def _derivatives(layer: nn.Conv2d, images: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    """Value and gradients of a sum with weights that depend on the place."""
    x = images.detach().requires_grad_()
    with torch.autocast("cpu", dtype, enabled=dtype in _AUTOCAST.values()):
        value = layer(x)
    places = torch.linspace(-1, 2, value.numel(), dtype=torch.float64).view(value.shape)
    in_images, in_weights = torch.autograd.grad(value, (x, layer.weight), places.to(value))
    return {"the value": value.detach(), "the image gradient": in_images, "the weight gradient": in_weights}


def in_child(work: Callable[[], list[Any]], **variables: str) -> list[Any]:
    """What a forked child returns, or how it ended, as one sentence; ``variables`` are set in its environment."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        # Python 3.12 warns of threads (of numpy's BLAS), which a child lacks; it uses none of them.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what the C library says of a corrupted heap
            os.environ.update(variables)
            faulthandler.disable()
            signal.alarm(_SECONDS)
            os.write(writer, json.dumps(work()).encode())
            os._exit(0)
        finally:
            os._exit(1)  # whatever was raised: a child never goes on with what its parent does
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == 0:
        return list(json.loads(said))
    if status == -signal.SIGALRM:
        return [f"did not end within {_SECONDS} s"]
    return [f"ended its process by {signal.Signals(-status).name}" if status < 0 else f"failed with exit code {status}"]


def verdict_on(
    networks: Collection[Network], threads: int, make: Callable[..., nn.Conv2d] = Convolution
) -> dict[str, Any]:
    """``faults``: sentences; ``way_out``: a setting with which there are none, if there is one."""

    def list_kinds() -> list[Any]:
        return [astuple(kind) for kind in dict.fromkeys(kind for network in networks for kind in kinds_of(network))]

    listed = in_child(list_kinds)
    if listed and isinstance(listed[0], str):
        return {"faults": [f"a forward pass {listed[0]}"], "way_out": None}
    kinds = [Kind(*entry) for entry in listed]

    def faults(some: list[Kind], **variables: str) -> list[str]:
        def work() -> list[str]:
            torch.set_num_threads(threads)
            return [fault for kind in some if (fault := fault_of(kind, make))]

        return in_child(work, **variables)

    def named(some: list[Kind]) -> list[str]:
        """In halves, down to those that are wrong alone: a fault may do harm to the next kind."""
        found = faults(some)
        if len(some) == 1:
            return [text if str(some[0]) in text else f"{some[0]} {text}" for text in found]
        middle = len(some) // 2
        return [*named(some[:middle]), *named(some[middle:])] or found if found else []

    wrong = named(kinds)
    ways = (way for way in _WAYS_OUT if not faults(kinds, **{_VARIABLE: way})) if wrong else iter(())
    way = next(ways, None)
    return {"faults": wrong, "way_out": way and f"{_VARIABLE}={way}"}


def _everything() -> list[Network]:
    """Narrow, middle and wide networks, alone and stacked, on small and larger images."""
    shapes = ((8, 1), (32, 3))
    widths, copies = (1, 3, 6, 16), (1, 2)
    return [Network(name, k, n, *shape) for name in ARCHITECTURES for k in widths for n in copies for shape in shapes]


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m dd_core.checks.self_test", description=__doc__)
    parser.add_argument("--json", action="store_true", help="networks from stdin, verdicts to stdout")
    if parser.parse_args().json:
        question = json.load(sys.stdin)
        networks = [Network(**entry) for entry in question["networks"]]
        together = verdict_on(networks, question["threads"])
        one_by_one = bool(together["faults"])
        verdicts = {n.name: verdict_on([n], question["threads"]) if one_by_one else together for n in networks}
        for network in networks if question["folder"] else ():
            if not verdicts[network.name]["faults"]:
                keep(Path(question["folder"]), network)
        print(json.dumps(verdicts))
        return 0
    networks = _everything()
    verdict = verdict_on(networks, torch.get_num_threads())
    if verdict["faults"]:
        print(describe(verdict["faults"], verdict["way_out"]), *verdict["faults"], sep="\n")
        return 1
    print(f"{len(networks)} kinds of network are right on this machine with torch {torch.__version__}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
