"""Interventions: each against plain loops over one network alone, the same in any stack, and resumed to the bit."""

import contextlib
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from dd_core.analysis.plasticity import begins_anew
from dd_core.checks.integrity import metric_gaps
from dd_core.data.randomness import Purpose, torch_seed
from dd_core.errors import UserError
from dd_core.models.build import build
from dd_core.models.hidden_units import hidden_units
from dd_core.store.store import Store
from dd_core.study.architectures import ARCHITECTURES
from dd_core.study.monitors import PlasticityMonitor
from dd_core.study.stacks import kind
from dd_core.tables.warehouse import connect
from dd_core.training.interventions.best_weights import BestWeights
from dd_core.training.interventions.head_reset import HeadReset
from dd_core.training.interventions.new_network import NewNetwork
from dd_core.training.interventions.shrink_and_perturb import ShrinkAndPerturb
from dd_core.training.interventions.unit_layer import Turnover
from dd_core.training.train import train_arm
from dd_core.training.trial_stack import TrialStack

from .comparison import ARM, Killed, assert_same_results, killer, table
from .monitored import OFF, MakeStudy, make_stack
from .test_monitors import NoWaiting

SGD = {"name": "sgd", "learning_rate": 0.05, "momentum": 0.9, "weight_decay": 1e-3}
ADAM = {"name": "adam", "learning_rate": 0.002}
REPLACING = {"continual_backprop": {"replacement_rate": 0.2, "maturity": 2, "decay": 0.8}}
NUM_STEPS = 9


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


class Alone:
    """One trial's network in a training loop as in a textbook, on the batches of a stack."""

    def __init__(self, stack: TrialStack, position: int):  # noqa: D107
        self.stack, self.position, self.trial = stack, position, stack.trials[position]
        self.model = self.fresh("initialisation", 0)
        self.initial = [p.detach().clone() for p in self.model.parameters()]
        recipe = stack.variant.optimizer
        parameters = list(self.model.parameters())
        self.optimizer: torch.optim.Optimizer = torch.optim.Adam(parameters, recipe.learning_rate)
        if recipe.name == "sgd":
            others = {"momentum": recipe.momentum, "weight_decay": recipe.weight_decay}
            self.optimizer = torch.optim.SGD(parameters, recipe.learning_rate, **others)
        self.step = 0

    def fresh(self, purpose: Purpose, number: int) -> nn.Module:  # noqa: D102
        arm, variant = self.stack.arm, self.stack.variant
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch_seed(self.stack.study.seed, self.trial, purpose, number))
            return build(variant.architecture, arm.k, 1, 10, settings=variant.network, size=(8, 8)).double()

    def train(self, num_steps: int, penalty: float = 0.0, after: Any = None) -> None:  # noqa: D102
        calendar, examples = self.stack.calendar, self.stack.examples
        for step in range(self.step + 1, self.step + num_steps + 1):
            images, labels = examples.batch(examples.plan(calendar.epoch_of(step)), *calendar.batch_of(step))
            images = images.unflatten(1, (len(self.stack.trials), -1))[:, self.position]
            loss = cross_entropy(self.model.train()(images), labels[:, self.position])
            distance = sum((p - p0).square().sum() for p, p0 in zip(self.model.parameters(), self.initial, strict=True))
            self.optimizer.zero_grad()
            (loss + penalty * distance).backward()
            self.optimizer.step()
            if after is not None:
                with torch.no_grad():
                    after(step)
        self.step += num_steps

    def assert_same(self) -> None:  # noqa: D102
        ours = self.stack.weights_of(self.position)
        for name, tensor in self.model.state_dict().items():
            close(ours[name], tensor)


def trained_stack(make_study: MakeStudy, interventions: dict[str, Any], **options: Any) -> TrialStack:
    options = {"optimizer": SGD, "schedule": {"name": "constant"}, "steps": NUM_STEPS, **options}
    return make_stack(make_study, interventions=interventions, **options)


# --- each against a plain implementation


