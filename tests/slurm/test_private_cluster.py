"""What the private cluster can do to a job, so that the other tests may rely on it."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.slurm.private_cluster import BUSY, MAX_SUBMITTED, NODES, PrivateCluster, small_disk, wrap

pytestmark = pytest.mark.slow


def test_the_harsh_cluster_limits_an_unprivileged_user(harsh_cluster: PrivateCluster) -> None:
    cluster, out = harsh_cluster, harsh_cluster.home / "out"
    words = ("sbatch", "--parsable", "--gpus-per-node=2", f"--output={out}", f"--wrap={sys.executable} -c 'print(7)'")
    words += ("--export=PATH", "--hold")
    done = [cluster.as_user(*words) for _ in range(MAX_SUBMITTED + 1)]
    assert [one.returncode for one in done] == [0] * MAX_SUBMITTED + [1]
    assert "QOSMaxSubmitJobPerUserLimit" in done[-1].stderr
    assert "Invalid job array" in cluster.as_user("sbatch", "--array=0-5", "--wrap=true").stderr
    ids = [one.stdout.strip() for one in done[:-1]]
    cluster.run("scontrol", "release", ",".join(ids), check=True)
    cluster.wait(lambda: not cluster.run("squeue", "-h"), "the jobs do not end")
    assert set(out.read_text().split()) == {"7"}, "the user's jobs can run this Python"
    words = ("sacct", "-X", "-n", "-o", "State", "-j", ",".join(ids))
    cluster.wait(lambda: cluster.run(*words).split() == ["COMPLETED"] * len(ids), "accounting does not know the end")


def test_a_job_of_partition_high_preempts_one_of_low(cluster: PrivateCluster, tmp_path: Path) -> None:
    words = ("sbatch", "--parsable", "--exclusive", "--nodes=2", "--output=/dev/null", "--wrap=sleep 30")
    low = cluster.run(*words, "--partition=low", check=True).strip()
    cluster.wait(lambda: cluster.run("squeue", "-h", "-j", low, "-o", "%T").strip() == "RUNNING", "it does not start")
    cluster.run(*words, "--partition=high", check=True)
    cluster.wait(lambda: cluster.run("squeue", "-h", "-j", low, "-o", "%T").strip() == "PENDING", "it is not preempted")
    cluster.empty()


def test_one_node_does_not_see_a_folder(cluster: PrivateCluster, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/file").touch()
    words = ("srun", "--nodes=2", "--label", "ls", str(tmp_path / "run"))
    with cluster.hidden_on(NODES[1], tmp_path / "run"):
        assert cluster.run(*words) == "0: file\n"
    assert sorted(cluster.run(*words).splitlines()) == ["0: file", "1: file"]


def test_a_full_disk_and_commands_that_fail(
    cluster: PrivateCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with small_disk(tmp_path / "disk", megabytes=1) as disk, pytest.raises(OSError, match="No space left"):
        (disk / "file").write_bytes(bytes(2 << 20))
    monkeypatch.setenv("PATH", f"{wrap(tmp_path / 'bin', 'sbatch', lose_every=2)}:/usr/bin:/bin")
    monkeypatch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
    words = ["sbatch", "--job-name=lost", "--output=/dev/null", "--wrap=true"]
    done = [subprocess.run(words, capture_output=True, text=True) for _ in range(2)]
    assert [one.returncode for one in done] == [0, 1] and done[1].stderr.strip() == BUSY
    assert cluster.run("squeue", "-h", "-t", "all", "-n", "lost", "-o", "%j").split() == ["lost", "lost"]
    start = time.monotonic()
    subprocess.run([wrap(tmp_path / "bin", "squeue", seconds=0.5) / "squeue"], check=True, capture_output=True)
    assert time.monotonic() - start > 0.5
    cluster.empty()
