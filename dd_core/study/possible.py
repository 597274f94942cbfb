"""Which studies are refused, although each of their keys is fine: names, epochs, and what contradicts itself.

Every function raises ``ValueError`` with the path of the key, which becomes the sentence that a user reads.
"""

import re
from typing import TYPE_CHECKING

from dd_core.study.architectures import architecture_called
from dd_core.study.classes import path_of_order
from dd_core.study.datasets import DATASETS
from dd_core.words import meant

if TYPE_CHECKING:
    from dd_core.study.recipe import Variant
    from dd_core.study.study import Study

_VARIANT_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
# Both are parts of names of files, temporary ones and locks among them, which may have 255 bytes.
LONGEST_STUDY_NAME, _LONGEST_VARIANT_NAME = 100, 80
# What is trained here has partition keys of three digits, and this project's networks are no wider.
_MOST_TRAINED_K = 999
_MOST_TRAINED_TRIALS = 1000


def has_room(name: str, most: int, where: str) -> None:
    """Refuse a name that is too long for files."""
    if len(name) > most:
        raise ValueError(f"{where}: {name[:20]}… has {len(name)} characters; at most {most} fit into names of files")


def check_keys(study: "Study") -> None:
    """Refuse names of variants that cannot be keys, and epochs without a checkpoint."""
    for variant in study.variants:
        if not _VARIANT_NAME.fullmatch(variant):
            raise ValueError(f"variants.{variant}: a name is lower-case letters and digits joined by single hyphens")
        has_room(variant, _LONGEST_VARIANT_NAME, "variants")
    if study.checkpoints[-1] > study.epochs:
        raise ValueError(f"checkpoints: epoch {study.checkpoints[-1]} is beyond the last epoch, {study.epochs}")
    difference = study.curvature.finite_difference
    asked = {
        "hessian.epochs": study.hessian.epochs,
        "curvature.finite_difference.epochs": difference.epochs,
        "memorization.grand": study.memorization.grand,
    }
    for where, epochs in asked.items():
        unknown = sorted(set(epochs or ()) - set(study.checkpoints))
        if unknown:
            raise ValueError(f"{where}: there is no checkpoint at epoch {', '.join(map(str, unknown))}")
    if (early := study.memorization.early) is not None and early > study.epochs:
        raise ValueError(f"memorization.early: epoch {early} is beyond the last epoch, {study.epochs}")


def check_limits(study: "Study") -> None:
    """Refuse what can be imported, but not trained here."""
    limits = {f"widths.{i}": (k, _MOST_TRAINED_K) for i, k in enumerate(study.widths)}
    for name, variant in study.variants.items():
        limits |= {f"variants.{name}.widths.{i}": (k, _MOST_TRAINED_K) for i, k in enumerate(variant.widths or ())}
    for path, (value, most) in {**limits, "trials": (study.trials, _MOST_TRAINED_TRIALS)}.items():
        if value > most:
            raise ValueError(f"{path}: Input should be less than or equal to {most} (got {value})")
    if not study.data.is_known:
        known = " or ".join(map(repr, DATASETS))
        given = str(study.data.dataset)
        raise ValueError(f"data.dataset: Input should be {known} (got {given!r}){meant(given, DATASETS)}")
    if study.width_unit != 1:
        raise ValueError("width_unit: is for imported studies only")


def check_data(study: "Study") -> None:
    """Refuse more images than there are, and shares and copies of them that cannot be."""
    if study.data.graphs is not None:
        return
    num_train, num_validation = study.data.num_train, study.data.num_validation
    record = study.data.record
    if (num_train or 2) + num_validation > record.num_train:
        and_more = f" and {num_validation} for validation" if num_validation else ""
        raise ValueError(
            f"data.{'num_validation' if num_validation else 'num_train'}: {num_train or 2} images to train on"
            f"{and_more} are more than the {record.num_train} of {record.name}"
        )
    if (fixed := study.data.standardisation) is not None:
        channels = record.image_shape[2]
        for name, values in (("mean", fixed.mean), ("std", fixed.std)):
            if len(values) != channels:
                raise ValueError(
                    f"data.standardisation.{name}: {len(values)} values for the {channels} channels of {record.name}"
                )
    _check_subset(study)
    copies = study.data.duplicates
    num_images = study.num_train_images + study.num_left_out_images
    num_copies = copies.exact + copies.near if copies is not None else 0
    if copies is not None and not num_copies:
        raise ValueError("data.duplicates: exact and near are both 0; set one of them, or leave out data.duplicates")
    if 2 * num_copies > num_images:
        raise ValueError(
            f"data.duplicates: {num_copies} copies and what they are copies of are more than the {num_images} training "
            "images"
        )


