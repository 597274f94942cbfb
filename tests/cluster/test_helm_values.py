"""The values for Dagster's Helm chart: keys it knows, a dagster.yaml that Dagster takes, run pods that may run.

The chart cannot be had here. What its templates make of the values was read from them (helm/dagster in
dagster-io/dagster) and is written down in ``KNOWN``, ``dagster_yaml`` and ``container_context``; what comes out goes to
Dagster itself.
"""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from dagster._config import process_config
from dagster._core.instance.config import dagster_instance_config
from dagster._core.storage.local_compute_log_manager import LocalComputeLogManager
from dagster_k8s import K8sRunLauncher
from dagster_k8s.job import construct_dagster_k8s_job
from dagster_postgres.run_storage import PostgresRunStorage
from dagster_postgres.utils import pg_url_from_config
from kubernetes.client import ApiClient
from ruamel.yaml import YAML

from dd_assets.catalogue import catalogue
from dd_assets.compute.kubernetes.settings import read_settings
from tests.cluster import pod_security
from tests.cluster.manifest_rules import check, quantity
from tests.cluster.test_shipped_manifests import NAMESPACE, of_kind, rendered
from tests.support import REPOSITORY

RELEASE = "dagster"
POD = {
    *("image", "podSecurityContext", "securityContext", "initContainerResources", "resources", "volumes"),
    *("volumeMounts", "readinessProbe", "livenessProbe", "startupProbe", "env", "envConfigMaps", "envSecrets"),
    *("nodeSelector", "affinity", "tolerations", "annotations", "labels", "deploymentLabels", "schedulerName"),
}
LAUNCHER = {
    *("image", "imagePullPolicy", "jobNamespace", "loadInclusterConfig", "kubeconfigFile", "envConfigMaps"),
    *("envSecrets", "envVars", "volumeMounts", "volumes", "labels", "failPodOnRunFailure", "resources"),
    *("schedulerName", "securityContext", "runK8sConfig"),
}
MONITORING = {
    *("enabled", "startTimeoutSeconds", "cancelTimeoutSeconds", "maxResumeRunAttempts", "pollIntervalSeconds"),
    "freeSlotsAfterRunEndSeconds",
}
# Keys by path; what lies below a path that is not here is Kubernetes' or Dagster's own.
KNOWN = {
    "": {
        *("global", "generatePostgresqlPasswordSecret", "generateCeleryConfigSecret", "serviceAccount", "rbacEnabled"),
        *("telemetry", "postgresql", "dagsterWebserver", "dagsterDaemon", "additionalInstanceConfig", "pythonLogs"),
        *("computeLogManager", "runLauncher", "dagster-user-deployments"),
    },
    "global": {"postgresqlSecretName", "dagsterHome", "serviceAccountName", "celeryConfigSecretName"},
    "serviceAccount": {"create", "name", "annotations"},
    "telemetry": {"enabled"},
    "postgresql": {
        *("enabled", "image", "postgresqlHost", "postgresqlUsername", "postgresqlPassword", "postgresqlDatabase"),
        *("postgresqlParams", "postgresqlScheme", "service"),
    },
    "dagsterWebserver": {
        *POD,
        "nameOverride",
        "service",
        "replicaCount",
        "workspace",
        "enableReadOnly",
        "logLevel",
        "pathPrefix",
    },
    "dagsterDaemon": {
        *POD,
        "runCoordinator",
        "heartbeatTolerance",
        "runMonitoring",
        "runRetries",
        "sensors",
        "schedules",
    },
    "dagsterDaemon.runMonitoring": MONITORING,
    "dagsterDaemon.runRetries": {"enabled", "maxRetries"},
    "pythonLogs": {"pythonLogLevel", "managedPythonLoggers", "dagsterHandlerConfig"},
    "computeLogManager": {"type", "config"},
    "computeLogManager.config.customComputeLogManager": {"module", "class", "config"},
    "runLauncher": {"type", "config"},
    "runLauncher.config.k8sRunLauncher": LAUNCHER,
    "runLauncher.config.k8sRunLauncher.runK8sConfig": {
        *("containerConfig", "podSpecConfig", "podTemplateSpecMetadata", "jobSpecConfig", "jobMetadata")
    },
    "dagster-user-deployments": {"enabled", "enableSubchart", "imagePullSecrets", "deployments", "rbacEnabled"},
    "dagster-user-deployments.deployments.0": {
        *(POD - {"deploymentLabels", "initContainerResources"}),
        *("name", "port", "dagsterApiGrpcArgs", "codeServerArgs", "includeConfigInLaunchedRuns"),
    },
}