@pytest.mark.parametrize("optimizer", [SGD, ADAM, {**SGD, "clip_norm": 1e6}])
def test_l2_init_is_a_penalty_on_the_squared_distance(make_study: MakeStudy, optimizer: Any) -> None:
    stack = trained_stack(make_study, {"l2_init": 0.3}, optimizer=optimizer)
    for position in range(2):
        alone = Alone(stack, position)
        alone.train(NUM_STEPS, penalty=0.3)
        alone.assert_same()


@pytest.mark.parametrize("shrink", [1.0, 0.9])
def test_shrink_and_perturb_at_steps(make_study: MakeStudy, shrink: float) -> None:
    stack = trained_stack(make_study, {"shrink_and_perturb": {"shrink": shrink, "noise": 0.01}}, architecture="cnn5")
    for position in range(2):
        alone = Alone(stack, position)

        def act(step: int, alone: Alone = alone) -> None:
            parameters = list(alone.model.parameters())
            random = torch.Generator().manual_seed(torch_seed(0, alone.trial, "perturbation", step))
            noise = torch.randn(sum(p.numel() for p in parameters), generator=random, dtype=torch.float64)
            for parameter in parameters:
                own, noise = noise[: parameter.numel()], noise[parameter.numel() :]
                parameter.copy_(shrink * parameter + 0.01 * own.view(parameter.shape))

        alone.train(NUM_STEPS, after=act)
        alone.assert_same()


def test_shrink_and_perturb_at_tasks_acts_there_alone(make_study: MakeStudy) -> None:
    stack = make_stack(make_study)
    intervention = ShrinkAndPerturb(stack, shrink=0.5, noise=0.1, at="tasks")
    before = {name: tensor.clone() for name, tensor in stack.state().items()}
    intervention.after_step(7)
    assert all(torch.equal(tensor, before[name]) for name, tensor in stack.state().items())
    intervention.begin_task(2)
    names = {f"model.{name}" for name, _ in stack.model.named_parameters()}
    noise = torch.cat([(t - 0.5 * before[n]).flatten() for n, t in stack.state().items() if n in names])
    assert noise.std().item() == pytest.approx(0.1, rel=0.05)
    assert all(torch.equal(t, before[n]) for n, t in stack.state().items() if n not in names)


