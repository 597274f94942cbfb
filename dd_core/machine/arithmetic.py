"""Which reduced precision saves time here: measured once for each kind of machine, and kept in the user's cache.

Reduced precision is asked for because it is faster. A processor without bfloat16 or float16 arithmetic converts
instead, and a convolution takes 2 to 50 times as long as in float32 (docs/torch.md), so that float32, which is also
more accurate, is what was wanted. Needs no torch to import.
"""

import functools
import json
import statistics
import time
from typing import TYPE_CHECKING, Literal, TypeVar

from dd_core.cache import cache_folder, keep
from dd_core.machine.processor import kind_of_machine, processor

if TYPE_CHECKING:
    import torch

# Raised when something else is timed: what was kept counts no longer.
_VERSION = 1
# Examples, channels and pixels per side: what keeps the device busy and is over at once.
_CONVOLUTION = {"cpu": (4, 64, 16), "cuda": (128, 256, 32)}
_REPEATS = 5
_TIMED = ("bfloat16", "float16")
# A measurement near 1 may come out on either side, and on another in the process beside it.
_CLEARLY = 1.1

Precision = TypeVar("Precision", bound=str)


def usable(precision: Precision, device: "torch.device") -> Precision | Literal["float32"]:
    """In which precision to compute what is asked for: the same, or float32 where that takes clearly less time."""
    if precision == "tf32":
        return precision if _has_tf32(device) else "float32"
    return "float32" if precision in _TIMED and slowdown(precision, device) > _CLEARLY else precision


def objection(precision: str, device: "torch.device") -> str:
    """What to tell a user whose precision is not used; empty where it is, or where float32 takes no less time."""
    if precision not in _TIMED or usable(precision, device) == precision:
        return ""
    times = slowdown(precision, device)
    told = f"{times:.0f}" if times > 10 else f"{times:.1f}"
    return (
        f"precision: {precision} takes {told} times as long as float32 on this machine ({_name(device)}), so what "
        "begins here is computed in float32"
    )


def kind_of_device(device: "torch.device") -> str:
    """A digest of what ``usable`` depends on."""
    return kind_of_machine(_VERSION, _name(device))


@functools.cache
def slowdown(precision: str, device: "torch.device") -> float:
    """Seconds of a convolution and its gradients in a precision, over seconds in float32: that of the cache, or now."""
    folder = cache_folder("arithmetic")
    if folder is None:
        return _measured(precision, device)
    path = folder / f"{kind_of_device(device)}.{precision}.json"
    try:
        return float(json.loads(path.read_text(encoding="utf-8"))["slowdown"])
    except (OSError, ValueError, KeyError, TypeError):
        found = _measured(precision, device)
    keep(path, json.dumps({"slowdown": found, "machine": _name(device)}).encode())
    return found


def _measured(precision: str, device: "torch.device") -> float:
    """In turns, so that whatever else the machine does hits both alike."""
    import torch
    from torch.nn.functional import conv2d

    count, channels, side = _CONVOLUTION[device.type]

    def seconds(dtype: torch.dtype) -> float:
        # No random numbers: they belong to what is trained.
        x = torch.ones(count, channels, side, side, dtype=dtype, device=device)
        x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
        weight = torch.ones(channels, channels, 3, 3, dtype=dtype, device=device, requires_grad=True)
        started = _now(device)
        y = conv2d(x, weight, padding=1)
        torch.autograd.grad(y, (x, weight), y.detach())
        return _now(device) - started

    with torch.inference_mode(False), torch.enable_grad():
        pairs = [(seconds(getattr(torch, precision)), seconds(torch.float32)) for _ in range(1 + _REPEATS)]
    return statistics.median(reduced / full for reduced, full in pairs[1:])


def _now(device: "torch.device") -> float:
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)
    return time.perf_counter()


def _has_tf32(device: "torch.device") -> bool:
    import torch

    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def _name(device: "torch.device") -> str:
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    return processor()[0]
