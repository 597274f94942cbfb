"""What would go wrong, found out before anything is made: permissions, the volume, GPUs that no node has."""

from typing import Final

from dd_assets.compute.kubernetes.api import Cluster, NotAllowedError, Object
from dd_assets.compute.kubernetes.manifests import node_selector
from dd_assets.compute.kubernetes.settings import KubernetesSettings
from dd_core.errors import UserError
from dd_core.study.resources import Resources

# Every request that has to be granted: verb, resource, API group. (namespaces get, persistentvolumeclaims get and nodes
# list are made if they are granted, for better sentences.)
PERMISSIONS: Final = (
    ("create", "jobs", "batch"),
    ("get", "jobs", "batch"),
    ("delete", "jobs", "batch"),
    ("list", "pods", ""),
    ("get", "pods/log", ""),
    ("list", "events", ""),
)
PERMISSION_FOR_RANKS: Final = ("create", "services", "")
PERMISSION_FOR_DELAYS: Final = ("patch", "pods", "")


def check_before(
    cluster: Cluster, settings: KubernetesSettings, resources: Resources, num_places: int, ranks: int
) -> None:
    """Pass only where the Job can be made and can start one day.

    Raises:
        UserError: one sentence, of the first thing that is wrong.
    """
    if not cluster.has_namespace():
        raise UserError(
            f"the cluster {cluster.host} has no namespace {cluster.namespace!r}; make it (see k8s/), or name another "
            "under namespace in the settings file (DD_KUBERNETES)"
        )
    further = [(PERMISSION_FOR_RANKS, ranks > 1), (PERMISSION_FOR_DELAYS, bool(resources.retry_seconds))]
    for verb, resource, group in (*PERMISSIONS, *(permission for permission, is_needed in further if is_needed)):
        if not cluster.may(verb, resource, group):
            raise UserError(
                f"no permission to {verb} {resource} in the namespace {cluster.namespace} of {cluster.host}; ask for "
                "the Role in k8s/, or use another context or namespace"
            )
    _check_claim(cluster, settings, num_places)
    if settings.check_nodes:
        _check_nodes(cluster, settings, resources)


def _check_claim(cluster: Cluster, settings: KubernetesSettings, num_places: int) -> None:
    if not settings.data_volume:
        return
    name = settings.data_volume.claim
    try:
        claim = cluster.claim(name)
    except NotAllowedError:
        return
    if claim is None:
        raise UserError(
            f"the namespace {cluster.namespace} has no PersistentVolumeClaim {name!r}, which data_volume.claim of the "
            "settings file (DD_KUBERNETES) names"
        )
    if claim.get("status", {}).get("phase") == "Lost":
        raise UserError(f"the volume of the PersistentVolumeClaim {name!r} in {cluster.namespace} is lost")
    if claim["spec"].get("accessModes") == ["ReadWriteOncePod"] and num_places > 1:
        raise UserError(f"the PersistentVolumeClaim {name!r} is for one pod at a time, but the job has {num_places}")


def _check_nodes(cluster: Cluster, settings: KubernetesSettings, resources: Resources) -> None:
    """Some node has the labels and as many GPUs as a pod wants, be they free or not."""
    nodes = cluster.nodes()
    if nodes is None:
        return
    wanted_gpus, resource = resources.gpus_per_pod or 0, settings.gpu_resource_name
    if resources.gpu and wanted_gpus:
        nodes = _with_product(nodes, resources.gpu, cluster, settings)
    if selector := node_selector(settings, resources):
        nodes = [node for node in nodes if selector.items() <= _labels(node).items()]
        if not nodes:
            wanted = ", ".join(f"{key}={value}" for key, value in settings.node_selector.items())
            of = f" with {resources.gpu}" if resources.gpu and wanted_gpus else ""
            raise UserError(
                f"no node{of} of {cluster.host} has the labels {wanted} (node_selector of the settings file)"
            )
    most = max((_offers(node, resource) for node in nodes), default=0)
    if wanted_gpus > most:
        raise UserError(
            f"a pod wants {wanted_gpus} {resource}, but no node of {cluster.host} has more than {most}; lower "
            "gpus_per_pod, or set check_nodes: false in the settings file if nodes are added on demand"
        )


def _with_product(nodes: list[Object], gpu: str, cluster: Cluster, settings: KubernetesSettings) -> list[Object]:
    """The nodes with that product of GPU, of which there are some."""
    label = settings.gpu_label
    found = [node for node in nodes if _labels(node).get(label) == gpu]
    if found:
        return found
    products = sorted({_labels(node)[label] for node in nodes if label in _labels(node)})
    there_is = f"there are {', '.join(products)}" if products else f"no node has the label {label} (gpu_label)"
    raise UserError(
        f"no node of {cluster.host} has the GPU {gpu}, the only one that will do (gpu under resources); {there_is}"
    )


def _labels(node: Object) -> dict[str, str]:
    return node["metadata"].get("labels") or {}


def _offers(node: Object, resource: str) -> int:
    status = node.get("status") or {}
    offers = status.get("allocatable") or status.get("capacity") or {}
    return int(offers.get(resource, "0"))