def replace_units(alone: Alone, layers: list[tuple[list[str], str]], rate: float, maturity: int, decay: float) -> Any:
    """Algorithm 1 of Dohare et al. 2024, unit by unit, for layers as [incoming, normalisation] and outgoing."""
    modules = dict(alone.model.named_modules())
    seen: dict[str, Tensor] = {}
    for _, outgoing in layers:
        modules[outgoing].register_forward_pre_hook(
            lambda module, inputs, name=outgoing: seen.__setitem__(name, inputs[0].detach())
        )
    sizes = [modules[made[0]].weight.shape[0] for made, _ in layers]
    ages, utilities = [[0] * n for n in sizes], [[0.0] * n for n in sizes]
    means, debts = [[0.0] * n for n in sizes], [0.0] * len(sizes)

    def memory(parameter: nn.Parameter) -> list[Tensor]:
        return [t for name, t in alone.optimizer.state[parameter].items() if name != "step"]

    def act(step: int) -> None:
        chosen: list[list[int]] = []
        for layer, (_, outgoing) in enumerate(layers):
            for unit in range(sizes[layer]):
                activity = seen[outgoing][:, unit].abs().mean().item()
                reading = modules[outgoing].weight[:, unit].abs().sum().item()
                ages[layer][unit] += 1
                utilities[layer][unit] = decay * utilities[layer][unit] + (1 - decay) * activity * reading
                means[layer][unit] = decay * means[layer][unit] + (1 - decay) * activity
            mature = [unit for unit in range(sizes[layer]) if ages[layer][unit] > maturity]
            debts[layer] += rate * len(mature)
            number = int(debts[layer])
            debts[layer] -= number
            mature.sort(key=lambda unit: utilities[layer][unit] / (1 - decay ** ages[layer][unit]))
            chosen.append(mature[:number])
        fresh = dict(alone.fresh("new_units", step // maturity).named_modules())
        for layer, (made, outgoing) in enumerate(layers):
            reader = modules[outgoing]
            for unit in chosen[layer]:
                for name in made:
                    for (_, own), (_, new) in zip(
                        modules[name].state_dict(keep_vars=True).items(), fresh[name].state_dict().items(), strict=True
                    ):
                        own[unit] = new[unit]
                        for tensor in memory(own) if isinstance(own, nn.Parameter) else ():
                            tensor[unit] = 0
                if isinstance(modules[made[0]], nn.Linear):
                    mean = means[layer][unit] / (1 - decay ** ages[layer][unit])
                    reader.bias += reader.weight[:, unit] * mean
                for tensor in (reader.weight, *memory(reader.weight)):
                    tensor[:, unit] = 0
                ages[layer][unit], utilities[layer][unit], means[layer][unit] = 0, 0.0, 0.0
        act.num_replaced += sum(map(len, chosen))  # type: ignore[attr-defined]

    act.num_replaced = 0  # type: ignore[attr-defined]
    return act


# By hand, from the figures in He et al. 2016: what makes the units, and what reads them.
INNER = [([f"blocks.{i}.conv1", f"blocks.{i}.bn1"], f"blocks.{i}.conv2") for i in range(8)]
SUMS = [
    (["conv1", "bn1"], "blocks.0.conv1"),
    *(([f"blocks.{i}.conv2", f"blocks.{i}.bn2"], f"blocks.{i + 1}.conv1") for i in range(7)),
    (["blocks.7.conv2", "blocks.7.bn2"], "linear"),
]
LAYERS: dict[str, tuple[dict[str, Any], bool, list[tuple[list[str], str]]]] = {
    "mlp": (
        {"architecture": "mlp", "network": {"layers": 2}},
        False,
        [(["layers.0"], "layers.2"), (["layers.2"], "layers.4")],
    ),
    "cnn5": (
        {"architecture": "cnn5"},
        False,
        [
            (["layers.0", "layers.1"], "layers.3"),
            (["layers.3", "layers.4"], "layers.7"),
            (["layers.7", "layers.8"], "layers.11"),
            (["layers.11", "layers.12"], "linear"),
        ],
    ),
    "preact_resnet10": (
        {"architecture": "preact_resnet10"},
        False,
        [([f"blocks.{i}.conv1", f"blocks.{i}.bn2"], f"blocks.{i}.conv2") for i in range(4)],
    ),
    "resnet18": ({"architecture": "resnet18"}, False, INNER),
    "resnet18 with sums": (
        {"architecture": "resnet18"},
        True,
        [SUMS[0], *(layer for pair in zip(INNER, SUMS[1:], strict=True) for layer in pair)],
    ),
}


@pytest.mark.parametrize(("name", "optimizer"), [*((name, SGD) for name in LAYERS), ("cnn5", ADAM), ("mlp", ADAM)])
def test_continual_backprop_is_the_published_algorithm(make_study: MakeStudy, name: str, optimizer: Any) -> None:
    variant, shared, layers = LAYERS[name]
    options = {**REPLACING["continual_backprop"], "shared_units": shared}
    k = 8 if name == "mlp" else 2
    if optimizer == ADAM and name == "cnn5":
        variant = {**variant, "network": {"norm": "none"}}  # Adam makes steps of biases that normalisation takes away
    stack = trained_stack(make_study, {"continual_backprop": options}, optimizer=optimizer, k=k, **variant)
    for position in range(2):
        alone = Alone(stack, position)
        replace = replace_units(alone, layers, 0.2, 2, 0.8)
        alone.train(NUM_STEPS, after=replace)
        assert replace.num_replaced > 3
        alone.assert_same()


@pytest.mark.parametrize(
    ("architecture", "name"),
    [("mlp", "layers.2"), ("vit", "linear"), ("tests.core.test_interventions:unordered", "read")],
)
def test_the_head_begins_anew_and_so_does_the_optimiser_there(
    make_study: MakeStudy, architecture: str, name: str
) -> None:
    trials = (1,) if ":" in architecture else (0, 1)
    stack = make_stack(make_study, trials, architecture=architecture, k=2, steps=3)
    before = {key: tensor.clone() for key, tensor in stack.state().items()}
    HeadReset(stack).begin_task(2)
    for position in range(len(trials)):
        fresh = Alone(stack, position).fresh("new_head", 2).get_submodule(name)
        for key, tensor in fresh.named_parameters():
            assert torch.equal(stack.weights_of(position)[f"{name}.{key}"], tensor)
    heads = [p for key, p in stack.model.named_parameters() if f"{name}." in key]
    assert len(heads) == 2
    assert all(not tensor.any() for p in heads for tensor in stack.stepper.optimizer.state[p].values())
    changed = {key for key, tensor in stack.state().items() if not torch.equal(before[key], tensor)}
    assert {key for key in changed if key.startswith("model")} == {f"model.{name}.weight", f"model.{name}.bias"}
    assert len(changed) == 2 + 2 * 3  # and two moments and a number of steps for each


@pytest.mark.parametrize("optimizer", [{**SGD, "learning_rate": 0.002}, ADAM])
def test_a_new_network_learns_as_if_nothing_had_been_before(make_study: MakeStudy, optimizer: Any) -> None:
    network = {"norm": "none"} if optimizer == ADAM else {}  # Adam makes steps of biases that normalisation takes away
    options: dict[str, Any] = {"architecture": "cnn5", "network": network, "k": 2}
    stack = trained_stack(make_study, {}, optimizer=optimizer, steps=3, **options)
    NewNetwork(stack).begin_task(2)
    _go_on(stack, 3, 7)
    for position in range(2):
        alone = Alone(stack, position)
        alone.model.load_state_dict(alone.fresh("new_network", 2).state_dict())
        alone.step = 3
        alone.train(4)
        alone.assert_same()


@pytest.mark.parametrize(
    ("interventions", "expected"),
    [
        ({"new_network": True}, True),
        ({"shrink_and_perturb": {"shrink": 0.01, "at": "tasks"}}, True),
        ({"shrink_and_perturb": {"shrink": 0.5, "at": "tasks"}}, False),
        ({"head_reset": True}, False),
    ],
)
def test_which_variants_others_are_measured_by(make_study: MakeStudy, interventions: Any, expected: bool) -> None:
    study = make_study({"label_noise": 0.0, "interventions": interventions}, data=CLASSES)
    assert begins_anew(study.variants["plain"]) is expected


class _Unordered(nn.Module):
    """A network of somebody's own, whose last layer is named first, and another linear layer last."""

    def __init__(self, k: int, num_classes: int):
        super().__init__()
        self.read = nn.Linear(k, num_classes)
        self.hide = nn.Linear(64, k)

    def forward(self, images: Tensor) -> Tensor:
        return self.read(self.hide(images.flatten(1)).relu())


def unordered(k: int, channels: int, num_classes: int) -> nn.Module:
    return _Unordered(k, num_classes)


def convolutional(k: int, channels: int, num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, num_classes, 8), nn.Flatten())


def test_a_network_without_a_last_linear_layer_has_no_head(make_study: MakeStudy) -> None:
    stack = make_stack(make_study, (0,), architecture="tests.core.test_interventions:convolutional", steps=1)
    with pytest.raises(UserError, match=r"head_reset: .*:convolutional has no linear layer that gives its logits$"):
        HeadReset(stack).begin_task(2)


def test_the_weights_of_the_best_evaluation_come_back_trial_by_trial(make_study: MakeStudy) -> None:
    stack = make_stack(make_study, architecture="cnn5", steps=0)
    best = BestWeights(stack)
    # The first of several alike; what is not a number is no evaluation.
    accuracies = [(0.3, 0.5), (0.7, 0.5), (0.7, math.nan), (0.2, 0.4)]
    seen = []
    for step, of_trials in enumerate(accuracies, start=1):
        stack.run_steps(step)
        seen.append([stack.weights_of(position) for position in range(2)])
        for position, accuracy in enumerate(of_trials):
            best.note_evaluation(position, accuracy)
    remembered = {name: t.clone() for name, t in stack.state().items() if name.startswith("optimizer")}
    again = BestWeights(stack)
    again.load_state(best.state())
    for one in (best, again):
        stack.run_steps(1)
        before = {name: t.clone() for name, t in stack.state().items() if name.startswith("optimizer")}
        one.end_task(1)
        for position, index in enumerate((1, 0)):
            ours = stack.weights_of(position)
            assert all(torch.equal(ours[name], tensor) for name, tensor in seen[index][position].items())
            assert not torch.equal(ours["linear.bias"], seen[3][position]["linear.bias"])
        assert all(torch.equal(t, stack.state()[name]) for name, t in before.items())
    assert before.keys() == remembered.keys()
    # The next task begins without a best.
    best.note_evaluation(0, 0.1)
    kept = stack.weights_of(0), stack.weights_of(1)
    stack.run_steps(2)
    last = stack.weights_of(1)
    best.end_task(2)
    assert torch.equal(stack.weights_of(0)["linear.bias"], kept[0]["linear.bias"])
    assert torch.equal(stack.weights_of(1)["linear.bias"], last["linear.bias"])


# --- which units there are, and how many begin anew


@pytest.mark.parametrize("name", [name for name, record in ARCHITECTURES.items() if record.has_known_units])
def test_a_unit_is_what_its_layer_makes_and_one_layer_reads(name: str) -> None:
    images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)).double()
    settings = {"layers": 3} if name == "mlp" else {}
    torch.manual_seed(0)
    model = build(name, 3, 3, 5, settings=settings, size=(16, 16)).double().eval()
    read: dict[str, Tensor] = {}
    for layer in {units.outgoing for units in hidden_units(model)}:
        model.get_submodule(layer).register_forward_pre_hook(
            lambda module, given, layer=layer: read.__setitem__(layer, given[0].detach().clone())
        )
    layers = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear) and "downsample" not in n]
    layers = [n for n in layers if "shortcut" not in n]
    assert [units.incoming for units in hidden_units(model)] == layers[: len(hidden_units(model))]
    assert len(layers) - len(hidden_units(model)) == (name == "mlp")  # which alone has no Classifier
    for units in hidden_units(model):
        with torch.no_grad():
            before = model(images), read[units.outgoing]
            for layer in filter(None, (units.incoming, units.normalisation)):
                for tensor in model.get_submodule(layer).state_dict().values():
                    tensor[1] += 0.5
            after = model(images), read[units.outgoing]
            changed = (after[1] != before[1]).transpose(0, 1).flatten(1).any(1)
            assert changed.tolist() == [unit == 1 for unit in range(len(changed))], units
            assert not torch.equal(after[0], before[0])
            if not units.is_shared:
                model.get_submodule(units.outgoing).weight[:, 1] = 0
                without = model(images)
                for tensor in model.get_submodule(units.incoming).state_dict().values():
                    tensor[1] += 0.5
                assert torch.equal(model(images), without), units


