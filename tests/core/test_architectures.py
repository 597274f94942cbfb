"""Every architecture of the registry against networks written independently, alone and stacked, and its FLOPs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dd_core.errors import UserError
from dd_core.models.build import build, build_trials
from dd_core.models.stacking import load_state, stack_states
from dd_core.study.architectures import ARCHITECTURES, Shape, architecture_called, forward_flops
from dd_core.study.datasets import DATASETS
from dd_core.study.study import Study
from tests.core.test_imports import run

DIGITS, CIFAR = (8, 8, 1), (32, 32, 3)
# Every architecture of images as it is, and with its other settings.
KINDS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name, record in ARCHITECTURES.items() if record.examples == "images"),
    *((name, {"norm": norm}) for name in ("preact_resnet10", "cnn5", "resnet18") for norm in ("group", "none")),
    ("mlp", {"layers": 3}),
    ("vit", {"patch": 2, "depth": 2, "heads": 3}),
]


def made(name: str, settings: dict[str, Any], shape: Shape, k: int = 4, trials: int | None = None) -> nn.Module:
    return build(name, k, shape[2], 10, trials, settings=settings, size=shape[:2])


def pictures(shape: Shape, number: int = 4, **options: Any) -> Tensor:
    return torch.randn(number, shape[2], *shape[:2], generator=torch.Generator().manual_seed(1), **options)


def moved(network: nn.Module) -> nn.Module:
    """In general position: no weight is where its initialisation puts it, so that none can take another's place."""
    with torch.no_grad():
        for tensor in (*network.parameters(), *network.buffers()):
            if tensor.is_floating_point():
                tensor.add_(0.1 * torch.rand_like(tensor))
    return network


@pytest.mark.parametrize(("name", "settings"), KINDS)
@pytest.mark.parametrize("is_training", [True, False])
def test_a_stack_computes_what_its_networks_do_alone(name: str, settings: dict[str, Any], is_training: bool) -> None:
    torch.manual_seed(0)
    # In float64: in float32 rounding decides about the kinks of ReLU, and with them gradients.
    networks = [moved(made(name, settings, DIGITS)).double().train(is_training) for _ in range(3)]
    stack = made(name, settings, DIGITS, trials=3).double().train(is_training)
    load_state(stack, stack_states([network.state_dict() for network in networks]))
    images = [pictures(DIGITS, dtype=torch.float64) + number for number in range(3)]
    logits = stack(torch.cat(images, 1))
    assert logits.shape == (4, 3, 10)
    logits.square().sum().backward()
    gradients = [parameter.grad.chunk(3) for parameter in stack.parameters() if parameter.grad is not None]
    for number, network in enumerate(networks):
        alone = network(images[number])
        torch.testing.assert_close(logits[:, number], alone)
        alone.square().sum().backward()
        for ours, parameter in zip(gradients, network.parameters(), strict=True):
            torch.testing.assert_close(ours[number], parameter.grad, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("name", "settings"), KINDS)
@pytest.mark.parametrize(("shape", "k"), [(DIGITS, 3), (CIFAR, 2)])
def test_flops_are_those_that_pytorch_counts(name: str, settings: dict[str, Any], shape: Shape, k: int) -> None:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        made(name, settings, shape, k).eval()(pictures(shape, 1))
    assert forward_flops(name, k, shape, 10, settings) == counter.get_total_flops()


def test_resnet18_is_torchvisions_with_another_stem() -> None:
    from torchvision.models import resnet18

    reference = resnet18(num_classes=10)
    reference.conv1, reference.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    ours = build("resnet18", 64, 3, 10)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in reference.parameters()) == 11_173_962
    state = {n: t for n, t in moved(reference).state_dict().items() if not n.endswith("num_batches_tracked")}

    def name_of(name: str) -> str:
        if name.startswith("layer"):
            stage, block, rest = name.removeprefix("layer").split(".", 2)
            return f"blocks.{2 * (int(stage) - 1) + int(block)}.{rest}"
        return name.replace("fc.", "linear.")

    load_state(ours, {name_of(name): tensor for name, tensor in state.items()})
    for is_training in (True, False):
        expected = reference.train(is_training)(pictures(CIFAR))
        torch.testing.assert_close(ours.train(is_training)(pictures(CIFAR)), expected, rtol=1e-4, atol=1e-4)


