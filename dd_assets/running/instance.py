"""Dagster's own records of this project: made by one process at a time, and true about runs whose process is gone.

``dagster.yaml`` names the storage and the launcher of this module. ``python -m dd_assets.running.instance`` is what
``make ui`` does first. Results are files below the data root and no matter of this module.
"""

import contextlib
import os
import shutil
import signal
import socket
import sqlite3
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dagster import (
    AssetCheckEvaluation,
    AssetKey,
    DagsterInstance,
    DagsterRun,
    DagsterRunStatus,
    DefaultRunLauncher,
    RunsFilter,
)
from dagster._core.launcher.base import CheckRunHealthResult, WorkerStatus
from dagster._core.storage.sqlite import LAST_KNOWN_STAMPED_SQLITE_ALEMBIC_REVISION
from dagster._core.storage.sqlite_storage import DagsterSqliteStorage
from dagster._serdes import ConfigurableClassData

from dd_assets.catalogue import broken_key, catalogue
from dd_assets.laboratory import renew_views
from dd_assets.running.command import refuse_broken_settings
from dd_assets.running.ending import ends_well
from dd_assets.running.webserver import add_pages
from dd_assets.running.whereabouts import Whereabouts
from dd_core.errors import UserError
from dd_core.store.store import store_at

# A tag of each run: where its process is.
PROCESS = "dd/process"
# Name of the check that is failed for a study file that cannot be used.
LOADS = "loads"
_LOCK_SECONDS = 120.0
_AT_WORK = [DagsterRunStatus.STARTING, DagsterRunStatus.STARTED, DagsterRunStatus.CANCELING]


class LockedSqliteStorage(DagsterSqliteStorage):
    """Dagster's SQLite files at their usual places, made under a lock.

    Dagster makes them where they are missing, and two processes at once leave them with two versions of the schema,
    after which no command works any more (dagster-io/dagster#27390).
    """

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData, config_value: Mapping[str, Any]
    ) -> "LockedSqliteStorage":
        """What Dagster calls for the block ``storage`` of dagster.yaml."""
        from filelock import FileLock, Timeout

        refuse_broken_settings()  # here, since Dagster reads it next
        if "dagster_webserver.app" in sys.modules:  # this process is going to be the web server
            add_pages()
        folder = Path(config_value["base_dir"])
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / ".initialise.lock", timeout=_LOCK_SECONDS):
                _keep_one_version(folder)
                return cls.from_local(str(folder), inst_data=inst_data)
        except Timeout:
            raise UserError(
                f"another process has been making Dagster's records in {folder} for {_LOCK_SECONDS:.0f} s; end it, or "
                "set DAGSTER_HOME to another folder"
            ) from None


def _keep_one_version(folder: Path) -> None:
    """Mend records that two processes have made at once, before there was a lock.

    Both made the schema of today; the one that came second took it for one of long ago and wrote that down as well.
    """
    for path in (
        *folder.glob("history/runs.db"),
        *folder.glob("history/runs/index.db"),
        *folder.glob("schedules/*.db"),
    ):
        with contextlib.closing(sqlite3.connect(path, timeout=30)) as connection, contextlib.suppress(sqlite3.Error):
            versions = {version for (version,) in connection.execute("SELECT version_num FROM alembic_version")}
            if len(versions) > 1 and LAST_KNOWN_STAMPED_SQLITE_ALEMBIC_REVISION in versions:
                wrong = (LAST_KNOWN_STAMPED_SQLITE_ALEMBIC_REVISION,)
                with connection:
                    connection.execute("DELETE FROM alembic_version WHERE version_num = ?", wrong)


class LocalRunLauncher(DefaultRunLauncher):
    """Dagster's own for runs on this machine, which also knows whether a run's process is still there.

    So run monitoring ends the runs that it cannot help otherwise (dagster-io/dagster#1735), those of the command line
    among them, and these can be terminated in the UI.
    """

    @property
    def supports_check_run_worker_health(self) -> bool:
        """True: run monitoring may ask."""
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """FAILED if its process is gone, and RUNNING otherwise, also if it runs on another machine."""
        if is_dead(run):
            return CheckRunHealthResult(WorkerStatus.FAILED, _obituary(run))
        return CheckRunHealthResult(WorkerStatus.RUNNING)

    def terminate(self, run_id: str) -> bool:
        """End a run; one of the command line as Ctrl-C does."""
        run = self._instance.get_run_by_id(run_id)
        process = _process_of(run) if run else None
        if run is None or process is None or run.is_finished:
            return bool(super().terminate(run_id))
        if process.is_gone():
            self._instance.report_run_canceling(run)
            self._instance.report_run_canceled(run, _obituary(run))
            return True
        if process.is_of(Whereabouts.here()) and run.remote_job_origin is None:
            with contextlib.suppress(PermissionError, ProcessLookupError):
                self._instance.report_run_canceling(run)
                os.kill(process.pid, signal.SIGINT)
                return True
        return bool(super().terminate(run_id))