@given(st.integers(1, 30), st.floats(0.001, 0.9), st.integers(1, 6), st.integers(1, 60), st.data())
def test_how_many_begin_anew_is_a_share_of_the_mature(size: int, rate: float, maturity: int, steps: int, data: Any):
    turnover, ages, debt = Turnover(size, rate, maturity), [0] * size, 0.0
    stop = data.draw(st.integers(0, steps))
    for step in range(1, steps + 1):
        ages = [age + 1 for age in ages]
        mature = [unit for unit, age in enumerate(ages) if age > maturity]
        debt += rate * len(mature)
        number = int(debt)
        debt -= number
        assert turnover.count(step) == number
        for unit in data.draw(st.permutations(mature))[:number]:  # any of them
            ages[unit] = 0
        if step == stop:
            births = [step - age for age in ages]
            turnover = Turnover(size, rate, maturity)
            turnover.load(debt, births)


# --- in a training


ALL = {"l2_init": 0.1, "shrink_and_perturb": {"shrink": 0.99, "noise": 0.01}, **REPLACING}


@settings(max_examples=5)
@given(st.integers(1, NUM_STEPS - 1))
def test_going_on_from_any_step_gives_the_same_bits(make_study: MakeStudy, step: int) -> None:
    options: dict[str, Any] = {"architecture": "cnn5", "k": 2, "dtype": torch.float32, "optimizer": ADAM}
    whole = trained_stack(make_study, ALL, **options)
    first = trained_stack(make_study, ALL, **{**options, "steps": step})
    again = trained_stack(make_study, ALL, **{**options, "steps": 0})
    again.load_state({name: tensor.clone() for name, tensor in first.state().items()})
    _go_on(again, step, NUM_STEPS)
    expected, got = whole.state(), again.state()
    assert expected.keys() == got.keys()
    assert all(torch.equal(tensor, got[name]) for name, tensor in expected.items())