def test_incremental_resnet18_is_torchvisions_with_another_stem_and_biases_by_the_same_names() -> None:
    from torchvision.models import resnet18

    reference = resnet18(num_classes=100)
    reference.conv1, reference.maxpool = nn.Conv2d(3, 64, 3, padding=1), nn.Identity()
    for module in reference.modules():
        if isinstance(module, nn.Conv2d):
            module.bias = nn.Parameter(torch.zeros(module.out_channels))
    state = {n: t for n, t in moved(reference).state_dict().items() if not n.endswith("num_batches_tracked")}
    torch.manual_seed(0)
    ours = build("incremental_resnet18", 64, 3, 100)
    assert {n: t.shape for n, t in ours.state_dict().items()} == {n: t.shape for n, t in state.items()}
    convolution, linear = ours.get_parameter("layer3.1.conv2.weight"), ours.get_parameter("fc.weight")
    # Kaiming: variance 2 / inputs, and 1 / inputs in the last layer; biases 0.
    assert convolution.var().item() == pytest.approx(2 / (9 * 256), rel=0.02)
    assert linear.var().item() == pytest.approx(1 / 512, rel=0.02)
    assert all(not p.any() for n, p in ours.named_parameters() if n.endswith("bias"))
    load_state(ours, state)
    for is_training in (True, False):
        expected = reference.train(is_training)(pictures(CIFAR))
        torch.testing.assert_close(ours.train(is_training)(pictures(CIFAR)), expected, rtol=1e-4, atol=1e-4)


def test_a_width_below_64_is_a_width_factor_below_1() -> None:
    from torchvision.models.resnet import BasicBlock

    ours = build("resnet18", 16, 3, 10)
    blocks = [BasicBlock(16, 16), BasicBlock(16, 16), BasicBlock(16, 32, 2, _down(16, 32)), BasicBlock(32, 32)]
    blocks += [BasicBlock(32, 64, 2, _down(32, 64)), BasicBlock(64, 64), BasicBlock(64, 128, 2, _down(64, 128))]
    blocks += [BasicBlock(128, 128)]
    stem = sum(p.numel() for p in (nn.Conv2d(3, 16, 3, bias=False).weight, *nn.BatchNorm2d(16).parameters()))
    expected = stem + sum(p.numel() for block in blocks for p in block.parameters()) + 128 * 10 + 10
    assert sum(p.numel() for p in ours.parameters()) == expected


def _down(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))


def test_group_norm_is_pytorchs() -> None:
    """Groups of two channels, 32 at most, each of one network."""
    torch.manual_seed(0)
    ours = [m for m in build("resnet18", 4, 3, 10, settings={"norm": "group"}).modules() if isinstance(m, nn.GroupNorm)]
    assert {(m.num_channels, m.num_groups) for m in ours} == {(4, 2), (8, 4), (16, 8), (32, 16)}
    wide = build("preact_resnet10", 64, 3, 10, settings={"norm": "group"})
    assert {m.num_groups for m in wide.modules() if isinstance(m, nn.GroupNorm)} == {32}


def test_without_normalisation_there_is_none_and_convolutions_have_biases() -> None:
    for name in ("preact_resnet18", "cnn5", "resnet18"):
        modules = list(build(name, 2, 3, 10, settings={"norm": "none"}).modules())
        assert not [m for m in modules if "Norm" in type(m).__name__]
        assert all(m.bias is not None for m in modules if isinstance(m, nn.Conv2d))


@pytest.mark.parametrize("layers", [1, 3])
def test_mlp_is_linear_layers_and_relus(layers: int) -> None:
    ours = made("mlp", {"layers": layers}, DIGITS, k=5)
    parts: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in zip([64, *[5] * layers], [*[5] * layers, 10], strict=True):
        parts += [nn.Linear(inputs, outputs), nn.ReLU()]
    reference = nn.Sequential(*parts[:-1])
    for theirs, own in zip(reference.parameters(), ours.parameters(), strict=True):
        theirs.data.copy_(own)
    torch.testing.assert_close(ours(pictures(DIGITS)), reference(pictures(DIGITS)))


@pytest.mark.parametrize(("shape", "patch", "heads"), [(DIGITS, 2, 3), (CIFAR, 8, 2)])
def test_vit_is_pytorchs_transformer_encoder_over_patches(shape: Shape, patch: int, heads: int) -> None:
    depth, k = 2, 4
    ours = moved(made("vit", {"patch": patch, "depth": depth, "heads": heads}, shape, k))
    state, size = ours.state_dict(), k * heads
    layer = nn.TransformerEncoderLayer(size, heads, 4 * size, 0.0, "gelu", batch_first=True, norm_first=True)
    encoder = nn.TransformerEncoder(layer, depth, nn.LayerNorm(size), enable_nested_tensor=False)
    names = {
        **{"norm1.": "norm1.", "norm2.": "norm2.", "queries_keys_values.": "self_attn.in_proj_"},
        **{"projection.": "self_attn.out_proj.", "wide.": "linear1.", "narrow.": "linear2."},
    }
    theirs = {f"norm.{part}": state[f"norm.{part}"] for part in ("weight", "bias")}
    for number in range(depth):
        for own, other in names.items():
            for part in ("weight", "bias"):
                theirs[f"layers.{number}.{other}{part}"] = state[f"blocks.{number}.{own}{part}"]
    encoder.load_state_dict(theirs)
    embedding = nn.Conv2d(shape[2], size, patch, stride=patch)
    embedding.weight.data.copy_(state["embedding.weight"].view_as(embedding.weight))
    embedding.bias.data.copy_(state["embedding.bias"])  # type: ignore[union-attr]
    images = pictures(shape)
    tokens = embedding(images).flatten(2).transpose(1, 2)
    tokens = torch.cat([state["class_token"].expand(4, 1, -1), tokens], 1) + state["positions"]
    expected = nn.functional.linear(encoder(tokens)[:, 0], state["linear.weight"], state["linear.bias"])
    torch.testing.assert_close(ours(images), expected, rtol=1e-4, atol=1e-5)