Values = dict[str, Any]


@cache
def values() -> Values:
    path = REPOSITORY / "k8s" / "helm" / "dagster-values.yaml"
    # Through JSON, so that what anchors share is not one object.
    loaded: Values = json.loads(json.dumps(YAML(typ="safe").load(path.read_text(encoding="utf-8"))))
    return loaded


def mappings(node: Any, path: str = "") -> Iterator[tuple[str, Values]]:
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    if isinstance(node, dict):
        yield path, node
    for key, child in pairs:
        yield from mappings(child, f"{path}.{key}".lstrip("."))


def dagster_yaml() -> Values:
    """What the chart writes for Dagster's instance (configmap-instance.yaml and helpers/instance)."""
    v, launcher = values(), values()["runLauncher"]["config"]["k8sRunLauncher"]
    monitoring, database = v["dagsterDaemon"]["runMonitoring"], v["postgresql"]
    assert v["runLauncher"]["type"] == "K8sRunLauncher" and v["computeLogManager"]["type"] == "CustomComputeLogManager"
    storage = {
        "postgres_db": {
            "username": database["postgresqlUsername"],
            "password": {"env": "DAGSTER_PG_PASSWORD"},
            "hostname": database["postgresqlHost"],
            "db_name": database["postgresqlDatabase"],
            "port": 5432,
            "params": {},
            "scheme": database["postgresqlScheme"],
        }
    }
    names = {"Schedule": "schedule_storage", "Run": "run_storage", "EventLog": "event_log_storage"}
    modules = {"Schedule": "schedule_storage", "Run": "run_storage", "EventLog": "event_log"}
    run_k8s = {
        "containerConfig": "container_config",
        "podSpecConfig": "pod_spec_config",
        "jobSpecConfig": "job_spec_config",
    }
    return {
        **{
            key: {"module": f"dagster_postgres.{modules[kind]}", "class": f"Postgres{kind}Storage", "config": storage}
            for kind, key in names.items()
        },
        "run_launcher": {
            "module": "dagster_k8s",
            "class": "K8sRunLauncher",
            "config": {
                "load_incluster_config": launcher["loadInclusterConfig"],
                "job_namespace": NAMESPACE,
                "image_pull_policy": launcher["imagePullPolicy"],
                "service_account_name": v["global"]["serviceAccountName"],
                "dagster_home": v["global"]["dagsterHome"],
                "instance_config_map": f"{RELEASE}-instance",
                "postgres_password_secret": v["global"]["postgresqlSecretName"],
                "security_context": launcher["securityContext"],
                "run_k8s_config": {run_k8s[key]: config for key, config in launcher["runK8sConfig"].items()},
            },
        },
        "run_coordinator": {"module": "dagster._core.run_coordinator", "class": "QueuedRunCoordinator"},
        "compute_logs": v["computeLogManager"]["config"]["customComputeLogManager"],
        "python_logs": {"python_log_level": v["pythonLogs"]["pythonLogLevel"]},
        "run_monitoring": {
            "enabled": monitoring["enabled"],
            "start_timeout_seconds": monitoring["startTimeoutSeconds"],
            "cancel_timeout_seconds": monitoring["cancelTimeoutSeconds"],
            "max_resume_run_attempts": monitoring["maxResumeRunAttempts"],
            "poll_interval_seconds": monitoring["pollIntervalSeconds"],
            "free_slots_after_run_end_seconds": monitoring["freeSlotsAfterRunEndSeconds"],
        },
        "telemetry": v["telemetry"],
        **v["additionalInstanceConfig"],
    }


def code_location() -> Values:
    (deployment,) = values()["dagster-user-deployments"]["deployments"]
    assert deployment["includeConfigInLaunchedRuns"]["enabled"] and isinstance(deployment["env"], list)
    found: Values = deployment
    return found


