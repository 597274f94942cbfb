"""One optimiser step of a stacked network: forward and backward pass in as many micro-batches as memory needs."""

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from dd_core.models.stacking import by_trial
from dd_core.study.architectures import architecture_called
from dd_core.study.recipe import Optimizer, Precision, Variant
from dd_core.tasks.base import Inputs, Targets, Task
from dd_core.training import cuda_graph
from dd_core.training.optimization import clip_gradients, gradient_norms, make_optimizer
from dd_core.training.per_trial import PerTrial
from dd_core.training.precision import Arithmetic

# (start, stop) of the batch to its inputs and targets.
Batch = Callable[[int, int], tuple[Inputs, Targets]]


class Stepper:
    """Network, task, optimiser and arithmetic of some trials.

    Attributes:
        optimizer: over all parameters of the stacked network.
        arithmetic: precision and gradient scale.
        micro_batch: examples at a time.
        graph: does whole batches on a GPU; None computes the same kernel by kernel.
        before_update: changes gradients before they are clipped and used; arithmetic on tensors alone, as it becomes a
            part of the graph. None: nothing does.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        variant: Variant,
        num_trials: int,
        device: torch.device,
        micro_batch: int,
        of_trials: Sequence[Optimizer] = (),
    ):
        """``model`` is stacked, of ``num_trials`` trials; its parameters have one dtype.

        ``of_trials``: settings of each, where they may differ, see ``make_optimizer``.
        """
        self._task = task
        self._network = model
        if variant.compile:
            self._network = torch.compile(model, mode=variant.compile, dynamic=False)  # type: ignore[assignment]
        self._num_trials = num_trials
        self._largest_norm = variant.optimizer.clip_norm
        self.micro_batch = micro_batch
        self.optimizer = make_optimizer(model, variant.optimizer, of_trials)
        self._device = device
        self.arithmetic = Arithmetic(variant.precision, device)
        self._parameters = list(model.parameters())
        self._dtype = self._parameters[0].dtype
        self._norms_before_clipping: Tensor | None = None
        self.before_update: Callable[[], None] | None = None
        # A graph would repeat a number; it reads a tensor.
        self._rate = torch.zeros((), device=device) if device.type == "cuda" else None
        if isinstance(self.optimizer, PerTrial):
            self._rate = torch.zeros(num_trials, device=device, dtype=self._dtype)
        # torch.compile has graphs of its own, and the gradient scale of float16 is decided upon in Python.
        has_graph = device.type == "cuda" and variant.compile is None and self.arithmetic.scaler is None
        # What a network of the user's own does in its forward pass may wait for the device, or depend on values.
        has_graph = has_graph and not architecture_called(variant.architecture).is_own
        self.graph = cuda_graph.GraphedStep(self._parameters) if has_graph and cuda_graph.wanted() else None

    def __call__(self, batch: Batch, start: int, stop: int, rates: Sequence[float]) -> tuple[Tensor, Tensor]:
        """Train on examples ``start:stop`` of the epoch at a learning rate, one for all trials or one for each.

        Returns:
            Mean loss and accuracy of each trial before the step, (T,), on the device.
        """
        self._set_rates(rates)
        size = stop - start
        pieces = -(-size // self.micro_batch)
        if pieces == 1:
            loss, accuracy, *norms = self._train(*batch(start, stop))
            self._norms_before_clipping = norms[0] if norms else None
            return loss, accuracy
        self.optimizer.zero_grad(set_to_none=True)
        edges = [start + size * i // pieces for i in range(pieces + 1)]
        parts = [self._forward_backward(*batch(a, b), (b - a) / size) for a, b in itertools.pairwise(edges)]
        norms = self._apply_gradients()
        self._norms_before_clipping = norms[0] if norms else None
        losses, accuracies = zip(*parts, strict=True)
        return torch.stack(losses).sum(0), torch.stack(accuracies).sum(0)

    def _set_rates(self, rates: Sequence[float]) -> None:
        if self._rate is not None and len(rates) > 1:
            on_cpu = torch.tensor(rates, dtype=self._dtype)
            # From pinned memory a copy need not wait for what the GPU still has to do.
            self._rate.copy_(on_cpu.pin_memory() if self._rate.is_cuda else on_cpu, non_blocking=True)
        elif self._rate is not None:
            self._rate.fill_(rates[0])
        for group in self.optimizer.param_groups:
            group["lr"] = rates[0] if self._rate is None else self._rate

    def _train(self, inputs: Inputs, targets: Targets) -> tuple[Tensor, ...]:
        if self.graph and isinstance(inputs, Tensor) and isinstance(targets, Tensor):
            return self.graph(self._train_on, inputs, targets)
        return self._train_on(inputs, targets)

    def _train_on(self, inputs: Inputs, targets: Targets) -> tuple[Tensor, ...]:
        """A step on a batch in one piece: loss, accuracy and, where gradients are clipped, their norms before."""
        self.optimizer.zero_grad(set_to_none=True)
        loss, accuracy = self._forward_backward(inputs, targets, 1.0)
        return loss, accuracy, *self._apply_gradients()

    def _apply_gradients(self) -> list[Tensor]:
        """The optimiser's step; the norms before clipping, if there is any."""
        self.arithmetic.unscale(self.optimizer)
        if self.before_update is not None:
            self.before_update()
        norms = []
        if self._largest_norm is not None:
            norms = [clip_gradients(self._parameters, self._num_trials, self._largest_norm)]
        self.arithmetic.step(self.optimizer)
        return norms

    def _forward_backward(self, inputs: Inputs, targets: Targets, share: float) -> tuple[Tensor, Tensor]:
        """Add the gradient of a part of the batch; its loss and accuracy, weighted with its share."""
        with self.arithmetic.autocast():
            outputs = self._network(inputs)
        # The sum over trials leaves each trial the gradient of its own mean loss.
        loss = self._task.losses(outputs, targets, self._dtype).mean(0)
        if share < 1:
            loss = loss * share
        self.arithmetic.backward(loss.sum())
        with torch.no_grad():
            right = self._task.hits(outputs, targets)
        hits = right.sum(0) / len(right)
        return loss.detach(), hits * share if share < 1 else hits

    def compute_in(self, precision: Precision) -> None:
        """Use another precision than the variant's from now on."""
        self.arithmetic = Arithmetic(precision, self._device)
        self.forget_graph()

    def gradient_norms(self) -> Tensor:
        """Norms of the last step's gradient before clipping, (T,)."""
        if self._norms_before_clipping is not None:
            return self._norms_before_clipping
        return gradient_norms(self._parameters, self._num_trials)

    def forget_graph(self) -> None:
        """Capture a graph anew: what a step computes, or the tensors that it reads and writes, have changed."""
        if self.graph:
            self.graph = cuda_graph.GraphedStep(self._parameters)

    def state(self) -> dict[str, Tensor]:
        """Optimiser state and gradient scale, as tensors on the device."""
        tensors = {f"arithmetic.{name}": tensor for name, tensor in self.arithmetic.state().items()}
        for index, entries in self.optimizer.state_dict()["state"].items():
            for name, value in entries.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{index}.{name}"] = value
        return tensors

    @property
    def _in_order(self) -> list[nn.Parameter]:
        """The parameters in the order in which ``state`` numbers them."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def state_of(self, trials: slice) -> dict[str, Tensor]:
        """What ``state`` would be of some of the trials alone; copies. For stacks without a gradient scale."""
        parameters, found = self._in_order, {}
        for name, tensor in self.state().items():
            if tensor.shape == parameters[int(name.split(".")[1])].shape:
                tensor = by_trial(tensor, self._num_trials)[trials].flatten(0, 1)
            found[name] = tensor.clone()
        return found

    def load_state_of(self, trials: slice, tensors: dict[str, Tensor]) -> None:
        """The reverse of ``state_of``; the other trials' is left alone."""
        parameters = self._in_order
        for name, tensor in tensors.items():
            if name.startswith("optimizer."):
                _, index, entry = name.split(".", 2)
                parameter = parameters[int(index)]
                state = self.optimizer.state[parameter]
                if tensor.ndim:
                    whole = state.setdefault(entry, torch.zeros_like(parameter, requires_grad=False))
                    own = by_trial(whole, self._num_trials)[trials]
                    own.copy_(tensor.view_as(own))
                else:  # a number of steps, the same for all
                    on_gpu = parameter.device if parameter.is_cuda else tensor.device
                    state[entry] = tensor.to(on_gpu, copy=True)
        self.forget_graph()  # some of the optimiser's tensors are new

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """The reverse of ``state``; other names are left alone."""
        parameters = self._in_order
        entries: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimizer."):
                _, index, entry = name.split(".", 2)
                parameter = parameters[int(index)]
                if tensor.shape == parameter.shape:
                    # Fused optimisers walk through memory: moments must lie there in the parameter's own order.
                    tensor = torch.empty_like(parameter, requires_grad=False).copy_(tensor)
                entries.setdefault(int(index), {})[entry] = tensor
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": entries})
        self.forget_graph()  # the optimiser's tensors are others than before
        prefix = "arithmetic."
        self.arithmetic.load_state({n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)})
