"""Tables that training and its preparation write."""

from dd_core.tables.columns import (
    ARM,
    CLASS_RANK,
    EPOCH,
    IMAGE,
    LABELS,
    SPLIT,
    STEP,
    STUDY,
    TRIAL,
    VARIANT,
    Column,
    Table,
)

_OUTCOMES = (
    ("train_error", "given labels, fraction"),
    ("train_loss", "given labels, nats"),
    ("validation_loss", "validation images, nats"),
    ("validation_error", "validation images, fraction"),
    ("test_error", "fraction"),
    ("test_loss", "nats"),
)
_LAST_AND_BEST = (
    *(Column(f"last_{name}", "float64", f"at the last evaluation, {unit}") for name, unit in _OUTCOMES),
    Column(
        "best_by", "string", "what best means: lowest validation_loss, or without validation images lowest test_loss"
    ),
    Column("best_epoch", "int16", "epoch of the evaluation at which that was lowest, over all attempts"),
    *(Column(f"best_{name}", "float64", f"at best_epoch, {unit}") for name, unit in _OUTCOMES),
)

# What a checkpoint vouches for besides the weights.
METRIC_TABLES = ("training_batches", "training_evals", "training_monitors", "image_progress", "class_progress")

TRAINING_TABLES = (
    Table(
        "images",
        "Which images each trial trains and is tested on, and the labels it was given.",
        (
            STUDY,
            VARIANT,
            TRIAL,
            IMAGE,
            SPLIT,
            *LABELS,
            CLASS_RANK,
            Column("copy_of", "int32", "image whose pixels and label it has been given; null: its own"),
            Column("duplicate", "string", "exact or near: it is a copy or has one; null: neither"),
        ),
    ),
    Table(
        "class_schedule",
        "Of studies whose classes come one group after the other, how many there were at each checkpoint epoch.",
        (
            STUDY,
            EPOCH,
            Column("task", "int16", "that the epoch belongs to, from 1; epoch 0 counts as the first's"),
            Column(
                "num_seen_classes",
                "int16",
                "that the weights after the epoch have been trained on: those of class_rank below; 0 at epoch 0",
            ),
            Column(
                "num_active_classes",
                "int16",
                "that the next epoch is trained on. Where a task has just ended they are more than those seen, and who "
                "takes them for seen scores classes that the network does not know",
            ),
        ),
    ),
    Table(
        "runs",
        "One row per arm, trial and attempt to train it.",
        (
            *ARM,
            Column(
                "attempt",
                "int16",
                "1 for the first training of this arm or of a part of its trials, 2 for the next, ...",
            ),
            Column("status", "string", "running, finished, stopped early, diverged, failed or interrupted (killed)"),
            Column("reason", "string", "why it ended, if not by reaching the last epoch asked for"),
            Column("architecture", "string", "of the network"),
            Column("optimizer", "string", "adam, adamw or sgd"),
            Column("learning_rate", "float64", "before the schedule"),
            Column("weight_decay", "float64", "of the optimiser"),
            Column("schedule", "string", "of the learning rate"),
            Column("batch_size", "int32", "images of a trial in an optimiser step"),
            Column("micro_batch_size", "int32", "images at a time, fewer where memory ran out; BatchNorm sees these"),
            Column("label_noise", "float64", "share of wrong training labels, fraction"),
            Column(
                "label_noise_kind", "string", "symmetric, pair_flip or asymmetric; null: no wrong labels, or imported"
            ),
            Column(
                "precision",
                "string",
                "in which matrix products and convolutions were computed: as the recipe says, unless float32 is faster "
                "on the machine",
            ),
            Column("settings", "string", "the whole recipe, JSON"),
            Column("family", "string", "the variant of the study file that it comes from: itself, or one with a grid"),
            Column("grid", "string", "what the grid varied, JSON by column name; null: no grid"),
            Column("seed", "int64", "seed of the study; with the trial it determines all randomness"),
            Column("num_parameters", "int64", "trainable parameters of one trial's network"),
            Column("device", "string", "cpu or the GPU's name"),
            Column("threads", "int16", "CPU threads of the worker"),
            Column("torch_version", "string", "version of PyTorch"),
            Column("first_epoch", "int16", "epoch this attempt started after"),
            Column(
                "last_epoch",
                "int16",
                "last epoch that this attempt completed; where all trials have ended before, the one it was asked for",
            ),
            Column("end_epoch", "int16", "epoch in which the trial stopped early or diverged; null: it did not"),
            Column("end_step", "int64", "optimiser step after which it stopped early, or at which it diverged"),
            Column("started_at", "timestamp", "UTC"),
            Column("ended_at", "timestamp", "UTC; null while running; of a killed attempt the last sign of life"),
            Column("arms_together", "int16", "arms that shared a network in this attempt, this one included; null: 1"),
            Column(
                "seconds",
                "float64",
                "wall time of this attempt, all its trials together, s; arms that share a network divide it evenly",
            ),
            Column("predicted_seconds", "float64", "the same as predicted before it began, s; null: nothing to go by"),
            Column("gpu_share", "float64", "share of a GPU that the attempt had; 0 on a CPU"),
            Column("gpu_seconds", "float64", "seconds times gpu_share, s"),
            Column("price_per_gpu_hour", "float64", "as the study or DD_PRICE_PER_GPU_HOUR said; null: no price"),
            Column("cost", "float64", "of this attempt, all its trials, in the currency of the price; null: no price"),
            Column("samples_per_second", "float64", "training images per second, summed over trials, 1/s"),
            Column("peak_memory_bytes", "int64", "largest memory allocated on the GPU; on a CPU largest resident set"),
            *_LAST_AND_BEST,
        ),
        newest="PARTITION BY study, arm, trial, recipe, attempt ORDER BY status = 'running', ended_at DESC",
    ),
    Table(
        "training_batches",
        "Every optimiser step of every trial.",
        (
            *ARM,
            Column("epoch", "int16", "epoch the batch belongs to, 1-based"),
            STEP,
            Column(
                "train_loss",
                "float64",
                "mean loss of the batch before the step, as it is trained (of smoothed labels, or mean squared error, "
                "if the variant says so), nats; the step at which it is no number any more has no row, and "
                "runs.end_step says which",
            ),
            Column("train_error", "float64", "of the batch (augmented, given labels) before the step, fraction wrong"),
            Column("learning_rate", "float64", "of the step; what a grid varied is that of runs"),
            Column("weight_decay", "float64", "weight decay of the step"),
            Column("time", "float64", "when the step was issued, Unix time, s"),
        ),
    ),
    Table(
        "training_evals",
        "Evaluations of the whole training and test set without augmentation, BatchNorm in eval mode.",
        (
            *ARM,
            EPOCH,
            STEP,
            Column("train_error", "float64", "all training images, given labels, fraction"),
            Column(
                "train_loss",
                "float64",
                "all training images, given labels: cross-entropy without smoothing, nats, or, as all losses here, "
                "the mean squared error of variants trained with that; null: not measured, or NaN where it was "
                "imported from",
            ),
            Column("train_error_clean", "float64", "training images with a right label, fraction"),
            Column("train_loss_clean", "float64", "training images with a right label, nats"),
            Column("train_error_noisy", "float64", "mislabelled training images against the GIVEN label, fraction"),
            Column("train_loss_noisy", "float64", "mislabelled training images against the GIVEN label, nats"),
            Column("validation_loss", "float64", "validation images, true labels, nats; null without such images"),
            Column("validation_error", "float64", "validation images, true labels, fraction; null without such images"),
            Column("test_error", "float64", "test images, true labels, fraction"),
            Column("test_loss", "float64", "test images, true labels, nats"),
        ),
    ),
    Table(
        "training_monitors",
        "What monitors measured during training: one row per trial, step and metric.",
        (
            *ARM,
            Column("epoch", "int16", "epoch the step belongs to, 1-based"),
            STEP,
            Column(
                "metric",
                "string",
                "validation_loss, validation_error, gradient_norm, weight_norm, largest_eigenvalue, hessian_trace, ...",
            ),
            Column(
                "value",
                "float64",
                "in nats, fractions and their weight-space derivatives; NaN has no row, or is null if it was imported",
            ),
            Column("standard_error", "float64", "of estimates by sampling; null for what is not sampled"),
        ),
    ),
    Table(
        "resource_probe",
        "How fast each arm trains with one to five workers on a GPU, or on the cores of a CPU.",
        (
            *(column for column in ARM if column.name != "trial"),
            Column("device", "string", "cpu or the GPU's name"),
            Column("num_workers", "int16", "workers sharing the GPU, or the CPU's cores"),
            Column("threads", "int16", "CPU threads of each worker"),
            Column("status", "string", "ok or out of memory"),
            Column("samples_per_second", "float64", "training images per second, all trials and workers; median"),
            Column("spread", "float64", "of its repetitions: largest minus smallest over the median, fraction"),
            Column("peak_memory_bytes", "int64", "of one worker: allocated on the GPU, or resident set on a CPU"),
            Column("utilisation", "float64", "share of the GPU's time, or of the CPU's cores, in use, fraction"),
            Column("num_steps", "int32", "optimiser steps of each worker that were timed"),
            Column("recommended", "bool", "fewest workers within 3 % of the highest speed; nowhere true if too uneven"),
            Column("torch_version", "string", "version of PyTorch"),
            Column("measured_at", "timestamp", "UTC"),
        ),
    ),
    Table(
        "image_progress",
        "Loss and correctness of every image at every evaluation; with a subset (data.subset) the images left out of "
        "training are a split of their own, left_out.",
        (
            *ARM,
            EPOCH,
            IMAGE,
            SPLIT,
            Column("loss", "float32", "of the given label, nats, as in training_evals"),
            Column("correct", "bool", "the most probable class is the given label"),
            Column(
                "margin",
                "float32",
                "logit of the given label minus the largest other (evaluation.image_values)",
                is_optional=True,
            ),
            Column(
                "el2n",
                "float32",
                "norm of the softmax of the logits minus the one-hot given label (evaluation.image_values)",
                is_optional=True,
            ),
            Column(
                "gradient_norm",
                "float32",
                "norm of the gradient of loss in the standardised pixels, nats (evaluation.image_values)",
                is_optional=True,
            ),
            Column("probability", "float32", "of graphs, that of label 1", is_optional=True),
            Column("cycle_loss_1", "float32", "of graphs, error of the reconstructed features", is_optional=True),
            Column("cycle_loss_2", "float32", "of graphs, error of the level above", is_optional=True),
            Column("kept_share", "float32", "of graphs, share of nodes that both poolings keep", is_optional=True),
            Column("pooling_entropy", "float32", "of graphs, of the first pooling's scores, 0 to 1", is_optional=True),
        ),
    ),
    Table(
        "class_progress",
        "Of every class that was seen loss and accuracy at every evaluation, where classes come one group after the "
        "other: what is learned of new classes, and forgotten of old ones.",
        (
            *ARM,
            EPOCH,
            STEP,
            Column("split", "string", "train, validation or test"),
            Column("class_label", "int16", "the class"),
            Column("class_rank", "int16", "its place in the order in which the trial's classes come, from 0"),
            Column("task", "int16", "that it came with, from 1"),
            Column("num_images", "int32", "of the class in the split"),
            Column("loss", "float64", "their mean, nats, as in training_evals"),
            Column("accuracy", "float64", "their mean, among the classes seen, fraction"),
        ),
    ),
)