def container_context() -> Values:
    """What the chart has the code location tell the launcher (dagsterUserDeployments.k8sContainerContext)."""
    deployment = code_location()
    return {
        "k8s": {
            "image_pull_policy": deployment["image"]["pullPolicy"],
            "env_config_maps": [f"{RELEASE}-{deployment['name']}-user-env"],
            "volume_mounts": deployment["volumeMounts"],
            "volumes": deployment["volumes"],
            "resources": deployment["resources"],
            "namespace": NAMESPACE,
            "service_account_name": values()["global"]["serviceAccountName"],
            "env": deployment["env"],
            "run_k8s_config": {"pod_spec_config": {"automount_service_account_token": True}},
        }
    }


@pytest.fixture
def instance_config(tmp_path: Path) -> Values:
    """The chart's dagster.yaml as Dagster reads it."""
    with (tmp_path / "dagster.yaml").open("w", encoding="utf-8") as file:
        YAML().dump(json.loads(json.dumps(dagster_yaml())), file)
    config, _ = dagster_instance_config(str(tmp_path))
    return dict(config)


@pytest.fixture
def run_pod_job(monkeypatch: pytest.MonkeyPatch) -> Values:
    """The Job that the launcher makes of a run of the code location."""
    monkeypatch.setattr("kubernetes.config.load_incluster_config", lambda: None)
    config = process_config(K8sRunLauncher.config_type(), dagster_yaml()["run_launcher"]["config"])
    assert config.success, config.errors
    launcher = K8sRunLauncher(**config.value, k8s_client_batch_api=MagicMock(), k8s_client_core_api=MagicMock())
    image = f"{code_location()['image']['repository']}:{code_location()['image']['tag']}"
    origin = SimpleNamespace(container_context=container_context(), container_image=image)
    run: Any = SimpleNamespace(job_code_origin=SimpleNamespace(repository_origin=origin), tags={})
    context = launcher.get_container_context_for_run(run)
    job = construct_dagster_k8s_job(
        context.get_k8s_job_config(image, launcher),
        args=["dagster", "api", "execute_run"],
        job_name="dagster-run-0",
        component="run_worker",
        user_defined_k8s_config=context.run_k8s_config,
    )
    manifest: Values = ApiClient().sanitize_for_serialization(job)
    return manifest


def test_every_key_is_one_of_the_chart() -> None:
    for path, mapping in mappings(values()):
        if path in KNOWN:
            assert set(mapping) <= KNOWN[path], path
    assert set(KNOWN) <= {path for path, _ in mappings(values())}


def test_dagster_takes_the_instance_that_the_chart_writes(instance_config: Values) -> None:
    assert instance_config["run_monitoring"] == {
        "enabled": True,
        "start_timeout_seconds": 900,
        "cancel_timeout_seconds": 600,
        "max_resume_run_attempts": 0,
        "poll_interval_seconds": 30,
        "free_slots_after_run_end_seconds": 300,
    }
    assert instance_config["run_retries"]["retry_on_asset_or_op_failure"] is False
    assert instance_config["telemetry"] == {"enabled": False}
    logs = process_config(LocalComputeLogManager.config_type(), instance_config["compute_logs"]["config"])
    assert logs.success and logs.value is not None
    assert logs.value["base_dir"].startswith("/data/")


