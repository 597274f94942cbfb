"""What the API server answers when it refuses: a ``Status`` object with the words of the real one."""

import json
from typing import Any

from aiohttp import web


class ApiError(Exception):
    """A refusal: HTTP status, machine-readable reason, sentence for people."""

    def __init__(self, code: int, reason: str, message: str, *, headers: dict[str, str] | None = None, **details: Any):
        """``details`` go into the body's details."""
        super().__init__(message)
        self.code, self.reason, self.message = code, reason, message
        self.headers, self.details = headers or {}, details

    def status(self) -> dict[str, Any]:
        """The body."""
        status: dict[str, Any] = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
        }
        status |= {"reason": self.reason, "code": self.code}
        return status | ({"details": self.details} if self.details else {})

    def response(self) -> web.Response:
        """The whole answer."""
        body = json.dumps(self.status()).encode()
        return web.Response(status=self.code, headers=self.headers, body=body, content_type="application/json")


def qualified(plural: str, group_version: str) -> str:
    """``jobs.batch``; ``pods`` in the core group, which has no name."""
    return f"{plural}.{group_version.split('/')[0]}" if "/" in group_version else plural


def not_found(plural: str, group_version: str, name: str) -> ApiError:
    return ApiError(404, "NotFound", f'{qualified(plural, group_version)} "{name}" not found', name=name, kind=plural)


def invalid(kind: str, group_version: str, name: str, field: str, problem: str) -> ApiError:
    """A 422, as ``Job.batch "x" is invalid: spec.template.spec.containers: Required value``."""
    causes = [{"field": field, "message": problem}]
    message = f'{qualified(kind, group_version)} "{name}" is invalid: {field}: {problem}'
    return ApiError(422, "Invalid", message, name=name, kind=kind, causes=causes)


def expired(requested: int | str, oldest: int) -> ApiError:
    return ApiError(410, "Expired", f"too old resource version: {requested} ({oldest})")


def unknown_path() -> ApiError:
    return ApiError(404, "NotFound", "the server could not find the requested resource")