def _go_on(stack: TrialStack, done: int, until: int) -> None:
    """The steps of a training from one to another, as ``train_epoch`` does them."""
    for step in range(done + 1, until + 1):
        stack.model.train()
        plan = stack.examples.plan(stack.calendar.epoch_of(step))
        stack.stepper(lambda a, b, plan=plan: stack.examples.batch(plan, a, b), *stack.calendar.batch_of(step), [0.002])
        stack.interventions.after_step(step)


def test_micro_batches_and_what_monitors_look_at_change_nothing(make_study: MakeStudy) -> None:
    every_step = {"validation": {"every": "1 step"}, "plasticity": {"every": "1 step", "num_images": 5}}
    options: dict[str, Any] = {"architecture": "cnn5", "k": 2, "network": {"norm": "group"}}
    plain = trained_stack(make_study, REPLACING, **options)
    watched = trained_stack(make_study, REPLACING, **options, monitors={**OFF, **every_step})
    parts = trained_stack(make_study, REPLACING, **options, steps=0)
    parts.set_micro_batch(7)
    parts.run_steps(NUM_STEPS)
    assert all(torch.equal(tensor, watched.state()[name]) for name, tensor in plain.state().items())
    for name, tensor in plain.state().items():
        close(tensor.double(), parts.state()[name].double())