def _check_subset(study: "Study") -> None:
    share, num_trained, num_left_out = study.data.subset, study.num_train_images, study.num_left_out_images
    if share is None:
        if study.memorization.out_of_fold:
            raise ValueError("memorization.out_of_fold: without data.subset there is no trial that left an image out")
        return
    if num_trained < 2 or not num_left_out:
        raise ValueError(
            f"data.subset: {share:g} of {num_trained + num_left_out} images are {num_trained} to train on and "
            f"{num_left_out} to leave out; it takes at least two and one"
        )
    if study.data.classes is not None:
        raise ValueError(
            "data.subset: and data.classes cannot be combined, since a class must have as many images in every trial"
        )


def check_classes(study: "Study") -> None:
    """Refuse classes that come one group after the other where they cannot, or not equally many images of each."""
    data, classes = study.data, study.data.classes
    if classes is None:
        if study.curvature.logits == "all":
            raise ValueError(
                "curvature.logits: all is for classes that come one group after the other; set data.classes, or leave "
                "it out"
            )
        return
    record = data.record
    if record.rarest is None:
        raise ValueError(f"data.classes: how many images the rarest class of {record.name} has is not known")
    if classes.first > record.num_classes:
        raise ValueError(f"data.classes.first: {classes.first} are more than the {record.num_classes} of {record.name}")
    if classes.every > study.epochs:
        raise ValueError(
            f"data.classes.every: a task of {classes.every} epochs is longer than the study, {study.epochs}"
        )
    for trial in range(study.trials) if classes.found else ():
        if trial >= len(classes.found) and "{trial}" in classes.order:
            raise ValueError(f"data.classes.order: {path_of_order(classes.order, trial)} is not there")
        if len(classes.order_of(trial) or ()) != record.num_classes:
            raise ValueError(
                f"data.classes.order: {path_of_order(classes.order, trial)} lists {len(classes.order_of(trial) or ())} "
                f"classes, {record.name} has {record.num_classes}"
            )
    for name in ("num_train", "num_validation"):
        if (getattr(data, name) or 0) % record.num_classes:
            raise ValueError(
                f"data.{name}: {getattr(data, name)} images are not equally many of each of "
                f"{record.num_classes} classes"
            )
    if data.duplicates is not None:
        raise ValueError("data.duplicates: and data.classes cannot be combined, since a copy has its source's class")
    train, validation, test = data.images_of_each_class
    if train < 1 or test < 0:
        raise ValueError(
            f"data.num_train: {max(train, 1)} images of each class to train on and {validation} for validation are "
            f"more than the rarest class of {record.name} has, {record.rarest[0]}"
        )


def check_variant(study: "Study", name: str) -> None:
    """Refuse a variant that contradicts itself, the data or the number of epochs."""
    variant = study.variants[name]
    network, shape = architecture_called(variant.architecture), study.data.record.image_shape
    if reason := network.objection(shape, **network.complete(variant.network)):
        raise ValueError(f"variants.{name}.network.{reason}")
    if study.imported:
        return  # how it was trained is not for us to refuse
    _check_augmentation(study, name, variant)
    _check_label_noise(study, name, variant)
    _check_schedule(study, name, variant)
    _check_interventions(study, name, variant)
    size, calendar = variant.batch_size, study.calendar(name)
    sizes = calendar.examples_of_tasks[: calendar.task_of(study.epochs)]
    if size > sizes[0]:
        when = " in the first task" if len(sizes) > 1 else ""
        raise ValueError(
            f"variants.{name}.batch_size: {size} {study.data.record.examples} in a batch but only {sizes[0]} to train "
            f"on{when}"
        )
    # The last stage of a ResNet leaves one pixel of 8x8, and BatchNorm needs two values to normalise.
    is_narrow = network.normalises_single_values(shape, variant.network)
    single = [task for task, images in enumerate(sizes, 1) if size == 1 or images % size == 1]
    if is_narrow and single:
        when = f" of task {single[0]}" if len(sizes) > 1 else ""
        raise ValueError(
            f"variants.{name}.batch_size: with {size} the last batch of an epoch{when} would be a single image, "
            "which BatchNorm cannot normalise; choose another size"
        )


