"""The asset of a figure: one study never costs another its figure, and what has no data is skipped and said."""

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import dagster as dg
import pytest

from dd_assets.assets.figures import figure_assets
from dd_assets.laboratory import Laboratory
from dd_core.errors import DataMissingError, StaleError
from dd_core.figures.drawing import source
from dd_core.store.store import Store
from dd_core.study.study import Study

NAME = "double_descent_curve"


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as made:
        yield made


@pytest.fixture
def draw(store: Store, instance: dg.DagsterInstance) -> Callable[..., tuple[dg.ExecuteInProcessResult, str]]:
    """Materialise some figures of some studies; returns the result and the log."""

    def run(studies: dict[str, Study], names: tuple[str, ...], *only: str) -> tuple[dg.ExecuteInProcessResult, str]:
        tables = [dg.AssetSpec(name) for name in ("training_evals", "runs", "hessian_spectra")]
        keys = [dg.AssetKey(name) for name in names]
        result = dg.materialize(
            [*tables, *(asset for asset in figure_assets(studies) if asset.key in keys)],
            selection=dg.AssetSelection.assets(*keys),
            resources={"laboratory": Laboratory(root=str(store.root))},
            instance=instance,
            run_config={"ops": {name: {"config": {"studies": list(only)}} for name in names}},
            raise_on_error=False,
        )
        records = instance.event_log_storage.get_logs_for_run(result.run_id)
        log = "\n".join(f"{record.level} {record.user_message}" for record in records)
        errors = [event.step_failure_data.error_display_string for event in result.get_step_failure_events()]
        return result, "\n".join([log, *errors])

    return run


def break_one(monkeypatch: pytest.MonkeyPatch, broken: dict[str, BaseException]) -> None:
    """Let the figure of some studies end in an exception."""
    module = importlib.import_module(f"dd_core.figures.charts.{NAME}")
    usual = module.chart

    def chart(study: Study, *rest: Any) -> Any:
        if study.name in broken:
            raise broken[study.name]
        return usual(study, *rest)

    monkeypatch.setattr(module, "chart", chart)


def studies_of(new_study: Callable[..., Study], write_evals: Any, *names: str) -> dict[str, Study]:
    studies = {name: new_study(name=name) for name in names}
    for study in studies.values():
        write_evals(study)
    return studies


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("generator raised\nStopIteration"), "RuntimeError: generator raised StopIteration"),
        (KeyError("k"), "KeyError: 'k'"),
        (StaleError("a file is damaged"), "a file is damaged"),
    ],
)
def test_whatever_befalls_one_study_the_others_are_drawn_and_the_asset_says_which_was_not(
    error: BaseException, reason: str, new_study: Any, write_evals: Any, draw: Any, store: Store, monkeypatch: Any
) -> None:
    studies = studies_of(new_study, write_evals, "bad", "good")
    break_one(monkeypatch, {"bad": error})
    result, log = draw(studies, (NAME,))
    assert result.success
    (event,) = result.asset_materializations_for_node(NAME)
    assert event.metadata["bad_not_drawn"].value == reason
    assert {"good", "good_interactive", "good_file", "bad_not_drawn"} == set(event.metadata)
    assert f"40 {NAME} of bad not drawn: {reason}" in log
    assert sorted(path.name for path in store.figure_folder(NAME).iterdir()) == ["good.html", "good.json", "good.svg"]


def test_a_figure_of_which_no_study_could_be_drawn_is_red(
    new_study: Any, write_evals: Any, draw: Any, monkeypatch: Any
) -> None:
    studies = studies_of(new_study, write_evals, "one", "two")
    break_one(monkeypatch, {"one": RuntimeError("first"), "two": ValueError("second")})
    result, log = draw(studies, (NAME, "epoch_by_width"))
    assert not result.success
    assert f"{NAME} of one not drawn: RuntimeError: first; {NAME} of two not drawn: ValueError: second" in log
    assert len(result.asset_materializations_for_node("epoch_by_width")) == 1


