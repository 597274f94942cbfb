r"""Read metrics of other systems, or exported ones, into the tables, to be queried by SQL and plotted like any study.

  ddlab import-metrics figure1 output/ --dataset cifar10 --architecture preact_resnet18 \
      --label-noise 0.15 --batch-size 128 --optimizer adam --learning-rate 1e-4
  ddlab import-metrics copy data/exports/quickstart

reads CSV and JSON lines, packed with gzip or not; in folders those called metrics.* and metrics_k*.*. The form (Keras,
Lightning, timm, ...) is recognised by the header; --dry-run shows what each column is taken for. The variant, k and
trial of a run come from the file, its path (s-core.k008/trial-003, metrics_k12.jsonl) or from options; --by lr,wd makes
a variant of each learning rate and weight decay. Give all files of a run in one command. The study's file is written
into the folder DD_STUDIES; how a variant was trained is asked for once, when it is new. docs/import.md has examples.
"""

import argparse
import io
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any, get_args

from dd_assets.catalogue import study_folders
from dd_assets.laboratory import writable_store
from dd_core.errors import UserError
from dd_core.exchange.formats import FORMATS
from dd_core.exchange.gathering import Request
from dd_core.exchange.importer import Imported, import_metrics
from dd_core.exchange.interpretation import Told
from dd_core.exchange.places import Reading
from dd_core.study.architectures import ARCHITECTURES
from dd_core.study.datasets import DATASETS
from dd_core.study.recipe import Optimizer
from dd_core.words import counted


def main(arguments: list[str] | None = None) -> int:
    """Import; returns the exit code."""
    options = _parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may be any bytes
    try:
        request = _request(options)
        store = writable_store()
        folders = study_folders()
        if len(folders) < 2:
            raise UserError(
                "DD_STUDIES is not set: name a folder for your study files (export DD_STUDIES=$PWD/my_studies), into "
                "which the file of the imported study is written"
            )
        done = import_metrics(store, folders, request, dry_run=options.dry_run)
        if done.written and not options.dry_run:
            from dd_core.tables.warehouse import refresh

            refresh(store)
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    print(_told(request.study, done, options.dry_run))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ddlab import-metrics",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("study", help="name of the study the runs become part of")
    add("paths", nargs="+", type=Path, metavar="FILE_OR_FOLDER", help="folders are searched for metrics*.csv, .jsonl")
    add("--dry-run", action="store_true", help="check everything, show what is read, and write nothing")
    add("--replace", action="store_true", help="let rows of an earlier import give way to those of other files")
    add("--description", default=Request.description, help="of a new study")
    runs = parser.add_argument_group("which run it is, instead of what the path says").add_argument
    runs("--variant", help="name of the training recipe")
    runs("--k", type=float, help="width multiplier of the model, or number of its hidden units; may be a fraction")
    runs("--trial", type=int, help="number of the random seed, from 0")
    runs("--runs", metavar="PATTERN", help="how runs in the columns of a chart are called, as 'net-k{k}-seed{trial}' "
         "({k}, {trial}, {variant}; * is any text); or trials: each is the next trial")  # fmt: skip
    runs(
        "--by",
        metavar="lr,wd",
        help="runs of other learning rates or weight decays, as their files say, are other "
        "variants, called as those of a grid",
    )
    runs("--width-unit", metavar="1/16", help="the width that k = 1 stands for, where widths are fractions")
    trained = parser.add_argument_group("how it was trained, where the study file does not say it yet").add_argument
    trained("--dataset", metavar="NAME", help=f"{', '.join(DATASETS)} or any other name")
    trained("--num-train", type=int, help="training images, if not all of the data set")
    trained("--architecture", metavar="NAME", help=f"{', '.join(ARCHITECTURES)} or any other name")
    trained("--label-noise", type=float, help="share of wrong training labels, fraction")
    trained("--batch-size", type=int)
    trained("--optimizer", choices=get_args(Optimizer.model_fields["name"].annotation))
    trained("--learning-rate", type=float, help="default: the largest in the files")
    trained("--weight-decay", type=float, help="default: that of the files if it never changes, else 0")
    files = parser.add_argument_group("how the files are to be read").add_argument
    files("--format", choices=FORMATS, help="default: recognised by the header")
    files("--rename", action="append", default=[], metavar="KEY=NAME", help="read a key as another; KEY= leaves it out")
    files("--percent", action="store_true", help="accuracies and errors are in percent")
    files("--first-epoch", type=int, choices=(0, 1), help="how the files count; with 0, one is added. Default: as the "
          "format does, else 1")  # fmt: skip
    files("--keep", choices=("last",), help="of what a resumed run tells twice take what comes later")
    files("--accept-nan", action="store_true", help="take bare NaN and Infinity in JSON, as Python writes them")
    return parser


