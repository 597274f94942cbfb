"""What is sent to the cluster: one Indexed Job and, where ranks must meet, a headless Service. Pure functions.

Built with dagster-k8s's own pieces, so that a container context written for its launcher holds here too; what its Jobs
cannot be (Indexed, retried by index) is added. Results are plain JSON objects in the API's own words.
"""

import math
import zlib
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from dagster import DagsterInvalidConfigError
from dagster_k8s.container_context import K8sContainerContext
from dagster_k8s.job import DagsterK8sJobConfig, UserDefinedDagsterK8sConfig, construct_dagster_k8s_job
from kubernetes.client import ApiClient

from dd_assets.compute.kubernetes.settings import KubernetesSettings
from dd_core.errors import UserError
from dd_core.jobs.exit_codes import DEFECTS, NO_JOB_FILE, TASKS_FAILED
from dd_core.study.resources import Resources

JOB_FILE_ANNOTATION: Final = "double-descent/job-file"
CONTAINER: Final = "worker"
LABELS: Final = {
    "app.kubernetes.io/name": "double-descent",
    "app.kubernetes.io/part-of": "double-descent",
    "app.kubernetes.io/component": "worker",
}
# What keeps a pod that is a retry from being scheduled, and from holding a GPU, until its time has come.
GATE: Final = "double-descent/retry"
# So often is tried again what failed by itself, where nobody says how often.
_USUAL_RETRIES = 3
# A defect of the program, and a volume that lacks the job file, are the same for every pod and every attempt; tasks
# that failed have said why.
_FAIL_JOB, _FAIL_INDEX = (*DEFECTS, NO_JOB_FILE), (TASKS_FAILED,)

Manifest = dict[str, Any]


class Order(NamedTuple):
    """What a Job is made for.

    Attributes:
        name: of the Job.
        job_file: relative to the data root.
        root: of the data, as the orchestrator knows it.
        num_places: pods.
        ranks: processes that share each task; with more than one the pods must meet.
        service: name of the Service where they do, its own for every Job: a cluster takes away that of a Job that is
            gone some time later, and would take it from under the next Job of that name.
        resources: of each pod.
        environment: more variables for the workers (Pipes).
        labels: more labels, their values made fit.
    """

    name: str
    job_file: str
    root: str
    num_places: int
    ranks: int = 1
    service: str = ""
    resources: Resources = Resources()
    environment: Mapping[str, str] = {}
    labels: Mapping[str, str] = {}


def root_in_pods(settings: KubernetesSettings, root: str) -> str:
    """The data root as the workers know it.

    Raises:
        UserError: it is a folder, and no volume is named that holds it.
    """
    if settings.data_volume:
        return settings.data_volume.mount_path
    if "://" in root:
        return root
    raise UserError(
        f"the data root {root} is a folder, which pods can reach only on a volume: name its claim under data_volume in "
        "the settings file (DD_KUBERNETES), or set DD_ROOT to an s3:// address"
    )


def job_manifest(settings: KubernetesSettings, order: Order) -> Manifest:
    """The Job.

    Raises:
        UserError: the settings' container context is none, or the data root cannot be reached from pods.
    """
    context = K8sContainerContext(
        image_pull_policy=settings.image_pull_policy,
        image_pull_secrets=[{"name": name} for name in settings.image_pull_secrets],
        service_account_name=settings.service_account,
        env_secrets=settings.env_from_secrets,
        env=[{"name": name, "value": value} for name, value in _environment(settings, order).items()],
        volumes=_volumes(settings),
        volume_mounts=_volume_mounts(settings),
        resources=_container_resources(settings, order.resources),
        security_context={
            "allow_privilege_escalation": False,
            "read_only_root_filesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        run_k8s_config=UserDefinedDagsterK8sConfig(
            container_config={
                "name": CONTAINER,
                # What a program says last on its way down is then with the pod's status, even when its log is gone.
                "termination_message_policy": "FallbackToLogsOnError",
            },
            pod_template_spec_metadata={"annotations": {JOB_FILE_ANNOTATION: order.job_file}},
            pod_spec_config=_pod_spec(settings, order),
            job_metadata={
                "annotations": {JOB_FILE_ANNOTATION: order.job_file},
                "labels": {"kueue.x-k8s.io/queue-name": settings.queue} if settings.queue else {},
            },
            job_spec_config=_job_spec(settings, order),
        ),
    ).merge(_own_context(settings))
    job = construct_dagster_k8s_job(
        DagsterK8sJobConfig(job_image=settings.image),
        # Not as its command: the image's entry point, tini, buries processes whose parent has died.
        args=["python", "-m", "dd_core.jobs.pod", order.job_file],
        job_name=order.name,
        user_defined_k8s_config=context.run_k8s_config,
        labels={**LABELS, **order.labels},
    )
    if "backoff_limit" not in context.run_k8s_config.job_spec_config:
        job.spec.backoff_limit = None  # dagster-k8s says 0, with which the first pod lost would end the Job
    job.spec.template.metadata.name = None  # of no meaning in a template
    manifest: Manifest = ApiClient().sanitize_for_serialization(job)
    for metadata in (manifest["metadata"], manifest["spec"]["template"]["metadata"]):
        for label in ("app.kubernetes.io/instance", "app.kubernetes.io/version"):
            metadata["labels"].pop(label, None)  # of Dagster, which the workers do not run
    return manifest


