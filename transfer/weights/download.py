"""Download one large file over HTTP: interrupted downloads are resumed, and only a complete file gets its name."""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import json
import os
import re
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

from ssl_transfer.errors import UserError

CHUNK = 1 << 20
ATTEMPTS = 6
"""Attempts in a row without a single new byte after which the download fails."""

ProgressCallback = Callable[[int, int | None], None]


@dataclass(frozen=True)
class _Body:
    """A response's body: its first byte's position, the file's length, and the file's version."""

    start: int
    total: int | None
    version: str


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects, but never from https to http or to another scheme."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        scheme = newurl.split(":", 1)[0].lower()
        if scheme != "https" and not (scheme == "http" and req.type == "http"):
            raise UserError(f"{req.full_url} redirects to {newurl}, which is not https; refused")
        redirected = super().redirect_request(req, fp, code, msg, headers, newurl)
        if redirected is not None and (redirected.type, redirected.host) != (req.type, req.host):
            redirected.remove_header("Authorization")
        return redirected


def download(
    url: str,
    target: Path,
    progress: ProgressCallback | None = None,
    pause: float = 1.0,
    timeout: float = 60.0,
    *,
    headers: Mapping[str, str] = MappingProxyType({}),
    hint: str = "download the file by hand and pass its path",
) -> None:
    """Download `url` to `target`.

    The bytes are stored in `target` + `.part`. A later call resumes it if the server still has the same version (ETag
    or Last-Modified). If several processes download the same file, one does and the others wait.

    Args:
        url: http or https.
        target: path of the complete file.
        progress: called with (bytes so far, total bytes or None).
        pause: seconds before the first new attempt; doubled after each one without a new byte.
        timeout: seconds without a byte after which a connection is closed.
        headers: sent with each request; `Authorization` is not sent to another host that the server redirects to.
        hint: what to do if the server refuses.

    Raises:
        UserError: the server refuses, sends more than it announced, or disconnects too often.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    with _locked(part.with_name(part.name + ".lock")):
        if target.exists():  # another process has downloaded it meanwhile
            return
        failures, wait = 0, pause
        while True:
            before = _size(part)
            try:
                _resume(url, part, progress, timeout, headers=headers, hint=hint)
                break
            except _ConnectionLost as lost:
                failures, wait = (0, pause) if _size(part) > before else (failures + 1, wait * 2)
                if failures >= ATTEMPTS:
                    raise UserError(
                        f"{url}: the connection was lost {ATTEMPTS} times in a row ({lost}); "
                        f"run the command again later to resume after {_size(part)} bytes"
                    ) from lost
                time.sleep(wait)
        with open(part, "rb") as stream:
            os.fsync(stream.fileno())
        part.replace(target)
        _version_file(part).unlink(missing_ok=True)


class _ConnectionLost(Exception):
    """The connection ended early; the bytes received so far stay in the `.part` file."""


def _resume(
    url: str,
    part: Path,
    progress: ProgressCallback | None,
    timeout: float,
    *,
    headers: Mapping[str, str],
    hint: str,
) -> None:
    """Request the missing bytes and append them; start over if the server has another version or cannot resume."""
    have, version = _size(part), _read_version(part)
    sent = {**headers, "User-Agent": "ssl-detection-transfer", "Accept-Encoding": "identity"}
    if have and version:
        sent |= {"Range": f"bytes={have}-", "If-Range": version}
    elif have:
        have = 0
    request = urllib.request.Request(url, headers=sent)
    try:
        with urllib.request.build_opener(_SafeRedirects).open(request, timeout=timeout) as response:
            body = _parse_headers(response, have, url)
            _write_version(part, body.version)
            _append(response, part, body, progress)
    except urllib.error.HTTPError as error:
        _handle_http_error(error, url, part, hint)
    except (http.client.HTTPException, OSError) as error:  # URLError, timeouts, TLS: all are OSErrors
        reason = getattr(error, "reason", error)
        if isinstance(reason, socket.gaierror):
            raise UserError(f"{url}: the host cannot be found; run the command on a machine with a network") from error
        raise _ConnectionLost(str(reason) or type(reason).__name__) from error


def _handle_http_error(error: urllib.error.HTTPError, url: str, part: Path, hint: str) -> None:
    """Delete a part that no longer fits, try again if the server is busy, and fail on any other HTTP error."""
    if error.code == 416:
        part.unlink(missing_ok=True)
        raise _ConnectionLost("the .part file no longer fits the file") from error
    if error.code in (408, 429) or error.code >= 500:
        raise _ConnectionLost(f"HTTP {error.code}") from error
    raise UserError(f"{url}: HTTP {error.code} {error.reason}; {hint}") from error


def _parse_headers(response: http.client.HTTPResponse, have: int, url: str) -> _Body:
    """What the server announces.

    Raises:
        UserError: a web page, or a range that does not begin where it was requested.
    """
    kind = (response.headers.get("Content-Type") or "").split(";")[0].strip()
    if kind in ("text/html", "application/xhtml+xml"):
        raise UserError(f"{url} sends a web page, not the file; download the file by hand and pass its path")
    version = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
    length = response.headers.get("Content-Length")
    length = length if length is not None and length.isdigit() else None
    if response.status != 206:
        return _Body(0, int(length) if length else None, version)
    content_range = re.match(r"bytes (\d+)-\d+/(\d+|\*)$", response.headers.get("Content-Range", ""))
    if content_range is None or int(content_range[1]) != have:
        sent = response.headers.get("Content-Range")
        raise UserError(f"{url}: requested the bytes from {have}, the server sent {sent!r}")
    return _Body(have, int(content_range[2]) if content_range[2].isdigit() else None, version)


def _append(response: http.client.HTTPResponse, part: Path, body: _Body, progress: ProgressCallback | None) -> None:
    """Write the body; a shorter one than announced is a lost connection, a longer one is an error."""
    done = body.start
    with open(part, "r+b" if body.start else "wb") as stream:
        stream.seek(done)
        stream.truncate()
        while chunk := response.read(CHUNK):
            _write(stream, chunk, part)
            done += len(chunk)
            if progress:
                progress(done, body.total)
    if body.total is not None and done < body.total:
        raise _ConnectionLost(f"{done} of {body.total} bytes received")
    if body.total is not None and done > body.total:
        part.unlink()
        raise UserError(f"{part}: the server announced {body.total} bytes and sent {done}; the download was deleted")


def _write(stream: IO[bytes], chunk: bytes, part: Path) -> None:
    try:
        stream.write(chunk)
        stream.flush()
    except OSError as error:
        raise UserError(f"cannot write {part}: {error.strerror}; free some space and run the command again") from error


def _version_file(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _write_version(part: Path, version: str) -> None:
    _version_file(part).write_text(json.dumps({"version": version}))


def _read_version(part: Path) -> str:
    """The version of the `.part` file; empty if unknown. A weak ETag does not guarantee the same bytes."""
    try:
        version = json.loads(_version_file(part).read_text())["version"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return version if isinstance(version, str) and not version.startswith("W/") else ""


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "w") as stream:
        with contextlib.suppress(OSError):  # without locks, concurrent processes are not detected
            fcntl.flock(stream, fcntl.LOCK_EX)  # released when the file is closed, and by the kernel after a kill
        yield