def test_the_database_is_spoken_to_with_psycopg2(instance_config: Values, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_PG_PASSWORD", "p@ss")
    config = process_config(PostgresRunStorage.config_type(), instance_config["run_storage"]["config"])
    assert config.success and config.value is not None
    assert pg_url_from_config(config.value) == "postgresql+psycopg2://dagster:p%40ss@postgresql:5432/dagster"
    (service,) = of_kind(rendered("gpu"), "Service").values()
    assert values()["postgresql"]["postgresqlHost"] == service["metadata"]["name"]
    (database,) = of_kind(rendered("gpu"), "Deployment").values()
    (container,) = database["spec"]["template"]["spec"]["containers"]
    image = values()["postgresql"]["image"]
    assert container["image"] == f"{image['repository']}:{image['tag']}", "the same image serves for pg_isready"
    environment = {variable["name"]: variable for variable in container["env"]}
    assert environment["POSTGRES_USER"]["value"] == values()["postgresql"]["postgresqlUsername"]
    assert environment["POSTGRES_DB"]["value"] == values()["postgresql"]["postgresqlDatabase"]
    secret = environment["POSTGRES_PASSWORD"]["valueFrom"]["secretKeyRef"]
    # The key is the chart's own choice.
    assert secret == {"name": values()["global"]["postgresqlSecretName"], "key": "postgresql-password"}


def test_a_run_pod_is_accepted_small_and_restricted(run_pod_job: Values) -> None:
    check(run_pod_job)
    spec = run_pod_job["spec"]["template"]["spec"]
    assert pod_security.violations(spec) == []
    (container,) = spec["containers"]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    resources = container["resources"]
    assert set(resources["limits"]) == {"memory"} and set(resources["requests"]) == {"cpu", "memory"}, "no GPU"
    assert quantity(resources["requests"]["cpu"]) <= 1
    assert spec["automountServiceAccountToken"] is True
    assert run_pod_job["spec"]["backoffLimit"] == 0, "another pod would find the run begun and do nothing (33755)"


def test_a_run_pod_knows_where_and_how_to_compute(run_pod_job: Values, tmp_path: Path) -> None:
    spec, objects = run_pod_job["spec"]["template"]["spec"], rendered("gpu")
    (container,) = spec["containers"]
    environment = {variable["name"]: variable.get("value") for variable in container["env"]}
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    assert environment["DD_COMPUTE"] == "kubernetes"
    settings_path = Path(environment["DD_KUBERNETES"] or "")
    config_map = volumes[mounts[str(settings_path.parent)]]["configMap"]["name"]
    content = of_kind(objects, "ConfigMap")[config_map]["data"][settings_path.name]
    path = tmp_path / settings_path.name
    path.write_text(content, encoding="utf-8")
    settings = read_settings(path)
    assert settings.data_volume
    claim = volumes[mounts[environment["DD_ROOT"] or ""]]["persistentVolumeClaim"]["claimName"]
    assert claim == settings.data_volume.claim and claim in of_kind(objects, "PersistentVolumeClaim")
    assert spec["securityContext"]["runAsUser"] == settings.run_as_user, "both write to the volume"
    assert spec["serviceAccountName"] in of_kind(objects, "ServiceAccount")
    assert spec["priorityClassName"] in of_kind(objects, "PriorityClass")
    # Writable: the home of Dagster around its read-only configuration, and scratch.
    writable = {path for path, name in mounts.items() if "emptyDir" in volumes[name]}
    assert {"/tmp", values()["global"]["dagsterHome"]} <= writable


def test_services_are_restricted_and_no_right_comes_from_the_chart() -> None:
    v = values()
    for service in (v["dagsterWebserver"], v["dagsterDaemon"], code_location()):
        container = {"name": "service", "securityContext": service["securityContext"]}
        spec = {
            "securityContext": service["podSecurityContext"],
            "containers": [container],
            "volumes": service["volumes"],
        }
        assert pod_security.violations(spec) == []
        assert service["securityContext"]["readOnlyRootFilesystem"] is True
        assert service["resources"]["requests"] and "memory" in service["resources"]["limits"]
        assert {mount["name"] for mount in service["volumeMounts"]} <= {volume["name"] for volume in service["volumes"]}
        assert service["image"]["tag"] != "latest" and "/" not in service["image"]["repository"]
    assert v["rbacEnabled"] is v["dagster-user-deployments"]["rbacEnabled"] is v["serviceAccount"]["create"] is False
    assert v["serviceAccount"]["name"] == v["global"]["serviceAccountName"] == "orchestrator"
    assert (
        v["dagsterWebserver"]["readinessProbe"]["httpGet"]["port"] == v["dagsterWebserver"]["service"]["port"] >= 1024
    )


def test_the_first_partition_is_one_of_the_code_location() -> None:
    request = json.loads((REPOSITORY / "k8s" / "first-partition.json").read_text(encoding="utf-8"))["executionParams"]
    assert request["selector"]["repositoryLocationName"] == code_location()["name"]
    ((asset, what),) = [selected["path"] for selected in request["selector"]["assetSelection"]]
    tags = {tag["key"]: tag["value"] for tag in request["executionMetadata"]["tags"]}
    study = catalogue().get(asset)
    assert study.data.dataset == "digits" and what == "checkpoints", "it needs nothing on the volume"
    assert study.checkpoint(tags["dagster/partition"])
