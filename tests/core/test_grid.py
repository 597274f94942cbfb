"""Grids: names, values and recipes of the variants that they make, and what is refused."""

import contextlib
import itertools
import json
import re
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

import dd_core
from dd_core.errors import StudyError
from dd_core.store.store import Store
from dd_core.study.files import read_study
from dd_core.study.grid import unfolded
from dd_core.study.study import Study
from dd_core.tables.grids import as_name, create_view
from dd_core.tables.warehouse import refresh
from dd_core.training.train import train_arm

BASE: dict[str, Any] = {
    "architecture": "resnet18",
    "batch_size": 50,
    "optimizer": {"name": "sgd", "learning_rate": 0.05, "momentum": 0.9},
}


def content(**variant: Any) -> dict[str, Any]:
    return {
        "name": "campaign",
        "description": "made for tests",
        "data": {"dataset": "digits", "num_train": 100},
        "variants": {"s-core": {**BASE, **variant}},
        "widths": (4,),
        "trials": 3,
        "epochs": 4,
        "checkpoints": (0, 4),
    }


def study(**variant: Any) -> Study:
    return Study.model_validate(unfolded(content(**variant)))


def test_a_grid_makes_readable_arms_with_the_values_as_values() -> None:
    made = study(grid={"learning_rate": [0.05, 0.1], "weight_decay": [1e-4, 0.01]})
    assert list(made.arms) == [
        "s-core-lr0-05-wd1e-4.k004",
        "s-core-lr0-05-wd1e-2.k004",
        "s-core-lr0-1-wd1e-4.k004",
        "s-core-lr0-1-wd1e-2.k004",
    ]
    variant = made.variants["s-core-lr0-1-wd1e-4"]
    assert variant.grid_values == {"learning_rate": 0.1, "weight_decay": 1e-4}
    assert (variant.optimizer.learning_rate, variant.optimizer.weight_decay, variant.optimizer.momentum) == (
        0.1,
        1e-4,
        0.9,
    )
    assert set(made.families.values()) == {"s-core"}


def test_recipes_of_a_grid_are_those_of_variants_written_out() -> None:
    made = study(grid={"weight_decay": [1e-3], "norm": ["none"]})
    by_hand = content(network={"norm": "none"}, optimizer={**BASE["optimizer"], "weight_decay": 1e-3})
    by_hand["variants"] = {"s-core-wd1e-3-none": by_hand["variants"]["s-core"]}
    other = Study.model_validate(by_hand)
    assert [made.recipe_hash(arm) for arm in made.arms.values()] == [
        other.recipe_hash(arm) for arm in other.arms.values()
    ]


def test_a_study_with_a_grid_goes_through_a_job_file() -> None:
    made = study(grid={"learning_rate": [0.05, 0.1]}, widths=(2, 4))
    assert Study.model_validate_json(made.model_dump_json()) == made


@pytest.mark.parametrize(
    ("grid", "name"),
    [
        ({"norm": ["none"]}, "s-core-none"),
        ({"optimizer.name": ["sgd"]}, "s-core-sgd"),
        ({"schedule.name": ["inverse_sqrt"]}, "s-core-inverse-sqrt"),
        ({"flip": [True]}, "s-core-flip-true"),
        ({"clip_norm": [None]}, "s-core-clip-none"),
        ({"label_noise": [2e-7]}, "s-core-noise2e-7"),
        ({"label_noise": [0]}, "s-core-noise0"),
        ({"batch_size": [32]}, "s-core-bs32"),
        ({"learning_rate": [1000000]}, "s-core-lr1e6"),
        ({"learning_rate": [1e6]}, "s-core-lr1e6"),
        ({"learning_rate": [1234567]}, "s-core-lr1234567"),
        ({"resized_crop.scale": [(0.5, 1.0)]}, "s-core-scale0-5-1"),
    ],
)
def test_names_of_values_of_every_type(grid: dict[str, Any], name: str) -> None:
    assert list(study(grid=grid).variants) == [name]


def test_variants_may_have_widths_of_their_own() -> None:
    made = content(widths=(8, 2))
    made["variants"]["wide"] = {**BASE, "widths": (16,)}
    del made["widths"]
    found = Study.model_validate(unfolded(made))
    assert list(found.arms) == ["s-core.k002", "s-core.k008", "wide.k016"]
    assert found.all_widths == (2, 8, 16)
    assert found.widths_of("wide") == (16,)
    made["widths"] = (1,)
    made["variants"]["plain"] = BASE
    assert list(Study.model_validate(unfolded(made)).arms)[-1] == "plain.k001"


def test_widths_of_a_variant_are_no_part_of_its_recipe() -> None:
    own, all_ = study(widths=(4,)), study()
    assert [own.recipe_hash(arm) for arm in own.arms.values()] == [all_.recipe_hash(arm) for arm in all_.arms.values()]