def service_manifest(job: Manifest) -> Manifest:
    """The headless Service through which the pods of a Job that is there find one another; it goes with the Job.

    Addresses are published before pods are ready, since ranks meet in order to become so.
    """
    metadata, name = job["metadata"], job["spec"]["template"]["spec"]["subdomain"]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": name,
            "namespace": metadata["namespace"],
            "labels": {**LABELS, "batch.kubernetes.io/job-name": metadata["name"]},
            "ownerReferences": [
                {"apiVersion": "batch/v1", "kind": "Job", "name": metadata["name"], "uid": metadata["uid"]}
            ],
        },
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {"batch.kubernetes.io/job-name": metadata["name"]},
            "ports": [{"name": "rendezvous", "port": _rendezvous_port(name), "protocol": "TCP"}],
        },
    }


def _rendezvous_port(service: str) -> int:
    """A port of this Service alone, nearly, below those that systems and Kubernetes give away.

    Pods with ``hostNetwork`` share the ports of their node. At one port for all, the ranks of a second Job there would
    join the store of the first without a word, and lose it when that one ends.
    """
    return 20000 + zlib.crc32(service.encode()) % 10000


def _own_context(settings: KubernetesSettings) -> K8sContainerContext:
    try:
        return K8sContainerContext.create_from_config({"k8s": settings.container_context})
    except Exception as error:  # dagster-k8s raises bare ones for keys it does not know
        raise UserError(
            f"container_context of the settings file (DD_KUBERNETES) is not one of dagster-k8s: {_problems(error)}"
        ) from error


def _problems(error: Exception) -> str:
    if isinstance(error, DagsterInvalidConfigError):
        return "; ".join(problem.message.split(". Expected")[0] for problem in error.errors)
    return str(error)


def node_selector(settings: KubernetesSettings, resources: Resources) -> dict[str, str]:
    """Labels that a node must have: those of the settings, and the product of GPU that is asked for."""
    product = {settings.gpu_label: resources.gpu} if resources.gpu and resources.gpus_per_pod else {}
    return {**settings.node_selector, **product}


def _job_spec(settings: KubernetesSettings, order: Order) -> dict[str, Any]:
    """What makes it one pod a place, each with attempts of its own.

    A pod that its node lost counts for nothing, unless a number of retries was asked for. What ended otherwise is
    tried again by index, up to the limit, but for what would only fail again. Of ranks that share a task none can do
    without the others.
    """
    retries = order.resources.retries
    lost = "Ignore" if retries is None else "Count"
    if order.ranks > 1:
        failures = [{"action": "FailJob", "on_exit_codes": _exit_codes((*_FAIL_JOB, *_FAIL_INDEX))}]
    else:
        failures = [
            {"action": "FailJob", "on_exit_codes": _exit_codes(_FAIL_JOB)},
            {"action": "FailIndex", "on_exit_codes": _exit_codes(_FAIL_INDEX)},
        ]
    return {
        "completion_mode": "Indexed",
        "completions": order.num_places,
        "parallelism": order.num_places,
        "backoff_limit_per_index": _USUAL_RETRIES if retries is None else retries,
        "pod_replacement_policy": "Failed",
        "pod_failure_policy": {
            "rules": [
                {"action": lost, "on_pod_conditions": [{"type": "DisruptionTarget", "status": "True"}]},
                *failures,
            ]
        },
        "ttl_seconds_after_finished": settings.ttl_seconds_after_finished,
        **({"suspend": True} if settings.queue else {}),
    }


