"""What only a GPU can show: the same code there, equal to the CPU within float32, and resumed to the bit."""

import gc

import numpy as np
import pytest
import torch

from dd_core.curvature import per_image_curvature
from dd_core.jobs.worker import prepare_process
from dd_core.models.stacking import Convolution
from dd_core.results.per_image_curvature import compute_curvature
from dd_core.store.checkpoints import load_checkpoint
from dd_core.store.store import Store
from dd_core.study.study import Arm, Checkpoint
from dd_core.tables.files import read_parquet
from dd_core.tables.kinds import PER_IMAGE_CURVATURE
from dd_core.training.shared_stack import SharedStack
from dd_core.training.train import train_arm, train_together
from dd_core.training.trial_stack import TrialStack, stacking

from .comparison import ARM, table
from .dense import assert_close, network, pictures, relative_errors
from .test_class_training import make as make_incremental
from .test_graph_training import make_graphs

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]


def test_resumed_training_on_a_gpu_has_the_same_bits(tiny_study, tmp_path):
    prepare_process(threads=1)
    arm = next(iter(tiny_study.arms.values()))
    last = tiny_study.checkpoints[-1]
    weights = []
    for name, stops in (("whole", [last]), ("parts", [*tiny_study.checkpoints[1:-1], last])):
        store = Store(tmp_path / name)
        for until in stops:
            train_arm(tiny_study, arm, store, until, device=torch.device("cuda"))
        checkpoint = tiny_study.checkpoint(f"{Arm(arm.variant, arm.k).key}|{last:04d}")
        weights.append(load_checkpoint(store, tiny_study, checkpoint)[0])
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16", "float16"])
@pytest.mark.parametrize("mode", [None, "reduce-overhead"])
def test_training_on_a_gpu_follows_the_cpu(mode, precision, make_study):
    """The same images in the same order; losses of the first epoch agree as far as the precision reaches."""
    prepare_process(threads=1)
    sgd = {"name": "sgd", "learning_rate": 0.05, "momentum": 0.9}
    losses = []
    for device, settings in (("cpu", {}), ("cuda", {"precision": precision, "compile": mode})):
        study = make_study({"optimizer": sgd, **settings})
        stacks = [
            TrialStack(study, ARM, trials, torch.device(device), torch.float32) for trials in stacking(study, ARM)
        ]
        losses.append(np.concatenate([stack.train_epoch(1).loss for stack in stacks], axis=1))
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3 if precision == "float32" else 0.05)


def test_a_graph_is_captured_anew_for_every_task(monkeypatch):
    """A graph of the outputs of other classes than before gives the bits of no graph."""
    prepare_process(threads=1)
    study, losses = make_incremental(), []
    for graphs in ("1", "0"):
        monkeypatch.setenv("DD_CUDA_GRAPHS", graphs)
        stack = TrialStack(study, ARM, [0, 1], torch.device("cuda"), torch.float32)
        losses.append(np.concatenate([stack.train_epoch(epoch).loss for epoch in range(1, 7)]))
    np.testing.assert_array_equal(*losses)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_diverging_trial_leaves_the_others_untouched_on_a_gpu(value, make_study):
    """Grouped convolutions must not mix the groups, not even as zero times infinity."""
    prepare_process(threads=1)
    weights = []
    for poisoned in (False, True):
        stack = TrialStack(make_study(), ARM, [0, 1], torch.device("cuda"), torch.float32)
        if poisoned:
            with torch.no_grad():
                next(stack.model.parameters()).unflatten(0, (2, -1))[0].fill_(value)
        stack.train_epoch(1)
        weights.append(stack.weights_of(1))
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


def test_memory_that_runs_out_on_a_gpu_halves_the_images_at_a_time(make_study, tmp_path):
    """Memory is limited to what a batch in small pieces fits into, but not the whole batch."""
    prepare_process(threads=1)
    torch._dynamo.reset()  # graphs that tests before have left keep memory
    no_monitors = dict.fromkeys(("validation", "norms", "hessian", "noise"))  # they want memory of their own
    study = make_study(
        {"batch_size": 1024}, data={"dataset": "digits", "num_train": 1024}, widths=(64,), monitors=no_monitors
    )
    arm, device = Arm("plain", 64), torch.device("cuda")

    def needed(micro_batch: int) -> int:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        # The optimiser's state and its temporaries are there from the second step on.
        TrialStack(study, arm, [0], device, torch.float32, micro_batch).run_steps(2)
        return torch.cuda.max_memory_reserved()

    limit = (needed(64) + needed(1024)) / 2
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.mem_get_info()[1])
    try:
        train_arm(study, arm, Store(tmp_path), 2, device=device, report=print)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    runs = table(Store(tmp_path), study, arm, "runs").query("status != 'running'")
    assert runs.micro_batch_size.iloc[-1] < 1024 and runs.status.iloc[-1] == "finished"
    assert (runs.peak_memory_bytes > 0).all() and (runs.gpu_seconds > 0).all()


