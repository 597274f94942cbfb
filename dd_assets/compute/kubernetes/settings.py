"""What the Kubernetes place can be told, in a YAML file named by ``DD_KUBERNETES``. Needs no Kubernetes client."""

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from dd_core.errors import UserError
from dd_core.study.resources import Resources
from dd_core.study.yaml_files import Strict, read_mapping, validated

_DNS_LABEL = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"


class DataVolume(Strict):
    """The volume that holds the data root, as pods see it."""

    claim: str = Field(min_length=1, description="name of the PersistentVolumeClaim; it is mounted by every pod")
    mount_path: str = Field(default="/data", pattern="^/", description="where; this is the data root inside the pods")


class Toleration(Strict):
    """A taint that pods may ignore."""

    key: str | None = Field(default=None, description="of the taint; null: every taint")
    operator: Literal["Exists", "Equal"] = Field(default="Exists", description="Equal compares the value as well")
    value: str | None = Field(default=None, description="of the taint, with Equal")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        default=None, description="null: every effect"
    )


class KubernetesSettings(Strict):
    """Where jobs go and how their pods look."""

    kubeconfig: str | None = Field(
        default=None, description="file; null: inside a cluster the service account, else KUBECONFIG or ~/.kube/config"
    )
    context: str | None = Field(default=None, description="of the kubeconfig; null: its current one")
    namespace: str | None = Field(
        default=None, pattern=_DNS_LABEL, description="null: that of the context or pod; double-descent if it has none"
    )
    image: str = Field(default="double-descent-worker:latest", min_length=1, description="of the workers")
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = Field(
        default="IfNotPresent", description="when a node asks the registry"
    )
    image_pull_secrets: list[str] = Field(default=[], description="names of secrets for the registry")
    service_account: str | None = Field(
        default=None, description="of the workers, which get no token of it; null: the namespace's default"
    )
    data_volume: DataVolume | None = Field(default=None, description="null: the data root is an s3:// address")
    env: dict[str, str] = Field(default={}, description="environment variables of the workers")
    env_from_secrets: list[str] = Field(
        default=[], description="secrets whose keys become environment variables: credentials of the object store"
    )
    resources: Resources = Field(
        default=Resources(pods=1, gpus_per_pod=1, cpus_per_pod=4, memory_gib_per_pod=16.0),
        description="what a job may use, unless its study says otherwise",
    )
    gpu_resource_name: str = Field(default="nvidia.com/gpu", description="as nodes offer GPUs")
    gpu_label: str = Field(
        default="nvidia.com/gpu.product",
        pattern=r"^[\w./-]+$",
        description="label of nodes that names the product of their GPUs, which resources.gpu asks for; on GKE "
        "cloud.google.com/gke-accelerator",
    )
    device: str | None = Field(
        default=None,
        description="name of the GPU in PyTorch's words, for forecasts where a study asks for no other "
        "(NVIDIA H100 80GB HBM3)",
    )
    node_selector: dict[str, str] = Field(default={}, description="labels that a node must have")
    tolerations: list[Toleration] = Field(default=[], description="taints of nodes that pods may ignore")
    spread_over: str | None = Field(
        default=None, description="topology key over which pods are spread as evenly as may be: kubernetes.io/hostname"
    )
    priority_class: str | None = Field(default=None, description="PriorityClass of the pods")
    queue: str | None = Field(
        default=None, description="Kueue's local queue; the Job waits suspended until it admits it"
    )
    shm_gib: float = Field(
        default=4.0, gt=0, description="GiB of shared memory; it counts as the pod's memory when used"
    )
    tmp_gib: float = Field(default=8.0, gt=0, description="GiB of scratch at /tmp on the node's disk")
    run_as_user: int = Field(default=1000, ge=1, description="user and group id of the workers, never root")
    ttl_seconds_after_finished: int = Field(
        default=24 * 3600, ge=0, description="how long a Job that has ended, and the logs of its pods, are kept"
    )
    poll_seconds: float = Field(default=2.0, gt=0, le=600, description="how often to look at the Job")
    pending_patience_seconds: float | None = Field(
        default=None, ge=0, description="how long to wait for room in the cluster or its queue; null: for ever"
    )
    faulty_patience_seconds: float = Field(
        default=300.0, ge=0, description="how long to wait for what waiting seldom mends: an image, a secret, a volume"
    )
    api_patience_seconds: float = Field(
        default=600.0, ge=0, description="how long to go on asking an API server that does not answer"
    )
    request_timeout_seconds: float = Field(default=30.0, gt=0, description="of a single request to the API server")
    check_nodes: bool = Field(
        default=True, description="refuse GPUs that no node has; false where nodes are added on demand"
    )
    max_log_streams: int = Field(default=64, ge=0, description="pods whose logs are followed at the same time")
    container_context: dict[str, Any] = Field(
        default={},
        description="what else pods need, as dagster-k8s takes it under container_context.k8s (run_k8s_config and all)",
    )


def read_settings(path: Path) -> KubernetesSettings:
    """Read and validate a settings file.

    Raises:
        UserError: with the file and, where there is one, the path of the offending key.
    """
    content = read_mapping(path, "a settings file (DD_KUBERNETES)", may_be_empty=True)
    if "backoff_limit_per_index" in content:
        raise UserError(f"{path}: backoff_limit_per_index: is resources.retries now, how often a pod is tried again")
    return validated(path, KubernetesSettings, content)


def settings_from_environment() -> KubernetesSettings:
    """The settings of the file that ``DD_KUBERNETES`` names, or the defaults.

    Raises:
        UserError: the file cannot be used.
    """
    path = os.environ.get("DD_KUBERNETES")
    return read_settings(Path(path).expanduser()) if path else KubernetesSettings()
