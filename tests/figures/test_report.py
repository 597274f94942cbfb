"""The report of a study: what stands on the page, what is left out of it and why, and how it looks in a browser."""

import contextlib
import html
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import graph_rows
import loss_slope_campaign
import memorization_rows
import pyarrow as pa
import pytest
import vl_convert

from dd_assets.assets.figures import figure_assets
from dd_assets.assets.report import report_asset
from dd_assets.laboratory import Laboratory
from dd_assets.report import main
from dd_core.errors import DataMissingError
from dd_core.figures import FIGURES
from dd_core.figures.drawing.render import VEGA_LITE
from dd_core.reports.page import report_page, write_report
from dd_core.store.files import write_text
from dd_core.store.store import Store
from dd_core.study.study import Study
from dd_core.tables.files import read_parquet, write_parquet
from dd_core.tables.warehouse import connect

BY_NAME = {figure.name: figure for figure in FIGURES}
DRAWN = ("double_descent_curve", "epoch_by_width")
REDRAWN = "draw it again: dagster asset materialize --select 'double_descent_curve,report'"


def draw(store: Store, study: Study, *names: str) -> None:
    """What a report needs of ``dd_core.figures.drawing.render.render``, without the page of each figure."""
    with contextlib.closing(connect(store)) as connection:
        for name in names:
            chart = BY_NAME[name].draw(study, store, connection)
            assert chart is not None
            text = json.dumps(chart.to_dict(), ensure_ascii=False)
            write_text(store.figure_folder(name) / f"{study.name}.json", text)
            picture = vl_convert.vegalite_to_svg(text, vl_version=VEGA_LITE)
            write_text(store.figure_folder(name) / f"{study.name}.svg", picture)


def write_checkpoints(store: Store, study: Study) -> None:
    """Manifests of checkpoints, each of a file that holds no weights."""
    for checkpoint in study.iter_checkpoints():
        weights = store.checkpoint_path(study.name, checkpoint)
        weights.parent.mkdir(parents=True, exist_ok=True)
        weights.write_bytes(b"weights")
        content = {
            "recipe": study.recipe_hash(checkpoint.arm), "trials": study.trials, "data_sha256": "d1" * 32,
            "epoch": checkpoint.epoch, "torch_version": "2.99",
            "written_at": f"2026-01-0{checkpoint.epoch + 1}T10:30:59",
        }  # fmt: skip
        store.write_manifest(store.checkpoint_manifest_path(study.name, checkpoint), content, {"weights": weights})


def text_of(page: str) -> str:
    """What a reader sees, in one line."""
    visible = re.sub(r"<(script|style)\b.*?</\1>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", visible)).split())


@pytest.fixture
def drawn(study: Study, store: Store, write_evals: Any, write_curvature: Any) -> Study:
    """A study with results, two figures and manifests."""
    write_evals(study)
    write_curvature(study)
    write_checkpoints(store, study)
    draw(store, study, *DRAWN)
    return study


def test_everything_about_a_study_is_on_one_page(drawn: Study, store: Store) -> None:
    page = write_report(store, drawn)[0].read_text(encoding="utf-8")
    text = text_of(page)
    arm = drawn.arms["plain.k004"]
    for said in (
        "Test error (mean of 2 trials) falls to 15.5 % at k = 2, rises to 25.5 % at k = 4",
        "Results after epoch 4",
        "4 2 10.0 % 25.5 % 0.7 % 0.300 1.020 20.0",
        "Double descent curve",
        BY_NAME["epoch_by_width"].description,
        "optimizer.learning_rate 0.001",
        "widths 1, 2, 4, 8",
        f"plain.k004 {drawn.recipe_hash(arm)} 4",
        "2026-01-01 10:30 UTC to 2026-01-05 10:30 UTC",
        "d1" * 32,
        "PyTorch 2.99",
        "@misc{made_up, author = {{Double descent lab contributors}},",
        "E. Alpaydin, C. Kaynak 1998",
        "checkpoints/made_up/",
        'lab.checkpoint("made_up", "plain", k=8, epoch=4).model(trial=0)',
    ):
        assert said in text, said
    assert page.count("<figure ") == len(DRAWN)
    assert page.count("vegaEmbed=") == 1  # the library, which each figure's own page has as well
    shown = re.findall(r'<script type="application/json" id="spec-(\w+)">(.*?)</script>', page)
    assert {name: json.loads(text) for name, text in shown} == {
        name: json.loads((store.figure_folder(name) / "made_up.json").read_text(encoding="utf-8")) for name in DRAWN
    }
    names = re.findall(r'\sid="([^"]+)"', page)
    assert len(names) == len(set(names))
    assert "left out" not in text
    assert report_page(store, drawn) == page
    markup = re.sub(r"<script\b.*?</script>", "", page, flags=re.DOTALL)
    addresses = re.findall(r'(?:src|href|action)="([^"]*)"', markup)
    assert {address for address in addresses if not address.startswith(("#", "data:", "../figures/"))} == set()
    assert "default-src 'none'" in markup


