"""A W&B server on this machine, which keeps what it is asked; it has the artifact `team/maps/checkpoint-x`."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

CONTENT = b"weights"  # of the artifact's file


class WandbServer(ThreadingHTTPServer):
    """`operations`: the GraphQL operations that came, with their variables."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.operations: list[tuple[str, dict[str, Any]]] = []

    def asked(self, operation: str) -> list[dict[str, Any]]:
        """The variables of each such operation."""
        return [variables.get("input", variables) for name, variables in self.operations if name == operation]

    def handle_error(self, *_: object) -> None:
        """W&B's service drops its connections when it ends."""


class _Handler(BaseHTTPRequestHandler):
    server: WandbServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(_manifest() if self.path == "/manifest" else CONTENT)

    def do_PUT(self) -> None:
        self._body()
        self._answer(b"{}")

    def do_POST(self) -> None:
        body, data = self._body(), {}
        if self.path == "/graphql":
            request = json.loads(body)
            (operation,) = re.findall(r"(?:query|mutation)\s+(\w+)", request["query"])
            variables = request.get("variables") or {}
            self.server.operations.append((operation, variables))
            data = _ANSWERS[operation](variables) if operation in _ANSWERS else {}
        self._answer(json.dumps({"data": data}).replace("ADDRESS", self.server.address).encode())

    def _body(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def _manifest() -> bytes:
    digest = base64.b64encode(hashlib.md5(CONTENT).digest()).decode()
    entry = {"digest": digest, "birthArtifactID": "1", "size": len(CONTENT)}
    policy = {"storagePolicy": "wandb-storage-policy-v1", "storagePolicyConfig": {"storageLayout": "V2"}}
    return json.dumps({"version": 1, **policy, "contents": {"best.safetensors": entry}}).encode()


def _upsert_run(variables: dict[str, Any]) -> dict[str, Any]:
    project = {"id": "1", "name": variables["project"], "entity": {"id": "1", "name": variables["entity"]}}
    return {"upsertBucket": {"bucket": {"id": "1", "name": variables["name"], "project": project}, "inserted": True}}


def _create_files(variables: dict[str, Any]) -> dict[str, Any]:
    files = [{"name": name, "uploadUrl": f"ADDRESS/upload/{name}"} for name in variables["files"]]
    return {"createRunFiles": {"runID": "1", "uploadHeaders": [], "files": files}}


def _create_artifact(variables: dict[str, Any]) -> dict[str, Any]:
    """As if the server had its content already."""
    name = variables["input"]["artifactCollectionName"]
    sequence = {"latestArtifact": {"id": name}}
    return {"createArtifact": {"artifact": {"id": name, "state": "COMMITTED", "artifactSequence": sequence}}}


def _artifact(name: str) -> dict[str, Any]:
    project = {"id": "1", "internalId": "1", "name": "maps", "entity": {"name": "team"}}
    return {
        "__typename": "Artifact", "id": name, "versionIndex": 3, "state": "COMMITTED", "size": 7, "digest": "0",
        "artifactSequence": {"__typename": "ArtifactSequence", "name": name, "project": project},
        "artifactType": {"name": "model"}, "description": None, "metadata": "{}", "commitHash": "0", "fileCount": 1,
        "ttlDurationSeconds": -2, "ttlIsInherited": True, "tags": [], "historyStep": None, "aliases": [],
        "createdAt": "2026-01-01T00:00:00", "updatedAt": None,
    }  # fmt: skip


def _find_artifact(variables: dict[str, Any]) -> dict[str, Any]:
    name = variables["name"].partition(":")[0]
    artifact = _artifact(name)
    membership = {
        "__typename": "ArtifactCollectionMembership", "id": "1", "versionIndex": 3, "aliases": [],
        "createdAt": artifact["createdAt"], "artifactCollection": artifact["artifactSequence"], "artifact": artifact,
    }  # fmt: skip
    return {"project": {"artifactCollectionMembership": membership if name in ("checkpoint-x", "roofs") else None}}


def _list_files(_: dict[str, Any]) -> dict[str, Any]:
    files = {
        "pageInfo": {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False},
        "edges": [{"node": {"__typename": "File", "name": "best.safetensors", "directUrl": "ADDRESS/content"}}],
    }
    membership = {"artifactMembership": {"files": files}}
    return {"project": {"artifactCollection": {"__typename": "ArtifactSequence", **membership}}}


_USER = {"id": "1", "entity": "team", "username": "me", "flags": "{}", "teams": {"edges": []}}
_ANSWERS = {
    "Viewer": lambda _: {"viewer": _USER},
    "GetDefaultEntity": lambda _: {"viewer": _USER},
    "UpsertBucket": _upsert_run,
    "CreateRunFiles": _create_files,
    "ArtifactType": lambda _: {"project": {"artifact": None}},
    "CreateArtifact": _create_artifact,
    "UseArtifact": lambda _: {"useArtifact": {"artifact": {"id": "1"}}},
    "ArtifactByID": lambda variables: {"artifact": _artifact(variables["id"])},
    "ArtifactMembershipByName": _find_artifact,
    "LinkArtifact": lambda _: {"result": {"versionIndex": 0}},
    "FetchArtifactManifest": lambda _: {"artifact": {"currentManifest": {"file": {"directUrl": "ADDRESS/manifest"}}}},
    "GetArtifactMembershipFileUrls": _list_files,
}


@contextmanager
def wandb_server() -> Iterator[WandbServer]:
    """Run the server."""
    with WandbServer() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()
