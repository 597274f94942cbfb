"""The command ``ddlab``: each of its words leads to what ``python -m`` runs, and a misspelt one to a sentence."""

import importlib
import inspect
import os
import pty
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from dagster._utils.interrupts import capture_interrupts

from dd_assets import ddlab
from dd_assets.laboratory import existing_store
from dd_assets.running.console import Bar
from dd_assets.running.in_process import run_dagster
from dd_core.store.store import Store
from dd_core.tables import warehouse
from dd_core.tables.live import tidy


@pytest.mark.parametrize("name", ddlab.COMMANDS)
def test_every_command_takes_arguments_and_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    module, _, function = ddlab.COMMANDS[name].main.partition(":")
    main = getattr(importlib.import_module(module), function or "main")
    assert len(inspect.signature(main).parameters) == 1
    with pytest.raises(SystemExit) as ended:
        ddlab.main([name, "--help"])
    assert ended.value.code == 0
    assert f"usage: ddlab {name} " in capsys.readouterr().out


def test_help_is_one_screen_and_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert ddlab.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 120
    assert [line.split()[0] for line in lines if line.startswith("  ")] == list(ddlab.COMMANDS)


def test_a_misspelt_command_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    for word, advice in (("import_metrics", "did you mean 'import-metrics'?\n"), ("xyzzy", "there are run, studies, ")):
        assert ddlab.main([word]) == 2
        assert capsys.readouterr().err.startswith(f"Error: there is no command {word!r}; {advice}")


def test_studies_and_paths_say_what_is_there_and_write_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DD_ROOT", str(tmp_path / "root"))
    (tmp_path / "broken.yaml").write_text("description: 1", encoding="utf-8")
    monkeypatch.setenv("DD_STUDIES", str(tmp_path))
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    assert ddlab.main(["studies"]) == 0
    printed = capsys.readouterr()
    assert "0 of 49" in next(line for line in printed.out.splitlines() if line.startswith("quickstart "))
    assert printed.err.startswith(f"broken: {tmp_path / 'broken.yaml'}: ")
    assert ddlab.main(["paths"]) == 0
    places = capsys.readouterr().out
    assert f" {tmp_path} " in places and f" {tmp_path / 'root/dagster'} " in places
    assert not (tmp_path / "root").exists()


def test_a_port_that_cannot_be_used_is_refused_before_dagster_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(os, "execve", None)
    assert ddlab.main(["ui", "--port", "abc"]) == 1
    assert capsys.readouterr().err == "Error: a port is a number (DD_PORT), not 'abc'\n"
    assert not (tmp_path / "home").exists()


def test_commands_refuse_a_root_that_is_not_there_and_make_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DD_ROOT", str(tmp_path / "misspelt"))
    for command in (["check", "quickstart"], ["report", "quickstart"], ["watch"]):
        assert ddlab.main(command) in (1, 2)
        assert capsys.readouterr().err.startswith(f"Error: there is no data root {tmp_path / 'misspelt'}; set DD_ROOT")
    assert not (tmp_path / "misspelt").exists()


def test_only_a_warehouse_of_an_earlier_version_is_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    renewed: list[Store] = []
    monkeypatch.setattr(warehouse, "refresh", renewed.append)
    existing_store(str(tmp_path), is_written=False)
    assert not renewed, "there is none"
    (tmp_path / "warehouse.duckdb").touch()
    store = existing_store(str(tmp_path), is_written=False)
    assert len(renewed) == 1
    tidy(store)
    existing_store(str(tmp_path), is_written=False)
    assert len(renewed) == 1


@pytest.fixture
def _ctrl_c_is_heard() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_ctrl_c_is_heard")
def test_ctrl_c_gives_a_command_the_time_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    @click.option("--code", type=int)
    @click.option("--interrupted", is_flag=True)
    def command(code: int, interrupted: bool) -> None:
        with capture_interrupts():
            if interrupted:
                os.kill(os.getpid(), signal.SIGINT)
            (tmp_path / " ".join(sys.argv)).touch()
        sys.exit(code)

    monkeypatch.setattr("dagster._cli.cli", command)
    assert run_dagster(["--code", "1", "--interrupted"]) == 130
    assert run_dagster(["--code", "3"]) == 3
    assert run_dagster(["--code", "0"]) == 0
    assert run_dagster(["--no-such"]) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "dagster --code 0",
        "dagster --code 1 --interrupted",
        "dagster --code 3",
    ], "each has come to its end, under its own name"


def test_a_command_ends_without_a_trace_when_it_is_interrupted_or_nobody_reads(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(ddlab, "studies", interrupted)
    assert ddlab.main(["studies"]) == 130
    assert capsys.readouterr() == ("", "")
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as unread:
        done = subprocess.run(
            [sys.executable, "-m", "dd_assets.ddlab", "--help"], stdout=unread, stderr=subprocess.PIPE, check=False
        )
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_bar_is_drawn_on_a_terminal_that_knows_no_size() -> None:
    reading, writing = pty.openpty()
    termios.tcsetwinsize(writing, (0, 0))
    os.set_blocking(reading, False)
    with os.fdopen(reading, "rb", buffering=0) as screen, os.fdopen(writing, "w") as terminal:
        bar = Bar("checkpoints", terminal)
        bar.move(0.5, "about 5 s left", at_once=True)
        terminal.flush()
        assert b" % |            | about 5 s left" in (screen.read(1000) or b"")
        bar.close()
