"""Figures of studies that were imported: drawn with what there is, and named for what they are."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import vl_convert
from specifications import assert_legible

from dd_core.exchange.gathering import Request
from dd_core.exchange.importer import import_metrics
from dd_core.exchange.places import Reading
from dd_core.figures import FIGURES
from dd_core.store.store import Store
from dd_core.study.files import read_study
from dd_core.tables.warehouse import connect

FILES = Path(__file__).parents[1] / "core" / "metric_files"
HOW: dict[str, Any] = {
    "settings": {
        "architecture": "fcnn",
        "label_noise": 0.2,
        "batch_size": 128,
        "optimizer": {"name": "sgd", "learning_rate": 0.1},
    },
    "data": {"dataset": "mnist"},
}
BY_NAME = {figure.name: figure for figure in FIGURES}


def drawn(tmp_path: Path, path: Path, figure: str, **reading: Any) -> dict[str, Any] | None:
    """The specification of a figure of a file, which compiles to an image without anything undefined."""
    studies, store = tmp_path / "studies", Store(tmp_path / "root")
    studies.mkdir(exist_ok=True)
    import_metrics(store, [studies], Request("other", (path,), reading=Reading(**reading), **HOW))
    with contextlib.closing(connect(store)) as connection:
        chart = BY_NAME[figure].draw(read_study(studies / "other.yaml"), store, connection)
    if chart is None:
        return None
    specification: dict[str, Any] = chart.to_dict()
    text = vl_convert.vegalite_to_svg(json.dumps(specification, allow_nan=False))
    assert "NaN" not in text and "undefined" not in text
    assert_legible(specification, text)
    return specification


def rows(specification: Any) -> list[dict[str, Any]]:
    """All data of a figure that is written into it row by row."""
    if isinstance(specification, dict):
        own = specification.get("values")
        found = [row for row in own if isinstance(row, dict)] if isinstance(own, list) else []
        found += [row for data in specification.get("datasets", {}).values() for row in data if isinstance(data, list)]
        return found + [row for value in specification.values() for row in rows(value)]
    return [row for value in specification for row in rows(value)] if isinstance(specification, list) else []


def axes(specification: dict[str, Any]) -> set[str]:
    text = json.dumps(specification)
    return {title for title in ("error, %", "cross-entropy, nats") if title in text}


def test_test_error_without_training_error_is_drawn(tmp_path: Path) -> None:
    specification = drawn(tmp_path, FILES / "timm.csv", "double_descent_curve", k=8)
    assert specification is not None
    errors = {(row["split"], row["error"]) for row in rows(specification) if row.get("error") is not None}
    assert errors == {("test (true labels)", 17.6)}
    assert {row["split"] for row in rows(specification) if row.get("loss")} == {
        "test (true labels)",
        "training (given labels)",
    }
    assert drawn(tmp_path, FILES / "timm.csv", "training_curves", k=8) is not None


def test_errors_without_losses_are_drawn_with_their_peak_and_threshold(tmp_path: Path) -> None:
    specification = drawn(tmp_path, FILES / "errors_only.csv", "double_descent_curve", first_epoch=0)
    assert specification is not None
    assert axes(specification) == {"error, %"}
    text = json.dumps(specification, ensure_ascii=False).replace("\u00a0", " ")
    assert "peaks at 45.0 % at k = 8" in text.replace('", "', " ")
    assert "interpolation threshold: k = 8" in text
    curves = drawn(tmp_path, FILES / "errors_only.csv", "training_curves", first_epoch=0)
    assert curves is not None and axes(curves) == {"error, %"}


def test_losses_alone_and_validation_alone_are_drawn(tmp_path: Path) -> None:
    for name, text, expected in (
        ("losses", "epoch,train_loss,val_loss\n1,2,2.5\n2,1,2\n", {"cross-entropy, nats"}),
        ("validation", "epoch,val_acc\n1,0.5\n2,0.75\n", {"error, %"}),
    ):
        folder = tmp_path / name
        folder.mkdir()
        path = folder / "log.csv"
        path.write_text(text)
        for figure in ("double_descent_curve", "training_curves"):
            specification = drawn(folder, path, figure, k=8)
            assert specification is not None, (name, figure)
            assert axes(specification) == expected
            assert "validation" in json.dumps(specification)


def test_data_sets_and_networks_of_others_have_their_names(tmp_path: Path) -> None:
    path = tmp_path / "sweep.csv"
    path.write_text("k,epoch,test_error,train_error\n" + "".join(f"{k},5,0.3,0.1\n" for k in (0.25, 1, 1000)))
    specification = drawn(tmp_path, path, "double_descent_curve")
    assert specification is not None
    subtitle = " ".join(specification["title"]["subtitle"])
    assert subtitle.startswith("MNIST, all training images, 20 % of them mislabelled fcnn · 1 trial · epoch 5 of 5")
    assert "k = 1 is a width of 0.25" in subtitle
    assert {row["k"] for row in rows(specification) if "error" in row} == {1, 4, 4000}


@pytest.mark.parametrize("name", sorted(path.name for path in FILES.iterdir()))
def test_no_published_file_breaks_any_figure(name: str, tmp_path: Path) -> None:
    """Drawn or not, but without an exception, and those who read evaluations draw what is imported."""
    studies, store = tmp_path / "studies", Store(tmp_path / "root")
    studies.mkdir()
    reading = Reading(
        k=None if name in ("errors_only.csv", "mnist.csv", "wandb.csv") else 8,
        percent=name in ("percent.csv", "lightning.csv"),
        keep_last=True,
    )
    request = Request("other", (FILES / name,), reading=reading, renames={"Hidden Neurons": "k"}, **HOW)
    import_metrics(store, [studies], request)
    study = read_study(studies / "other.yaml")
    with contextlib.closing(connect(store)) as connection:
        charts = {figure.name: figure.draw(study, store, connection) for figure in FIGURES}
    assert charts["double_descent_curve"] is not None
    assert charts["training_curves"] is not None
