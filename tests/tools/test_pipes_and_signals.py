"""A reader that leaves is no error, Ctrl-C leaves no traceback, and a misspelt word names the nearest one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ssl_transfer.console import call_main
from tools import compare, convert, data, evaluate, launch, lr_search, pretrain, table, transfer

LISTINGS = (
    ["tools/table.py", "--published", "rows"],
    ["tools/launch.py", "plan", "configs/experiments/demo.yaml"],
    ["tools/launch.py", "plan", "configs/experiments/demo.yaml", "--commands"],
    ["tools/data.py", "--help"],
    ["tests/house/measure.py", "--details"],
)


@pytest.mark.parametrize("words", LISTINGS, ids=lambda words: " ".join(words[:2]))
@pytest.mark.parametrize("buffered", ["", "1"])
def test_head_ends_a_listing_with_0(root: Path, words: list[str], buffered: str) -> None:
    read, write = os.pipe()
    os.close(read)  # the reader has left before the first byte
    with os.fdopen(write, "wb") as closed:
        done = subprocess.run(
            [sys.executable, *words],
            cwd=root,
            env={**os.environ, "PYTHONUNBUFFERED": buffered},
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr


@pytest.mark.parametrize("module", ["argparse", "detectron2"])
def test_ctrl_c_during_an_import_is_silent(root: Path, tmp_path: Path, module: str) -> None:
    """`argparse` is imported before `main` starts, `detectron2` by `main` itself."""
    (tmp_path / "slow").mkdir()
    source = f"import pathlib, time\npathlib.Path({str(tmp_path)!r}, 'begun').touch()\ntime.sleep(60)\n"
    (tmp_path / "slow" / f"{module}.py").write_text(source)
    command = ["--config-file", "configs/transfer/voc07.yaml", "--weights", "scratch", "--seed", "1", "--output", "x"]
    child = subprocess.Popen(
        [sys.executable, "tools/transfer.py", *command],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "slow")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "begun").exists() and child.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=30)
    assert (child.returncode, out, err) == (130, b"", b"")


@pytest.mark.parametrize(
    ("main", "words", "nearest"),
    [
        (launch.main, ["statsu", "a.yaml"], "did you mean status"),
        (launch.main, ["submit", "a.yaml", "--cluser", "slurm"], "did you mean --cluster"),
        (launch.main, ["submit", "a.yaml", "--cluster", "slrum"], "did you mean slurm"),
        (launch.main, ["plan", "configs/experiments/dmo.yaml"], "did you mean demo?"),
        (launch.main, ["plan", "configs/experiments/demo.yaml", "--set", "rows.scratch.expected=scrach"], "scratch?"),
        (launch.main, ["plan", "configs/experiments/demo.yaml", "--set", "overlay=configs/overlays/cp.yaml"], "cpu?"),
        (table.main, ["--publishd", "rows"], "did you mean --published"),
        (compare.main, ["a", "b", "--imags", "3"], "did you mean --images"),
        (data.main, ["chek"], "did you mean check"),
        (convert.main, ["a", "b", "--bransh", "online"], "did you mean --branch"),
        (lr_search.main, ["chose"], "did you mean choose"),
        (evaluate.main, ["lineer", "--weights", "a", "--data", "b"], "did you mean linear"),
        (pretrain.main, ["--config-file", "configs/pretrain/simsam_r50_b256_200ep.yaml", "--output", "x"], "simsiam_"),
        (
            transfer.main,
            ["--config-file", "configs/transfer/voc7.yaml", "--weights", "scratch", "--seed", "1", "--output", "x"],
            "did you mean voc07,",
        ),
        (
            transfer.main,
            [
                *("--config-file", "configs/transfer/voc07.yaml", "--weights", "scrach", "--seed", "1"),
                *("--output", "x", "--overlay", "configs/overlays/cpu.yaml"),
            ],
            "did you mean scratch",
        ),
    ],
    ids=lambda value: " ".join(value[:3]) if isinstance(value, list) else None,
)  # fmt: skip
def test_a_misspelt_word_names_the_nearest(
    root: Path,
    main: object,
    words: list[str],
    nearest: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(root)
    assert call_main(main, words) == 2  # type: ignore[arg-type]
    err = capsys.readouterr().err
    assert nearest in err and err.count("\n") == 1
