"""What the server says of itself: version, health, groups and resources."""

from typing import Any

from aiohttp import web

from .admission import VERSION
from .errors import unknown_path
from .store import RESOURCES

_VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")
_SHORT_NAMES = {"pods": ["po"], "services": ["svc"], "namespaces": ["ns"], "persistentvolumeclaims": ["pvc"]}


def discover(parts: list[str]) -> web.Response:
    """The answer to a path that is about no resource; a 404 for all others."""
    match parts:
        case ["version"]:
            return web.json_response(_version())
        case ["healthz" | "readyz" | "livez"]:
            return web.Response(text="ok")
        case ["api"]:
            return web.json_response({"kind": "APIVersions", "versions": ["v1"]})
        case ["apis"]:
            groups = [_group(group_version) for group_version in RESOURCES if "/" in group_version]
            return web.json_response({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
        case ["api", group_version] if group_version in RESOURCES:
            return web.json_response(_resources(group_version))
        case ["apis", group, version] if f"{group}/{version}" in RESOURCES:
            return web.json_response(_resources(f"{group}/{version}"))
    raise unknown_path()


def _version() -> dict[str, Any]:
    names = ("gitCommit", "gitTreeState", "goVersion", "compiler")
    version = {"major": "1", "minor": VERSION.split(".")[1], "gitVersion": f"v{VERSION}.0", "platform": "linux/amd64"}
    return version | dict.fromkeys(names, "simulator") | {"buildDate": "2025-01-01T00:00:00Z"}


def _group(group_version: str) -> dict[str, Any]:
    name, version = group_version.split("/")
    versions = [{"groupVersion": group_version, "version": version}]
    return {"name": name, "versions": versions, "preferredVersion": versions[0]}


def _resources(group_version: str) -> dict[str, Any]:
    resources = [
        {"name": plural, "singularName": kind.lower(), "kind": kind, "namespaced": is_namespaced, "verbs": _VERBS}
        | {"shortNames": _SHORT_NAMES.get(plural, [])}
        for plural, (kind, is_namespaced) in RESOURCES[group_version].items()
    ]
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources}