def test_the_registry_needs_nothing_but_python() -> None:
    code = "import sys, dd_core.study.architectures as a\na.forward_flops('vit', 3, (8, 8, 1), 10)\n"
    assert (
        run(code + "print([n for n in ('torch', 'numpy', 'pydantic', 'dd_core.models') if n in sys.modules])") == "[]"
    )


def test_no_other_module_knows_an_architecture_by_name() -> None:
    root = Path(__file__).parents[2]
    names = set(ARCHITECTURES) - set(DATASETS)  # a word may be the name of both, as nsm
    for path in [*(root / "dd_core").rglob("*.py"), *(root / "dd_assets").rglob("*.py")]:
        text = path.read_text(encoding="utf-8")
        # What others published, what their files are called, and data sets, are no properties of a network.
        is_about_others = path.name in (
            "double_descent_curve.py",
            "published_checkpoints.py",
            "formats.py",
            "datasets.py",
        )
        if path.name != "architectures.py" and not is_about_others and "models" not in path.parts:
            told = [line for line in text.splitlines() if any(f'"{name}"' in line for name in names)]
            assert not told, (path, told)


def changed(study: Study, **variant: Any) -> Study:
    content = study.model_dump(mode="json")
    content["variants"]["plain"] |= variant
    return Study.model_validate_json(__import__("json").dumps(content))


@pytest.mark.parametrize(
    ("variant", "reason"),
    [
        ({"network": {"depth": 3}}, "network.depth: preact_resnet10 has no such setting; it has norm"),
        ({"network": {"norm": "layer"}}, r"network.norm: should be batch or group or none \(got 'layer'\)"),
        ({"architecture": "mlp", "network": {"norm": "none"}}, "network.norm: mlp has no such setting; it has layers"),
        ({"architecture": "mlp", "network": {"layers": 0}}, "network.layers: should be a whole number from 1 to 100"),
        (
            {"architecture": "mlp", "network": {"layers": True}},
            "network.layers: should be a whole number from 1 to 100",
        ),
        ({"architecture": "vit", "network": {"patch": 3}}, "plain.network.patch: 3 does not divide the 8x8 pixels"),
        ({"architecture": "vgg"}, "plain.architecture: Input should be 'preact_resnet18' or .* or module:function"),
        ({"architecture": "resnet18", "batch_size": 1}, "which BatchNorm cannot normalise"),
    ],
)
def test_a_setting_that_is_none_is_refused_with_its_path(tiny_study: Study, variant: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        changed(tiny_study, **variant)


def test_settings_change_the_recipe_where_they_differ_from_the_default(tiny_study: Study) -> None:
    arm = next(iter(tiny_study.arms.values()))
    recipe = tiny_study.recipe_hash(arm)
    assert changed(tiny_study, network={"norm": "batch"}).recipe_hash(arm) == recipe
    other = changed(tiny_study, network={"norm": "none"})
    assert other.recipe_hash(arm) != recipe
    assert other.recipe(arm)["variant"]["network"] == {"norm": "none"}
    assert not any("network" in key or "sha" in key for key in tiny_study.recipe(arm)["variant"])


def test_single_images_are_refused_only_where_batch_norm_would_see_one_value(tiny_study: Study) -> None:
    for variant in ({"network": {"norm": "group"}}, {"architecture": "mlp"}, {"architecture": "cnn5"}):
        changed(tiny_study, batch_size=1, **variant)


@pytest.mark.parametrize(("name", "settings"), KINDS)
def test_each_is_as_piecewise_linear_as_its_record_says(name: str, settings: dict[str, Any]) -> None:
    from dd_core.curvature.input_space.piecewise_linear import why_not_piecewise_linear

    found = why_not_piecewise_linear(moved(made(name, settings, DIGITS)).eval())
    assert (found is None) == architecture_called(name).is_piecewise_linear_with(settings), found


def test_what_depends_on_the_size_of_images_says_so() -> None:
    with pytest.raises(UserError, match=r"mlp depends on the size of images: pass size=\(height, width\)"):
        build("mlp", 2, 1, 10)


def test_what_takes_graphs_is_not_made_for_images() -> None:
    with pytest.raises(UserError, match="nsm takes graphs, not images; its networks are made from a study"):
        build("nsm", 2, 1, 10, size=(8, 8))


def test_trials_begin_as_they_would_alone(tiny_study: Study) -> None:
    for variant in ({"architecture": "vit", "network": {"depth": 1}}, {"architecture": "mlp"}):
        study = changed(tiny_study, **variant)
        arm = next(iter(study.arms.values()))
        both, second = build_trials(study, arm, [0, 1]), build_trials(study, arm, [1])
        for ours, alone in zip(both.parameters(), second.parameters(), strict=True):
            assert torch.equal(ours.chunk(2)[1], alone)