def test_a_trial_that_diverged_leaves_the_others_alone_and_nothing_waits(make_study: MakeStudy) -> None:
    options: dict[str, Any] = {"architecture": "cnn5", "k": 2, "dtype": torch.float32, "steps": 2}
    sound, harmed = (trained_stack(make_study, ALL, **options) for _ in range(2))
    harmed.diverge(0)
    for stack in (sound, harmed):
        _go_on(stack, 2, 5)
        with NoWaiting():
            stack.interventions.after_step(6)
    for name, tensor in sound.weights_of(1).items():
        assert torch.equal(tensor, harmed.weights_of(1)[name])
    births = harmed.state()["interventions.continual_backprop.0.births"]
    assert births.sort(dim=1).values.diff(dim=0).eq(0).all()


# --- what a study may say


def test_without_interventions_there_is_nothing_to_do_and_the_recipe_is_as_before(make_study: MakeStudy) -> None:
    stack = make_stack(make_study)
    assert stack.stepper.before_update is None
    assert list(stack.interventions) == []
    study = make_study()
    assert "interventions" not in study.recipe(study.arms["plain.k001"])["variant"]


def test_going_back_to_the_best_weights_makes_the_interval_of_evaluations_part_of_the_recipe(
    make_study: MakeStudy,
) -> None:
    def recipe(interventions: dict[str, Any], every: int) -> str:
        classes = {"first": 4, "add": 3, "every": 2}
        data = {**CLASSES, "num_validation": 20, "classes": classes}
        study = make_study({"label_noise": 0.0, "interventions": interventions}, data=data, evaluation={"every": every})
        return study.recipe_hash(ARM)

    assert recipe({"best_weights": True}, 1) != recipe({"best_weights": True}, 2)
    assert recipe({"l2_init": 0.1}, 1) == recipe({"l2_init": 0.1}, 2)


