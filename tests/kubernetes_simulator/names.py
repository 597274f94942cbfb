"""Cluster DNS, as far as pods behind headless Services need it: lines of /etc/hosts, one file per pod."""

from pathlib import Path

from .selectors import selects
from .store import TERMINAL_PHASES, Object, Store, condition


def hostname(pod: Object) -> str:
    """What the pod calls itself."""
    return str(pod["spec"].get("hostname") or pod["metadata"]["name"])


def write_hosts(store: Store, namespace: str | None, folder: Path) -> None:
    """Rewrite ``folder/<uid of pod>/hosts`` in place, where it exists: containers have this very file mounted."""
    lines = ["127.0.0.1 localhost"]
    pods = store.pods(namespace)
    services = {s["metadata"]["name"]: s["spec"] for s in store.select("v1", "services", namespace)}
    for pod in pods:
        spec, status = pod["spec"], pod["status"]
        service = services.get(spec.get("subdomain"), {})
        is_published = condition(pod, "Ready") or service.get("publishNotReadyAddresses")
        is_alive = status.get("podIP") and status.get("phase") not in TERMINAL_PHASES
        if is_alive and is_published and selects(service.get("selector"), pod["metadata"].get("labels")):
            name = f"{hostname(pod)}.{spec['subdomain']}"
            domain = f"{name}.{namespace}.svc"
            lines.append(f"{status['podIP']} {name} {name}.{namespace} {domain} {domain}.cluster.local")
    for pod in pods:
        file = folder / pod["metadata"]["uid"] / "hosts"
        if file.exists():
            file.write_text("\n".join([*lines, f"{pod['status'].get('podIP')} {hostname(pod)}", ""]))