def test_the_sql_on_the_page_gives_its_table(drawn: Study, store: Store, write_evals: Any, new_study: Any) -> None:
    """Also where rows of an earlier recipe lie among the others."""
    for stale in (False, True):
        if stale:
            earlier = new_study(name=drawn.name, seed=7, widths=(1, 3))
            write_evals(earlier, arms=["plain.k003"])
            (study,) = [new_study(widths=(1, 2, 3, 4, 8))]
        else:
            study = drawn
        page = report_page(store, study)
        sql = html.unescape(page.partition('<pre id="sql">')[2].partition("</pre>")[0])
        assert ("recipe IN" in sql) == stale
        with contextlib.closing(connect(store)) as connection:
            found = connection.execute(sql).fetchall()
        table = page.partition('id="results"')[2].partition("</tbody>")[0]
        cells = [re.findall(r"<td[^>]*>([^<]*)</td>", line) for line in table.split("<tr>")[2:]]
        assert [[row[1], f"{100 * row[4]:.1f} %", f"{row[7]:.3f}"] for row in found] == [
            [int(own[0]), own[3], own[6]] for own in cells
        ]
        assert ("Left out: k = 3 (results of an earlier recipe)" in text_of(page)) == stale


def change_recipe(study: Study, store: Store, write_evals: Any) -> Study:
    variants = {"plain": {**study.variants["plain"].model_dump(exclude_defaults=True), "batch_size": 25}}
    changed = Study.model_validate(
        {**study.model_dump(exclude_defaults=True), "name": study.name, "variants": variants}
    )
    write_evals(changed)
    return changed


def train_further(study: Study, store: Store, write_evals: Any) -> Study:
    write_evals(study, last=2)
    return study


def compute_anew(study: Study, store: Store, write_evals: Any) -> Study:
    """As many rows of the same recipe, one of them with another value."""
    (path, *_) = sorted(store.table_folder("training_evals", study.name).glob("**/*.parquet"))
    table = read_parquet(path)
    errors = table.column("test_error").to_pylist()
    changed = pa.array([errors[0] + 0.01, *errors[1:]], table.schema.field("test_error").type)
    write_parquet(path, table.set_column(table.schema.get_field_index("test_error"), "test_error", changed))
    return study


@pytest.mark.parametrize("change", [change_recipe, train_further, compute_anew])
def test_a_figure_that_does_not_show_what_is_there_is_left_out_and_named(
    change: Callable[..., Study], study: Study, store: Store, write_evals: Any
) -> None:
    write_evals(study)
    draw(store, study, "double_descent_curve")
    page = report_page(store, change(study, store, write_evals))
    why = "it was drawn from other results than there are now"
    assert f"double_descent_curve of made_up is left out, as {why}; {REDRAWN}" in text_of(page)
    assert "<figure " not in page
    assert "Results after epoch" in page


def test_so_is_one_whose_files_are_damaged(study: Study, store: Store, write_evals: Any) -> None:
    write_evals(study)
    draw(store, study, "double_descent_curve")
    specification, picture = (
        store.figure_folder("double_descent_curve") / f"made_up.{kind}" for kind in ("json", "svg")
    )
    for path, content in (
        (specification, b'{"title": '),
        (specification, b"[]"),
        (picture, b"<svg><g>"),
        (picture, None),
    ):
        whole = path.read_bytes()
        path.unlink() if content is None else path.write_bytes(content)
        page = report_page(store, study)
        assert f"double_descent_curve of made_up is left out, as its files are damaged; {REDRAWN}" in text_of(page)
        assert "<figure " not in page
        path.write_bytes(whole)
    assert "<figure " in report_page(store, study)


@pytest.mark.parametrize("then", [None, {"training_evals": "0" * 16}, {"hashed_by": "DuckDB 1.2.3"}])
def test_one_of_another_version_is_shown_with_a_note(
    then: dict[str, str] | None, study: Study, store: Store, write_evals: Any
) -> None:
    """Whose digests say nothing, or that has none."""
    write_evals(study)
    draw(store, study, "double_descent_curve")
    note = "Drawn by another version, so whether it shows the present results is not known."
    assert note not in text_of(report_page(store, study))
    path = store.figure_folder("double_descent_curve") / "made_up.json"
    specification = json.loads(path.read_text(encoding="utf-8"))
    specification["usermeta"] = {"drawn_from": then} if then else {}
    path.write_text(json.dumps(specification), encoding="utf-8")
    page = report_page(store, study)
    assert note in text_of(page) and "left out" not in text_of(page)
    assert "<figure " in page


def campaign(store: Store) -> Study:
    study = loss_slope_campaign.campaign_study(("s-core",), rates=(0.05, 0.1), decays=(1e-4,), trials=2)
    loss_slope_campaign.write_campaign(store, study)
    return study


def incremental(store: Store) -> Study:
    study = memorization_rows.incremental_study()
    memorization_rows.write_incremental(store, study)
    return study


