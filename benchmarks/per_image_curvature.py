"""Per-image curvature in images per second: ours against what is published or would be written without it.

ResNet18k on 32x32x3 images, trained here on made-up classes until it fits them, the same images and weights for all.
Peers: (a) the published finite difference (mean loss of batches of 32, 10 probes, two forward and two backward
passes each, parameters that require gradients, memory as PyTorch lays it out), (b) Hutchinson's trace by batched double
backward, 10 probes, graph shared, (c) the finite difference in 10 + 1 passes with frozen parameters, (d) a loop over
images with double backward, 10 probes. (a) and (c) measure another quantity, so they have no error. Forward-only is the
unit F. Errors are of the trace, against the exact one in float64. ``ranked`` rows have the ranking of directions that a
checkpoint of 45,000 images has, which is measured before.

Keys: ``k8_c10_exact_float32`` and so on: images per second over those of (a). ``exact_float32`` and ``exact_bfloat16``
are those of k = 8 with 10 classes; ``exact_over_loop`` is over (d). ``k8_c10_exact_float32_of_forward`` and so on: its
GFLOP/s over those of forward passes alone, at k = 8 and 16, without ``--quick`` also 64. A call of ours takes about
0.08 s before the first image, which the fewer images of ``--quick`` do not spread as far: its ratios are about a tenth
lower, and its networks are less trained.
"""

import copy
import functools
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from common import interleaved, parse_arguments, write_json
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate
from torch.utils.flop_counter import FlopCounterMode

from dd_core.curvature import per_image_curvature
from dd_core.curvature.input_space.ranking import direction_ranking
from dd_core.jobs.worker import prepare_process
from dd_core.models.build import build

NUM_PROBES = 10
BATCH = 32
NUM_FOR_PEERS = 128  # the slow ones need not see all images
NUM_IN_CHECKPOINT = 45_000  # that share a ranking
NUM_RANKING_IMAGES = 16


