"""Curves of a study's arms, those that train just now among them, and how long the rest will take."""

import contextlib
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dd_assets.pages.landing import modified, readable
from dd_core.store.store import Store
from dd_core.study.study import Study

# Of what an arm that has gone silent is called: its process was killed, or an epoch takes long.
_SILENT_SECONDS, _SILENT_EPOCHS = 60.0, 5.0
# Of an arm, and of all; more are no better to look at, and a browser draws them anew every few seconds.
_MOST_POINTS, _MOST_POINTS_OF_ALL = 400, 8_000
_QUANTITIES = tuple(f"{split}_{what}" for split in ("train", "validation", "test") for what in ("error", "loss"))
_BATCHES = ("batch_error", "batch_loss")


@dataclass(frozen=True)
class _Start:
    """Where an arm or a study was when it was first looked at."""

    done: float
    at: float

    def seconds_per_unit(self, done: float, at: float) -> float | None:
        return (at - self.at) / (done - self.done) if done > self.done and at > self.at else None


class LiveCurves:
    """What the live page draws. It remembers how fast things went since it was first asked."""

    def __init__(self, store: Store, studies: Mapping[str, Study]):
        """Nothing is read yet."""
        self.store, self.studies = store, studies
        self._committed: dict[str, tuple[object, dict[str, dict[str, Any]]]] = {}
        self._starts: dict[tuple[str, str], _Start] = {}

    def answer(self, asked: str | None = None) -> dict[str, Any]:
        """The curves of a study as JSON.

        Args:
            asked: its name; default the one that trains, or else the one that trained last.

        Returns:
            ``studies``: names of those that have curves; ``study``; ``now``: seconds since 1970; ``num_arms``,
            ``num_done``, ``seconds_left`` (None: not known); ``arms``: a mapping for each arm with its state and the
            means of its trials by epoch, errors as fractions and losses in nats.
        """
        news = self._news()
        changed = self._changed()
        studies = sorted({*changed, *news})
        name = asked if asked in studies else _first(news, changed)
        if name is None:
            return {"studies": [], "study": None, "now": time.time(), "arms": []}
        arms = {arm: dict(values) for arm, values in self._of_checkpoints(name).items()}
        for key, told in news.get(name, {}).items():
            arms[key] = self._with_news(name, key, arms.get(key), told)
        study = self.studies.get(name)
        order = list(study.arms) if study else []
        places = {key: place for place, key in enumerate(order)}
        listed = [arms[key] for key in sorted(arms, key=lambda key: (places.get(key, len(places)), key))]
        for arm in listed:
            _thin(arm, max(min(_MOST_POINTS, _MOST_POINTS_OF_ALL // len(listed)), 20))
        return {
            "studies": studies,
            "study": name,
            "now": time.time(),
            "num_arms": max(len(order), len(listed)),
            "num_done": sum(arm["is_done"] for arm in listed),
            "seconds_left": self._seconds_left(study, listed) if study else None,
            "arms": listed,
        }

    def _changed(self) -> dict[str, float]:
        """Studies with evaluations, and when they were last written, where the store tells."""
        changed = {}
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            for folder in self.store.table_folder("training_evals").iterdir():
                name = folder.name.removeprefix("study=")
                if name not in (folder.name, "none"):
                    changed[name] = max((modified(arm) for arm in folder.iterdir()), default=0.0)
        return changed

    def _news(self) -> dict[str, dict[str, dict[str, Any]]]:
        """What trains just now, by study and arm: means of its trials, up to the epoch that all of them have reached.

        There may be a hundred thousand rows, which are for SQL to read.
        """
        from dd_core.tables.live import LIVE
        from dd_core.tables.warehouse import connect

        known = [q for q in (*_QUANTITIES, *_BATCHES) if any(column.name == q for column in LIVE.columns)]
        means = ", ".join(f"avg({q}) FILTER (isfinite({q})) AS {q}" for q in known)
        lists = ", ".join(f"list({q} ORDER BY epoch) AS {q}" for q in known)
        query = (
            "WITH trials AS (SELECT study, arm, arg_max(status, epoch) = 'training' AS trains, max(epoch) AS reached, "
            "max(until) AS until, max(written_at) AS written FROM live_epochs GROUP BY study, arm, trial), "
            "arms AS (SELECT study, arm, bool_or(trains) AS is_training, max(until) AS until, "
            "epoch(max(written)) AS news_at, coalesce(min(reached) FILTER (trains), max(reached)) AS reached "
            "FROM trials GROUP BY study, arm), "
            f"epochs AS (SELECT study, arm, any_value(k) AS k, epoch, {means} FROM live_epochs "
            "GROUP BY study, arm, epoch) "
            "SELECT study, arm, any_value(k) AS k, is_training, until, news_at, list(epoch ORDER BY epoch) AS epochs, "
            f"{lists} FROM epochs JOIN arms USING (study, arm) WHERE epoch <= reached "
            "GROUP BY study, arm, is_training, until, news_at"
        )
        with readable(), contextlib.closing(connect(self.store, (), live=True)) as connection:
            rows = connection.execute(query).to_arrow_table().to_pylist()
        found: dict[str, dict[str, dict[str, Any]]] = {}
        for row in rows:
            found.setdefault(row.pop("study"), {})[row["arm"]] = row
        return found

    def _of_checkpoints(self, name: str) -> dict[str, dict[str, Any]]:
        """What checkpoints vouch for; read again when a file has come or gone, or the study is another."""
        folders = [self.store.table_folder(table, name) for table in ("training_evals", "runs")]
        files = sorted((str(path), modified(path)) for folder in folders for path in folder.glob("*/*.parquet"))
        stamp = (files, self.studies.get(name))
        kept = self._committed.get(name)
        if kept is None or kept[0] != stamp:
            kept = self._committed[name] = stamp, self._read(name)
        return kept[1]

    def _read(self, name: str) -> dict[str, dict[str, Any]]:
        from dd_core.tables.files import TABLES
        from dd_core.tables.warehouse import connect

        known = [q for q in _QUANTITIES if any(column.name == q for column in TABLES["training_evals"].columns)]
        means = ", ".join(f"list(mean_{q} ORDER BY epoch) AS {q}" for q in known)
        inner = ", ".join(f"avg({q}) AS mean_{q}" for q in known)
        study = self.studies.get(name)
        recipes = None
        if study and not study.imported:
            recipes = [study.recipe_hash(arm) for arm in study.arms.values()]
        with readable(), contextlib.closing(connect(self.store, ("training_evals", "runs"))) as connection:
            curves = connection.execute(
                f"SELECT arm, any_value(k) AS k, list(epoch ORDER BY epoch) AS epochs, {means} FROM ("
                f"SELECT arm, k, epoch, {inner} FROM training_evals WHERE study = $study "
                "AND ($recipes IS NULL OR list_contains($recipes, recipe)) GROUP BY ALL) GROUP BY arm",
                {"study": name, "recipes": recipes},
            ).to_arrow_table()
            ended = dict(
                connection.execute(
                    "SELECT arm, string_agg(DISTINCT status, ', ' ORDER BY status) FROM (SELECT arm, status FROM runs "
                    "WHERE study = $study QUALIFY row_number() OVER (PARTITION BY arm, trial ORDER BY attempt DESC) = 1"
                    ") GROUP BY arm",
                    {"study": name},
                ).fetchall()
            )
        arms = {}
        for arm in curves.to_pylist():
            state = ended.get(arm["arm"], "imported")
            is_done = _is_done(study, state, arm["epochs"][-1])
            if state == "finished" and not is_done:
                state = f"paused at epoch {arm['epochs'][-1]}"  # no more was asked for
            arms[arm["arm"]] = arm | {"state": state, "is_done": is_done, "until": study.epochs if study else None}
        return arms

    def _with_news(self, name: str, arm: str, before: dict[str, Any] | None, told: dict[str, Any]) -> dict[str, Any]:
        """The curves of an arm that trains: those of its checkpoints, and what has come since."""
        known = before["epochs"] if before else []
        seen = {*known}
        new = [at for at, epoch in enumerate(told["epochs"]) if epoch not in seen]
        curves = {}
        for quantity in (*_QUANTITIES, *_BATCHES):
            earlier = (before or {}).get(quantity) or [None] * len(known)
            values = told.get(quantity)
            curves[quantity] = [*earlier, *(values[at] if values else None for at in new)]
        epoch, until, written = told["epochs"][-1], told["until"], told["news_at"]
        pace = self._start((name, arm), epoch, written).seconds_per_unit(epoch, written)
        is_silent = time.time() - written > max(_SILENT_SECONDS, _SILENT_EPOCHS * (pace or 0.0))
        is_training = told["is_training"]
        return {
            "arm": arm,
            "k": told["k"],
            "epochs": [*known, *(told["epochs"][at] for at in new)],
            "until": until,
            **curves,
            "state": ("silent" if is_silent else "training") if is_training else "ending",
            "is_done": False,
            "news_at": written,
            "seconds_left": (until - epoch) * pace if pace is not None and is_training and not is_silent else None,
        }

    def _start(self, key: tuple[str, str], done: float, at: float) -> _Start:
        start = self._starts.get(key)
        if start is None or done < start.done:
            start = self._starts[key] = _Start(done, at)
        return start

    def _seconds_left(self, study: Study, arms: list[dict[str, Any]]) -> float | None:
        """Until all arms are done, at the pace since the study was first looked at."""
        from dd_core.forecast.work import training_cost

        if study.imported or not any(arm["state"] == "training" for arm in arms):
            return None
        cost = {key: training_cost(study, arm, 0, study.epochs) for key, arm in study.arms.items()}
        shares = {arm["arm"]: 1.0 if arm["is_done"] else _last(arm) / study.epochs for arm in arms}
        done = sum(cost[key] * min(share, 1.0) for key, share in shares.items() if key in cost)
        now = time.time()
        pace = self._start((study.name, ""), done, now).seconds_per_unit(done, now)
        return None if pace is None else (sum(cost.values()) - done) * pace


def _is_done(study: Study | None, state: str, last_epoch: int) -> bool:
    """Whether an arm has nothing left to train; ``state``: how the last attempts of its trials ended."""
    states = {*state.split(", ")}
    if states & {"running", "interrupted", "failed"}:
        return False
    if study is None or study.imported or "finished" not in states:
        return True
    return last_epoch >= study.epochs


def _first(news: Mapping[str, Mapping[str, Mapping[str, Any]]], changed: Mapping[str, float]) -> str | None:
    """The study to show to those who ask for none: the one that trains now, not one that was killed days ago."""
    if news:
        newest = {name: max(arm["news_at"] for arm in arms.values()) for name, arms in news.items()}
        return max(newest, key=lambda name: newest[name])
    return max(changed, key=lambda name: changed[name]) if changed else None


def _last(arm: Mapping[str, Any]) -> int:
    return arm["epochs"][-1] if arm["epochs"] else 0


def _thin(arm: dict[str, Any], most: int) -> None:
    """Leave out points between, so that no more than that many are left, and round the rest."""
    count = len(arm["epochs"])
    kept = sorted({round(i * (count - 1) / (most - 1)) for i in range(most)}) if count > most else range(count)
    arm["epochs"] = [arm["epochs"][i] for i in kept]
    for name in (*_QUANTITIES, *_BATCHES):
        values = arm.get(name)
        if values is None or all(value is None for value in values):
            arm.pop(name, None)
            continue
        shown = (None if values[i] is None or not math.isfinite(values[i]) else values[i] for i in kept)  # it is JSON
        arm[name] = [None if value is None else float(f"{value:.5g}") for value in shown]
