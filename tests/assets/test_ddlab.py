"""The command ``ddlab``: each of its words leads to what ``python -m`` runs, and a misspelt one to a sentence."""

import importlib
import inspect
from pathlib import Path

import pytest

from dd_assets import ddlab
from dd_assets.catalogue import catalogue


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
    catalogue.cache_clear()
    try:
        assert ddlab.main(["studies"]) == 0
    finally:
        catalogue.cache_clear()
    printed = capsys.readouterr()
    assert "0 of 70" in next(line for line in printed.out.splitlines() if line.startswith("quickstart "))
    assert printed.err.startswith(f"broken: {tmp_path / 'broken.yaml'}: ")
    assert ddlab.main(["paths"]) == 0
    places = capsys.readouterr().out
    assert f" {tmp_path} " in places and f" {tmp_path / 'root/dagster'} " in places
    assert not (tmp_path / "root").exists()