SGD = {"name": "sgd", "learning_rate": 0.05, "momentum": 0.9, "nesterov": True, "clip_norm": 0.5}


@pytest.mark.parametrize("optimizer", [{"name": "adam", "learning_rate": 0.002}, SGD])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_step_as_a_cuda_graph_has_the_bits_of_one_without(precision, optimizer, make_study):
    """Over epochs with a smaller last batch, with a learning rate that changes and, for one, clipped gradients."""
    prepare_process(threads=1)
    results = []
    for has_graph in (True, False):
        stack = TrialStack(
            make_study({"optimizer": optimizer, "precision": precision}),
            ARM,
            [0, 1],
            torch.device("cuda"),
            torch.float32,
        )
        if not has_graph:
            stack.stepper.graph = None
        losses = [stack.train_epoch(epoch).loss for epoch in (1, 2, 3)]
        norms = stack.stepper.gradient_norms()
        assert not has_graph or stack.stepper.graph._captured is not None
        results.append((np.concatenate(losses), norms, stack.weights_of(0), stack.weights_of(1)))
    (losses, norms, *weights), (expected_losses, expected_norms, *expected) = results
    np.testing.assert_array_equal(losses, expected_losses)
    assert torch.equal(norms, expected_norms)
    assert all(torch.equal(w[name], e[name]) for w, e in zip(weights, expected, strict=True) for name in w)


def test_interventions_beside_a_cuda_graph_have_the_bits_of_those_without(make_study):
    """Over a task's end, where a graph is made anew; looking at plasticity changes nothing."""
    prepare_process(threads=1)
    interventions = {
        "l2_init": 0.01,
        "head_reset": True,
        "shrink_and_perturb": {"noise": 1e-3},
        "continual_backprop": {"replacement_rate": 0.05, "maturity": 3, "shared_units": True},
    }
    data = {"dataset": "digits", "num_train": 300, "classes": {"first": 5, "add": 5, "every": 3}}
    states = []
    for has_graph in (True, False):
        study = make_study(
            {"optimizer": SGD, "label_noise": 0.0, "interventions": interventions},
            data=data,
            epochs=5,
            checkpoints=(0, 5),
            monitors={"plasticity": {"every": "2 steps"}} if has_graph else {},
        )
        stack = TrialStack(study, ARM, [0, 1], torch.device("cuda"), torch.float32)
        if not has_graph:
            stack.stepper.graph = None
        for epoch in range(1, 6):
            stack.train_epoch(epoch)
        assert not has_graph or stack.stepper.graph._captured is not None
        states.append({name: t for name, t in stack.state().items() if not name.startswith("monitors")})
    graphed, expected = states
    assert all(torch.equal(tensor, expected[name]) for name, tensor in graphed.items())


@pytest.mark.parametrize("optimizer", [{"name": "adamw", "learning_rate": 0.002}, SGD])
def test_arms_in_one_network_follow_the_cpu_and_resume_exactly(optimizer, make_study, tmp_path):
    """Their rates are read by the CUDA graph of a step; losses of the first epoch agree within float32."""
    prepare_process(threads=1)
    plain = make_study({"optimizer": optimizer}).variants["plain"]
    rates = {f"v{n}": plain.optimizer.model_copy(update={"learning_rate": 0.002 * n}) for n in (1, 2, 3)}
    study = make_study(widths=(2,)).model_copy(
        update={"variants": {name: plain.model_copy(update={"optimizer": own}) for name, own in rates.items()}}
    )
    study.__dict__.pop("arms", None)
    arms = list(study.arms.values())
    stacks = [SharedStack(study, arms, list(rates), torch.device(where), torch.float32) for where in ("cpu", "cuda")]
    losses = [shared.stack.train_epoch(1).loss for shared in stacks]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3)
    stacks[1].stack.train_epoch(2)
    assert stacks[1].stack.stepper.graph._captured is not None
    weights = []
    for name, stops in (("whole", (4,)), ("parts", (2, 4))):
        for until in stops:
            train_together(study, arms, Store(tmp_path / name), until, device=torch.device("cuda"))
        weights += [load_checkpoint(Store(tmp_path / name), study, Checkpoint(Arm("v2", 2), 4))[0]]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize("trials", [3, 5, 6, 7])
