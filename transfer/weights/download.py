"""Fetching one large file over HTTP: goes on where it broke off, appears only when whole, trusts no server."""

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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from common.errors import UserError

PIECE = 1 << 20
ATTEMPTS = 6
"""Tries in a row that bring not one byte more before it is given up."""

Report = Callable[[int, int | None], None]


@dataclass(frozen=True)
class Response:
    """An answer, as far as it matters: where its body starts, how long the whole is, and which version it is of."""

    start: int
    total: int | None
    version: str


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Redirects are followed, but never from https to something weaker or to another scheme."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        scheme = newurl.split(":", 1)[0].lower()
        if scheme != "https" and not (scheme == "http" and req.type == "http"):
            raise UserError(f"{req.full_url} leads to {newurl}, which is not https; refused")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def download(url: str, target: Path, report: Report | None = None, pause: float = 1.0, timeout: float = 60.0) -> None:
    """Fetch `url` to `target`.

    The bytes gather in `target` + `.part`, which a later call goes on with, if the server still has the same version
    (ETag or Last-Modified). Two processes that fetch the same file wait for one another.

    Args:
        url: http or https.
        target: where the whole file appears.
        report: called with (bytes so far, bytes in all or None).
        pause: seconds before the first new try; doubled after each that brought nothing.
        timeout: seconds without a byte after which a connection is given up.

    Raises:
        UserError: the server refuses, lies about the length, or breaks off too often.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    with _locked(part.with_name(part.name + ".lock")):
        if target.exists():  # another process has fetched it meanwhile
            return
        fruitless, wait = 0, pause
        while True:
            before = _size(part)
            try:
                _fetch_on(url, part, report, timeout)
                break
            except _BrokenOff as broken:
                fruitless, wait = (0, pause) if _size(part) > before else (fruitless + 1, wait * 2)
                if fruitless >= ATTEMPTS:
                    raise UserError(
                        f"{url} broke off {ATTEMPTS} times in a row ({broken}); ask again later: "
                        f"{_size(part)} bytes are kept"
                    ) from broken
                time.sleep(wait)
        with open(part, "rb") as stream:
            os.fsync(stream.fileno())
        part.replace(target)
        _memo(part).unlink(missing_ok=True)


class _BrokenOff(Exception):
    """The connection ended too early; what came is kept."""


def _fetch_on(url: str, part: Path, report: Report | None, timeout: float) -> None:
    """Ask for what is missing and append it; start anew when the server has another version or cannot resume."""
    have, version = _size(part), _version(part)
    headers = {"User-Agent": "ssl-detection-transfer", "Accept-Encoding": "identity"}
    if have and version:
        headers |= {"Range": f"bytes={have}-", "If-Range": version}
    elif have:
        have = 0
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.build_opener(_Redirects).open(request, timeout=timeout) as answer:
            response = _response(answer, have, url)
            _remember(part, response.version)
            _append(answer, part, response, report)
    except urllib.error.HTTPError as error:
        _refused(error, url, part)
    except (http.client.HTTPException, OSError) as error:  # URLError, timeouts, TLS: all are OSErrors
        reason = getattr(error, "reason", error)
        if isinstance(reason, socket.gaierror):
            raise UserError(f"{url}: the host cannot be found; run it where there is a network") from error
        raise _BrokenOff(str(reason) or type(reason).__name__) from error


def _refused(error: urllib.error.HTTPError, url: str, part: Path) -> None:
    """An HTTP error: a part that no longer fits is thrown away, a busy server is asked again, the rest is final."""
    if error.code == 416:
        part.unlink(missing_ok=True)
        raise _BrokenOff("the kept part no longer fits the file") from error
    if error.code in (408, 429) or error.code >= 500:
        raise _BrokenOff(f"HTTP {error.code}") from error
    raise UserError(f"{url}: HTTP {error.code} {error.reason}; fetch the file by hand and give its path") from error


def _response(answer: http.client.HTTPResponse, have: int, url: str) -> Response:
    """What the server says it sends.

    Raises:
        UserError: a web page, or a piece that does not begin where it was asked to.
    """
    kind = (answer.headers.get("Content-Type") or "").split(";")[0].strip()
    if kind in ("text/html", "application/xhtml+xml"):
        raise UserError(f"{url} answers with a web page, not the file; fetch the file by hand and give its path")
    version = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
    length = answer.headers.get("Content-Length")
    length = length if length is not None and length.isdigit() else None
    if answer.status != 206:
        return Response(0, int(length) if length else None, version)
    piece = re.match(r"bytes (\d+)-\d+/(\d+|\*)$", answer.headers.get("Content-Range", ""))
    if piece is None or int(piece[1]) != have:
        raise UserError(f"{url}: asked for bytes from {have}, the server sent {answer.headers.get('Content-Range')!r}")
    return Response(have, int(piece[2]) if piece[2].isdigit() else None, version)


def _append(answer: http.client.HTTPResponse, part: Path, response: Response, report: Report | None) -> None:
    """Write the body; a body shorter than announced is broken off, one that is longer is a lie."""
    done = response.start
    with open(part, "r+b" if response.start else "wb") as stream:
        stream.seek(done)
        stream.truncate()
        while piece := answer.read(PIECE):
            _write(stream, piece, part)
            done += len(piece)
            if report:
                report(done, response.total)
    if response.total is not None and done < response.total:
        raise _BrokenOff(f"{done} of {response.total} bytes came")
    if response.total is not None and done > response.total:
        part.unlink()
        raise UserError(f"the server said {response.total} bytes and sent {done}; nothing is kept")


def _write(stream: IO[bytes], piece: bytes, part: Path) -> None:
    try:
        stream.write(piece)
        stream.flush()
    except OSError as error:
        raise UserError(f"cannot write {part}: {error.strerror}; make room and ask again") from error


def _memo(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _remember(part: Path, version: str) -> None:
    _memo(part).write_text(json.dumps({"version": version}))


def _version(part: Path) -> str:
    """Which version the kept part is of; a weak ETag cannot promise the same bytes."""
    try:
        version = json.loads(_memo(part).read_text())["version"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return version if isinstance(version, str) and not version.startswith("W/") else ""


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)  # let go when the file is closed, and by the kernel after a kill
        yield