def test_what_has_no_data_is_skipped_and_said_unless_it_is_all_that_was_asked_for(
    new_study: Any, write_evals: Any, draw: Any, monkeypatch: Any
) -> None:
    studies = studies_of(new_study, write_evals, "one")
    result, log = draw(studies, (NAME, "hessian_spectrum", "gpu_hours"))
    assert result.success
    assert len(result.asset_materializations_for_node(NAME)) == 1
    for name in ("hessian_spectrum", "gpu_hours"):
        assert not result.asset_materializations_for_node(name)
        assert f"20 skipped: {name}: no study has the data yet" in log
    result, log = draw(studies, ("hessian_spectrum",))
    assert not result.success
    assert "hessian_spectrum: no study has the data yet; it is drawn from hessian_spectra and training_evals" in log
    studies = studies_of(new_study, write_evals, "two")
    break_one(monkeypatch, {"two": DataMissingError("cifar10 is not there")})
    result, log = draw(studies, (NAME, "epoch_by_width"))
    assert result.success
    assert f"20 skipped: {NAME}: no study has the data yet; it is drawn from training_evals; two: cifar10 is" in log


def test_what_shows_the_present_results_is_not_drawn_again(
    new_study: Any, write_evals: Any, draw: Any, store: Store, monkeypatch: Any
) -> None:
    """It is drawn anew once rows, study or code are others, or one of its files is; and recorded in any case."""
    studies = studies_of(new_study, write_evals, "one")
    chart, drawn = importlib.import_module(f"dd_core.figures.charts.{NAME}").chart, list[str]()
    monkeypatch.setattr(f"dd_core.figures.charts.{NAME}.chart", lambda *of: drawn.append("") or chart(*of))

    def times() -> int:
        drawn.clear()
        result, _ = draw(studies, (NAME,))
        (event,) = result.asset_materializations_for_node(NAME)
        assert {"one", "one_interactive", "one_file"} == set(event.metadata)
        return len(drawn)

    assert [times(), times()] == [1, 0]
    files = sorted(store.figure_folder(NAME).iterdir())
    for path in files:
        whole = path.read_bytes()
        path.write_bytes(whole[:-1])
        assert times() == 1 and path.read_bytes() == whole
    write_evals(studies["one"], arms=["plain.k001"], last=2)
    assert [times(), times()] == [1, 0]
    studies["one"] = new_study(name="one", description="in other words")
    assert [times(), times()] == [1, 0]
    store.table_folder("training_evals", "one", "plain.k008").rename(store.root / "elsewhere")
    assert [times(), times()] == [1, 0]
    monkeypatch.setattr("dd_core.figures.drawing.current._code", lambda: "of another version")
    assert [times(), times()] == [1, 0]


def test_of_more_studies_than_have_connections_no_rows_are_read_again(
    new_study: Any, write_evals: Any, draw: Any, monkeypatch: Any
) -> None:
    studies = studies_of(new_study, write_evals, "one", "two", "three")
    monkeypatch.setattr(source, "_MOST_OPEN", 1)
    opened, connect = list[str](), source.connect
    monkeypatch.setattr(source, "connect", lambda *of, **within: opened.append("") or connect(*of, **within))
    draw(studies, (NAME,))
    assert len(opened) == 3
    draw(studies, (NAME,))
    assert len(opened) == 3


def test_of_studies_that_are_not_asked_for_the_figure_stays_as_it_is(
    new_study: Any, write_evals: Any, draw: Any, store: Store
) -> None:
    studies = studies_of(new_study, write_evals, "one", "two")
    draw(studies, (NAME,))
    before = {path.name: path.stat().st_mtime_ns for path in store.figure_folder(NAME).iterdir()}
    for study in studies.values():
        write_evals(study, arms=["plain.k001"], last=2)  # other rows
    store.arm_folder("two", "any").mkdir(parents=True)  # it has been trained
    result, _ = draw(studies, (NAME,), "one")
    after = {path.name: path.stat().st_mtime_ns for path in store.figure_folder(NAME).iterdir()}
    assert {name.partition(".")[0] for name in after if after[name] != before[name]} == {"one"}
    (event,) = result.asset_materializations_for_node(NAME)
    assert {"one", "one_file", "two", "two_file"} <= set(event.metadata)
    assert event.tags["dagster/input_data_version/training_evals"] == "partial", "stale until all are drawn"
    result, log = draw(studies, (NAME,), "twoo")
    assert not result.success and "there is no study 'twoo'; did you mean 'two'?" in log
