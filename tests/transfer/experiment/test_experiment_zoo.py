"""A row whose weights are `zoo:NAME`: planned by name, downloaded by `submit`, converted as listed."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from tests.transfer.experiment.small_world import World
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
