"""What is done about what the queue shows, look by look; no SLURM is needed."""

from collections import Counter
from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from dd_assets.compute.slurm import commands
from dd_assets.compute.slurm.commands import Element, SlurmError, UnreachableError
from dd_assets.compute.slurm.following import Following
from dd_core.study.resources import Resources


def element(state: str, reason: str = "None", restarts: int = 0, index: int = 0) -> Element:
    """As squeue shows it."""
    return Element.read(f"12|{index}|{state}|{reason}|0|{restarts}|n1|comment|")


class News:
    """Keeps to words."""

    def __init__(self) -> None:
        """A job of two tasks."""
        self.left, self.steps = {0, 1}, Counter[int]()

    def read(self) -> Iterator[str]:
        """Nothing."""
        yield from ()

    def note(self, text: str) -> str:
        """As it is."""
        return text

    def give_up(self, numbers: Iterable[int], error: str) -> Iterator[str]:
        """Why."""
        self.left -= set(numbers)
        yield error


@pytest.fixture
def follow(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What is said of a job whose elements look so, one look after the other."""

    def said(looks: list[list[Element]], patience: float | None = None) -> list[str]:
        news = News()
        job = SimpleNamespace(name="job", places=((0,), (1,)), tasks=[SimpleNamespace(name=name) for name in "ab"])
        submission = SimpleNamespace(
            job=job,
            settings=SimpleNamespace(poll_seconds=0.001, pending_patience_seconds=patience),
            resources=Resources(retries=2, retry_seconds=60.0),
            is_together=False,
            num_elements=2,
        )

        def elements(name: str) -> list[Element]:
            if not looks:
                news.left.clear()
            return looks.pop(0) if looks else []

        monkeypatch.setattr(commands, "elements", elements)
        monkeypatch.setattr(commands, "cancel", lambda job: None)
        return list(Following(12, submission, news).events())  # type: ignore[arg-type]

    return said


PUT_BACK = [[element("RUNNING")], *[[element("PENDING", "BeginTime", restarts=1)]] * 4]


@pytest.mark.parametrize(
    ("answers", "calls"),
    [([UnreachableError("?"), None], 2), ([SlurmError("no"), None], 1)],
    ids=["silence", "refusal"],
)
def test_the_time_of_a_retry_is_told_until_slurm_has_answered(
    answers: list[Exception | None], calls: int, follow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[float] = []

    def begin_after(element: Element, is_array: bool, seconds: float) -> None:
        told.append(seconds)
        if (error := answers[len(told) - 1]) is not None:
            raise error

    monkeypatch.setattr(commands, "begin_after", begin_after)
    said = follow(list(PUT_BACK))
    assert len(told) == calls and all(59 < seconds <= 60 for seconds in told)
    refused = "element 0 of SLURM job 12 begins when SLURM lets it, which refuses a time (no)"
    assert [text for text in said if "again in 60 s" not in text] == ([refused] if calls == 1 else [])


def test_the_pause_before_a_retry_is_no_lack_of_room(follow: Any) -> None:
    pausing = element("PENDING", "BeginTime")
    assert follow([[pausing, element("PENDING", "BeginTime", index=1)]] * 3, patience=0.0) == []
    waits, given_up = follow([[pausing, element("PENDING", "Resources", index=1)]] * 3, patience=0.0)
    assert waits == "SLURM job 12 waits for free nodes (Resources)"
    assert "has waited for free nodes (Resources) for longer than pending_patience_seconds (0)" in given_up
