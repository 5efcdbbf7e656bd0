"""A local Hugging Face Hub of one repository, for tests: it redirects, disconnects, wants a token, or lies."""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import threading
from typing import Any
from urllib.parse import unquote, urlsplit

COMMITS = ("a" * 40, "b" * 40)


class Hub:
    """A Hub of one repository, `org/net`, and the host that it redirects large files to.

    Attributes:
        files: name → content, at the commit `head`.
        head: the commit of `main`.
        cut: bytes after which the next responses with a large file end, one each.
        stated: replaces the SHA-256 that the Hub states of large files.
        token: without it every request to the Hub is refused; None: the repository is public.
        seen: host, path, Range and Authorization of every request.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.head, self.stated, self.token = COMMITS[0], "", None
        self.cut: list[int] = []
        self.seen: list[tuple[str, str, str | None, str | None]] = []
        self.answer: bytes | None = None
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                host, path = self.headers["Host"].split(":")[0], unquote(urlsplit(self.path).path)
                hub.seen.append((host, path, self.headers.get("Range"), self.headers.get("Authorization")))
                hub.respond(self, host, path)

            def log_message(self, *words: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def respond(self, handler: http.server.BaseHTTPRequestHandler, host: str, path: str) -> None:
        if host == "127.0.0.1" and self.token and handler.headers.get("Authorization") != f"Bearer {self.token}":
            return self.send(handler, 401, b"")
        if path.startswith("/api/models/org/net/revision/") and path.rsplit("/", 1)[-1] in ("main", "v1", self.head):
            return self.send(handler, 200, json.dumps(self.info()).encode() if self.answer is None else self.answer)
        name = path.rpartition(f"/resolve/{self.head}/")[2]
        if name not in self.files:
            return self.send(handler, 404, b"")
        if host == "127.0.0.1" and len(self.files[name]) > 10_000:
            handler.send_response(302)
            handler.send_header("Location", f"http://localhost:{self.port}{path}")  # another host: the CDN
            handler.send_header("Content-Length", "0")
            return handler.end_headers()
        return self.send(handler, 200, self.files[name])

    def info(self) -> dict[str, Any]:
        def sibling(name: str, body: bytes) -> dict[str, Any]:
            lfs = {"sha256": self.stated or hashlib.sha256(body).hexdigest(), "size": len(body)}
            return {"rfilename": name, "size": len(body), **({"lfs": lfs} if len(body) > 10_000 else {})}

        return {"id": "org/net", "sha": self.head, "siblings": [sibling(*item) for item in self.files.items()]}

    def send(self, handler: http.server.BaseHTTPRequestHandler, status: int, body: bytes) -> None:
        wanted = re.match(r"bytes=(\d+)-", handler.headers.get("Range") or "")
        start = int(wanted[1]) if wanted and handler.headers.get("If-Range") == '"one"' else 0
        handler.send_response(206 if start else status)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        handler.send_header("Content-Length", str(len(body) - start))
        handler.send_header("ETag", '"one"')
        handler.end_headers()
        handler.wfile.write(body[start:][: self.cut.pop(0) if self.cut and len(body) > 10_000 else None])