@given(
    rates=st.lists(st.floats(1e-12, 1e6), min_size=1, max_size=4, unique=True),
    sizes=st.lists(st.integers(2, 40), min_size=1, max_size=3, unique=True),
)
def test_any_grid_has_as_many_valid_names_as_combinations_and_keeps_its_values(
    rates: list[float], sizes: list[int]
) -> None:
    made = unfolded(content(grid={"learning_rate": rates, "batch_size": sizes}))["variants"]
    assert len(made) == len(rates) * len(sizes)
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name) for name in made)
    values = [(one["optimizer"]["learning_rate"], one["batch_size"]) for one in made.values()]
    assert values == list(itertools.product(rates, sizes))


@pytest.mark.parametrize(
    ("grid", "reason"),
    [
        ("{lr: [0.1]}", "variants.s-core.grid.lr: is no setting of a variant; a grid takes .*learning_rate"),
        ("{patience: [1]}", "grid.patience: there are several; write schedule.patience or early_stopping.patience"),
        ("{learning_rate: []}", "grid.learning_rate: is a list of at least one value"),
        ("{learning_rate: 0.1}", "grid.learning_rate: is a list of at least one value"),
        ("{}", "variants.s-core.grid: is a mapping"),
        ("{learning_rate: [0.1, 0.1]}", "two variants s-core-lr0-1"),
        ("{learning_rate: [0.1], optimizer.learning_rate: [0.2]}", "grid: names optimizer.learning_rate twice"),
        ("{widths: [[1]]}", "grid.widths: is no setting"),
        ("{learning_rate: [-1]}", r"variants.s-core-lr-1.optimizer.learning_rate: .*greater than 0 \(got -1\)"),
        (
            f"{{learning_rate: {list(range(1, 201))}, weight_decay: {list(range(100))}}}",
            "makes 20,000 variants, more than 10,000",
        ),
    ],
)
def test_a_bad_grid_is_refused_in_a_sentence_with_its_path(grid: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(
        "description: x\ndata: {dataset: digits, num_train: 100}\nwidths: [4]\ntrials: 1\nepochs: 1\n"
        "checkpoints: [0]\nvariants:\n  s-core:\n    architecture: resnet18\n    batch_size: 50\n"
        f"    optimizer: {{name: sgd, learning_rate: 0.1}}\n    grid: {grid}\n"
    )
    with pytest.raises(StudyError, match=reason) as error:
        read_study(path)
    assert str(path) in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_what_a_grid_varied_is_a_column_of_every_view_with_an_arm(store: Store) -> None:
    made = content(
        architecture="mlp", grid={"learning_rate": [0.05, 0.1], "schedule.name": ["constant", "cosine"]}, widths=(4,)
    )
    made["variants"]["plain"] = {**BASE, "architecture": "mlp", "widths": (2,)}
    found = Study.model_validate(unfolded({**made, "trials": 1, "epochs": 1, "checkpoints": (0, 1)}))
    for arm in found.arms.values():
        train_arm(found, arm, store, 1)
    refresh(store)
    with contextlib.closing(duckdb.connect(str(store.warehouse_path), read_only=True)) as connection:
        query = (
            "SELECT family, learning_rate, schedule_name, count(*) FROM training_evals WHERE epoch = 1 GROUP BY ALL "
            "ORDER BY ALL"
        )
        rows = connection.execute(query).fetchall()
        assert dd_core.open(store.root).sql(query).fetchall() == rows
        assert rows == [
            ("s-core", 0.05, "constant", 1),
            ("s-core", 0.05, "cosine", 1),
            ("s-core", 0.1, "constant", 1),
            ("s-core", 0.1, "cosine", 1),
            (None, None, None, 1),
        ]
        sql = "SELECT table_name, comment FROM duckdb_columns() WHERE column_name = 'learning_rate'"
        comments = dict(connection.execute(sql).fetchall())
        assert "varied by a grid" in comments["training_evals"] and "of the step" in comments["training_batches"]
        families = connection.execute("SELECT DISTINCT family FROM runs ORDER BY 1").fetchall()
        assert families == [("plain",), ("s-core",)]


def test_values_of_any_kind_and_name_are_columns_that_can_be_read() -> None:
    """Two studies of one root, whose own networks take settings that are called alike and differ in kind."""
    values = [{"network_bias": True, "größe": 1}, {"network_bias": 0, "größe": 2.5}, {'it\'s "odd"/~': "x"}]
    with contextlib.closing(duckdb.connect()) as connection:
        connection.execute("CREATE TABLE runs (study VARCHAR, arm VARCHAR, family VARCHAR, grid VARCHAR)")
        for number, each in enumerate(values):
            connection.execute("INSERT INTO runs VALUES ('s', ?, 'f', ?)", [f"a{number}", json.dumps(each)])
        columns = create_view(connection, "runs")
        assert {column.name: column.type for column in columns} == {
            "family": "string",
            "größe": "float64",
            'it\'s "odd"/~': "string",
            "network_bias": "string",
        }
        names = ", ".join(as_name(column.name) for column in columns)
        found = connection.execute(f"SELECT {names} FROM grids ORDER BY arm").fetchall()
    assert found == [("f", 1.0, None, "true"), ("f", 2.5, None, "0"), ("f", None, "x", None)]
