"""The pages about a data root over real HTTP: what they serve and refuse, and what `make watch` says of mistakes."""

import datetime
import http.client
import json
import math
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount
from support import wait_until

from dd_assets import watch
from dd_assets.catalogue import catalogue
from dd_assets.pages import PREFIX
from dd_assets.pages.app import pages
from dd_assets.pages.landing import Landing
from dd_assets.pages.live import LiveCurves, _is_done, _thin
from dd_core.errors import StoreError
from dd_core.reports import findings
from dd_core.store.parts import PartStore
from dd_core.store.store import Store, write_text
from dd_core.study.files import Catalogue
from dd_core.tables import warehouse
from dd_core.tables.live import line, live_path

Get = Callable[[str], tuple[int, str]]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with one figure, one report, and a secret beside it."""
    folder = tmp_path_factory.mktemp("pages")
    store = Store(folder / "data")
    for kind in ("html", "svg", "json"):
        write_text(store.figure_folder("most_curved_images") / f"quickstart.{kind}", f"<p>{kind}</p>")
    write_text(store.report_path("quickstart"), "<p>a report</p>")
    write_text(store.root / "secret.html", "secret")
    write_text(folder / "secret.html", "secret")
    return store.root


@pytest.fixture(scope="module")
def get(root: Path) -> Iterator[Get]:
    """Ask a running server; the path goes over the wire as it is."""
    listener = socket.create_server(("127.0.0.1", 0))
    site = Starlette(routes=[Mount(PREFIX, app=pages(str(root)))])
    server = uvicorn.Server(uvicorn.Config(site, log_level="critical", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()

    def ask(path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection(*listener.getsockname())
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    wait_until(lambda: server.started, "the server")
    yield ask
    server.should_exit = True
    thread.join()
    listener.close()


def test_figures_and_reports_are_served_and_listed(get: Get) -> None:
    for kind in ("html", "svg", "json"):
        assert get(f"/lab/figures/most_curved_images/quickstart.{kind}") == (200, f"<p>{kind}</p>")
    assert get("/lab/figures/most_curved_images.svg") == (200, "<p>svg</p>")
    assert "Not drawn yet" in get("/lab/figures/gpu_hours.svg")[1]
    assert get("/lab/reports/quickstart.html") == (200, "<p>a report</p>")
    status, listed = get("/lab/")
    assert status == 200
    assert 'href="figures/most_curved_images/quickstart.html"' in listed, "the gallery is one click away"
    assert 'href="reports/quickstart.html"' in listed
    assert "quickstart.svg" in get("/lab/figures/most_curved_images/")[1]


@pytest.mark.parametrize(
    "path",
    [
        "/lab/figures/../secret.html",
        "/lab/figures/..%2f..%2fsecret.html",
        "/lab/figures/../../secret.html",
        "/lab/figures/most_curved_images/../../secret.html",
        "/lab/figures/most_curved_images/..%2f..%2fsecret.html",
        "/lab/figures/most_curved_images/%2e%2e%5csecret.html",
        "/lab/figures/most_curved_images/%2fetc%2fpasswd.html",
        "/lab/figures/..%2fsecret.svg",
        "/lab/reports/../secret.html",
        "/lab/reports/..%2fsecret.html",
        "/lab/reports/%00.html",
        "/lab/reports/.html",
        "/lab/warehouse.duckdb",
        "/lab/figures/most_curved_images/quickstart.exe",
        "/lab/figures/nothing_of_that_name/quickstart.html",
        "/lab/reports/nothing_of_that_name.html",
    ],
)
def test_nothing_but_figures_and_reports_is_served(get: Get, path: str) -> None:
    status, text = get(path)
    assert status == 404 and "secret" not in text


def test_a_root_without_studies_says_what_to_do(tmp_path: Path) -> None:
    assert Landing(Store(tmp_path / "nowhere"), Catalogue({}, {})).studies() == []
    assert LiveCurves(Store(tmp_path / "nowhere"), {}).answer()["studies"] == []


def write_news(
    store: Store, study: Any, key: str, epochs: int, age: float = 0.0, trials: tuple[int, ...] = (0, 1), **other: Any
) -> None:
    """What a process that trains an arm, or some trials of it, says after some epochs."""
    arm = study.arms[key]
    common = {"study": study.name, "arm": key, "variant": arm.variant, "k": arm.k, "recipe": study.recipe_hash(arm)}
    written = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=age)
    common |= {"until": 100, "status": "training", "written_at": written.isoformat()}
    lines = [
        line(
            {
                **common,
                "trial": t,
                "epoch": e,
                "step": e,
                "train_error": 0.5 / e,
                "train_loss": float(t * epochs + e - 1),
                **other,
            }
        )
        for t in trials
        for e in range(1, epochs + 1)
    ]
    write_text(live_path(store, study.name, key), "".join(f"{text}\n" for text in lines))


def test_trials_that_train_apart_are_as_far_as_the_last_of_them(tiny_study: Any, store: Store) -> None:
    arm, curves = next(iter(tiny_study.arms)), LiveCurves(store, {tiny_study.name: tiny_study})
    for number, epochs, status in ((0, 5, "training"), (1, 3, "training"), (2, 1, "diverged")):
        part = PartStore(store, tiny_study.name, arm, range(number, number + 1))
        write_news(part, tiny_study, arm, epochs, trials=(number,), status=status)
    (told,) = curves.answer()["arms"]
    assert told["epochs"] == [1, 2, 3], "not the epochs that one of them has alone"
    write_news(store, tiny_study, arm, 5, trials=(0, 1, 2), test_loss=math.inf, status="diverged", age=-1)
    (told,) = curves.answer()["arms"]
    assert told["epochs"][-1] == 5 and told["state"] == "ending" and "test_loss" not in told


def test_what_duckdb_cannot_read_is_a_sentence(tiny_study: Any, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise duckdb.IOException("IO Error: gone\nLINE 1")

    monkeypatch.setattr(warehouse, "connect", refuse)
    with pytest.raises(StoreError, match=r"^the data root cannot be read just now: IO Error: gone$"):
        LiveCurves(store, {}).answer()
    monkeypatch.setattr(findings, "report", refuse)
    (sentence,) = Landing(store, Catalogue({"tiny": tiny_study}, {})).findings("tiny")
    assert sentence.endswith("IO Error: gone")


def test_findings_are_not_sought_twice_while_tables_change(
    tiny_study: Any, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    sought: list[str] = []
    monkeypatch.setattr(Landing, "_sought", lambda self, study: sought.append(study.name) or ["found"])
    landing = Landing(store, Catalogue({"tiny": tiny_study}, {}))
    assert landing.findings("tiny") == landing.findings("tiny") == ["found"] and sought == ["tiny"]
    monkeypatch.setattr("dd_assets.pages.landing._KEPT_SECONDS", 0.0)
    with landing._locks["tiny"]:  # another request is about to find new ones
        assert landing.findings("tiny") == ["found"] and sought == ["tiny"]
    landing.findings("tiny")
    assert sought == ["tiny", "tiny"]


def test_study_files_are_read_again_when_they_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DD_STUDIES", str(tmp_path))
    file = tmp_path / "mine.yaml"
    assert catalogue() is catalogue() and file not in catalogue().errors
    file.write_text("description: 1", encoding="utf-8")
    assert file in catalogue().errors
    file.unlink()
    assert file not in catalogue().errors


def test_curves_of_what_trains_are_the_means_of_its_trials_with_the_time_left(tiny_study: Any, store: Store) -> None:
    arm = next(iter(tiny_study.arms))
    curves = LiveCurves(store, {tiny_study.name: tiny_study})
    write_news(store, tiny_study, arm, 2, age=10)
    (first,) = curves.answer()["arms"]
    assert (first["state"], first["seconds_left"]) == ("training", None), "its pace is not known yet"
    write_news(store, tiny_study, arm, 4)
    answer = curves.answer()
    json.dumps(answer, allow_nan=False)
    (last,) = answer["arms"]
    assert last["epochs"] == [1, 2, 3, 4] and last["until"] == 100
    assert last["train_error"] == [0.5, 0.25, 0.16667, 0.125]
    assert last["train_loss"] == [2.0, 3.0, 4.0, 5.0], "the mean of both trials"
    assert last["seconds_left"] == pytest.approx(96 * 10 / 2, rel=0.2)
    write_news(store, tiny_study, arm, 4, age=3600)
    assert curves.answer()["arms"][0]["state"] == "silent", "killed, or an epoch takes long"
    other = tiny_study.model_copy(update={"name": "other"})
    write_news(store, other, arm, 1)
    assert curves.answer()["study"] == "other", "it trains, and the other was killed an hour ago"


def test_an_arm_is_done_when_nothing_is_left_to_train_and_paused_where_no_more_was_asked_for(tiny_study: Any) -> None:
    assert _is_done(tiny_study, "finished", tiny_study.epochs)
    assert not _is_done(tiny_study, "finished", tiny_study.epochs - 1)
    assert _is_done(tiny_study, "diverged, stopped early", 3)
    assert not _is_done(tiny_study, "finished, running", tiny_study.epochs)


def test_what_is_no_number_is_a_gap_in_a_curve() -> None:
    arm = {"epochs": [1, 2, 3], "test_loss": [math.inf, 0.5, math.nan]}
    _thin(arm, 400)
    assert arm["test_loss"] == [None, 0.5, None]
    long = {"epochs": list(range(4000)), "test_loss": [1.0] * 4000}
    _thin(long, 400)
    assert len(long["epochs"]) <= 400 and long["epochs"][-1] == 3999


def test_curves_go_on_from_the_checkpoints(tiny_study: Any, trained: Store) -> None:
    curves = LiveCurves(trained, {tiny_study.name: tiny_study})
    before = curves.answer(tiny_study.name)
    assert before["num_done"] == before["num_arms"] == len(tiny_study.arms)
    done = before["arms"][0]
    assert done["state"] == "finished" and len(done["epochs"]) == len(done["test_error"])
    write_news(trained, tiny_study, done["arm"], max(done["epochs"]) + 2)
    after = next(arm for arm in curves.answer()["arms"] if arm["arm"] == done["arm"])
    assert after["epochs"] == [*done["epochs"], *range(max(done["epochs"]) + 1, max(done["epochs"]) + 3)]
    assert after["test_error"] == [*done["test_error"], None, None]
    assert after["train_error"][: len(done["epochs"])] == done["train_error"], "checkpoints are the truth"


def test_watch_says_what_is_wrong_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*arguments: str) -> str:
        assert watch.main([*arguments]) == 1
        return capsys.readouterr().err

    assert refused("--root", str(tmp_path / "x")).startswith(f"Error: there is no data root {tmp_path / 'x'}; set ")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"Error: cannot listen at 127.0.0.1:{port} (" in refused("--root", str(tmp_path), "--port", str(port))
    assert "cannot listen" in refused("--root", str(tmp_path), "--port", "70000")
    assert "Error: " in refused("--root", "ftp://somewhere")
    monkeypatch.setenv("DD_PORT", "many")
    assert refused("--root", str(tmp_path)) == "Error: DD_PORT must be the number of a port, not 'many'\n"
