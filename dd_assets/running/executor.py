"""How a run goes on: all steps in its own process, which says where it is and takes a closed terminal for Ctrl-C."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import dagster as dg
from dagster._core.execution.retries import RetryMode
from dagster._core.executor.in_process import InProcessExecutor

from dd_assets.running.console import StepsBar, bar
from dd_assets.running.instance import PROCESS, end_dead_runs
from dd_assets.running.whereabouts import Whereabouts


class _AccountableExecutor(InProcessExecutor):
    def execute(self, plan_context: Any, execution_plan: Any) -> Iterator[Any]:
        """Write down where this run is, before anything can happen to it; and look after those that came to harm."""
        instance, run = plan_context.instance, plan_context.dagster_run
        instance.add_run_tags(run.run_id, {PROCESS: str(Whereabouts.here())})
        for sentence in end_dead_runs(instance):
            plan_context.log.info(sentence)
        with _hang_up_is_an_interruption(), bar("tables and figures") as drawn:
            steps = StepsBar(drawn, len(execution_plan.step_keys_to_execute))
            for event in super().execute(plan_context, execution_plan):
                steps.update(event)
                yield event


@dg.executor(name="in_process")
def in_this_process(init_context: dg.InitExecutorContext) -> InProcessExecutor:
    """A step hands its work to worker processes; another process around it would only cost two seconds."""
    return _AccountableExecutor(RetryMode.ENABLED)


@contextlib.contextmanager
def _hang_up_is_an_interruption() -> Iterator[None]:
    """A closed terminal ends the run as Ctrl-C does, unless it was started with nohup."""
    is_fatal = signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
    if not is_fatal or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGHUP, lambda *_: os.kill(os.getpid(), signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
