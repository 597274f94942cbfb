"""What a container finds: its variables, its arguments and its mounts, from the objects of the store."""

import base64
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from .store import Key, Object, Store

SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"


class ConfigError(Exception):
    """The kubelet's CreateContainerConfigError: something the container names does not exist."""


class Mount(NamedTuple):
    """A folder or file of this machine at a path of the container."""

    source: Path
    target: str
    read_only: bool


def data_of(store: Store, kind: str, namespace: str, name: str, optional: bool = False) -> dict[str, str]:
    """The decoded data of a ConfigMap or Secret (``kind``: configmaps, secrets)."""
    obj = store.objects.get(Key("v1", kind, namespace, name))
    if obj is None and not optional:
        raise ConfigError(f'{kind[:-1]} "{name}" not found')
    data = (obj or {}).get("data") or {}
    if kind == "configmaps":
        return dict(data)
    return {k: base64.b64decode(v).decode() for k, v in data.items()} | ((obj or {}).get("stringData") or {})


def variables(store: Store, pod: Object, container: Any, base: dict[str, str]) -> dict[str, str]:
    """``base``, then envFrom, then env in order, with $(NAME) of what came before filled in."""
    environment, namespace = dict(base), pod["metadata"]["namespace"]
    for source in container.get("envFrom") or []:
        kind, key = ("configmaps", "configMapRef") if "configMapRef" in source else ("secrets", "secretRef")
        data = data_of(store, kind, namespace, source[key]["name"], source[key].get("optional", False))
        environment |= {source.get("prefix", "") + name: value for name, value in data.items()}
    for entry in container.get("env") or []:
        if source := entry.get("valueFrom"):
            value = _value_from(store, pod, container, source)
        else:
            value = expand(entry.get("value") or "", environment)
        if value is not None:
            environment[entry["name"]] = value
    return environment


def expand(text: str, environment: dict[str, str]) -> str:
    """$(NAME) where it is known; $$ is a dollar sign."""

    def replace(match: re.Match[str]) -> str:
        return "$" if match[0] == "$$" else environment.get(match[1], match[0])

    return re.sub(r"\$\$|\$\(([A-Za-z_][\w.-]*)\)", replace, text)


def _value_from(store: Store, pod: Object, container: Any, source: Any) -> str | None:
    if field := source.get("fieldRef"):
        return _field(pod, field["fieldPath"])
    if resource := source.get("resourceFieldRef"):
        kind, _, name = resource["resource"].partition(".")
        return str(((container.get("resources") or {}).get(kind) or {}).get(name, ""))
    kind, key = ("configmaps", "configMapKeyRef") if "configMapKeyRef" in source else ("secrets", "secretKeyRef")
    reference = source[key]
    optional = reference.get("optional", False)
    data = data_of(store, kind, pod["metadata"]["namespace"], reference["name"], optional)
    if reference["key"] not in data and not optional:
        raise ConfigError(f"couldn't find key {reference['key']} in {kind[:-1]} {reference['name']}")
    return data.get(reference["key"])


def _field(pod: Object, path: str) -> str:
    if match := re.fullmatch(r"metadata\.(annotations|labels)\['(.+)'\]", path):
        return str((pod["metadata"].get(match[1]) or {}).get(match[2], ""))
    found: Any = pod
    for step in path.split("."):
        found = (found or {}).get(step)
    return str(found or "")


class Volumes:
    """Local folders for the volumes of pods. A claim is bound to the folder of that name, or to a new one."""

    def __init__(self, store: Store, base: Path, new_token: Callable[[str, str], str], ca: Path):
        """``base`` keeps the claims that no folder is named for; ``new_token`` takes namespace and service account."""
        self._store, self._base, self._new_token, self._ca = store, base, new_token, ca
        self.claims: dict[str, Path] = {}

    def prepare(self, pod: Object, folder: Path) -> dict[str, Path]:
        """Volume name to folder; what comes from ConfigMaps and Secrets is written out."""
        namespace, found = pod["metadata"]["namespace"], {}
        for volume in pod["spec"].get("volumes") or []:
            target = folder / "volumes" / volume["name"]
            if claim := volume.get("persistentVolumeClaim"):
                target = self.claims.get(claim["claimName"], self._base / "claims" / namespace / claim["claimName"])
            elif host := volume.get("hostPath"):
                target = Path(host["path"])
            target.mkdir(parents=True, exist_ok=True)
            for name, text in self._files(volume, namespace).items():
                (target / name).write_text(text)
            found[volume["name"]] = target
        return found

    def _files(self, volume: Any, namespace: str) -> dict[str, str]:
        if source := volume.get("configMap"):
            kind, name = "configmaps", source["name"]
        elif source := volume.get("secret"):
            kind, name = "secrets", source["secretName"]
        else:
            return {}
        data = data_of(self._store, kind, namespace, name, source.get("optional", False))
        chosen = source.get("items") or [{"key": key, "path": key} for key in data]
        return {item["path"]: data[item["key"]] for item in chosen}

    def mounts(self, container: Any, volumes: dict[str, Path]) -> list[Mount]:
        """The volumeMounts of a container."""
        return [
            Mount(volumes[m["name"]] / m.get("subPath", ""), m["mountPath"], bool(m.get("readOnly")))
            for m in container.get("volumeMounts") or []
        ]

    def service_account(self, pod: Object, folder: Path) -> list[Mount]:
        """Token, certificate and namespace, unless the pod or its account says no."""
        namespace, name = pod["metadata"]["namespace"], pod["spec"].get("serviceAccountName", "default")
        account = self._store.objects.get(Key("v1", "serviceaccounts", namespace, name), {})
        wanted = pod["spec"].get("automountServiceAccountToken")
        if not (account.get("automountServiceAccountToken", True) if wanted is None else wanted):
            return []
        target = folder / "service_account"
        target.mkdir(exist_ok=True)
        (target / "token").write_text(self._new_token(namespace, name))
        (target / "namespace").write_text(namespace)
        (target / "ca.crt").write_bytes(self._ca.read_bytes())
        return [Mount(target, SERVICE_ACCOUNT, True)]
