"""The command line of the converter: start-up time, output, wrong use, time and memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ssl_transfer.console import QUIET, call_main
from ssl_transfer.errors import EXIT_OK, EXIT_USAGE
from tests.transfer.weights.made_checkpoints import moco, resnet, save, simsiam
from tools.convert import main


def command(root: Path, *words: str, code: str = "") -> subprocess.CompletedProcess[str]:
    """Run tools/convert.py (or `code`) in a new process, on one thread."""
    start = ["-c", code] if code else ["tools/convert.py"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *start, *words], cwd=root, capture_output=True, text=True, env=env, check=False
    )


@pytest.mark.parametrize("words", [["--list-zoo"], ["--inspect"], []])
def test_commands_without_a_file_do_not_import_torch(root: Path, words: list[str]) -> None:
    code = (
        "import sys; sys.path.insert(0, '.'); from tools.convert import main; "
        "from ssl_transfer.console import call_main;"
        f"code = call_main(main, {words!r}); assert 'torch' not in sys.modules; sys.exit(code)"
    )
    done = command(root, code=code)
    assert done.returncode == (EXIT_OK if words == ["--list-zoo"] else EXIT_USAGE), done.stderr


def test_the_output_of_a_conversion(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = save(tmp_path / "checkpoint.pth.tar", simsiam(resnet())), tmp_path / "out.pkl"
    assert call_main(main, [str(source), str(out)]) == EXIT_OK
    shown = capsys.readouterr()
    assert [line.split()[0] for line in shown.err.splitlines()] == ["reading", "converting", "verifying"]
    first, *dropped, proof, written = shown.out.splitlines()
    assert first == f"{source}: simsiam, online (state_dict holds module.encoder.* and module.predictor.*)"
    assert dropped[:2] == ["dropped: module.encoder.fc.* (projector)", "dropped: module.predictor.* (predictor)"]
    assert proof.startswith("265/265 tensors · forward max |Δ| ") and proof.endswith(" · detectron2 load exact")
    assert written == f"written: {out}"
    assert call_main(main, [str(source), str(out), "--no-verify"]) == EXIT_OK
    assert "265 tensors · not verified" in capsys.readouterr().out
    monkeypatch.setenv(QUIET, "1")  # as --quiet does
    assert call_main(main, [str(source), str(out)]) == EXIT_OK
    shown = capsys.readouterr()
    assert (shown.out.splitlines(), shown.err) == ([proof, written], "")
    out.unlink()


def test_inspect_describes_the_content_and_the_conversion(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    half = {name: value.half() if value.is_floating_point() else value for name, value in resnet().items()}
    source = save(tmp_path / "moco.pth.tar", moco(half, resnet(seed=1)))
    assert call_main(main, ["--inspect", str(source)]) == EXIT_OK
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"file: {source} (torch, ")
    for line in (
        "epoch: 200",
        "arch: resnet50",
        "tensors in state_dict: 640 (269 float32, 265 float16, 106 int64)",
        "ResNet: state_dict: module.encoder_k.* (resnet50)",
        "layout: moco (state_dict holds module.encoder_q.*, module.encoder_k.*)",
        "branch: online, 265 tensors and 53 counters",
        "branch: target, 265 tensors and 53 counters",
        "dropped: module.queue (queue)",
        "converted up to float32: 265 tensors",
        "would convert: online branch, resnet50, 265/265 tensors, RGB, stride on the 3×3",
    ):
        assert line in lines
    assert list(tmp_path.iterdir()) == [source]


def test_inspect_describes_a_file_that_cannot_be_converted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = {name: value for name, value in resnet().items() if name != "layer2.0.conv1.weight"}
    source = save(tmp_path / "part.pth.tar", simsiam(tensors))
    assert call_main(main, ["--inspect", str(source)]) == EXIT_OK
    out = capsys.readouterr().out
    assert "ResNet: state_dict: module.encoder.* (incomplete, or of another kind)" in out
    assert "would not convert: " in out and "1 are missing: layer2.0.conv1.weight" in out
    assert call_main(main, ["--inspect", str(save(tmp_path / "no.pth", {"epoch": 3}))]) == EXIT_OK
    assert "layout: none (" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["a.pth"], "OUT is missing"),
        (["--inspect", "a.pth", "b.pkl"], "--inspect takes no OUT"),
        (["--list-zoo", "a.pth"], "--list-zoo takes no file"),
        (["a.pth", "b.pkl", "--branch", "both"], "invalid choice: 'both'"),
        (["a.pth", "b.txt"], "must end with one of .pkl, .pth, .pt, .safetensors"),
        (["a.pth", "b.pkl", "--to", "torchvision"], "a file for torchvision must end with .pth or .pt"),
        (["missing.pth", "b.pkl"], "missing.pth does not exist"),
    ],
)
def test_wrong_use(words: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call_main(main, words) == EXIT_USAGE
    error = capsys.readouterr().err
    assert expected in error and error.count("\n") == 1


@pytest.fixture
def released(tmp_path: Path) -> Path:
    """A file of realistic size: no tensors share memory, as in a released checkpoint."""
    tensors = {name: value.clone() for name, value in resnet().items()}
    return save(tmp_path / "checkpoint_0099.pth.tar", simsiam(tensors))


MEASURE = """
import resource, sys
import torch, torchvision, detectron2.modeling, detectron2.checkpoint, safetensors.numpy
import transfer.modeling, transfer.weights.conversion as converter
torch.nn.functional.conv2d(torch.ones(1, 64, 56, 56), torch.ones(64, 64, 3, 3))  # loads the code of convolutions
baseline = int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
converter.convert(sys.argv[1], sys.argv[2], verify=sys.argv[3] == "proof")
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(int(status["VmHWM"].split()[0]) * 1024 - baseline)  # ru_maxrss would count the parent before exec
"""


def _peak_ratio(root: Path, source: Path, out: Path, proof: str) -> float:
    done = command(root, str(source), str(out), proof, code=MEASURE)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1]) / source.stat().st_size


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")
def test_peak_memory_is_at_most_three_times_the_file(root: Path, tmp_path: Path, released: Path) -> None:
    """Above the memory of the imported libraries; with and without verification, to and from every format.

    The smallest of three attempts: now and then glibc keeps the memory of a freed detector, which is one file more.
    """
    steps = [(released, "a.pkl", "proof"), (released, "b.pkl", "bare"), (tmp_path / "0a.pkl", "c.pth", "proof")]
    steps += [(tmp_path / "0c.pth", "d.safetensors", "proof"), (tmp_path / "0d.safetensors", "e.pkl", "proof")]
    for source, out, proof in steps:
        ratio = min(_peak_ratio(root, source, tmp_path / f"{attempt}{out}", proof) for attempt in range(3))
        assert ratio <= 3, f"{source.name} → {out}: {ratio:.2f} times the file"
