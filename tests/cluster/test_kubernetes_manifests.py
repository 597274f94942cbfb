"""What is sent to a cluster: accepted by every supported Kubernetes, and made so that faults cost little."""

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.manifest_rules import check, quantity, violations
from dd_assets.compute.kubernetes.manifests import GATE, Order, job_manifest, service_manifest
from dd_assets.compute.kubernetes.place import KubernetesPlace
from dd_assets.compute.kubernetes.settings import DataVolume, KubernetesSettings, Toleration
from dd_core.errors import UserError
from dd_core.study.resources import Resources

NAME = "dd-curvature-" + "s" * 28 + "-0123456789"
VOLUME = DataVolume(claim="data")
PLAIN = KubernetesSettings(data_volume=VOLUME)
RICH = KubernetesSettings(
    data_volume=VOLUME,
    namespace="lab",
    image="registry.example/worker@sha256:" + "0" * 64,
    image_pull_policy="Always",
    image_pull_secrets=["registry"],
    service_account="worker",
    env={"NCCL_DEBUG": "WARN", "OMP_NUM_THREADS": "2"},
    env_from_secrets=["s3-credentials"],
    node_selector={"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"},
    tolerations=[
        Toleration(key="nvidia.com/gpu", effect="NoSchedule"),
        Toleration(operator="Equal", key="a", value="b"),
    ],
    spread_over="kubernetes.io/hostname",
    priority_class="research",
    queue="team",
    container_context={
        "volumes": [{"name": "models", "emptyDir": {}}],
        "volume_mounts": [{"name": "models", "mountPath": "/models"}],
        "env": [{"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}],
        "run_k8s_config": {"pod_spec_config": {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}},
    },
)


def made(settings: KubernetesSettings = PLAIN, **order: Any) -> dict[str, Any]:
    """A Job's manifest."""
    defaults = {"name": NAME, "job_file": f"jobs/{NAME}/0/job.json", "root": "/home/me/data", "num_places": 2}
    defaults |= {"service": f"{NAME}-01234567"}
    return job_manifest(settings, Order(**{**defaults, "resources": settings.resources, **order}))


def worker(manifest: dict[str, Any]) -> dict[str, Any]:
    """Its container."""
    (container,) = manifest["spec"]["template"]["spec"]["containers"]
    return container


def environment(manifest: dict[str, Any]) -> dict[str, str]:
    return {variable["name"]: variable.get("value", "") for variable in worker(manifest)["env"]}


@pytest.mark.parametrize("settings", [PLAIN, RICH], ids=["plain", "rich"])
@pytest.mark.parametrize("ranks", [1, 16])
def test_every_supported_kubernetes_accepts_them(settings: KubernetesSettings, ranks: int) -> None:
    assert len(NAME) == 52
    resources = Resources(gpus_per_pod=8, cpus_per_pod=96, memory_gib_per_pod=900.5, hours=0.01)
    job = made(settings, ranks=ranks, resources=resources, labels={"dagster/run-id": "0" * 36}, num_places=10_000)
    check(job)
    if ranks > 1:
        check(service_manifest({**job, "metadata": {**job["metadata"], "namespace": "lab", "uid": "1"}}))


@given(
    gpus=st.integers(0, 64),
    cpus=st.integers(1, 4096),
    memory=st.floats(0.001, 4000),
    hours=st.none() | st.floats(1e-3, 1e4),
)
def test_memory_and_gpus_are_reserved_as_they_are_limited(
    gpus: int, cpus: int, memory: float, hours: float | None
) -> None:
    resources = Resources(gpus_per_pod=gpus, cpus_per_pod=cpus, memory_gib_per_pod=memory, hours=hours)
    job = made(resources=resources)
    assert violations(job) == []
    requests, limits = (worker(job)["resources"][kind] for kind in ("requests", "limits"))
    assert {**limits, "cpu": str(cpus)} == requests
    assert quantity(limits["memory"]) >= memory * 2**30
    assert int(limits.get("nvidia.com/gpu", 0)) == gpus
    assert job["spec"]["template"]["spec"].get("activeDeadlineSeconds", 0) >= (hours or 0) * 3600 > -1
    assert "activeDeadlineSeconds" not in job["spec"], "which would count while pods wait, and over all attempts"


def test_a_lost_pod_is_replaced_and_a_bug_is_not_tried_again() -> None:
    spec = made()["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 2, 2)
    assert spec["backoffLimitPerIndex"] == 3
    assert "backoffLimit" not in spec, "with dagster-k8s's 0 the first pod lost would end the Job"
    first, second, third = spec["podFailurePolicy"]["rules"]
    assert first == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    assert (second["action"], second["onExitCodes"]["values"]) == ("FailJob", [1, 2, 78])
    assert (third["action"], third["onExitCodes"]["values"]) == ("FailIndex", [42])
    assert spec["template"]["spec"]["restartPolicy"] == "Never"


def test_with_a_number_of_retries_lost_pods_count_and_with_a_delay_each_pod_waits_for_its_time() -> None:
    job = made(resources=Resources(retries=2, retry_seconds=60.0, hours=2.0))
    check(job)
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    assert spec["backoffLimitPerIndex"] == 2
    assert [rule["action"] for rule in spec["podFailurePolicy"]["rules"]] == ["Count", "FailJob", "FailIndex"]
    assert pod["schedulingGates"] == [{"name": GATE}]
    assert pod["activeDeadlineSeconds"] == 7200
    assert "schedulingGates" not in made()["spec"]["template"]["spec"]


def test_a_product_of_gpu_is_a_label_that_nodes_must_have() -> None:
    asked = Resources(gpus_per_pod=1, gpu="NVIDIA-A100-SXM4-40GB")
    pinned = PLAIN.model_copy(update={"node_selector": {"pool": "spot", "nvidia.com/gpu.product": "NVIDIA-H200"}})
    gke = PLAIN.model_copy(update={"gpu_label": "cloud.google.com/gke-accelerator"})
    selectors = [
        made(settings, resources=resources)["spec"]["template"]["spec"].get("nodeSelector")
        for settings, resources in [
            (PLAIN, asked),
            (pinned, asked),
            (gke, Resources(gpus_per_pod=1, gpu="nvidia-tesla-a100")),
            (PLAIN, asked.model_copy(update={"gpus_per_pod": 0})),
        ]
    ]
    assert selectors == [
        {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-40GB"},
        {"pool": "spot", "nvidia.com/gpu.product": "NVIDIA-A100-SXM4-40GB"},
        {"cloud.google.com/gke-accelerator": "nvidia-tesla-a100"},
        None,
    ]


def test_ranks_that_share_a_task_fail_together() -> None:
    rules = made(ranks=4)["spec"]["podFailurePolicy"]["rules"]
    assert [rule["action"] for rule in rules] == ["Ignore", "FailJob"]
    assert rules[1]["onExitCodes"]["values"] == [1, 2, 42, 78]


@pytest.mark.parametrize("settings", [PLAIN, RICH], ids=["plain", "rich"])
def test_workers_can_do_little_harm(settings: KubernetesSettings) -> None:
    pod = made(settings)["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    security = pod["containers"][0]["securityContext"]
    assert security["readOnlyRootFilesystem"]
    assert security["allowPrivilegeEscalation"] is False
    assert security["capabilities"] == {"drop": ["ALL"]}


def test_workers_have_scratch_and_shared_memory_and_the_data() -> None:
    pod = made()["spec"]["template"]["spec"]
    assert {mount["name"]: mount["mountPath"] for mount in worker(made())["volumeMounts"]} == {
        "tmp": "/tmp",
        "shm": "/dev/shm",
        "data": "/data",
    }
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes["shm"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "4096Mi"}
    assert environment(made())["DD_ROOT"] == "/data"


def test_a_data_root_in_an_object_store_needs_no_volume() -> None:
    job = made(KubernetesSettings(), root="s3://bucket/data")
    check(job)
    assert environment(job)["DD_ROOT"] == "s3://bucket/data"
    with pytest.raises(UserError, match="is a folder, which pods can reach only on a volume"):
        made(KubernetesSettings())


def test_workers_meet_at_the_first_of_them() -> None:
    job = made(ranks=2)
    assert job["spec"]["template"]["spec"]["subdomain"] == f"{NAME}-01234567"
    host, _, port = environment(job)["DD_RENDEZVOUS"].rpartition(":")
    assert host == f"{NAME}-0.{NAME}-01234567"
    assert 20000 <= int(port) < 30000
    service = service_manifest({**job, "metadata": {**job["metadata"], "namespace": "lab", "uid": "1"}})
    assert service["metadata"]["name"] == f"{NAME}-01234567"
    assert [at["port"] for at in service["spec"]["ports"]] == [int(port)]
    assert environment(job)["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"
    assert "subdomain" not in made()["spec"]["template"]["spec"]
    assert "DD_RENDEZVOUS" not in environment(made())


def test_jobs_that_share_a_node_meet_at_different_ports() -> None:
    """With the host's network the second one would join the first one's store, and fail when that ends."""
    jobs = [made(ranks=2, service=f"{NAME}-{n:08}") for n in range(20)]
    assert len({environment(job)["DD_RENDEZVOUS"].rpartition(":")[2] for job in jobs}) == 20


def test_settings_reach_the_pods_and_win() -> None:
    job = made(RICH, environment={"DAGSTER_PIPES_CONTEXT": "x"})
    pod = job["spec"]["template"]["spec"]
    variables = environment(job)
    assert (variables["NCCL_DEBUG"], variables["OMP_NUM_THREADS"]) == ("WARN", "2")
    assert variables["DAGSTER_PIPES_CONTEXT"] == "x"
    assert "NODE" in variables
    assert pod["hostNetwork"]
    assert "models" in {volume["name"] for volume in pod["volumes"]} > {"data"}
    assert worker(job)["envFrom"] == [{"secretRef": {"name": "s3-credentials"}}]
    assert (pod["priorityClassName"], pod["serviceAccountName"]) == ("research", "worker")
    assert job["spec"]["suspend"]
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"


def test_a_job_can_be_found_again_by_its_annotation() -> None:
    assert made()["metadata"]["annotations"] == {"double-descent/job-file": f"jobs/{NAME}/0/job.json"}


def test_forecasts_know_what_pods_there_are() -> None:
    place = KubernetesPlace(KubernetesSettings(device="NVIDIA H200", resources=Resources(pods=4, gpus_per_pod=8)))
    machine = place.machine(Resources(pods=2, workers_per_pod=16))
    assert (machine.device, machine.num_places, machine.num_gpus) == ("NVIDIA H200", 2, 8)
    assert (machine.num_workers, machine.num_devices) == (16, 16)
    other = place.machine(Resources(gpu="NVIDIA-A100-SXM4-40GB"))
    assert other.device == "NVIDIA-A100-SXM4-40GB", "what was measured on the usual GPUs does not hold for it"
    on_cores = KubernetesPlace(KubernetesSettings(resources=Resources(gpus_per_pod=0, cpus_per_pod=3))).machine()
    assert (on_cores.device, on_cores.num_gpus, on_cores.num_cores, on_cores.num_places) == ("cpu", 0, 3, 1)


# The rules themselves

BREAKS = {
    "completionMode: 'Idx' is not one of": ("spec.completionMode", "Idx"),
    "completions: Indexed needs it": ("spec.completions", None),
    "a Job's is Never or OnFailure": ("spec.template.spec.restartPolicy", "Always"),
    "podFailurePolicy: needs restartPolicy Never": ("spec.template.spec.restartPolicy", "OnFailure"),
    "'12Gigs' is not a quantity": ("spec.template.spec.containers.0.resources.limits.memory", "12Gigs"),
    "is whole, and its request is its limit": (
        "spec.template.spec.containers.0.resources.requests.nvidia~com/gpu",
        "2",
    ),
    "more memory requested than its limit": ("spec.template.spec.containers.0.resources.requests.memory", "17Gi"),
    "there is no volume 'nowhere'": ("spec.template.spec.containers.0.volumeMounts.0.name", "nowhere"),
    "medium: 'RAM' is not one of": ("spec.template.spec.volumes.1.emptyDir.medium", "RAM"),
    "is no name of a Job": ("metadata.name", "Train"),
    "too long for the name of a host": ("metadata.name", "a" * 62),
    "'a b' is no value of a label": ("metadata.labels.x", "a b"),
    "ends the Job at the first failure": ("spec.backoffLimit", 0),
    "needs podReplacementPolicy Failed": ("spec.podReplacementPolicy", "TerminatingOrFailed"),
    "must ascend without repetition": ("spec.podFailurePolicy.rules.1.onExitCodes.values", [2, 1]),
    "'Ignored' is not one of": ("spec.podFailurePolicy.rules.0.action", "Ignored"),
    "onPodConditions": ("spec.podFailurePolicy.rules.0.onPodConditions", [{"type": "DisruptionTarget"}]),
    "there is no container 'other'": ("spec.podFailurePolicy.rules.1.onExitCodes.containerName", "other"),
    "Additional properties are not allowed": ("spec.template.spec.containers.0.imagePullPolice", "Always"),
}


@pytest.mark.parametrize("problem", BREAKS)
def test_a_manifest_that_a_server_would_refuse_is_refused_here(problem: str) -> None:
    path, value = BREAKS[problem]
    broken = copy.deepcopy(made())
    check(broken)
    *steps, last = (step.replace("~", ".") for step in path.split("."))
    target: Any = broken
    for step in steps:
        target = target[int(step)] if step.isdigit() else target[step]
    if value is None:
        del target[last]
    else:
        target[last] = value
    with pytest.raises(AssertionError) as error:
        check(broken)
    assert problem in str(error.value)
