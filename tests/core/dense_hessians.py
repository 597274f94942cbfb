"""Small networks and their dense Hessians, for the tests of curvature in the weights."""

import functools
from typing import Any

import torch
from hessian_eigenthings.operators.base import LambdaOperator
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from dd_core.curvature.parameter_space import (
    HessianOperator,
    KrylovSpace,
)
from dd_core.curvature.parameter_space.lanczos import random_signs
from dd_core.models.build import build

NUM_IMAGES = 5
CASES = [
    ("mlp", 2),
    ("mlp", 10),
    ("mlp", 100),
    ("cnn5", 2),
    ("cnn5", 10),
    ("preact_resnet10", 2),
    ("preact_resnet10", 10),
]


def network(architecture: str, classes: int, seed: int = 0) -> nn.Module:
    """Float64, in eval mode, with BatchNorm statistics and weights as after some training."""
    torch.manual_seed(seed)
    if architecture == "mlp":
        layers = [nn.Flatten(), nn.Linear(64, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU()]
        model: nn.Module = nn.Sequential(*layers, nn.Linear(5, classes))
    else:
        model = build(architecture, 1, 1, classes)
    model = model.double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 2)
            module.bias.data.normal_(0, 0.3)
    return model


def pictures(number: int = NUM_IMAGES, side: int = 8) -> Tensor:
    return torch.randn(number, 1, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def labels_for(classes: int, number: int = NUM_IMAGES) -> Tensor:
    return torch.arange(number) * 7 % classes


def gradient_and_hessian(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Of the mean cross-entropy in all parameters, by differentiating twice."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    theta = torch.cat([p.detach().reshape(-1) for p in parameters]).requires_grad_(True)
    parts = theta.split([p.numel() for p in parameters])
    values = {name: part.view(p.shape) for name, part, p in zip(names, parts, parameters, strict=True)}
    loss = cross_entropy(functional_call(model, values, (images,)), labels)
    (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
    rows = [
        torch.autograd.grad(gradient, theta, basis, retain_graph=True, is_grads_batched=True)[0]
        for basis in torch.eye(len(theta), dtype=theta.dtype).split(200)
    ]
    return gradient.detach(), torch.cat(rows)


@functools.cache
def dense(architecture: str, classes: int) -> tuple[Tensor, Tensor]:
    return gradient_and_hessian(network(architecture, classes), pictures(), labels_for(classes))


def operator_of(architecture: str, classes: int, **options: Any) -> HessianOperator:
    options = {"dtype": torch.float64, **options}
    return HessianOperator(network(architecture, classes), pictures(), labels_for(classes), **options)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def of_matrix(matrix: Tensor, block_size: int = 4) -> Any:
    """An operator that is a matrix, for what must hold for any symmetric matrix."""
    operator: Any = LambdaOperator(lambda v: matrix @ v, len(matrix), dtype=matrix.dtype)
    operator.matmat = lambda vectors: vectors @ matrix
    operator.block_size = block_size
    return operator


def space_of(operator: Any, steps: int, seed: int = 0) -> KrylovSpace:
    generator = seeded(seed)
    return KrylovSpace(random_signs(1, operator.size, generator).to(operator.dtype)[0], steps, generator)
