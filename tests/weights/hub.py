"""A stand-in of the Hugging Face Hub: repositories in memory, over HTTP."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SHA = "a" * 40


class Hub:
    """Files by repository and path, and the requests that came."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.requests: list[str] = []
        self.address = ""


@contextmanager
def serving() -> Iterator[Hub]:
    """Serve a hub until the end of the context."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def reply(self, code: int, content: bytes, **headers: str) -> None:
            self.send_response(code)
            for name, value in ({"Content-Length": str(len(content))} | headers).items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def as_json(self, value: Any, code: int = 200, **headers: str) -> None:
            self.reply(code, json.dumps(value).encode(), Content_Type="application/json", **headers)

        def do_GET(self) -> None:
            hub.requests.append(f"{self.command} {self.path}")
            path = self.path.partition("?")[0]
            if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/([^/]+))?", path):
                if match[1] not in hub.files or match[3] not in (None, "main", SHA):
                    code = "RepoNotFound" if match[1] not in hub.files else "RevisionNotFound"
                    self.as_json({"error": "not found"}, 404, X_Error_Code=code)
                    return
                names = [{"rfilename": name} for name in hub.files[match[1]]]
                self.as_json({"id": match[1], "modelId": match[1], "sha": SHA, "siblings": names})
            elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/[^/]+", path):
                sizes = {name: len(content) for name, content in hub.files[match[1]].items()}
                self.as_json(
                    [{"type": "file", "path": name, "size": size, "oid": "b" * 40} for name, size in sizes.items()]
                )
            elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
                content = hub.files.get(match[1], {}).get(match[2])
                if content is None:
                    self.as_json({"error": "not found"}, 404, X_Error_Code="EntryNotFound")
                    return
                tag = f'"{hashlib.sha1(content).hexdigest()}"'
                self.reply(200, content, ETag=tag, X_Repo_Commit=SHA, Content_Type="application/octet-stream")
            else:
                self.as_json({"error": "not found"}, 404)

        do_HEAD = do_GET

        def do_POST(self) -> None:
            hub.requests.append(f"{self.command} {self.path}")
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            if "Bearer" not in self.headers.get("Authorization", ""):
                self.as_json({"error": "Invalid username or password."}, 401)
                return
            if self.path == "/api/repos/create":
                asked = json.loads(body)
                name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
                hub.files.setdefault(name, {})
                self.as_json({"url": f"{hub.address}/{name}", "name": name})
            elif match := re.fullmatch(r"/api/models/(.+)/preupload/main(\?.*)?", self.path):
                files = json.loads(body)["files"]
                modes = [{"path": each["path"], "uploadMode": "regular", "shouldIgnore": False} for each in files]
                self.as_json({"files": modes})
            elif match := re.fullmatch(r"/api/models/(.+)/commit/main(\?.*)?", self.path):
                for line in body.splitlines():
                    entry = json.loads(line)
                    if entry["key"] == "file":
                        value = entry["value"]
                        hub.files[match[1]][value["path"]] = base64.b64decode(value["content"])
                self.as_json({"commitUrl": f"{hub.address}/{match[1]}/commit/{SHA}", "commitOid": SHA, "success": True})
            else:
                self.as_json({}, 200)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
