"""The zoo: names, downloads from a server that disconnects, redirects or announces wrong lengths, and digests."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from ssl_transfer.console import call_main
from ssl_transfer.errors import EXIT_USAGE, UserError
from tests.transfer.weights.made_checkpoints import resnet, simsiam
from tools.convert import main
from transfer.weights import checkpoint_zoo
from transfer.weights.checkpoint_zoo import FOLDER_VARIABLE, ZooCheckpoint, downloaded_file, fetch, read_zoo
from transfer.weights.conversion import ensure_converted
from transfer.weights.download import ATTEMPTS, download
from transfer.weights.readers import LAYOUTS_BY_NAME


@dataclass
class Site:
    """A local server with a planned behaviour for each response.

    Attributes:
        body: what it serves.
        plan: one behaviour for each response; the last one is repeated.
        requested: the Range header of each request.
    """

    body: bytes
    plan: list[Callable[[http.server.BaseHTTPRequestHandler, Site], None]] = field(default_factory=list)
    requested: list[str | None] = field(default_factory=list)
    url: str = ""
    etag: str = '"one"'


def respond_fully(
    handler: http.server.BaseHTTPRequestHandler, site: Site, cut: int | None = None, length: int = 0
) -> None:
    """A correct response; with `cut`, it ends after so many bytes; with `length`, it announces so many."""
    start = 0
    match = re.match(r"bytes=(\d+)-", handler.headers.get("Range") or "")
    if match and handler.headers.get("If-Range") == site.etag:
        start = int(match[1])
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes {start}-{len(site.body) - 1}/{len(site.body)}")
    else:
        handler.send_response(200)
    rest = site.body[start:]
    handler.send_header("Content-Length", str(length or len(rest)))
    handler.send_header("ETag", site.etag)
    handler.end_headers()
    handler.wfile.write(rest[:cut])


def disconnect_after(count: int) -> Callable[..., None]:
    return lambda handler, site: respond_fully(handler, site, cut=count)


def without_ranges(handler: http.server.BaseHTTPRequestHandler, site: Site) -> None:
    del handler.headers["Range"]
    respond_fully(handler, site)


def another_version(handler: http.server.BaseHTTPRequestHandler, site: Site) -> None:
    site.etag = '"two"'
    respond_fully(handler, site)


def wrong_range(handler: http.server.BaseHTTPRequestHandler, site: Site) -> None:
    handler.send_response(206)
    handler.send_header("Content-Range", f"bytes 0-{len(site.body) - 1}/{len(site.body)}")
    handler.send_header("Content-Length", str(len(site.body)))
    handler.end_headers()
    handler.wfile.write(site.body)


def web_page(handler: http.server.BaseHTTPRequestHandler, site: Site) -> None:
    handler.send_response(200)
    handler.send_header("Content-Type", "text/html; charset=utf-8")
    handler.end_headers()
    handler.wfile.write(b"<html>please sign in</html>")


def status(code: int) -> Callable[..., None]:
    def respond(handler: http.server.BaseHTTPRequestHandler, site: Site) -> None:
        handler.send_response(code)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return respond


def redirect_to(place: str) -> Callable[..., None]:
    def respond(handler: http.server.BaseHTTPRequestHandler, site: Site) -> None:
        handler.send_response(302)
        handler.send_header("Location", place)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return respond


def announce(length: int) -> Callable[..., None]:
    return lambda handler, site: respond_fully(handler, site, cut=length, length=length)


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    served = Site(os.urandom(3_000_000))

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.requested.append(self.headers.get("Range"))
            behaviour = served.plan.pop(0) if len(served.plan) > 1 else (served.plan or [respond_fully])[0]
            behaviour(self, served)

        def log_message(self, *words: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    served.url = f"http://127.0.0.1:{server.server_address[1]}/checkpoint_0199.pth.tar"
    yield served
    server.shutdown()
    server.server_close()
    thread.join()


def get(site: Site, folder: Path) -> Path:
    target = folder / "file.pth"
    download(site.url, target, pause=0.001, timeout=5)
    return target


def check_refused(site: Site, folder: Path, message: str) -> None:
    with pytest.raises(UserError, match=message):
        get(site, folder)
    assert not (folder / "file.pth").exists()


def test_a_complete_download(site: Site, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    download(site.url, tmp_path / "file.pth", lambda done, total: seen.append((done, total)))
    assert (tmp_path / "file.pth").read_bytes() == site.body
    assert seen[-1] == (3_000_000, 3_000_000) and not list(tmp_path.glob("*.part"))


def test_a_lost_connection_is_resumed(site: Site, tmp_path: Path) -> None:
    site.plan = [disconnect_after(1_000_000), disconnect_after(500_000), disconnect_after(0), respond_fully]
    assert get(site, tmp_path).read_bytes() == site.body
    assert site.requested == [None, "bytes=1000000-", "bytes=1500000-", "bytes=1500000-"]


def test_a_second_run_resumes_the_part_of_the_first(site: Site, tmp_path: Path) -> None:
    site.plan = [disconnect_after(1_000_000), disconnect_after(0)]
    check_refused(site, tmp_path, f"{ATTEMPTS} times in a row .*1000000 bytes")
    site.plan = [respond_fully]
    assert get(site, tmp_path).read_bytes() == site.body
    assert site.requested[-1] == "bytes=1000000-"


def test_the_download_starts_over_if_the_server_cannot_resume(site: Site, tmp_path: Path) -> None:
    site.plan = [disconnect_after(1_000_000), without_ranges]
    assert get(site, tmp_path).read_bytes() == site.body


def test_two_versions_are_not_mixed(site: Site, tmp_path: Path) -> None:
    site.plan = [disconnect_after(1_000_000), another_version]
    first, site.body = site.body, os.urandom(2_500_000)
    site.body, second = first, site.body

    def change(handler: http.server.BaseHTTPRequestHandler, served: Site) -> None:
        served.body = second
        another_version(handler, served)

    site.plan = [disconnect_after(1_000_000), change]
    assert get(site, tmp_path).read_bytes() == second


def test_a_busy_server_is_tried_again(site: Site, tmp_path: Path) -> None:
    site.plan = [status(503), status(429), respond_fully]
    assert get(site, tmp_path).read_bytes() == site.body


def test_a_part_that_no_longer_fits_is_deleted(site: Site, tmp_path: Path) -> None:
    site.plan = [disconnect_after(1_000_000), status(416), respond_fully]
    assert get(site, tmp_path).read_bytes() == site.body
    assert site.requested[-1] is None


def test_redirects_are_followed(site: Site, tmp_path: Path) -> None:
    site.plan = [redirect_to("/elsewhere"), respond_fully]
    assert get(site, tmp_path).read_bytes() == site.body


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        (redirect_to("/again"), "redirect error|infinite loop"),
        (redirect_to("file:///etc/passwd"), "is not allowed|not https; refused"),
        (redirect_to("ftp://127.0.0.1/file"), "not https; refused"),
        (web_page, "a web page"),
        (status(404), "HTTP 404"),
        (status(403), "HTTP 403"),
        (status(500), f"{ATTEMPTS} times in a row"),
    ],
    ids=["loop", "to a file", "to ftp", "web page", "404", "403", "500"],
)
def test_bad_responses(site: Site, tmp_path: Path, behaviour: Callable[..., None], message: str) -> None:
    site.plan = [behaviour]
    check_refused(site, tmp_path, message)


def test_another_range_than_requested_is_refused(site: Site, tmp_path: Path) -> None:
    site.plan = [disconnect_after(1_000_000), wrong_range]
    check_refused(site, tmp_path, "from 1000000, the server sent 'bytes 0-")


def test_a_host_that_does_not_respond(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with pytest.raises(UserError, match="times in a row"):
        download("http://127.0.0.1:9/file.pth", tmp_path / "file.pth", pause=0.001)
    with pytest.raises(UserError, match="host cannot be found"):
        download("http://no-such-host.invalid/file.pth", tmp_path / "file.pth", pause=0.001)


def test_parallel_downloads_of_one_file_request_it_once(site: Site, tmp_path: Path) -> None:
    threads = [threading.Thread(target=get, args=(site, tmp_path)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "file.pth").read_bytes() == site.body and len(site.requested) == 1


@pytest.fixture
def entry(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ZooCheckpoint:
    """The only entry of a zoo: a SimSiam checkpoint on that server."""
    buffer = io.BytesIO()
    torch.save(simsiam(resnet()), buffer)
    site.body = buffer.getvalue()
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "zoo"))
    (tmp_path / "configs").mkdir()
    lines = ["title: t", f"url: {site.url}", "layout: simsiam", "branch: online", "licence: MIT", "source: here"]
    (tmp_path / "configs" / "zoo.yaml").write_text("toy:\n" + "".join(f"  {line}\n" for line in lines))
    monkeypatch.setattr(checkpoint_zoo, "ROOT", tmp_path)
    return read_zoo()["toy"]


def test_a_zoo_name_is_accepted_in_place_of_a_path(
    entry: ZooCheckpoint, site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call_main(main, ["zoo:toy", str(tmp_path / "out.pkl"), "--no-verify"]) == 0
    assert " of 10 MB" in capsys.readouterr().err
    record = json.loads(entry.record.read_text())
    assert record["sha256"] == hashlib.sha256(site.body).hexdigest() and record["bytes"] == len(site.body)
    assert call_main(main, ["--inspect", "zoo:toy"]) == 0 and len(site.requested) == 1
    made = ensure_converted("zoo:toy", tmp_path / "trial")
    assert made == tmp_path / "trial" / "weights.pkl" and ensure_converted(str(made), tmp_path) == made


def test_compute_nodes_do_not_download(entry: ZooCheckpoint, site: Site, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"zoo:toy is not downloaded .*run: python tools/convert.py --inspect zoo:toy"):
        ensure_converted("zoo:toy", tmp_path / "trial")
    assert site.requested == []


def test_another_digest_than_at_first_use_is_refused(entry: ZooCheckpoint, site: Site) -> None:
    file = fetch(entry)
    damaged = bytearray(file.read_bytes())
    damaged[5_000_000] ^= 1
    file.write_bytes(damaged)
    with pytest.raises(UserError, match="first use"):
        downloaded_file(entry)
    file.unlink()
    buffer = io.BytesIO()
    torch.save(simsiam(resnet(seed=9)), buffer)
    site.body, site.etag = buffer.getvalue(), '"new"'
    with pytest.raises(UserError, match="first use"):
        fetch(entry)
    assert not file.exists()


def test_a_truncated_download_with_a_matching_length_leaves_no_file(entry: ZooCheckpoint, site: Site) -> None:
    site.plan = [announce(7_000_000)]
    with pytest.raises(UserError, match="not a complete checkpoint"):
        fetch(entry)
    assert not entry.file.exists() and not entry.record.exists()
    site.plan = [respond_fully]
    assert fetch(entry).stat().st_size == len(site.body)


@pytest.mark.parametrize("key", ["sha256", "sha256_prefix", "md5_prefix"])
def test_published_digests_are_checked(entry: ZooCheckpoint, key: str) -> None:
    with pytest.raises(UserError, match=r"published is 0badc0de…?;"):
        fetch(entry.model_copy(update={key: "0badc0de"}))
    assert not entry.file.exists()


def test_unknown_names_and_invalid_entries(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call_main(main, ["zoo:simsiam_200ep_b265", str(tmp_path / "out.pkl")]) == EXIT_USAGE
    assert "did you mean simsiam_200ep_b256" in capsys.readouterr().err
    (tmp_path / "zoo.yaml").write_text("toy: {title: t, ulr: x}\n")
    with pytest.raises(UserError, match=r"zoo.yaml, line 1: toy.ulr: unknown key; did you mean url"):
        read_zoo(tmp_path / "zoo.yaml")
    (tmp_path / "zoo.yaml").write_text("toy: {title: t}\n")
    with pytest.raises(UserError, match=r"zoo.yaml, line 1: toy.url: is missing \(and 4 more\)"):
        read_zoo(tmp_path / "zoo.yaml")


def test_an_unknown_url_names_the_place_of_the_file(entry: ZooCheckpoint) -> None:
    with pytest.raises(UserError, match="its URL is unknown; put the file at"):
        fetch(entry.model_copy(update={"url": "unknown"}))


def test_the_shipped_zoo_is_complete(capsys: pytest.CaptureFixture[str]) -> None:
    known = read_zoo()
    wanted = ("simsiam_100ep_b512", "simsiam_100ep_b256", "simsiam_200ep_b256", "moco_v1_200ep", "moco_v2_200ep")
    wanted += ("moco_v3_100ep", "swav_200ep", "dino", "barlow_twins", "vicreg", "supervised_torchvision_v1")
    wanted += ("supervised_torchvision_v2", "supervised_msra", "supervised_torchvision_d2")
    assert set(wanted) <= set(known)
    for entry in known.values():
        assert entry.layout in LAYOUTS_BY_NAME and entry.branch in ("online", "target")
        assert entry.url == "unknown" or entry.url.startswith("https://")
        assert re.fullmatch(r"unknown|[0-9a-f]{64}", entry.sha256)
        assert re.fullmatch(r"[0-9a-f]*", entry.sha256_prefix + entry.md5_prefix)
    assert call_main(main, ["--list-zoo"]) == 0
    out = capsys.readouterr().out
    assert all(f"zoo:{name}\n" in out for name in known)