def _check_label_noise(study: "Study", name: str, variant: "Variant") -> None:
    if variant.label_noise_kind == "asymmetric" and not study.data.record.taken_for:
        raise ValueError(
            f"variants.{name}.label_noise_kind: nobody says which classes of {study.data.record.name} are taken for "
            "which others (asymmetric); choose pair_flip or symmetric"
        )
    if variant.label_noise_kind != "symmetric" and not variant.label_noise:
        raise ValueError(
            f"variants.{name}.label_noise_kind: {variant.label_noise_kind} changes nothing without label_noise; set "
            "it, or leave out the kind"
        )
    if variant.label_noise and study.data.classes is not None:
        raise ValueError(
            f"variants.{name}.label_noise: and data.classes cannot be combined: a wrong label may be of a class that "
            "is still to come"
        )


def _check_augmentation(study: "Study", name: str, variant: "Variant") -> None:
    record = study.data.record
    height, width, _ = record.image_shape
    size = f"{width} pixels wide and {'' if height == width else f'{height} '}high"
    for axis, side in (("shift_x", width), ("shift_y", height)):
        if getattr(variant.augmentation, axis) >= side:
            raise ValueError(
                f"variants.{name}.augmentation.{axis}: must be below {side}, or nothing of an image of "
                f"{record.name}, {size}, may be left"
            )


def _check_schedule(study: "Study", name: str, variant: "Variant") -> None:
    schedule = variant.schedule
    for key, metric in variant.watched_metrics.items():
        if metric in ("loss_val_nats", "acc_val") and not study.data.num_validation:
            raise ValueError(
                f"variants.{name}.{key}: {metric} needs validation {study.data.record.examples}; "
                "set data.num_validation"
                + ("" if key.startswith("interventions") else ", or name train_loss or train_error")
            )
    classes, last, longest, what = study.data.classes, study.epochs, study.epochs, ""
    if classes is not None:
        if variant.early_stopping is not None:
            raise ValueError(
                f"variants.{name}.early_stopping: and data.classes cannot be combined: a trial that has stopped would "
                "miss the classes to come"
            )
        if schedule.restarts:  # every task is a training of its own; the last may be longer, or shorter
            calendar = study.calendar(name)
            tasks = [calendar.epochs_of(task, last) for task in range(1, calendar.task_of(last) + 1)]
            last, longest, what = len(tasks[0]), max(map(len, tasks)), " of a task"
    if schedule.warmup_epochs >= last:
        raise ValueError(
            f"variants.{name}.schedule.warmup_epochs: {schedule.warmup_epochs:g} is not before the last epoch{what}, "
            f"{last}"
        )
    if schedule.milestones and schedule.milestones[-1] >= longest:
        raise ValueError(
            f"variants.{name}.schedule.milestones: epoch {schedule.milestones[-1]} is not before the last "
            f"epoch{what}, {longest}"
        )


def _check_interventions(study: "Study", name: str, variant: "Variant") -> None:
    interventions, path = variant.interventions, f"variants.{name}.interventions"
    if interventions.needing_tasks and study.data.classes is None:
        raise ValueError(
            f"{path}.{interventions.needing_tasks[0]}: acts where one task ends and another begins; set data.classes, "
            "which makes tasks"
        )
    classes = study.data.classes
    if interventions.best_weights and classes is not None and study.evaluation.every > classes.every:
        raise ValueError(
            f"{path}.best_weights: evaluations every {study.evaluation.every} epochs leave out tasks of "
            f"{classes.every} {'epoch' if classes.every == 1 else 'epochs'}; set evaluation.every to no more"
        )
    if interventions.continual_backprop is None:
        return
    if not architecture_called(variant.architecture).has_known_units:
        raise ValueError(
            f"{path}.continual_backprop: which units of {variant.architecture} feed which is not known; take an "
            "architecture of the platform with ReLUs, or another intervention"
        )
    if variant.compile is not None:
        raise ValueError(
            f"{path}.continual_backprop: looks at activations inside the network, which torch.compile would compile "
            "away; leave out compile"
        )