def _process_of(run: DagsterRun) -> Whereabouts | None:
    return Whereabouts.read(run.tags.get(PROCESS, ""))


def is_dead(run: DagsterRun) -> bool:
    """Whether the run's process is known and has certainly ended."""
    process = _process_of(run)
    return process is not None and process.is_gone()


def _obituary(run: DagsterRun) -> str:
    process = _process_of(run)
    where = f" ({process.pid} on {process.host})" if process else ""
    return (
        f"the process of this run{where} is gone without a word: it was killed, or the machine went down; what was "
        "finished is kept, run the same again to go on"
    )


def end_dead_runs(instance: DagsterInstance) -> list[str]:
    """End all runs whose process on this machine is gone, so that others need not wait for them.

    Runs of other machines, containers and Kubernetes are left alone: whether they live, only those know.

    Returns:
        A sentence for each.
    """
    said = []
    for run in instance.get_runs(RunsFilter(statuses=_AT_WORK)):
        if is_dead(run):
            instance.report_run_failed(run, _obituary(run))
            if instance.event_log_storage.supports_global_concurrency_limits:
                instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
            said.append(f"run {run.run_id} was still called running, and is now ended: {_obituary(run)}")
    return said


def unaccounted_runs(instance: DagsterInstance) -> Iterator[str]:
    """A sentence for each run under way that does not say where, as those of earlier versions."""
    if not isinstance(instance.run_launcher, DefaultRunLauncher):
        return
    for run in instance.get_runs(RunsFilter(statuses=[DagsterRunStatus.STARTED])):
        if _process_of(run) is None:
            yield (
                f"run {run.run_id} is called running and does not say where; if nothing of it runs any more, others "
                f"wait for it in vain: python -m dd_assets.running.instance end {run.run_id}"
            )


def dagster_home() -> Path:
    """Dagster's folder, with the settings of this project if there are none: what env.sh does.

    Raises:
        UserError: it cannot be made.
    """
    folder = home_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "dagster.yaml").exists():
            shutil.copy(Path(__file__).parents[1] / "dagster.yaml", folder)
    except OSError as error:
        raise UserError(
            f"the folder DAGSTER_HOME={folder} cannot be made ({error.strerror}); check the data root, "
            f"DD_ROOT={os.environ.get('DD_ROOT', 'data')}"
        ) from error
    return folder


def home_folder() -> Path:
    """Where Dagster's folder is or will be; beside results that lie on an object store it is in ``data`` here."""
    root = os.environ.get("DD_ROOT", "data")
    folder = Path(os.environ.get("DAGSTER_HOME") or (Path("data" if "://" in root else root) / "dagster"))
    return folder.expanduser().absolute()


@ends_well()
def main(arguments: list[str]) -> int:
    """Prepare for the UI, on a ``port``; or, after ``end``, mark these runs as failed. Returns the exit code."""
    if arguments[:1] == ["port"]:
        _refuse_taken_port(arguments[1])
    os.environ["DAGSTER_HOME"] = str(dagster_home())
    with DagsterInstance.get() as instance:
        if arguments[:1] == ["end"]:
            return _end(instance, arguments[1:])
        from dd_assets.compute import COMPUTE_POOL

        # The queue must know the limit before it first looks.
        if COMPUTE_POOL not in instance.event_log_storage.get_concurrency_keys():
            instance.event_log_storage.set_concurrency_slots(COMPUTE_POOL, 1)
        _fail_broken_studies(instance)
        for sentence in (*end_dead_runs(instance), *unaccounted_runs(instance)):
            print(sentence, file=sys.stderr)
    with contextlib.suppress(UserError):  # the views stay as they were
        renew_views(store_at())
    return 0


def _refuse_taken_port(port: str) -> None:
    """Dagster's own answer to a port that is taken is a stack trace, after a minute."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", int(port)))
        except ValueError:
            raise UserError(f"a port is a number (DD_PORT), not {port!r}") from None
        except (OSError, OverflowError) as error:
            raise UserError(f"port {port} cannot be used ({error}); choose another with DD_PORT") from error


def _fail_broken_studies(instance: DagsterInstance) -> None:
    """Let study files that cannot be used look so in the UI: an asset that was never run is merely grey."""
    for path, reason in catalogue().errors.items():
        check = AssetCheckEvaluation(AssetKey(broken_key(path)), LOADS, passed=False, metadata={}, description=reason)
        instance.report_runless_asset_event(check)


def _end(instance: DagsterInstance, run_ids: list[str]) -> int:
    for run_id in run_ids:
        run = instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            raise UserError(f"there is no run {run_id} under way")
        instance.report_run_failed(run, "ended by hand, since nothing of it runs any more")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
