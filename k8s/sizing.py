"""What two experiments need of a cluster: ``python k8s/sizing.py`` prints the table in docs/cluster.md.

Counted: FLOPs by ``dd_core.forecast.work``, bytes of weights from the networks themselves, the order of tasks as the
platform hands them out. Measured, elsewhere: the speeds of a public rerun of the double-descent networks on a B200
(github.com/HP2706/ATDL-Group-Work), bytes a row of the tables of the quickstart study. Nothing here ran on a GPU.
"""

import argparse
from fractions import Fraction

from dd_assets.catalogue import catalogue
from dd_core.forecast.work import training_cost
from dd_core.jobs.job import predicted_cost, training_job
from dd_core.jobs.placement import schedule
from dd_core.study.architectures import forward_flops
from dd_core.study.study import Study

# Seconds of a B200 for an epoch of one network, over widths 1 to 40 and over 1 and 40 (reports of b200-2026-09-26).
PUBLISHED_SECONDS_PER_EPOCH = (227 / 160, 2.48)
# Seconds of a B200 for an epoch of k = 64 and one of k = 3 beside each other (complete-400-cifar10-noise20-2026-09-26).
PUBLISHED_PAIR_SECONDS = 1341 / 400
# A row more costs so many bytes of a parquet file, from files of 32 and 600 rows, of 200 and 2,000, and the largest.
BYTES_PER_ROW = {"training_batches": 24.3, "per_image_curvature": 55.6, "image_progress": 6.9}
# Of the 100 classes five are new every 200 epochs, and only those seen are scored, 500 images of each.
NUM_CLASSES_002, IMAGES_002 = 100, 500 * 5 * sum(range(1, 21)) + 500 * 100
# Forward passes that the curvature of an image costs; a backward pass to the image costs as much as one.
PASSES = {"top_directions": 12, "finite_difference, n = 10": 40, "exact": NUM_CLASSES_002}
PUBLISHED_IMAGES_PER_SECOND_002 = 50_000 / 847.3
# Bytes that the backward pass of an image through a network keeps, by torch.autograd.graph.saved_tensors_hooks.
BYTES_SAVED_PER_IMAGE = {10: 0.70e6, 64: 4.42e6}


def bytes_of_weights(k: int, num_classes: int) -> int:
    """Of one trial's network, buffers included, as safetensors keep them."""
    import torch

    from dd_core.models.build import build

    with torch.device("meta"):
        network = build("preact_resnet18", k, 3, num_classes)
    return sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())


def balance(study: Study, num_gpus: int) -> tuple[float, float]:
    """Share of their time that GPUs have work, one arm each at a time; and the longest arm's share of all work."""
    job = training_job("unused", study, list(study.iter_checkpoints()), num_gpus, 1)
    costs = [predicted_cost(study, task) for task in job.tasks]
    _, ends = schedule([Fraction(1)] * len(costs), num_gpus, num_gpus, costs)
    return sum(costs) / (num_gpus * max(ends)), max(costs) / sum(costs)


def figure_1(gpus: list[int]) -> None:
    """Print what ``double_descent`` needs."""
    study = catalogue().studies["double_descent"]
    networks = len(study.widths) * study.trials
    epochs = networks * study.epochs
    low, high = (seconds * epochs / 3600 for seconds in PUBLISHED_SECONDS_PER_EPOCH)
    pair = 3 * sum(forward_flops("preact_resnet18", k, (32, 32, 3), 10) for k in (3, 64)) * 50_000
    flops = sum(training_cost(study, arm, 0, study.epochs) for arm in study.arms.values())
    print(f"Figure 1: {networks} networks, {epochs:,} epochs of 50,000 images, {flops:.2e} FLOPs with evaluations")
    print(f"  GPU-hours from published speeds of a plain loop on a B200: {low:,.0f} to {high:,.0f}")
    print(f"  (such a loop sustained {pair / PUBLISHED_PAIR_SECONDS / 1e12:.0f} TFLOP/s at k = 64)")
    for count in gpus:
        share, longest = balance(study, count)
        print(
            f"  {count:4d} GPUs: busy {share:.0%}, {low / count / share:,.0f} to {high / count / share:,.0f} hours "
            f"(the longest arm is {longest:.1%} of all work)"
        )
    weights = sum(bytes_of_weights(k, 10) for k in study.widths) * study.trials
    progress = networks * 60_000 * len(study.checkpoints) * BYTES_PER_ROW["image_progress"]
    batches = epochs * -(-50_000 // 128) * BYTES_PER_ROW["training_batches"]
    activations = 128 * BYTES_SAVED_PER_IMAGE[64]
    print(f"  memory of a GPU: twice the {activations / 1e9:.1f} GB that the backward pass of k = 64 keeps")
    everywhere = weights * len(study.checkpoints)
    print(f"  weights: {weights / 1e9:.1f} GB a checkpoint of all arms, {everywhere / 1e9:.0f} GB in all")
    print(f"  resume points while it runs (weights, Adam's two moments): {3 * weights / 1e9:.0f} GB at most")
    print(f"  tables: image_progress {progress / 1e9:.1f} GB, training_batches {batches / 1e9:.1f} GB")


def seed_002() -> None:
    """Print what per-image curvature of 21 checkpoints of incremental CIFAR-100 needs."""
    flops = forward_flops("preact_resnet18", 64, (32, 32, 3), NUM_CLASSES_002)
    pair = 3 * sum(forward_flops("preact_resnet18", k, (32, 32, 3), 10) for k in (3, 64)) * 50_000
    rate = pair / PUBLISHED_PAIR_SECONDS / 2  # float32 proper, where the public loop let convolutions use TF32
    print(f"\nSeed 002: {IMAGES_002:,} images of classes seen at 21 checkpoints, a ResNet-18 of k = 64")
    for name, passes in PASSES.items():
        total = passes * flops * IMAGES_002
        print(f"  {name}: {passes} passes an image, {total:.1e} FLOPs, {total / rate / 3600:.2f} GPU-hours")
    slow = IMAGES_002 / PUBLISHED_IMAGES_PER_SECOND_002 / 3600
    print(f"  (at {rate / 1e12:.0f} TFLOP/s; at the 59 images/s that the seed itself reports {slow:.1f} hours)")
    weights = 21 * bytes_of_weights(64, NUM_CLASSES_002)
    print(f"  weights: {weights / 1e9:.2f} GB; table: {IMAGES_002 * BYTES_PER_ROW['per_image_curvature'] / 1e6:.0f} MB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpus", type=int, nargs="*", default=[8, 16, 64], help="to spread Figure 1 over")
    figure_1(parser.parse_args().gpus)
    seed_002()
