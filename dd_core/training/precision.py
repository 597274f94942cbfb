"""In which arithmetic a step is computed. Weights, optimiser state and BatchNorm statistics are float32 in each."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from dd_core.study.recipe import Precision

_AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class Arithmetic:
    """Autocast and gradient scaling (Micikevicius et al. 2018, "Mixed Precision Training") for one network."""

    def __init__(self, precision: Precision, device: torch.device):
        """``float16`` scales the gradient, one scale for the network: its trials are not stacked."""
        self.precision = precision
        self._device, self._dtype = device, _AUTOCAST.get(precision)
        self.scaler = torch.amp.GradScaler(device.type) if precision == "float16" else None

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Forward passes belong inside."""
        return torch.autocast(self._device.type, self._dtype) if self._dtype else contextlib.nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a scalar to ``.grad``, scaled until ``unscale``."""
        (self.scaler.scale(loss) if self.scaler else loss).backward()

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Make ``.grad`` the gradient itself, before anybody looks at it."""
        if self.scaler:
            self.scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Step; with scaling, not where the gradient overflowed, which the fused optimisers decide on the device."""
        if self.scaler:
            self.scaler.step(optimizer)
            self.scaler.update()
        else:
            optimizer.step()

    def state(self) -> dict[str, Tensor]:
        """The gradient scale, for exact resume."""
        if self.scaler is None:
            return {}
        state = self.scaler.state_dict()
        return {name: torch.tensor(state[name], dtype=torch.float64) for name in ("scale", "_growth_tracker")}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """The reverse of ``state``, which has no scale where another precision was used before."""
        if self.scaler is not None and tensors:
            scale, tracker = tensors["scale"].item(), int(tensors["_growth_tracker"])
            self.scaler.load_state_dict({**self.scaler.state_dict(), "scale": scale, "_growth_tracker": tracker})


@contextlib.contextmanager
def tensor_cores(precision: Precision) -> Iterator[None]:
    """Inside, float32 products on a GPU are rounded to TF32 if that is the precision, and are not otherwise."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
