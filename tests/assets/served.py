"""Dagster's own servers for tests, on loopback, asked through GraphQL as the UI asks them."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from support import REPOSITORY, Lab, wait_until

_NODES = "{assetNodes{assetKey{path} isPartitioned isMaterializable partitionKeys staleStatus staleCauses{reason}}}"
_PARTITIONS = """query($key: AssetKeyInput!, $keys: [String!]) {assetNodeOrError(assetKey: $key) {... on AssetNode {
staleStatusByPartition(partitions: $keys) staleCausesByPartition(partitions: $keys) {reason}}}}"""
# dagster-daemon itself, but it looks after backfills every second, and not every thirty.
_DAEMON = """
import dagster._daemon.controller
from dagster._daemon.cli import main
dagster._daemon.controller.DEFAULT_DAEMON_INTERVAL_SECONDS = 1
main()
"""


class Server:
    """A running webserver."""

    def __init__(self, url: str):
        """``url``: where it answers."""
        self.url = url

    def ask(self, query: str, **variables: Any) -> Any:
        """The data of a GraphQL answer."""
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(f"{self.url}/graphql", body, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as response:
            answer = json.load(response)
        assert "errors" not in answer, answer
        return answer["data"]

    def reload(self) -> None:
        """Let it read the study files again."""
        answer = self.ask("mutation {reloadWorkspace {__typename ... on PythonError {message}}}")
        assert answer["reloadWorkspace"]["__typename"] == "Workspace", answer

    def statuses(self) -> dict[str, dict[str, tuple[str, tuple[str, ...]]]]:
        """By asset and partition ("" where there are none) the status and what makes it stale; of all of them."""
        found: dict[str, dict[str, tuple[str, tuple[str, ...]]]] = {}
        for node in self.ask(_NODES)["assetNodes"]:
            if not node["isMaterializable"]:
                continue
            key, keys = node["assetKey"], node["partitionKeys"]
            if node["isPartitioned"]:
                answer = self.ask(_PARTITIONS, key={"path": key["path"]}, keys=keys)["assetNodeOrError"]
                statuses, causes = answer["staleStatusByPartition"], answer["staleCausesByPartition"]
            else:
                keys, statuses, causes = [""], [node["staleStatus"]], [node["staleCauses"]]
            reasons = (tuple(sorted(cause["reason"] for cause in of_one)) for of_one in causes)
            found["/".join(key["path"])] = dict(zip(keys, zip(statuses, reasons, strict=True), strict=True))
        return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _process(lab: Lab, name: str, *command: str, **changes: Any) -> Iterator[None]:
    with Path(lab.folder, f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=REPOSITORY, env=lab.environment(**changes), stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextlib.contextmanager
def served(lab: Lab, with_daemon: bool = False, **changes: Any) -> Iterator[Server]:
    """A webserver of a laboratory, and if wanted the daemon that starts runs and backfills."""
    places = {"PYTHONPATH": REPOSITORY, "DAGSTER_MODULE_NAME": None, **changes}
    workspace = ("-w", str(REPOSITORY / "workspace.yaml"))
    programs = Path(sys.executable).parent
    port = _free_port()
    server = Server(f"http://127.0.0.1:{port}")

    def answers() -> bool:
        with contextlib.suppress(urllib.error.URLError, OSError):
            return bool(server.ask("{version}"))
        return False

    with contextlib.ExitStack() as stack:
        options = ("-h", "127.0.0.1", "-p", str(port))
        stack.enter_context(_process(lab, "web", str(programs / "dagster-webserver"), *workspace, *options, **places))
        if with_daemon:
            daemon = (sys.executable, "-c", _DAEMON, "run", *workspace)
            stack.enter_context(_process(lab, "daemon", *daemon, **places))
        wait_until(answers, "an answer from the webserver", pause=0.2)
        yield server