def made_up_images(num_classes: int, num_images: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Smooth class prototypes, each image with a smooth pattern of its own and pixel noise, standardised."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(num_images) % num_classes
    coarse = torch.randn(num_classes, 3, 6, 6, generator=random)
    own = torch.randn(num_images, 3, 4, 4, generator=random)
    images = interpolate(coarse, size=32, mode="bicubic")[labels] + 0.8 * interpolate(own, size=32, mode="bicubic")
    images = images + 0.3 * torch.randn(num_images, 3, 32, 32, generator=random)
    return (images - images.mean()) / images.std(), labels


def trained_network(k: int, images: Tensor, labels: Tensor, epochs: int) -> nn.Module:
    """ResNet18k after some epochs of Adam on the images' device, in eval mode, in PyTorch's own memory layout."""
    torch.manual_seed(0)
    model = build("preact_resnet18", k, 3, int(labels.max()) + 1).to(images.device, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(100):
            optimizer.zero_grad()
            cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
        schedule.step()
    return model.eval().to(memory_format=torch.contiguous_format)


def published(model: nn.Module, images: Tensor, labels: Tensor, h: float = 1e-3) -> None:
    """(a): the scorer of published code, one batch after the other."""
    criterion = nn.CrossEntropyLoss()
    for batch, target in zip(images.split(BATCH), labels.split(BATCH), strict=True):
        inputs, num = batch.clone(), len(batch)
        norms, eigenvalues = inputs.new_zeros(num), inputs.new_zeros(num)
        for _ in range(NUM_PROBES):
            v = torch.randint_like(inputs, high=2)
            for v_i in v:
                v_i[v_i == 0] = -1
            v = h * v
            inputs.requires_grad_()
            difference = criterion(model(inputs + v), target) - criterion(model(inputs), target)
            (gradient,) = torch.autograd.grad(difference, inputs)
            norms += gradient.reshape(num, -1).norm(dim=1).detach()
            eigenvalues += torch.diag(v.reshape(num, -1) @ gradient.reshape(num, -1).T).detach()


def double_backward(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """(b): Hutchinson's trace, all images of a batch in one Hessian-vector product."""
    traces = []
    for batch, target in zip(images.split(BATCH), labels.split(BATCH), strict=True):
        inputs = batch.clone().requires_grad_()
        loss = cross_entropy(model(inputs), target, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, inputs, create_graph=True)
        total = batch.new_zeros(len(batch))
        for _ in range(NUM_PROBES):
            signs = torch.randint_like(inputs, high=2) * 2 - 1
            (product,) = torch.autograd.grad(gradient, inputs, signs, retain_graph=True)
            total += (product * signs).flatten(1).sum(1).detach()
        traces.append(total / NUM_PROBES)
    return torch.cat(traces)


def frozen_finite_difference(model: nn.Module, images: Tensor, labels: Tensor, h: float = 1e-3) -> None:
    """(c): the published quantity in n + 1 passes without anything for the parameters."""
    for batch, target in zip(images.split(BATCH), labels.split(BATCH), strict=True):

        def gradient(x: Tensor, target: Tensor = target) -> Tensor:
            x = x.clone().requires_grad_()
            return torch.autograd.grad(cross_entropy(model(x), target, reduction="sum"), x)[0]

        at_rest, norms = gradient(batch), batch.new_zeros(len(batch))
        for _ in range(NUM_PROBES):
            signs = torch.randint_like(batch, high=2) * 2 - 1
            norms += (gradient(batch + h * signs) - at_rest).flatten(1).norm(dim=1)


def loop(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """(d): image by image."""
    return torch.cat([double_backward(model, images[i : i + 1], labels[i : i + 1]) for i in range(len(images))])


def forward(model: nn.Module, images: Tensor) -> None:
    """The unit."""
    with torch.no_grad():
        for batch in images.split(BATCH):
            model(batch)


@dataclass
class Candidate:
    """A row of the table.

    Attributes:
        run: does the work on ``num_images`` images.
        num_images: the first of all.
        passes: its cost in forward passes, nominally; None: the result tells.
        has_traces: whether the result has traces that are right but for the method's error.
    """

    run: Callable[[], Any]
    num_images: int
    passes: float | None = None
    has_traces: bool = False

    def passes_of(self, result: Any) -> float:
        """Forward passes that a result took."""
        if self.passes is not None:
            return self.passes
        return float(1 + result.num_passes)

    def errors(self, result: Any, exact: Tensor) -> Tensor | None:
        """Relative errors of a result's traces, as far as the exact ones go."""
        if not self.has_traces:
            return None
        traces = result.columns["trace"] if self.passes is None else result
        num = min(len(traces), len(exact))
        return (traces[:num].double().cpu() / exact[:num].cpu() - 1).abs()


def candidates(
    k: int,
    num_classes: int,
    num_images: int,
    epochs: int,
    device: torch.device | str = "cpu",
    num_exact: int | None = None,
    num_for_peers: int = NUM_FOR_PEERS,
) -> tuple[dict[str, Candidate], Tensor, float]:
    """All rows, the exact float64 traces of the first ``num_exact`` images, and FLOPs of a forward pass of an image."""
    made = made_up_images(num_classes, max(num_images, 2000 if num_classes == 10 else 3000))
    images, labels = (tensor.to(device) for tensor in made)
    plain = trained_network(k, images, labels, epochs)
    images, labels = images[:num_images], labels[:num_images]
    few = images[:num_for_peers], labels[:num_for_peers]
    frozen = copy.deepcopy(plain).requires_grad_(False)
    fast = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    doubles = copy.deepcopy(plain).double()
    exact = per_image_curvature(doubles, images[:num_exact].double(), labels[:num_exact]).columns["trace"]
    confidence = plain(images).softmax(1).max(1).values.median().item()
    print(f"\nk = {k}, {num_classes} classes: median largest probability {confidence:.4f}, {num_images} images")
    with FlopCounterMode(display=False) as flops:
        forward(plain, images[:1])
    one_batch, both = (images[:BATCH], labels[:BATCH]), 2 + 2 * NUM_PROBES
    num = len(few[0])
    rows = {
        "forward": Candidate(functools.partial(forward, fast, images), num_images, 1),
        "(a) published": Candidate(functools.partial(published, plain, *few), num, 4 * NUM_PROBES),
        "(b) double backward": Candidate(functools.partial(double_backward, frozen, *few), num, both, True),
        "(c) n + 1 passes": Candidate(functools.partial(frozen_finite_difference, frozen, *few), num, both),
        "(d) loop over images": Candidate(functools.partial(loop, frozen, *one_batch), BATCH, both),
    }
    ours = {"exact float32": ("exact", torch.float32, 0.01), "exact bfloat16": ("exact", torch.bfloat16, 0.01)}
    for error in (0.1, 0.05, 0.01) if num_classes > 10 else (0.1, 0.03):
        ours[f"top directions {error:g}"] = ("top_directions", torch.float32, error)
    usual = 0.05 if num_classes > 10 else 0.03
    ours[f"top dir. bf16 {usual:g}"] = ("top_directions", torch.bfloat16, usual)
    ours[f"ranked {usual:g}"] = ("top_directions", torch.float32, usual)
    ours[f"ranked bf16 {usual:g}"] = ("top_directions", torch.bfloat16, usual)
    first = images[:NUM_RANKING_IMAGES], labels[:NUM_RANKING_IMAGES]
    ranking = direction_ranking(fast, *first, num_images=NUM_IN_CHECKPOINT, relative_error=usual)
    for name, (method, precision, error) in ours.items():
        seen = few if method == "exact" and num_classes > 10 else (images, labels)
        call = functools.partial(
            per_image_curvature,
            fast,
            *seen,
            method=method,
            precision=precision,
            relative_error=error,
            ranking=ranking if name.startswith("ranked") else None,
        )
        rows[name] = Candidate(call, len(seen[0]), has_traces=True)
    return rows, exact, flops.get_total_flops()


def wide_rates(k: int, num_images: int, repeats: int) -> dict[str, float]:
    """The exact Hessian's GFLOP/s over those of forward passes, of a network that need not be trained."""
    images, labels = made_up_images(10, num_images)
    model = trained_network(k, images, labels, 0).to(memory_format=torch.channels_last)
    runs: dict[str, Callable[[], Any]] = {"forward": functools.partial(forward, model, images)}
    for name in ("float32", "bfloat16"):
        runs[name] = functools.partial(per_image_curvature, model, images, labels, precision=getattr(torch, name))
    passes = 1 + (runs["float32"]().num_passes or 0)
    seconds = {name: statistics.median(values) for name, values in interleaved(runs, repeats).items()}
    found = {
        f"k{k}_c10_exact_{name}_of_forward": passes * seconds["forward"] / seconds[name] for name in list(runs)[1:]
    }
    print(f"\nk = {k}, 10 classes, {num_images} images: " + ", ".join(f"{n} {value:.2f}" for n, value in found.items()))
    return found


def main() -> None:
    """Run and print."""
    arguments = parse_arguments(__doc__)
    prepare_process(threads=1)
    ratios: dict[str, float] = {}
    setups = [(8, 10), (16, 10), (8, 100), (16, 100)]
    num_images, num_for_peers, epochs = (384, BATCH, (3, 5)) if arguments.quick else (1024, NUM_FOR_PEERS, (6, 20))
    for k, num_classes in setups[::2] if arguments.quick else setups:
        rows, exact, flops = candidates(
            k,
            num_classes,
            num_images,
            epochs[num_classes > 10],
            num_exact=128 if arguments.quick else None,
            num_for_peers=num_for_peers,
        )
        results = {name: row.run() for name, row in rows.items()}  # warms up, too
        repeats = arguments.repeats or (2 if arguments.quick else 5)
        seconds = interleaved({name: row.run for name, row in rows.items()}, repeats, warm_up=0)
        rate = {name: row.num_images / statistics.median(seconds[name]) for name, row in rows.items()}
        gflops = {name: rate[name] * row.passes_of(results[name]) * flops / 1e9 for name, row in rows.items()}
        print(f"{'':22s} images/s  over (a)      F   GFLOP/s   median error   90 % below")
        for name, row in rows.items():
            over, key = rate[name] / rate["(a) published"], f"k{k}_c{num_classes}_{name.strip('()').replace(' ', '_')}"
            errors, passes = row.errors(results[name], exact), row.passes_of(results[name])
            error = "" if errors is None else f"{errors.median():14.1e} {errors.quantile(0.9):12.1e}"
            print(f"{name:22s} {rate[name]:8,.0f} {over:9.2f} {passes:6.1f} {gflops[name]:9.0f} {error}", flush=True)
            ratios[key] = over
            if name.startswith("exact"):
                ratios[f"{key}_of_forward"] = gflops[name] / gflops["forward"]
        if (k, num_classes) == (8, 10):
            ratios["exact_float32"] = ratios["k8_c10_exact_float32"]
            ratios["exact_bfloat16"] = ratios["k8_c10_exact_bfloat16"]
            ratios["exact_over_loop"] = rate["exact float32"] / rate["(d) loop over images"]
            print(f"exact float32 over (d): {ratios['exact_over_loop']:.1f}")
    ratios |= wide_rates(*(16, 64) if arguments.quick else (64, 32), arguments.repeats or (2 if arguments.quick else 3))
    write_json(arguments.json, ratios)


if __name__ == "__main__":
    main()
