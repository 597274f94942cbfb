"""Are the GPU's convolutions right, in every kind that our networks have, stacked and alone?

Output, gradient in the input and in the weights against float64 products of unfolded images, in which no convolution
kernel takes part; and the same bits at a second call. Kinds are tried in processes of their own, several widths side by
side: a kernel that writes where it must not ends its process, and is named by the last kind begun.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d, unfold

from dd_core.jobs.worker import prepare_process
from dd_core.training.precision import tensor_cores
from gpu.timing import DEVICE

# Largest |difference| over largest |value|, by precision.
TOLERANCE = {"float32": 1e-4, "tf32": 5e-3, "bfloat16": 3e-2, "float16": 5e-3}
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
LAYOUTS = {"last": torch.channels_last, "first": torch.contiguous_format}
Kind = tuple[int, int, int, int, int]  # inputs, outputs, kernel, stride, side


def kinds(k: int) -> list[Kind]:
    """Convolutions of ResNet18k at 32x32 (those of the other architectures are among them)."""
    found = [(3, k, 3, 1, 32), (k, k, 3, 1, 32)]
    for stage in (1, 2, 3):
        inputs, outputs, side = k * 2 ** (stage - 1), k * 2**stage, 64 // 2**stage
        found += [(inputs, outputs, 3, 2, side), (inputs, outputs, 1, 2, side), (outputs, outputs, 3, 1, side // 2)]
    return found


def reference(x: Tensor, weight: Tensor, upstream: Tensor, groups: int, stride: int) -> list[Tensor]:
    """Output and gradients in float64, by unfolding."""
    x, weight = x.double().requires_grad_(), weight.double().requires_grad_()
    kernel, batch = weight.shape[-1], len(x)
    columns = unfold(x, kernel, padding=kernel // 2, stride=stride).view(batch, groups, -1, upstream[0, 0].numel())
    output = weight.view(groups, weight.shape[0] // groups, -1) @ columns
    output = output.view(upstream.shape)
    return [output, *torch.autograd.grad(output, (x, weight), upstream.double())]


def check(kind: Kind, trials: int, batch: int) -> Iterator[dict[str, Any]]:
    """A row for every precision and layout."""
    inputs, outputs, kernel, stride, side = kind
    torch.manual_seed(0)
    x = torch.randn(batch, trials * inputs, side, side, device=DEVICE)
    weight = torch.randn(trials * outputs, inputs, kernel, kernel, device=DEVICE) / (inputs * kernel**2) ** 0.5
    upstream = torch.randn(batch, trials * outputs, side // stride, side // stride, device=DEVICE)
    expected: dict[torch.dtype, list[Tensor]] = {}
    for precision in ("bfloat16", "float32", "tf32", "float16") if trials in (1, 5) else ("bfloat16", "float32"):
        dtype = DTYPES.get(precision, torch.float32)
        if dtype not in expected:
            expected[dtype] = reference(x.to(dtype), weight.to(dtype), upstream.to(dtype), trials, stride)
        for layout in LAYOUTS:
            print(json.dumps({"begun": [kind, trials, batch, precision, layout]}), flush=True)
            a, w, u = (t.to(dtype).contiguous(memory_format=LAYOUTS[layout]) for t in (x, weight, upstream))
            a, w = a.requires_grad_(), w.requires_grad_()
            runs = []
            with tensor_cores("tf32" if precision == "tf32" else "float32"):
                for _ in range(2):
                    output = conv2d(a, w, stride=stride, padding=kernel // 2, groups=trials)
                    runs.append([output.detach(), *torch.autograd.grad(output, (a, w), u)])
            errors = [
                float((g.double() - e).abs().max().detach() / e.abs().max().detach())
                for g, e in zip(runs[0], expected[dtype], strict=True)
            ]
            same = all(torch.equal(*pair) for pair in zip(*runs, strict=True))
            good = max(errors) < TOLERANCE[precision] and same  # a NaN is not smaller
            yield {"done": [kind, trials, batch, precision, layout], "errors": errors, "same": same, "good": good}


def child(widths: list[int], trials: list[int], batch: int, skip: int) -> None:
    """Rows of some widths, after the first ``skip`` kinds."""
    prepare_process(threads=1)
    cases = [(kind, number) for k in widths for kind in kinds(k) for number in trials]
    for kind, number in cases[skip:]:
        for row in check(kind, number, batch):
            print(json.dumps(row), flush=True)
        print(json.dumps({"case": 1}), flush=True)


def run(clock: Any, small: bool) -> Iterator[dict[str, Any]]:
    """What failed, and a count with the worst error of each precision."""
    jobs = [([1], [1, 2], 4)] if small else [([k], [1, 2, 4, 5, 8], 128) for k in (1, 2, 4, 8, 16)] + [([64], [1], 128)]
    jobs += [] if small else [([4, 16], [5], 80), ([4], [5], 2000)]
    worst: dict[str, float] = {}
    counted = 0
    waiting = [(job, 0) for job in jobs]
    while waiting:
        processes = []
        for (widths, trials, batch), skip in waiting:
            text = f"from gpu.convolutions import child; child({widths}, {trials}, {batch}, {skip})"
            process = subprocess.Popen(
                [sys.executable, "-c", text], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            processes.append(((widths, trials, batch), skip, process))
        waiting = []
        for job, skip, process in processes:
            try:
                out, errors = process.communicate(timeout=max(clock.left - 3, 1))
            except subprocess.TimeoutExpired:
                process.kill()
                out, errors = process.communicate()
                yield {"what": "out of time", "kind": str(job), "error": ""}
                continue
            begun = None
            for row in map(json.loads, out.splitlines()):
                begun = row.get("begun", begun)
                skip += row.get("case", 0)
                if "done" in row:
                    counted += 1
                    key = f"{row['done'][3]} {row['done'][4]}"
                    worst[key] = max(worst.get(key, 0), *row["errors"])
                    if not row["good"]:
                        yield {
                            "what": "wrong",
                            "kind": str(row["done"]),
                            "error": f"{row['errors']} same={row['same']}",
                        }
            if process.returncode:
                yield {
                    "what": "died",
                    "kind": str(begun),
                    "error": errors.strip().splitlines()[-1][:300] if errors else str(process.returncode),
                }
                if clock.left > 10:
                    waiting.append((job, skip + 1))
    yield {"what": "kinds checked", "kind": counted, "error": str({k: f"{v:.1e}" for k, v in sorted(worst.items())})}
