"""Dagster itself on the cluster: its own launcher starts a run's pod, whose step starts the Job that computes."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import ModuleTarget
from dagster_graphql.test.utils import execute_dagster_graphql
from kubernetes_simulator import Cluster
from ruamel.yaml import YAML
from support import results, wait_until

from cluster.conftest import ClusterLab
from dd_assets.compute.kubernetes.checks import PERMISSIONS

pytestmark = pytest.mark.skipif(not Cluster.can_isolate(), reason="pods with files of their own need root")

LAUNCH = """
mutation ($params: ExecutionParams!) {
  launchRun(executionParams: $params) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on PythonError { message stack }
    ... on InvalidSubsetError { message }
  }
}
"""


class LaunchedLab(ClusterLab):
    """Runs are pods of the cluster too, under a service account that may do what PERMISSIONS say and nothing else."""

    def __init__(self, folder: Path, cluster: Cluster):
        """The whole folder is a volume, so that a run's pod has settings, studies and Dagster's storage."""
        super().__init__(folder, cluster)
        cluster.volume("lab", folder)
        self.write_settings(kubeconfig=None)
        rules = [{"apiGroups": [g], "resources": [r], "verbs": [v]} for v, r, g in PERMISSIONS]
        rbac = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": "dagster"}}
        subject = {"kind": "ServiceAccount", "name": "dagster", "namespace": "default"}
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "dagster"}
        cluster.apply(
            [
                {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "dagster"}},
                {**rbac, "kind": "Role", "rules": rules},
                {**rbac, "kind": "RoleBinding", "subjects": [subject], "roleRef": role},
            ]
        )
        variables = self.environment()
        names = [name for name in variables if name.startswith(("DD_", "DAGSTER_"))]
        launcher = {
            "service_account_name": "dagster",
            "job_image": "dagster:1",
            "dagster_home": str(self.home),
            "instance_config_map": "dagster",
            "load_incluster_config": False,
            "kubeconfig_file": str(cluster.kubeconfig()),
            "env_vars": [f"{name}={variables[name]}" for name in names],
            "volumes": [{"name": "lab", "persistentVolumeClaim": {"claimName": "lab"}}],
            "volume_mounts": [{"name": "lab", "mountPath": str(folder)}],
        }
        content = {
            "telemetry": {"enabled": False},
            "run_launcher": {"module": "dagster_k8s", "class": "K8sRunLauncher", "config": launcher},
            "run_coordinator": {"module": "dagster.core.run_coordinator", "class": "DefaultRunCoordinator"},
        }
        self.home.mkdir()
        with (self.home / "dagster.yaml").open("w", encoding="utf-8") as file:
            YAML().dump(content, file)

    def launch(self, workspace: WorkspaceProcessContext, asset: str, partition: str) -> str:
        """What the button "Materialize" of the UI does; returns the id of the run."""
        selector = {
            "repositoryLocationName": "dd_assets.definitions",
            "repositoryName": "__repository__",
            "jobName": "__ASSET_JOB",
            "assetSelection": [{"path": asset.split("/")}],
        }
        arm, epoch = partition.split("|")
        wanted = {"dagster/partition": partition, "dagster/partition/arm": arm, "dagster/partition/epoch": epoch}
        tags = [{"key": key, "value": value} for key, value in wanted.items()]
        params = {"selector": selector, "runConfigData": {}, "executionMetadata": {"tags": tags}, "mode": "default"}
        answer = execute_dagster_graphql(workspace.create_request_context(), LAUNCH, {"params": params}).data
        assert answer["launchRun"]["__typename"] == "LaunchRunSuccess", answer
        return str(answer["launchRun"]["run"]["runId"])


@pytest.fixture
def lab(tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> LaunchedLab:
    lab = LaunchedLab(tmp_path / "lab", cluster)
    for name, text in lab.environment().items():
        if name.startswith(("DD_", "DAGSTER_")):
            monkeypatch.setenv(name, text)
    return lab


@pytest.fixture
def workspace(lab: LaunchedLab) -> Iterator[WorkspaceProcessContext]:
    """The code location, as the web server has it."""
    with (
        lab.instance() as instance,
        WorkspaceProcessContext(
            instance, ModuleTarget("dd_assets.definitions", None, None, "dd_assets.definitions")
        ) as workspace,
    ):
        yield workspace


def test_a_run_in_a_pod_of_its_own_starts_the_job_and_records_it_and_a_cancelled_one_takes_its_job_along(
    lab: LaunchedLab, workspace: WorkspaceProcessContext
) -> None:
    instance = workspace.instance
    run_id = lab.launch(workspace, "tiny/checkpoints", "plain.k001|0024")
    wait_until(lambda: instance.get_run_by_id(run_id).is_finished, "the run", 0.1)
    logs = [lab.cluster.log(pod["metadata"]["name"]) for pod in lab.cluster.objects("Pod")]
    assert instance.get_run_by_id(run_id).status == dg.DagsterRunStatus.SUCCESS, logs
    assert {job["metadata"]["name"][:9] for job in lab.cluster.objects("Job")} == {"dagster-r", "dd-train-"}
    assert lab.recorded("checkpoints") == {"plain.k001|0024"}
    assert any("plain.k001" in path for path in results(lab.root))

    run_id = lab.launch(workspace, "tiny/checkpoints", "plain.k002|0024")
    wait_until(lambda: list(lab.root.glob("checkpoints/tiny/plain.k002/0000.json")), "a checkpoint")
    assert instance.run_launcher.terminate(run_id)
    wait_until(lambda: instance.get_run_by_id(run_id).status == dg.DagsterRunStatus.CANCELED, "the end of the run", 0.1)
    wait_until(lambda: not any(run_id in str(job["metadata"]) for job in lab.cluster.objects("Job")), "the Jobs' end")