def _exit_codes(codes: tuple[int, ...]) -> dict[str, Any]:
    return {"container_name": CONTAINER, "operator": "In", "values": sorted(codes)}


def _pod_spec(settings: KubernetesSettings, order: Order) -> dict[str, Any]:
    spread = {
        "max_skew": 1,
        "topology_key": settings.spread_over,
        "when_unsatisfiable": "ScheduleAnyway",
        "label_selector": {"match_labels": {"batch.kubernetes.io/job-name": order.name}},
    }
    return {
        "restart_policy": "Never",
        "automount_service_account_token": False,
        "enable_service_links": False,
        "security_context": {
            "run_as_non_root": True,
            "run_as_user": settings.run_as_user,
            "run_as_group": settings.run_as_user,
            "fs_group": settings.run_as_user,
            "fs_group_change_policy": "OnRootMismatch",
            "seccomp_profile": {"type": "RuntimeDefault"},
        },
        **({"subdomain": order.service} if order.ranks > 1 else {}),
        **({"node_selector": selector} if (selector := node_selector(settings, order.resources)) else {}),
        # Of a pod, and so of each attempt; a Job's would go on counting while it waits.
        **({"active_deadline_seconds": math.ceil(hours * 3600)} if (hours := order.resources.hours) else {}),
        **({"scheduling_gates": [{"name": GATE}]} if order.resources.retry_seconds else {}),
        **(
            {"tolerations": [t.model_dump(exclude_none=True) for t in settings.tolerations]}
            if settings.tolerations
            else {}
        ),
        **({"topology_spread_constraints": [spread]} if settings.spread_over else {}),
        **({"priority_class_name": settings.priority_class} if settings.priority_class else {}),
    }


def _environment(settings: KubernetesSettings, order: Order) -> dict[str, str]:
    """The environment of the workers; the settings' own variables come last and win."""
    port = _rendezvous_port(order.service)
    return {
        "DD_ROOT": root_in_pods(settings, order.root),
        "HOME": "/tmp",
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "1",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # what cuBLAS asks for to be deterministic
        # Workers that torchrun starts again would otherwise read the addresses of their predecessors (pytorch 135712).
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        **({"DD_RENDEZVOUS": f"{order.name}-0.{order.service}:{port}"} if order.ranks > 1 else {}),
        **order.environment,
        **settings.env,
    }


def _volumes(settings: KubernetesSettings) -> list[dict[str, Any]]:
    """Scratch, shared memory (containers have 64 MiB without), and the data."""
    volumes: list[dict[str, Any]] = [
        {"name": "tmp", "empty_dir": {"size_limit": _mebibytes(settings.tmp_gib)}},
        {"name": "shm", "empty_dir": {"medium": "Memory", "size_limit": _mebibytes(settings.shm_gib)}},
    ]
    if settings.data_volume:
        volumes.append({"name": "data", "persistent_volume_claim": {"claim_name": settings.data_volume.claim}})
    return volumes


def _volume_mounts(settings: KubernetesSettings) -> list[dict[str, Any]]:
    mounts = [{"name": "tmp", "mount_path": "/tmp"}, {"name": "shm", "mount_path": "/dev/shm"}]
    if settings.data_volume:
        mounts.append({"name": "data", "mount_path": settings.data_volume.mount_path})
    return mounts


def _container_resources(settings: KubernetesSettings, resources: Resources) -> dict[str, Any]:
    """Memory and GPUs are what is asked for and no more; cores are a share, since a limit would only stop the clock."""
    fixed = {}
    if resources.gpus_per_pod:
        fixed[settings.gpu_resource_name] = str(resources.gpus_per_pod)
    if resources.memory_gib_per_pod:
        fixed["memory"] = _mebibytes(resources.memory_gib_per_pod)
    cores = {"cpu": str(resources.cpus_per_pod)} if resources.cpus_per_pod else {}
    return {key: value for key, value in {"requests": {**cores, **fixed}, "limits": fixed}.items() if value}


def _mebibytes(gib: float) -> str:
    return f"{math.ceil(gib * 1024)}Mi"
