"""One private Slurm for all tests of this folder."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm import private_cluster
from tests.slurm.private_cluster import PrivateCluster
from tests.slurm.slurm_world import SlurmWorld, make_slurm_world


def _running(is_harsh: bool) -> Iterator[PrivateCluster]:
    why = private_cluster.missing(is_harsh)
    if why is not None:
        (pytest.fail if os.environ.get("REQUIRE_ALL") == "1" else pytest.skip)(why)
    with tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True) as base:  # socket paths are short
        running = PrivateCluster(Path(base), is_harsh)
        try:
            running.start()
            yield running
        finally:
            running.stop()
            assert not running.processes(), "something of the private cluster is left"


@pytest.fixture(scope="session")
def cluster() -> Iterator[PrivateCluster]:
    """Two nodes on this machine; nothing of it outlives the tests."""
    yield from _running(is_harsh=False)


@pytest.fixture(scope="session")
def harsh_cluster() -> Iterator[PrivateCluster]:
    """The same with accounting, limits, fake GPUs and an unprivileged user."""
    yield from _running(is_harsh=True)


@pytest.fixture
def world(cluster: PrivateCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmWorld]:
    """A small experiment whose jobs go to the private cluster; its queue is empty before and after."""
    for name, value in {**cluster.environment, "FAKE_DIR": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    yield make_slurm_world(tmp_path, cluster)
    cluster.empty()


@pytest.fixture
def harsh_world(harsh_cluster: PrivateCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmWorld]:
    """The same on the harsh cluster, as root."""
    for name, value in {
        **harsh_cluster.environment,
        "FAKE_DIR": str(tmp_path),
        "XDG_CONFIG_HOME": str(tmp_path),
    }.items():
        monkeypatch.setenv(name, value)
    yield make_slurm_world(tmp_path, harsh_cluster)
    harsh_cluster.empty()
