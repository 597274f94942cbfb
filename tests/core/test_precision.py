"""Reduced precision and compiled networks against plain torch: autocast, gradient scaling, torch.compile."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from dd_core.data.augmentation import plan_epoch
from dd_core.data.randomness import torch_seed
from dd_core.models.build import build
from dd_core.study.study import Arm, Study
from dd_core.training.precision import tensor_cores
from dd_core.training.trial_stack import TrialStack, stacking

CPU = torch.device("cpu")
ARM = Arm("plain", 4)
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def plain_losses(study: Study, precision: str, trial: int, epochs: int) -> tuple[list[float], float]:
    """One plain network with torch.autocast and torch's GradScaler; losses of all steps, and the last scale."""
    stack = TrialStack(study, ARM, [trial], CPU, torch.float32)  # for its images and labels alone
    torch.manual_seed(torch_seed(study.seed, trial, "initialisation"))
    network = build(study.variants["plain"].architecture, ARM.k, 1, 10).train()
    rate = study.variants["plain"].optimizer.learning_rate
    optimizer = torch.optim.SGD(network.parameters(), lr=rate, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", enabled=precision == "float16")
    losses = []
    for epoch in range(1, epochs + 1):
        plan = plan_epoch(study.seed, [trial], 100, epoch, study.variants["plain"].augmentation, CPU)
        for start in range(0, 100, 32):
            images, labels = stack.examples.batch(plan, start, min(start + 32, 100))
            labels = labels[:, 0]
            with torch.autocast("cpu", DTYPES[precision]):
                logits = network(images)
            loss = cross_entropy(logits.float(), labels)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            losses.append(loss.item())
    return losses, scaler.get_scale()


SGD = {
    "optimizer": {"name": "sgd", "learning_rate": 0.05, "momentum": 0.9},
    "schedule": {"name": "constant"},
}


@pytest.mark.parametrize("architecture", ["preact_resnet10", "preact_resnet18", "cnn5"])
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_reduced_precision_is_torchs_autocast_of_each_network(
    precision: str, architecture: str, make_study: Any
) -> None:
    # The deeper one would blow up differences of rounding within these eight steps at a higher rate.
    rate = 0.002 if architecture == "preact_resnet18" else 0.05
    optimizer = {**SGD["optimizer"], "learning_rate": rate}
    study = make_study({**SGD, "optimizer": optimizer, "precision": precision, "architecture": architecture})
    ours = []
    for trials in stacking(study, ARM):
        stack = TrialStack(study, ARM, trials, CPU, torch.float32)
        assert all(p.dtype == torch.float32 for p in stack.model.parameters())
        ours.append(np.concatenate([stack.train_epoch(epoch).loss for epoch in (1, 2)]))
        scaler = stack.stepper.arithmetic.scaler
    losses = np.concatenate(ours, axis=1)
    for trial in (0, 1):
        expected, scale = plain_losses(study, precision, trial, epochs=2)
        # Rounding to 8 (bfloat16) or 11 bits, in another order of channels.
        np.testing.assert_allclose(losses[:, trial], expected, rtol=0.05 if precision == "bfloat16" else 0.01)
    assert (scaler is not None and scaler.get_scale() == scale) if precision == "float16" else scaler is None


def test_networks_that_need_a_scale_of_their_own_are_not_stacked(make_study: Any) -> None:
    assert stacking(make_study({"precision": "bfloat16"}), ARM) == [[0, 1]]
    assert stacking(make_study({"precision": "float16"}), ARM) == [[0], [1]]
    assert stacking(make_study({"schedule": {"name": "plateau", "metric": "train_loss"}}), ARM) == [[0], [1]]


def test_an_overflowing_gradient_skips_the_step_and_halves_the_scale(make_study: Any) -> None:
    study = make_study({**SGD, "precision": "float16"})
    stack = TrialStack(study, ARM, [0], CPU, torch.float32)
    stack.stepper.arithmetic.load_state(
        {"scale": torch.tensor(2.0**40, dtype=torch.float64), "_growth_tracker": torch.tensor(3.0)}
    )
    before = {name: p.detach().clone() for name, p in stack.model.named_parameters()}
    stack.run_steps(1)
    assert all(torch.equal(p, before[name]) for name, p in stack.model.named_parameters())
    assert stack.stepper.arithmetic.state()["scale"] == 2.0**39


def test_products_are_rounded_to_tf32_inside_alone() -> None:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    for precision, expected in (("tf32", True), ("float32", False)):
        with tensor_cores(precision):  # type: ignore[arg-type]
            assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (expected, expected)
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == before


def test_a_compiled_network_trains_the_same_way(make_study: Any) -> None:
    """float64, to the rounding of another order of sums."""
    losses = []
    for mode in (None, "default"):
        variant = {**SGD, "compile": mode, "architecture": "cnn5"}
        study = make_study(variant, data={"dataset": "digits", "num_train": 64})
        stack = TrialStack(study, Arm("plain", 1), [0, 1], CPU, torch.float64)
        losses.append(np.concatenate([stack.train_epoch(epoch).loss for epoch in (1, 2)]))
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-9)
