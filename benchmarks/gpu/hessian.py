"""The Hessian in the weights against curvlinops, where that is installed: products, lambda max, the exact trace."""

import importlib.util
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from dd_core.curvature.parameter_space import HessianOperator, KrylovSpace, exact_trace, extreme_eigenpairs
from dd_core.curvature.parameter_space.lanczos import random_signs
from dd_core.jobs.worker import prepare_process
from dd_core.models.build import build
from gpu.timing import DEVICE, forget, medians, peak_memory_gib, wait

RESIDUAL = 0.01


def trained(k: int, images: Tensor, labels: Tensor, steps: int) -> nn.Module:
    """A few steps of Adam, so that the spectrum has its outliers."""
    torch.manual_seed(0)
    model = build("preact_resnet18", k, 3, 10).to(DEVICE)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(steps):
        rows = torch.randint(len(images), (128,), device=DEVICE)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[rows]), labels[rows]).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model.eval()


def largest(operator: HessianOperator) -> float:
    """Lambda max with a residual of 1 %."""
    generator = torch.Generator().manual_seed(0)
    space = KrylovSpace(random_signs(1, operator.size, generator)[0].to(DEVICE), 100, generator)
    return float(extreme_eigenpairs(operator, space, 1, RESIDUAL, both_ends=False).largest[0])


def curvlinops_operator(model: nn.Module, images: Tensor, labels: Tensor) -> Any:
    """The peer's operator over one batch."""
    from curvlinops import HessianLinearOperator

    loss, parameters = nn.CrossEntropyLoss(), [p for p in model.parameters() if p.requires_grad]
    return HessianLinearOperator(model, loss, parameters, [(images, labels)], check_deterministic=False)


def case(k: int, num_images: int, steps: int) -> dict[str, Any]:
    """Seconds on all images in one batch."""
    forget()
    torch.manual_seed(1)
    images = torch.randn(num_images, 3, 32, 32, device=DEVICE)
    labels = torch.randint(0, 10, (num_images,), device=DEVICE)
    model = trained(k, images, labels, steps)
    operator = HessianOperator(model, images, labels, batch_size=num_images)
    vector = torch.randn(operator.size, device=DEVICE)
    candidates: dict[str, Callable[[], object]] = {
        "product": lambda: operator.matvec(vector),
        "lambda max": lambda: largest(operator),
        "exact trace": lambda: exact_trace(model, images),
    }
    if importlib.util.find_spec("curvlinops"):
        peer = curvlinops_operator(model, images, labels)
        candidates["curvlinops product"] = lambda: peer @ vector
    seconds = medians(candidates, repeats=3, warm_up=1)
    row: dict[str, Any] = {"k": k, "images": num_images, "parameters": operator.size, **seconds}
    if "curvlinops product" in seconds:
        row["product, ratio"] = seconds["curvlinops product"] / seconds["product"]
        difference = operator.matvec(vector).double() - (peer @ vector).double()
        row["difference"] = float(difference.norm() / operator.matvec(vector).double().norm())
    return {**row, "gib": peak_memory_gib()}


def kernels(k: int, num_images: int) -> Iterator[dict[str, Any]]:
    """The kernels of one product that take longest."""
    torch.manual_seed(0)
    images = torch.randn(num_images, 3, 32, 32, device=DEVICE)
    labels = torch.randint(0, 10, (num_images,), device=DEVICE)
    model = trained(k, images, labels, 2)
    operator = HessianOperator(model, images, labels, batch_size=num_images)
    vector = torch.randn(operator.size, device=DEVICE)
    products: dict[str, Callable[[], object]] = {"ours": lambda: operator.matvec(vector)}
    if importlib.util.find_spec("curvlinops"):
        peer = curvlinops_operator(model, images, labels)
        products["curvlinops"] = lambda: peer @ vector
    for who, product in products.items():
        product()
        wait()
        with torch.profiler.profile() as profile:
            product()
            wait()
        yield from profiled(profile, k, who)


def profiled(profile: torch.profiler.profile, k: int, who: str) -> Iterator[dict[str, Any]]:
    """The kernels that took longest, below what all took; operators, whose time is that of their kernels, left out."""
    events = profile.key_averages()
    kernels = [event for event in events if event.device_type == torch.autograd.DeviceType.CUDA]
    total = sum(event.self_device_time_total for event in kernels) / 1000
    calls = sum(event.count for event in kernels)
    yield {"what": "all kernels", "k": k, "who": who, "name": "", "calls": calls, "ms": total}
    for event in sorted(kernels, key=lambda event: event.self_device_time_total, reverse=True)[:8]:
        milliseconds = event.self_device_time_total / 1000
        name = event.key[:120]
        yield {"what": "kernel", "k": k, "who": who, "name": name, "calls": event.count, "ms": milliseconds}


def run(clock: Any, small: bool) -> Iterator[dict[str, Any]]:
    """A row for every width."""
    prepare_process(threads=1)
    warnings.filterwarnings("ignore")  # of the peer: backward with create_graph
    for k, images in ((1, 64),) if small else ((4, 1000), (16, 1000), (64, 256)):
        yield case(k, images, 2 if small else 100)
        if clock.left < 20:
            return
        yield from kernels(k, images)