def memorization(store: Store) -> Study:
    study = memorization_rows.memorization_study()
    memorization_rows.write_memorization(store, study)
    return study


def graphs(store: Store) -> Study:
    study = graph_rows.graph_study()
    graph_rows.write_graphs(store, study)
    return study


@pytest.mark.parametrize(
    ("made", "figure", "said"),
    [
        (campaign, "loss_slope_grid", ("H1: ", "optimizer.learning_rate", "Loss slopes")),
        (incremental, "plasticity", ("interventions", "What differs between variants", "one after the other")),
        (memorization, "detection_by_score", ("what finds wrong labels", "label_noise_kind", "Memorisation")),
        (graphs, "nsm_claims_page", ("majority baseline of", "Graph networks", "Claims that hold")),
    ],
)
def test_every_kind_of_study_has_its_page(made: Any, figure: str, said: tuple[str, ...], store: Store) -> None:
    study = made(store)
    draw(store, study, figure)
    page = report_page(store, study)
    for words in said:
        assert words in text_of(page), words
    assert page.count("<figure ") == 1


def test_a_study_without_results_has_no_page(study: Study, store: Store) -> None:
    with pytest.raises(DataMissingError, match="nothing to report of made_up, as it has no results of its present rec"):
        write_report(store, study)
    assert not store.report_path(study.name).exists()


def test_the_command_says_what_is_wrong_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(root: Path, study: str) -> str:
        monkeypatch.setenv("DD_ROOT", str(root))
        assert main([study]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "there is no study 'quickstrat'" in refused(tmp_path, "quickstrat")
    assert "nothing to report of quickstart" in refused(tmp_path, "quickstart")
    assert f"there is no data root {tmp_path / 'elsewhere'}" in refused(tmp_path / "elsewhere", "quickstart")
    assert not (tmp_path / "elsewhere").exists()


def test_the_asset_comes_after_the_figures_also_where_one_is_skipped(
    drawn: Study, store: Store, new_study: Any
) -> None:
    """Dagster would skip what comes after something skipped, and some figure always is."""
    studies = {drawn.name: drawn, "empty": new_study(name="empty")}
    names = ("double_descent_curve", "hessian_spectrum", "report")
    shutil.rmtree(store.root / "figures")
    result = dg.materialize(
        [
            *(dg.AssetSpec(name) for name in ("training_evals", "hessian_spectra")),
            *(asset for asset in figure_assets(studies) if asset.key.to_user_string() in names),
            report_asset(studies),
        ],
        selection=dg.AssetSelection.assets(*names),
        resources={"laboratory": Laboratory(root=str(store.root))},
        run_config={"ops": {"report": {"config": {"studies": [drawn.name]}}}},
    )
    (event,) = [e for e in result.get_asset_materialization_events() if e.asset_key == dg.AssetKey("report")]
    told = event.materialization.metadata
    assert set(told) == {drawn.name, f"{drawn.name}_file"}
    assert str(told[drawn.name].value).startswith(
        "[Report of made_up](/lab/reports/made_up.html)\n\n- Test error (mean"
    )
    assert 'id="double_descent_curve"' in store.report_path(drawn.name).read_text(encoding="utf-8")


@pytest.mark.browser
@pytest.mark.skipif(
    not os.environ.get("CI") and not (shutil.which("chromium") and shutil.which("chromedriver")),
    reason="needs Debian's chromium and chromium-driver (.ci/run installs them)",
)
def test_on_a_dark_phone_charts_scroll_within_themselves_are_interactive_and_ask_nothing_of_the_network(
    drawn: Study, store: Store, tmp_path: Path
) -> None:
    from selenium import webdriver
    from selenium.webdriver.support.ui import WebDriverWait

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or "chromium"
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path / 'profile'}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        screen = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        scheme = [{"name": "prefers-color-scheme", "value": "dark"}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
        browser.get(write_report(store, drawn)[0].as_uri())
        for index in range(len(DRAWN)):
            chart = f"const chart = document.querySelectorAll('.chart')[{index}]"
            live = f"{chart}; chart.scrollIntoView(); return chart.querySelector('.vega-embed svg')"
            WebDriverWait(browser, 60).until(lambda driver, live=live: driver.execute_script(live))
        width = browser.execute_script("return document.documentElement.scrollWidth")
        assert width == screen["width"]
        looks = "[getComputedStyle(chart).filter, chart.scrollWidth > 390]"
        looks = f"return [...document.querySelectorAll('.chart')].map(chart => {looks})"
        assert browser.execute_script(looks) == [["invert(0.92) hue-rotate(180deg)", True], ["none", True]]
        events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
        sent = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
        assert store.report_path(drawn.name).as_uri() in sent
        # Headless Chromium's own first page is read from chrome:, chrome-untrusted:.
        assert [url for url in sent if not url.startswith(("file:", "data:", "chrome"))] == []
    finally:
        browser.quit()