def test_arms_with_interventions_share_no_network(make_study: MakeStudy) -> None:
    study = make_study()
    assert kind(study, study.arms["plain.k001"])
    study = make_study({"interventions": {"l2_init": 0.1}})
    assert not kind(study, study.arms["plain.k001"])


CLASSES = {"dataset": "digits", "num_train": 100, "classes": {"first": 4, "add": 3, "every": 1}}


@pytest.mark.parametrize(
    ("variant", "data", "sentence"),
    [
        ({"interventions": {"head_reset": True}}, {}, "head_reset: acts where one task ends .* set data.classes"),
        ({"interventions": {"new_network": True}}, {}, "new_network: acts where one task ends .* set data.classes"),
        ({"interventions": {"shrink_and_perturb": {"at": "tasks"}}}, {}, "shrink_and_perturb.at: acts where one task"),
        (
            {"label_noise": 0.0, "interventions": {"best_weights": True}},
            CLASSES,
            "best_weights: acc_val needs validation images; set data.num_validation \\[type",
        ),
        (
            {"label_noise": 0.0, "interventions": {"best_weights": True}, "evaluation": {"every": 2}},
            {**CLASSES, "num_validation": 20},
            "best_weights: evaluations every 2 epochs leave out tasks of 1 epoch;",
        ),
        ({"interventions": {"shrink_and_perturb": {"noise": 0}}}, {}, "shrink 1 and noise 0 change nothing"),
        ({"architecture": "vit", "interventions": REPLACING}, {}, "which units of vit feed which is not known"),
        ({"interventions": REPLACING, "compile": "default"}, {}, "continual_backprop: looks at .* leave out compile"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(make_study: MakeStudy, variant: Any, data: Any, sentence: str) -> None:
    with pytest.raises(ValidationError, match=f"(?m){sentence}"):
        others = {"evaluation": variant["evaluation"]} if "evaluation" in variant else {}
        variant = {key: value for key, value in variant.items() if key not in others}
        make_study(variant, **({"data": data} if data else {}), **others)


# --- over tasks


OVER_TASKS = {
    "variant": {
        "architecture": "cnn5",
        "optimizer": SGD,
        "schedule": {"name": "constant"},
        "label_noise": 0.0,
        "interventions": {**ALL, "best_weights": True, "head_reset": True},
    },
    "data": {
        "dataset": "digits",
        "num_train": 100,
        "num_validation": 20,
        "classes": {"first": 4, "add": 3, "every": 2},
    },
    "epochs": 6,
    "checkpoints": (0, 2, 3, 6),
    "monitors": {**OFF, "plasticity": {"every": "1/2 epoch", "num_images": 30}},
}


def test_a_kill_at_the_end_of_a_task_or_within_changes_nothing(make_study: MakeStudy, tmp_path: Path) -> None:
    study = make_study(**OVER_TASKS)
    whole, resumed = Store(tmp_path / "whole"), Store(tmp_path / "resumed")
    train_arm(study, ARM, whole, study.epochs)
    for epoch in (2, 5):
        with pytest.raises(Killed):
            train_arm(study, ARM, resumed, study.epochs, report=killer("progress", epoch), resume_seconds=0)
    train_arm(study, ARM, resumed, study.epochs)
    assert_same_results(resumed, whole, study, epochs=study.checkpoints)
    assert set(table(whole, study, ARM, "training_monitors")["metric"]) == set(PlasticityMonitor.first_steps)
    with contextlib.closing(connect(whole)) as connection:
        gaps, _ = metric_gaps(whole, study, connection)
    assert not [gap for gap in gaps for metric in PlasticityMonitor.first_steps if metric in gap]
