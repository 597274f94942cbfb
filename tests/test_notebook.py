"""The notebook tells what the data root holds: run on a small one, it finds the numbers that were computed there."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dd_core.results.per_image_curvature import compute_curvature
from dd_core.store.store import Store
from dd_core.study.study import Checkpoint
from dd_core.tables.files import read_parquet
from dd_core.tables.kinds import PER_IMAGE_CURVATURE
from dd_core.training.train import train_arm

NOTEBOOK = Path(__file__).parent.parent / "docs/notebook/quickstart.py"


def test_the_notebook_runs_and_its_numbers_are_those_of_the_tables(
    make_study: Any, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study(name="quickstart")
    for arm in study.arms.values():
        train_arm(study, arm, store, until=4)
        compute_curvature(study, Checkpoint(arm, 4), store)
    monkeypatch.setenv("DD_ROOT", str(store.root))
    spec = importlib.util.spec_from_file_location("notebook", NOTEBOOK)
    assert spec is not None and spec.loader is not None
    notebook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(notebook)
    outputs, found = notebook.app.run()
    assert sum(output is not None for output in outputs) == 7
    assert list(found["widths"].k) == [1, 2]
    shown = Checkpoint(study.arms[f"plain.k{found['chosen'].value:03d}"], 4)
    assert found["checkpoint"].checkpoint == shown
    table = read_parquet(PER_IMAGE_CURVATURE.path(store, study, shown)).to_pandas().query("trial == 0")
    expected = table.nlargest(12, "trace")
    assert list(found["top"].image_id) == list(expected.image_id)
    np.testing.assert_allclose(found["by_hand"], expected.trace, rtol=1e-5)
    rows = store.table_folder("training_evals", "quickstart", shown.arm.key) / "0004.parquet"
    own = read_parquet(rows).to_pandas().query("trial == 0 and epoch == 4")
    assert found["wrong"] == pytest.approx(own.train_error.item(), abs=1e-6)