def _request(options: argparse.Namespace) -> Request:
    def given(**values: Any) -> dict[str, Any]:
        return {key: value for key, value in values.items() if value is not None}

    optimizer = given(name=options.optimizer, learning_rate=options.learning_rate, weight_decay=options.weight_decay)
    settings = given(architecture=options.architecture, label_noise=options.label_noise, batch_size=options.batch_size)
    texts = [value for value in vars(options).values() if isinstance(value, str)] + options.rename
    if any(not text.isprintable() for text in texts):
        raise UserError("an option has characters that are no text")
    wrong = [text for text in options.rename if text.find("=") < 1]
    if wrong:
        raise UserError(f"--rename {wrong[0]}: say KEY=NAME, or KEY= to leave the key out")
    reading = Reading(
        k=options.k,
        trial=options.trial,
        first_epoch=options.first_epoch,
        percent=options.percent,
        keep_last=options.keep == "last",
        format=options.format,
        runs=options.runs,
        width_unit=_fraction(options.width_unit),
    )
    return Request(
        study=options.study,
        paths=tuple(options.paths),
        variant=options.variant,
        reading=reading,
        renames={text.partition("=")[0]: text.partition("=")[2] for text in options.rename},
        accept_nan=options.accept_nan,
        data=given(dataset=options.dataset, num_train=options.num_train),
        settings={**settings, **({"optimizer": optimizer} if optimizer else {})},
        description=options.description,
        replace=options.replace,
        by=tuple(dict.fromkeys(filter(None, (options.by or "").split(",")))),
    )


def _fraction(text: str | None) -> Fraction | None:
    try:
        value = None if text is None else Fraction(text)
    except (ValueError, ZeroDivisionError):
        value = Fraction(0)
    if value is not None and value <= 0:
        raise UserError(f"--width-unit {text}: say a positive number, such as 1/16 or 0.0625")
    return value


def _told(study: str, done: Imported, dry_run: bool) -> str:
    """What came of it, for people."""
    totals: dict[str, int] = {}
    for counts in done.rows.values():
        for table, rows in counts.items():
            totals[table] = totals.get(table, 0) + rows
    arms = list(dict.fromkeys(arm.key for arm, _ in done.rows))
    shown = ", ".join(arms) if len(arms) <= 8 else f"{arms[0]}, {arms[1]}, … {arms[-1]}"
    lines = [f"{study}: {counted(len(done.rows), 'run')} of {counted(len(arms), 'arm')} ({shown})"]
    lines += [f"  {table}: {counted(rows, 'row')}" for table, rows in sorted(totals.items())]
    lines += _columns(done.told)
    if done.metrics:
        lines.append(f"  other keys, now metrics of training_monitors: {', '.join(done.metrics)}")
    lines += [f"  left out: {text}" for text in done.left_out]
    if dry_run:
        lines.append(f"Nothing was written; without --dry-run {counted(len(done.written), 'file')} would be.")
    elif done.written:
        has_steps = "training_batches" in totals
        what = "loss_slopes,loss_slope_fits" if has_steps else "double_descent_curve,training_curves"
        lines.append(f"Done. {'Fit' if has_steps else 'Plot'} it: dagster asset materialize --select {what}")
    else:
        lines.append("All of it had been imported before; nothing was changed.")
    return "\n".join(lines)


def _columns(told: list[Told]) -> list[str]:
    """What each column was taken for, with the range of its values as the file has them."""
    lines = []
    for form in dict.fromkeys(key.format for key in told):
        lines.append(f"  read as {form} ({FORMATS[form].description}):")
        keys = [key for key in told if key.format == form]
        widths = [max(len(getattr(key, name)) for key in keys) for name in ("key", "meaning")]
        for key in keys:
            nan = f", {key.nan} NaN (null)" if key.nan else ""
            ends = f"{key.lowest:.6g} to {key.highest:.6g}" if key.values > key.nan else "no number"
            lines.append(f"    {key.key:<{widths[0]}}  {key.meaning:<{widths[1]}}  {key.values} values, {ends}{nan}")
    return lines


if __name__ == "__main__":
    sys.exit(main())
