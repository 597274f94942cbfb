r"""Read weights that were trained elsewhere as checkpoints of a study, to be analysed like any that was trained here.

  ddlab import-checkpoints upstream results/base_deep_learning_system
  ddlab import-checkpoints mine runs/ --pattern '{arm}/seed{trial}/{epoch}.pth' --architecture resnet18 \
      --k 64 --dataset cifar10 --batch-size 128 --optimizer sgd --learning-rate 0.1

reads files of torch.save with a state_dict (weights_only: no code of theirs is run), and safetensors. Without --pattern
files are called as the published code of incremental CIFAR-100 calls them, index-0_epoch-200.pt, and their classes came
as class_order/index-0.npy says. Prefixes of wrappers (module., _orig_mod.) are stripped. The study's file is written
into the folder DD_STUDIES; afterwards `dagster asset materialize --select curvature`, figures and SQL work on it.
docs/import.md has examples.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any, get_args

from dd_assets.catalogue import study_folders
from dd_assets.laboratory import writable_store
from dd_core.errors import UserError, require_torch
from dd_core.study.architectures import ARCHITECTURES
from dd_core.study.datasets import DATASETS
from dd_core.study.recipe import Optimizer
from dd_core.words import counted


def main(arguments: list[str] | None = None) -> int:
    """Import; returns the exit code."""
    options = _parser().parse_args(arguments)
    started = time.monotonic()
    try:
        folders = study_folders()
        if len(folders) < 2:
            raise UserError(
                "DD_STUDIES is not set: name a folder for your study files (export DD_STUDIES=$PWD/my_studies), into "
                "which the file of the imported study is written"
            )
        store = writable_store()
        require_torch("reading trained weights")

        from dd_core.weights.importer import import_checkpoints

        done = import_checkpoints(store, folders, _request(options), dry_run=options.dry_run)
        if done.written and not options.dry_run:
            from dd_core.tables.warehouse import refresh

            refresh(store)
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    print(_told(done, options.dry_run, time.monotonic() - started))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ddlab import-checkpoints",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("study", help="name of the study the checkpoints become part of")
    add("folder", type=Path, help="where the files lie, in it or below it")
    add("--dry-run", action="store_true", help="check everything and write nothing")
    add("--replace", action="store_true", help="let weights of an earlier import give way to those of other files")
    add("--description", help="of a new study")
    files = parser.add_argument_group("which file is which, and where its weights are").add_argument
    files("--pattern", help="paths below the folder, as '{arm}/{trial}/{epoch}.pth'; {index} and {seed} are {trial}, "
          "and there is {k}; * is any text")  # fmt: skip
    files("--variant", help="name of the training recipe, where the pattern has no {arm}")
    files("--k", type=int, help="width multiplier, where the pattern does not say it; published files: 64")
    files("--trial", type=int, help="number of the random seed, where the pattern does not say it; default 0")
    files("--key", help="where in a file the weights are, as ema or ema.shadow; default: state_dict, model, or all")
    data = parser.add_argument_group("what it was trained on, where the study file does not say it yet").add_argument
    data("--dataset", metavar="NAME", help=f"{', '.join(DATASETS)}, or a .npz file of your own (docs/data.md)")
    data("--num-train", type=int, help="training images, if not all of the data set")
    data("--num-validation", type=int, help="images that were not trained on")
    data("--mean", metavar="NUMBERS", help="of each channel, where the largest pixel value is 1, as 0.5,0.5,0.5; "
         "default that of the training images. Published: 0.5071,0.4865,0.4409")  # fmt: skip
    data("--std", metavar="NUMBERS", help="deviations, likewise. Published: 0.2673,0.2564,0.2762")
    data("--class-order", metavar="PATH", help="the .npy file, below the folder, that lists the classes in the order "
         "they came in; {trial} in it where each has its own. Published: class_order/index-{trial}.npy")  # fmt: skip
    data("--classes", metavar="FIRST,ADD,EVERY", help="classes of the first task, classes that each further one "
         "adds, and its epochs; default 5,5,200")  # fmt: skip
    data("--all-classes", action="store_true", help="all classes were there from the beginning")
    trained = parser.add_argument_group("how it was trained, where the study file does not say it yet").add_argument
    trained("--architecture", metavar="NAME", help=f"{', '.join(ARCHITECTURES)} or module:function of your own")
    trained("--network", action="append", default=[], metavar="KEY=VALUE", help="a setting of it, as norm=group")
    trained("--batch-size", type=int)
    trained("--optimizer", choices=get_args(Optimizer.model_fields["name"].annotation))
    trained("--learning-rate", type=float)
    trained("--weight-decay", type=float)
    trained("--momentum", type=float)
    return parser


def _request(options: argparse.Namespace) -> Any:
    from dd_core.weights.importer import WeightsRequest

    def given(**values: Any) -> dict[str, Any]:
        return {key: value for key, value in values.items() if value is not None}

    if options.all_classes and options.class_order:
        raise UserError("--all-classes and --class-order say different things; pass one of them")
    optimizer = given(
        name=options.optimizer,
        learning_rate=options.learning_rate,
        weight_decay=options.weight_decay,
        momentum=options.momentum,
    )
    network = dict(_setting(text) for text in options.network)
    settings = given(
        architecture=options.architecture,
        network=network or None,
        batch_size=options.batch_size,
        optimizer=optimizer or None,
    )
    dataset = options.dataset
    if dataset is not None and dataset.endswith(".npz"):
        dataset = {"npz": str(Path(dataset).absolute())}
    return WeightsRequest(
        study=options.study,
        folder=options.folder,
        data=given(
            dataset=dataset,
            num_train=options.num_train,
            num_validation=options.num_validation,
            standardisation=_standardisation(options.mean, options.std),
        ),
        settings=settings,
        classes=_classes(options.classes) if options.classes else None,
        replace=options.replace,
        **given(
            pattern=options.pattern,
            variant=options.variant,
            k=options.k,
            trial=options.trial,
            key=options.key,
            class_order="" if options.all_classes else options.class_order,
            description=options.description,
        ),
    )


def _standardisation(mean: str | None, std: str | None) -> dict[str, list[float]] | None:
    if mean is None and std is None:
        return None
    if mean is None or std is None:
        raise UserError("--mean and --std belong together; pass both")
    try:
        return {name: [float(part) for part in text.split(",")] for name, text in (("mean", mean), ("std", std))}
    except ValueError as error:
        raise UserError(f"--mean {mean} --std {std}: say a number for each channel, as 0.5,0.5,0.5") from error


def _setting(text: str) -> tuple[str, int | str]:
    name, _, value = text.partition("=")
    if not name or not value:
        raise UserError(f"--network {text}: say KEY=VALUE, as norm=group")
    return name, int(value) if value.isdigit() else value


def _classes(text: str) -> tuple[int, int, int]:
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdigit() and int(part) for part in parts):
        raise UserError(f"--classes {text}: say three whole numbers above 0, as 5,5,200")
    first, add, every = map(int, parts)
    return first, add, every


def _told(done: Any, dry_run: bool, seconds: float) -> str:
    """What came of it, for people."""
    study, arms = done.study, list(dict.fromkeys(checkpoint.arm.key for checkpoint in done.checkpoints))
    epochs = sorted({checkpoint.epoch for checkpoint in done.checkpoints})
    lines = [
        f"{study.name}: {counted(len(done.checkpoints), 'checkpoint')} of {', '.join(arms)}, "
        f"epochs {epochs[0]} to {epochs[-1]}, {counted(study.trials, 'trial')}"
    ]
    lines += [
        f"  the recipe had changed; what was imported with the earlier one lies in {path}" for path in done.retired
    ]
    if dry_run:
        lines.append(f"Nothing was written; without --dry-run {counted(len(done.written), 'file')} would be.")
    elif done.written:
        speed = f"{done.bytes / 1e6:,.0f} MB in {seconds:.1f} s"
        lines.append(f"  {counted(len(done.written), 'file')} written, {speed}")
        lines.append("Done. Dagster is not told of it; look at it: dagster asset materialize --select curvature")
    else:
        lines.append("All of it had been imported before; nothing was changed.")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
