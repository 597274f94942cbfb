"""What ``k8s/`` ships, as kustomize renders it: accepted by every supported Kubernetes, and in step with the code."""

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import dagster_k8s
import pytest
from dagster_k8s.job import DagsterK8sJobConfig, construct_dagster_k8s_job
from kubernetes.client import ApiClient, AuthorizationV1Api, BatchV1Api, CoreV1Api
from ruamel.yaml import YAML

from dd_assets.compute.kubernetes.checks import PERMISSION_FOR_DELAYS, PERMISSION_FOR_RANKS, PERMISSIONS
from dd_assets.compute.kubernetes.manifests import Order, job_manifest
from dd_assets.compute.kubernetes.settings import KubernetesSettings, read_settings
from dd_core.study.resources import Resources
from tests.cluster import pod_security
from tests.cluster.manifest_rules import check, quantity
from tests.support import REPOSITORY

SHIPPED = REPOSITORY / "k8s"
KUBECTL = Path(sys.executable).with_name("kubectl")
NAMESPACE = "double-descent"

Object = dict[str, Any]


def kustomize(folder: Path) -> tuple[Object, ...]:
    done = subprocess.run([KUBECTL, "kustomize", folder], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return tuple(YAML(typ="safe").load_all(done.stdout))


@cache
def rendered(overlay: str) -> tuple[Object, ...]:
    """The objects of an overlay."""
    return kustomize(SHIPPED / "overlays" / overlay)


@pytest.fixture(scope="module")
def with_everything(tmp_path_factory: pytest.TempPathFactory) -> tuple[Object, ...]:
    """The objects of the overlay ``gpu`` with the components that stand there as comments."""
    copy = Path(shutil.copytree(SHIPPED, tmp_path_factory.mktemp("everything") / "k8s"))
    kustomization = copy / "overlays" / "gpu" / "kustomization.yaml"
    text, num_components = re.subn(r"(?m)^  # - (\.\./)", r"  - \1", kustomization.read_text(encoding="utf-8"))
    assert num_components == 2
    kustomization.write_text(text, encoding="utf-8")
    return kustomize(kustomization.parent)


def of_kind(objects: tuple[Object, ...], kind: str) -> dict[str, Object]:
    return {thing["metadata"]["name"]: thing for thing in objects if thing["kind"] == kind}


def settings_of(overlay: str, tmp_path: Path) -> KubernetesSettings:
    """The settings file that an overlay's ConfigMap carries."""
    data = of_kind(rendered(overlay), "ConfigMap")["kubernetes-place"]["data"]
    assert set(data) == {"kubernetes.yaml"}
    path = tmp_path / "kubernetes.yaml"
    path.write_text(data["kubernetes.yaml"], encoding="utf-8")
    return read_settings(path)


def worker_job(settings: KubernetesSettings, ranks: int = 1) -> Object:
    """The Job the code makes by these settings."""
    pods = settings.resources.pods or 1
    name = "dd-train-tiny-0"
    order = Order(name, "jobs/a/b/job.json", "/data", pods, ranks, f"{name}-01234567", settings.resources)
    return job_manifest(settings, order)


def run_job() -> Object:
    """The Job of a run, as far as its labels go."""
    config, labels = DagsterK8sJobConfig(job_image="image"), {"dagster/run-id": "1"}
    job = construct_dagster_k8s_job(config, ["true"], "dagster-run-1", component="run_worker", labels=labels)
    manifest: Object = ApiClient().sanitize_for_serialization(job)
    return manifest


def pod_labels(job: Object) -> dict[str, str]:
    labels: dict[str, str] = job["spec"]["template"]["metadata"]["labels"]
    return labels


def selects(selector: Object, labels: dict[str, str]) -> bool:
    """Whether a label selector picks a pod."""
    matches = (selector.get("matchLabels") or {}).items() <= labels.items()
    for term in selector.get("matchExpressions") or []:
        assert term["operator"] == "In"
        matches &= labels.get(term["key"]) in term["values"]
    return matches


@pytest.mark.parametrize("overlay", ["dev", "gpu"])
def test_every_object_is_accepted_and_lies_in_the_namespace(overlay: str) -> None:
    objects = rendered(overlay)
    of_the_cluster = {"Namespace", "PriorityClass", "ClusterRole", "ClusterRoleBinding"}
    for thing in objects:
        check(thing)
        expected = None if thing["kind"] in of_the_cluster else NAMESPACE
        assert thing["metadata"].get("namespace") == expected, thing["metadata"]
    assert len({(thing["kind"], thing["metadata"]["name"]) for thing in objects}) == len(objects)
    labels = of_kind(objects, "Namespace")[NAMESPACE]["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.parametrize("overlay", ["dev", "gpu"])
def test_what_objects_name_is_there(overlay: str, tmp_path: Path) -> None:
    objects, settings = rendered(overlay), settings_of(overlay, tmp_path)
    accounts, classes = of_kind(objects, "ServiceAccount"), of_kind(objects, "PriorityClass")
    claims = of_kind(objects, "PersistentVolumeClaim")
    assert settings.service_account in accounts and settings.priority_class in classes
    assert settings.data_volume and settings.data_volume.claim in claims
    assert accounts[settings.service_account or ""]["automountServiceAccountToken"] is False
    for kind in ("", "Cluster"):
        for binding in of_kind(objects, f"{kind}RoleBinding").values():
            assert binding["roleRef"]["name"] in of_kind(objects, binding["roleRef"]["kind"])
            assert {(s["name"], s["namespace"]) for s in binding["subjects"]} == {("orchestrator", NAMESPACE)}
    assert "orchestrator" in accounts
    for workload in of_kind(objects, "Deployment").values():
        spec = workload["spec"]["template"]["spec"]
        assert spec["priorityClassName"] in classes
        named = [v["persistentVolumeClaim"]["claimName"] for v in spec["volumes"] if "persistentVolumeClaim" in v]
        assert named and set(named) <= set(claims)
    for service in of_kind(objects, "Service").values():
        pods = [w["spec"]["template"] for w in of_kind(objects, "Deployment").values()]
        assert any(service["spec"]["selector"].items() <= pod["metadata"]["labels"].items() for pod in pods)
    modes = claims["data"]["spec"]["accessModes"]
    assert modes == ["ReadWriteMany"] or overlay == "dev"


@pytest.mark.parametrize("overlay", ["dev", "gpu"])
def test_jobs_made_by_the_shipped_settings_are_accepted_and_restricted(overlay: str, tmp_path: Path) -> None:
    settings = settings_of(overlay, tmp_path)
    for ranks in (1, 2):
        job = worker_job(settings, ranks)
        check(job)
        spec = job["spec"]["template"]["spec"]
        assert pod_security.violations(spec) == []
        assert spec["automountServiceAccountToken"] is False
        shared_memory = next(volume for volume in spec["volumes"] if volume["name"] == "shm")["emptyDir"]
        assert shared_memory["medium"] == "Memory" and quantity(shared_memory["sizeLimit"]) > quantity("64Mi")
    limits = spec["containers"][0]["resources"]["limits"]
    assert limits.get("nvidia.com/gpu") == ("8" if overlay == "gpu" else None)
    if overlay == "gpu":
        assert spec["tolerations"] and spec["nodeSelector"] and spec["topologySpreadConstraints"]


def test_shipped_pods_are_restricted_and_their_images_are_fixed(tmp_path: Path) -> None:
    images = {settings_of(overlay, tmp_path).image for overlay in ("dev", "gpu")}
    for overlay in ("dev", "gpu"):
        for workload in of_kind(rendered(overlay), "Deployment").values():
            spec = workload["spec"]["template"]["spec"]
            assert pod_security.violations(spec) == []
            images |= {container["image"] for container in spec["containers"]}
    for image in images:
        name, _, tag = image.partition(":")
        assert tag and tag != "latest", image
        assert "." not in name and "/" not in name, f"{image}: whose registry it is, the user says"


@pytest.mark.parametrize("overlay", ["dev", "gpu"])
def test_workers_reach_one_another_and_names_only(overlay: str, tmp_path: Path) -> None:
    policies = of_kind(rendered(overlay), "NetworkPolicy")
    assert policies["default-deny"]["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    worker = pod_labels(worker_job(settings_of(overlay, tmp_path)))
    mine = {name for name, policy in policies.items() if selects(policy["spec"]["podSelector"], worker)}
    assert mine == {"default-deny", "dns", "workers"}
    for direction, peers in (("ingress", "from"), ("egress", "to")):
        (rule,) = policies["workers"]["spec"][direction]
        assert set(rule) == {peers}, "every port: NCCL and gloo choose theirs"
        (peer,) = rule[peers]
        assert set(peer) == {"podSelector"}, "a selector alone means this namespace"
        assert selects(peer["podSelector"], worker)
        assert not selects(peer["podSelector"], pod_labels(run_job()))
    (names,) = policies["dns"]["spec"]["egress"]
    assert {port["port"] for port in names["ports"]} == {53}


def test_runs_reach_the_api_server_and_the_database(tmp_path: Path) -> None:
    policies, run = of_kind(rendered("gpu"), "NetworkPolicy"), pod_labels(run_job())
    mine = {name for name, policy in policies.items() if selects(policy["spec"]["podSelector"], run)}
    assert mine == {"default-deny", "dns", "orchestrator"}
    out = policies["orchestrator"]["spec"]["egress"]
    assert [rule["ports"] for rule in out if any("ipBlock" in peer for peer in rule["to"])] == [
        [{"protocol": "TCP", "port": 443}, {"protocol": "TCP", "port": 6443}]
    ]
    database = of_kind(rendered("gpu"), "Deployment")["postgresql"]["spec"]["template"]["metadata"]["labels"]
    assert any(selects(peer.get("podSelector", {}), database) for rule in out for peer in rule["to"] if "ports" in rule)
    (into,) = policies["postgresql"]["spec"]["ingress"]
    assert selects(policies["postgresql"]["spec"]["podSelector"], database)
    assert selects(into["from"][0]["podSelector"], run)


def test_a_drain_waits_for_runs_and_not_for_workers(tmp_path: Path) -> None:
    (budget,) = of_kind(rendered("gpu"), "PodDisruptionBudget").values()
    assert selects(budget["spec"]["selector"], pod_labels(run_job()))
    assert not selects(budget["spec"]["selector"], pod_labels(worker_job(settings_of("gpu", tmp_path))))
    # Pods of Jobs can be counted only: shares and maxUnavailable need an owner with a scale.
    assert isinstance(budget["spec"]["minAvailable"], int)


def test_workers_give_way_and_push_nobody_out() -> None:
    classes = of_kind(rendered("gpu"), "PriorityClass")
    worker, orchestrator = classes["double-descent-worker"], classes["double-descent-orchestrator"]
    assert worker["value"] < 0 < orchestrator["value"]
    assert {worker["preemptionPolicy"], orchestrator["preemptionPolicy"]} == {"Never"}


# What the clients of kubernetes-client/python call in the words of RBAC.
_VERBS = {"create": "create", "read": "get", "list": "list", "delete": "delete", "patch": "patch", "replace": "update"}
_METHOD = re.compile(rf"({'|'.join(_VERBS)})_(?:namespaced_)?([a-z_]+)")
_PLURALS = {
    "job": ("jobs", "batch"),
    "job_status": ("jobs/status", "batch"),
    "pod": ("pods", ""),
    "pod_log": ("pods/log", ""),
    "event": ("events", ""),
    "service": ("services", ""),
    "namespace": ("namespaces", ""),
    "persistent_volume_claim": ("persistentvolumeclaims", ""),
    "node": ("nodes", ""),
}


def permission(method: str) -> tuple[str, str, str]:
    """Verb, resource and API group of a method of a client."""
    match = _METHOD.fullmatch(method)
    assert match, method
    return (_VERBS[match[1]], *_PLURALS[match[2]])


def api_calls(tree: ast.AST) -> Iterator[str]:
    """Methods of the API's clients that code names, but for the question what is allowed, which everybody may ask."""
    known = {name for api in (BatchV1Api, CoreV1Api, AuthorizationV1Api) for name in dir(api) if _METHOD.match(name)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in known and node.attr != "create_self_subject_access_review":
            yield node.attr


def attributes_of(what: str, tree: ast.AST) -> list[str]:
    return [n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and ast.unparse(n.value) == what]


def calls_of_the_place() -> set[str]:
    folder = REPOSITORY / "dd_assets" / "compute" / "kubernetes"
    return {call for path in folder.glob("*.py") for call in api_calls(ast.parse(path.read_text(encoding="utf-8")))}


def calls_of_the_run_launcher() -> set[str]:
    """API calls in those methods of dagster-k8s's client that its launcher uses, and in those that they use."""
    folder = Path(dagster_k8s.__file__).parent
    launcher = ast.parse((folder / "launcher.py").read_text(encoding="utf-8"))
    client = ast.parse((folder / "client.py").read_text(encoding="utf-8"))
    methods = {node.name: node for node in ast.walk(client) if isinstance(node, ast.FunctionDef)}
    used = [
        n.attr
        for n in ast.walk(launcher)
        if isinstance(n, ast.Attribute) and ast.unparse(n.value) == "self._api_client"
    ]
    assert "create_namespaced_job_with_retries" in used
    seen: set[str] = set()
    calls: set[str] = set()
    while used:
        if (name := used.pop()) in seen or name not in methods:
            continue
        seen.add(name)
        calls |= set(api_calls(methods[name]))
        used += attributes_of("self", methods[name])
    return calls


def granted(roles: dict[str, Object]) -> set[tuple[str, str, str]]:
    return {
        (verb, resource, group)
        for role in roles.values()
        for rule in role["rules"]
        for verb in rule["verbs"]
        for resource in rule["resources"]
        for group in rule["apiGroups"]
    }


def test_the_role_is_exactly_what_the_code_and_the_run_launcher_ask_for() -> None:
    place, launcher = calls_of_the_place(), calls_of_the_run_launcher()
    assert {"create_namespaced_job", "delete_namespaced_job"} <= place & launcher
    needed = {permission(call) for call in place | launcher}
    of_the_cluster = {p for p in needed if p[1] == "nodes"}
    objects = rendered("gpu")
    assert granted(of_kind(objects, "Role")) == needed - of_the_cluster
    assert granted(of_kind(objects, "ClusterRole")) == of_the_cluster


def test_the_role_has_what_is_checked_beforehand() -> None:
    assert {*PERMISSIONS, PERMISSION_FOR_RANKS, PERMISSION_FOR_DELAYS} <= granted(of_kind(rendered("dev"), "Role"))


def test_the_queue_admits_what_the_settings_ask_for(with_everything: tuple[Object, ...], tmp_path: Path) -> None:
    objects = with_everything
    for thing in objects:
        check(thing)
    assert {"ClusterQueue", "LocalQueue", "ResourceFlavor"} <= {thing["kind"] for thing in objects}
    assert len(objects) == len(rendered("gpu")) + 4
    (local,) = of_kind(objects, "LocalQueue").values()
    queue = of_kind(objects, "ClusterQueue")[local["spec"]["clusterQueue"]]
    assert local["metadata"]["namespace"] == NAMESPACE
    labels = of_kind(objects, "Namespace")[NAMESPACE]["metadata"]["labels"] | {"kubernetes.io/metadata.name": NAMESPACE}
    assert selects(queue["spec"]["namespaceSelector"], labels)
    (group,) = queue["spec"]["resourceGroups"]
    (flavor,) = group["flavors"]
    settings = settings_of("gpu", tmp_path)
    assert of_kind(objects, "ResourceFlavor")[flavor["name"]]["spec"]["nodeLabels"] == settings.node_selector
    quotas = {entry["name"]: quantity(entry["nominalQuota"]) for entry in flavor["resources"]}
    assert set(quotas) == set(group["coveredResources"])
    job = worker_job(settings.model_copy(update={"queue": local["metadata"]["name"]}))
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == local["metadata"]["name"]
    assert job["spec"]["suspend"] is True
    requests = job["spec"]["template"]["spec"]["containers"][0]["resources"]["requests"]
    for name, amount in requests.items():
        assert quantity(amount) * job["spec"]["parallelism"] <= quotas[name], name


def test_the_object_store_is_open_to_workers_and_dagster(with_everything: tuple[Object, ...], tmp_path: Path) -> None:
    policies = of_kind(with_everything, "NetworkPolicy")
    selector = policies["object-store"]["spec"]["podSelector"]
    for job in (worker_job(settings_of("gpu", tmp_path)), run_job()):
        assert selects(selector, pod_labels(job))


def test_the_documentation_names_files_and_settings_that_are_there() -> None:
    documented = (REPOSITORY / "docs" / "cluster.md").read_text(encoding="utf-8")
    shipped = documented.split("## What k8s/ ships")[1].split("##")[0]
    names = [
        name.rstrip("/") for row in re.findall(r"(?m)^\| (`.*?) \|", shipped) for name in re.findall(r"`(.+?)`", row)
    ]
    assert len(names) > 8
    for name in names:
        assert (SHIPPED / name).exists(), name
    for path in re.findall(r"`((?:k8s|base|overlays|components|helm|dd_\w+|docs)/[\w./-]+)`", documented):
        assert (REPOSITORY / path).exists() or (SHIPPED / path).exists(), path
    settings = {*KubernetesSettings.model_fields, *Resources.model_fields}
    for name in re.findall(r"`([a-z]+(?:_[a-z]+)+)(?::[^`]*)?`", documented):
        assert name in settings | {"dd_core", "resource_probe"}, name
