"""A row whose weights are `zoo:NAME`, `hf-hub:ORG/NAME` or a detector's folder: planned, and fetched by `submit`."""

from __future__ import annotations

import functools
import io
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from tests.transfer.experiment.small_world import World
from tests.transfer.weights.hub_server import COMMITS, Hub
from transfer.weights import checkpoint_zoo


class Quiet(SimpleHTTPRequestHandler):
    """Serves a folder and counts requests."""

    requests: list[str]

    def log_message(self, *_: object) -> None:
        self.requests.append(self.path)


def small(url: str) -> checkpoint_zoo.ZooCheckpoint:
    return checkpoint_zoo.ZooCheckpoint(
        name="small", title="", url=url, layout="simsiam", branch="online", licence="none", source="this test"
    )


@pytest.fixture
def served(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A zoo of one checkpoint that lies on a server on this machine; the requests to it."""
    folder, cache = tmp_path_factory.mktemp("server"), tmp_path_factory.mktemp("cache")
    torch.save({"state_dict": {"module.encoder.conv1.weight": torch.ones(2)}}, folder / "small.pth")
    requests: list[str] = []
    handler = type("Counting", (Quiet,), {"requests": requests})
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/small.pth"
    entry = small(url)
    monkeypatch.setenv(checkpoint_zoo.FOLDER_VARIABLE, str(cache))
    monkeypatch.setattr(checkpoint_zoo, "read_zoo", lambda path=None: {"small": entry})
    yield requests
    server.shutdown()
    server.server_close()


def use(world: World, weights: str) -> None:
    text = world.file.read_text()
    world.file.write_text(text.replace("tasks:", f"  public: {{weights: '{weights}'}}\ntasks:"))


def test_submit_downloads_once_and_converts_with_the_zoo_s_layout(
    world: World, served: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    use(world, "zoo:small")
    assert world.launch("plan") == 0
    assert "submit would first download zoo:small (row public)" in capsys.readouterr().err
    assert served == []
    assert world.launch("submit") == 0
    assert len(served) == 1
    command = world.open().graph["convert.public"].commands(world.tools)[0]
    assert Path(command[2]).is_file()
    assert command[-4:] == ("--source", "simsiam", "--branch", "online")
    assert set(world.actions().values()) == {"done"}
    assert world.launch("submit") == 0
    assert len(served) == 1


def test_an_unknown_zoo_name_is_one_line(world: World, served: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    use(world, "zoo:smal")
    assert world.launch("submit") == 2
    err = capsys.readouterr().err
    assert "zoo:smal" in err and "did you mean small?" in err and err.count("\n") == 1
    assert not world.run_dir.exists() and served == []


def test_an_unreachable_server_leaves_nothing(
    world: World, served: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = small("http://127.0.0.1:9/none.pth")
    monkeypatch.setattr(checkpoint_zoo, "read_zoo", lambda path=None: {"small": entry})
    monkeypatch.setattr("transfer.weights.download.time.sleep", lambda seconds: None)
    use(world, "zoo:small")
    assert world.launch("submit") == 2
    assert capsys.readouterr().err.count("error: ") == 1
    assert not world.run_dir.exists()


def test_submit_downloads_from_the_hub_and_keeps_the_commit(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub, buffer = Hub(), io.BytesIO()
    torch.save({"conv1.weight": torch.ones(2)}, buffer)
    hub.files["pytorch_model.bin"] = buffer.getvalue()
    for name, value in (("HF_ENDPOINT", f"http://127.0.0.1:{hub.port}"), ("HF_HOME", str(tmp_path / "hf"))):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(checkpoint_zoo.FOLDER_VARIABLE, str(tmp_path / "zoo"))
    use(world, "hf-hub:org/net")
    assert world.launch("plan") == 0
    assert "submit would first download hf-hub:org/net (row public)" in capsys.readouterr().err and not hub.seen
    assert world.launch("submit") == 0
    job = world.open().graph["convert.public"]
    assert COMMITS[0] in job.commands(world.tools)[0][2] and "--source" not in job.commands(world.tools)[0]
    hub.head, requests = COMMITS[1], len(hub.seen)
    assert world.launch("submit") == 0 and len(hub.seen) == requests
    assert world.open().graph["convert.public"] == job
    hub.server.shutdown()
    hub.server.server_close()


def test_a_detectors_folder_is_a_row(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trial = tmp_path / "trial"
    trial.mkdir()
    use(world, str(trial))
    assert world.launch("plan") == 2
    err = capsys.readouterr().err
    assert "rows.public.weights" in err and "model_final.pth" in err and err.count("\n") == 1
    torch.save({"model": {"backbone.stem.conv1.weight": torch.ones(2)}}, trial / "model_final.pth")
    assert world.launch("submit") == 0
    assert world.open().graph["convert.public"].commands(world.tools)[0][2] == str(trial / "model_final.pth")