def test_groups_of_four_channels_are_not_misread(trials):
    """Their weights are surrounded by NaN here: a kernel that reads beyond them, as cuDNN's did, shows it."""
    prepare_process(threads=1)
    layer = Convolution(4, 4, 3, trials).to("cuda", torch.bfloat16).to(memory_format=torch.channels_last)
    images = torch.randn(128, 4 * trials, 32, 32, device="cuda", dtype=torch.bfloat16)
    images = images.to(memory_format=torch.channels_last)
    few, weight = images[:4].cpu().double(), layer.weight.detach()
    expected = torch.nn.functional.conv2d(few, weight.cpu().double(), padding=1, groups=trials)
    surrounded = torch.full((weight.numel() + 8192,), torch.nan, device="cuda", dtype=torch.bfloat16)
    view = torch.as_strided(surrounded, weight.shape, weight.stride(), 4096)
    layer.weight.data = view.copy_(weight)
    with torch.no_grad():
        outputs = [layer(images) for _ in range(5)]
    assert all(torch.equal(output, outputs[0]) for output in outputs)
    torch.testing.assert_close(outputs[0][:4].cpu().double(), expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("architecture", ["preact_resnet18", "cnn5"])
def test_curvature_on_a_gpu_equals_the_cpu(architecture, classes):
    prepare_process(threads=1)
    model, images = network(architecture, 4, 3, classes), pictures(3, 20, side=32)
    labels = torch.arange(20) % classes
    expected = per_image_curvature(model, images, labels).columns
    model, images, labels = model.float().cuda(), images.float().cuda(), labels.cuda()
    for batch_size in (None, 7):
        got = per_image_curvature(model, images, labels, batch_size=batch_size)
        assert got.method == "exact"
        assert_close(got.columns, expected, rel=1e-4, atol=0)
    narrow = per_image_curvature(model, images, labels, precision=torch.bfloat16).columns
    for name, errors in relative_errors(narrow, expected).items():
        assert errors.median() < 1e-2, name


def test_top_directions_on_a_gpu_equal_the_cpu():
    """The probes belong to the images, so that even the random part is the same."""
    prepare_process(threads=1)
    model, images = network("cnn5", 16, 3, 100), pictures(3, 30)
    for parameter in model.linear.parameters():
        parameter.data *= 5
    settings = {"method": "top_directions", "relative_error": 0.1}
    labels = model(images).argmax(1)
    expected = per_image_curvature(model, images, labels, **settings)
    got = per_image_curvature(model.cuda(), images.cuda(), labels.cuda(), **settings)
    assert got.num_passes == expected.num_passes
    assert_close(got.columns, expected.columns, rel=1e-8)


def test_a_checkpoint_curved_on_a_gpu_has_the_values_of_the_cpu(trained, make_study):
    prepare_process(threads=1)
    study = make_study(curvature={"estimators": ("exact", "finite_difference"), "finite_difference": {"num_probes": 2}})
    checkpoint = study.checkpoint("plain.k002|0004")
    rows = []
    for device in ("cpu", "cuda"):
        trained.result_path("per_image_curvature", study.name, checkpoint).unlink(missing_ok=True)
        compute_curvature(study, checkpoint, trained, device=torch.device(device))
        rows.append(read_parquet(trained.result_path("per_image_curvature", study.name, checkpoint)).to_pandas())
    for name in ("trace", "frobenius_norm", "largest_eigenvalue", "gradient_norm", "fd_norm_h1", "fd_norm_h3"):
        assert (rows[1][name] / rows[0][name] - 1).abs().median() < 1e-4, name
    manifest = PER_IMAGE_CURVATURE.manifest(trained, study, checkpoint)
    assert manifest.device == torch.cuda.get_device_name()
    assert manifest.headline["gpu_seconds"] > 0


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_graphs_on_a_gpu_follow_the_cpu_and_resume_exactly(precision, make_study, tmp_path):
    """And in float32 a step waits for nothing; float16 waits to learn whether its gradient overflowed."""
    prepare_process(threads=1)
    plain = make_graphs(make_study, {"precision": precision}, {"dropout": 0.0}, trials=1)
    here, there = (TrialStack(plain, ARM, [0], torch.device(name), torch.float32) for name in ("cpu", "cuda"))
    tolerance = 1e-3 if precision == "float32" else 0.05
    np.testing.assert_allclose(there.train_epoch(1).loss, here.train_epoch(1).loss, rtol=tolerance)
    np.testing.assert_allclose(there.evaluate(1).loss, here.evaluate(1).loss, rtol=tolerance)
    plan = there.examples.plan(2)
    if precision == "float32":
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            there.stepper(lambda start, stop: there.examples.batch(plan, start, stop), 0, 16, [0.01])
        finally:
            torch.cuda.set_sync_debug_mode("default")
    study, weights = make_graphs(make_study, {"precision": precision}), []
    for name, stops in (("whole", [4]), ("parts", [2, 4])):
        store = Store(tmp_path / name)
        for until in stops:
            train_arm(study, ARM, store, until, device=torch.device("cuda"))
        weights.append(load_checkpoint(store, study, Checkpoint(ARM, 4))[0])
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
