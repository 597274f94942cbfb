"""Plasticity: dormant units and ranks of features against plain loops, numpy and scipy; no trace in the training."""

from typing import Any

import numpy as np
import pytest
import scipy
import torch
from torch import Tensor, nn

from dd_core.study.monitors import PlasticityMonitor
from dd_core.training.monitors.plasticity import Plasticity, ranks

from .monitored import MakeStudy, make_stack, moment, plain_images, plain_network
from .test_monitors import NoWaiting, Traces

OPTIONS = {"num_images": 40, "threshold": 0.2}


def of_singular_values(features: np.ndarray) -> tuple[float, int]:
    """Roy & Vetterli 2007, and the count of B3, one value after the other."""
    values = scipy.linalg.svd(features, compute_uv=False, lapack_driver="gesvd")
    shares = values / values.sum()
    entropy = -sum(p * np.log(p) for p in shares if p > 0)
    return float(np.exp(entropy)), int((np.cumsum(np.sort(shares)[::-1]) < 0.99).sum()) + 1


def test_ranks_are_those_of_the_singular_values() -> None:
    random = np.random.default_rng(0)
    some = random.normal(size=(3, 30, 8))
    some[1, :, 3:] = 0.001 * some[1, :, :1]
    some[2] = 0
    got = ranks(torch.from_numpy(some))
    for trial in range(2):
        effective, stable = of_singular_values(some[trial])
        assert got["effective_rank"][trial].item() == pytest.approx(effective, rel=1e-10)
        assert got["stable_rank"][trial].item() == stable
    assert got["effective_rank"][2] == got["stable_rank"][2] == 0
    alike = ranks(torch.eye(8).expand(1, 8, 8))
    assert alike["effective_rank"].item() == pytest.approx(8)
    assert alike["stable_rank"].item() == 8


def layers_of(network: nn.Module, images: Tensor) -> tuple[list[Tensor], Tensor]:
    """What every call of a ReLU gives, and what the last linear layer is given, in a plain network."""
    outputs: list[Tensor] = []
    features: list[Tensor] = []
    for module in network.modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_hook(lambda m, i, o: outputs.append(o.detach().clone()))
    last = network.layers[-1] if hasattr(network, "layers") and not hasattr(network, "linear") else network.linear
    last.register_forward_pre_hook(lambda m, i: features.append(i[0].detach().clone()))
    network(images)
    return outputs, features[0]


@pytest.mark.parametrize("architecture", ["mlp", "cnn5", "resnet18", "preact_resnet10"])
def test_every_trial_has_the_values_of_its_network_alone(make_study: MakeStudy, architecture: str) -> None:
    stack = make_stack(make_study, architecture=architecture, k=8 if architecture == "mlp" else 2)
    monitor = Plasticity(stack, **OPTIONS)
    got = monitor.measure(moment(stack))
    for position, data in enumerate(stack.data):
        chosen = monitor._orders[position][:40]
        images = plain_images(data, data.train_ids[chosen])
        outputs, features = layers_of(_plain(stack, position), images)
        dormant = total = 0
        for index, output in enumerate(outputs):
            is_pooled = index == len(outputs) - 1 and architecture in ("cnn5", "resnet18")
            for unit in range(output.shape[1]):
                values = output[:, unit].flatten(1) if output.ndim == 4 else output[:, unit, None]
                used = values.mean(1) if is_pooled else values
                dormant += int((used != 0).double().mean() < 0.2)
                total += 1
        assert 0 < dormant < total
        assert got["dormant_units"][position].item() == pytest.approx(dormant / total)
        effective, stable = of_singular_values(features.numpy())
        assert got["effective_rank"][position].item() == pytest.approx(effective, rel=1e-8)
        assert got["stable_rank"][position].item() == stable


def _plain(stack: Any, position: int) -> nn.Module:
    if stack.variant.architecture != "mlp":
        return plain_network(stack, position)
    from dd_core.models.build import build
    from dd_core.models.stacking import load_state

    model = build("mlp", 8, 1, 10, size=(8, 8)).double()
    load_state(model, stack.weights_of(position))
    return model.eval()


def test_it_leaves_no_trace_and_only_its_decomposition_waits(
    make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = make_stack(make_study)
    monitor = Plasticity(stack, **OPTIONS)
    before = Traces(stack)
    monitor.measure(moment(stack))
    before.assert_equal(stack)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in stack.model.modules())
    monkeypatch.setattr(torch.linalg, "svdvals", lambda x: x[:, 0])
    with NoWaiting():
        monitor.measure(moment(stack))


def test_a_network_without_relu_has_ranks_alone_and_one_without_finite_weights_nothing(make_study: MakeStudy) -> None:
    vit = make_stack(make_study, architecture="vit", steps=1)
    got = Plasticity(vit, **OPTIONS).measure(moment(vit))
    assert set(got) == {"effective_rank", "stable_rank"}
    assert all(value.isfinite().all() for value in got.values())
    stack = make_stack(make_study)
    before = Plasticity(stack, **OPTIONS).measure(moment(stack))
    assert set(before) == set(PlasticityMonitor.first_steps)
    stack.diverge(0)
    for name, value in Plasticity(stack, **OPTIONS).measure(moment(stack)).items():
        assert value[0].isnan()
        assert torch.equal(value[1], before[name][1])


def test_only_images_of_the_epoch_are_looked_at(make_study: MakeStudy) -> None:
    stack = make_stack(make_study, steps=1)
    stack.calendar = type(stack.calendar)(30, 32, ((2, 100),))
    monitor = Plasticity(stack, num_images=80, threshold=0.01)
    assert sorted(monitor._positions(1)[:, 0].tolist()) == list(range(30))
    assert len(set(monitor._positions(2)[:, 1].tolist())) == 80
