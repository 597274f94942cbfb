"""Events as lines of JSON between processes that may be of different versions."""

import json
from dataclasses import MISSING, fields
from typing import Any

import pytest

from dd_core.events import _TYPES, Event, Failed, Finished, Note, event_from, parse

VALUES: dict[str, Any] = {
    "epoch": 3,
    "text": "a\nb é \udc80",
    "seconds": 1,
    "error": "no",
    "samples": 5,
    "num_steps": 2,
    "train_loss": 0.5,
    "train_error": 0.25,
    "test_error": 0.5,
}
VALUES |= {
    "is_user_error": True,
    "traceback": "...",
    "rows": 2,
    "machine": "cpu",
    "recommended": {"a/b": 1, "a/c": None},
}
VALUES |= {"seconds_per_step": 0.1, "utilisation": 0.5, "peak_memory_bytes": 9, "torch_version": "2.11", "number": 4}


@pytest.mark.parametrize("kind", _TYPES.values(), ids=str)
@pytest.mark.parametrize("is_whole", [True, False], ids=["with all", "with the least"])
def test_an_event_is_one_line_and_comes_back(kind: type[Event], is_whole: bool) -> None:
    wanted = [f.name for f in fields(kind) if f.name != "task" and (is_whole or f.default is MISSING)]
    event = kind(task="study/arm", **{name: VALUES[name] for name in wanted})
    assert "\n" not in event.as_line()
    assert parse(event.as_line()) == parse(event.as_line().encode()) == event
    assert json.loads(event.as_line())["event"] == kind.name


def test_what_a_newer_writer_adds_is_left_out() -> None:
    assert event_from({"event": "note", "task": "t", "text": "x", "colour": "red", "place": 0}) == Note(
        task="t", text="x"
    )
    assert event_from({"event": "heartbeat", "task": "t"}) is None


def test_an_older_writer_s_end_is_one() -> None:
    told = '{"task": "t", "number": 3, "event": "failed", "error": "no", "is_user_error": true}'
    assert parse(told) == Failed(task="t", number=3, error="no", is_user_error=True)
    assert parse('{"task": "t", "event": "finished", "seconds": 1, "rows": null}') == Finished(task="t", seconds=1)


@pytest.mark.parametrize(
    "line",
    ['{"event": "no', "", "null", "[]", '"note"', '{"event": "note"}', '{"event": "note", "text": 3}', "[" * 100_000,
     '{"event": "progress", "epoch": "3"}', '{"event": ["note"], "text": "x"}', '{"task": "t"}', b"\xff\xfe"],
)  # fmt: skip
def test_what_is_no_event_is_none(line: str | bytes) -> None:
    assert parse(line) is None
