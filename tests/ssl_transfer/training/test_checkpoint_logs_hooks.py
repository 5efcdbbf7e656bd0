"""Checkpoint files, logs and hooks that every trainer shares."""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import subprocess
import sys
import tracemalloc
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from detectron2.engine.train_loop import HookBase, TrainerBase
from detectron2.utils.events import EventStorage

from ssl_transfer.console import CLEAR
from ssl_transfer.errors import Preempted, UserError
from ssl_transfer.training.checkpoint import CheckpointFolder, load_checkpoint, save_checkpoint
from ssl_transfer.training.distributed import handle_signals
from ssl_transfer.training.divergence import Diverged
from ssl_transfer.training.hooks import StopOnSignal
from ssl_transfer.training.logs import ProgressLine, log_to_folder, truncate_metrics


def no_reason(_content: dict[str, object]) -> None:
    return None


def test_checkpoints_are_listed_by_number_and_the_newest_is_the_highest(tmp_path: Path) -> None:
    checkpoints = CheckpointFolder(tmp_path, "model")
    assert checkpoints.files() == [] and checkpoints.newest() is None and checkpoints.last() is None
    for number in (10, 9, 12345678):
        checkpoints.write(checkpoints.path(number).name, {"iteration": number})
    (tmp_path / "model_final.pth").touch()
    (tmp_path / "other_0000099.pth").touch()
    (tmp_path / ".model_0000011.pth.ab.tmp").touch()
    assert [path.name for path in checkpoints.files()] == [
        "model_0000009.pth",
        "model_0000010.pth",
        "model_12345678.pth",
    ]
    assert checkpoints.newest() == tmp_path / "model_12345678.pth" == checkpoints.last()
    assert checkpoints.number("model_0000010.pth") == 10 and checkpoints.number("model_final.pth") is None
    checkpoints.remove_partial()
    assert not list(tmp_path.glob(".*"))


def test_a_last_checkpoint_that_is_gone_is_refused(tmp_path: Path) -> None:
    (tmp_path / "last_checkpoint").write_text("model_0000009.pth")
    with pytest.raises(UserError, match=r"last_checkpoint names model_0000009\.pth"):
        CheckpointFolder(tmp_path, "model").last()


def test_a_checkpoint_comes_back_and_anything_else_is_refused_with_the_remedy(tmp_path: Path) -> None:
    file = tmp_path / "a.pth"
    save_checkpoint(file, {"x": torch.tensor([1.5])})
    assert load_checkpoint(file, no_reason, "remove it")["x"].tolist() == [1.5]
    with pytest.raises(UserError, match=r"a\.pth.*of format 2.*remove it"):
        load_checkpoint(file, lambda _: "it is of format 2", "remove it")
    torch.save([1], file)
    with pytest.raises(UserError, match=r"a\.pth.*remove it"):
        load_checkpoint(file, no_reason, "remove it")
    file.write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(UserError, match=r"a\.pth.*remove it"):
        load_checkpoint(file, no_reason, "remove it")


def test_metrics_are_cut_at_the_iteration_that_is_done_again(tmp_path: Path) -> None:
    file = tmp_path / "metrics.json"
    truncate_metrics(file, 0)
    lines = ['{"iteration": 3}\n', '{"iteration": 4, "loss": 1.0}\n', '{"iteration": 2}\n', '{"iterat']
    file.write_text("".join(lines))
    truncate_metrics(file, 4)
    assert file.read_text() == lines[0] + lines[2]


def test_log_lines_reach_the_folder_and_only_bugs_keep_their_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = logging.getLogger("shared.test")
    formatter = logging.Formatter("%(message)s")
    with log_to_folder(tmp_path, {"shared": logging.INFO}, formatter=formatter):
        log.info("step one")
        for error in (Diverged("the loss is nan", 4, [0.5, 0.25]), ValueError("ours")):
            try:
                raise error
            except (Diverged, ValueError):
                log.exception("failed")
    log.info("after the block")
    text = (tmp_path / "log.txt").read_text()
    assert text.startswith("step one\nfailed\nTraceback") and "ValueError: ours" in text and "Diverged" not in text
    assert "after" not in text and capsys.readouterr().err == text


@pytest.mark.parametrize("rank_files", [False, True])
def test_other_ranks_log_to_their_own_file_or_only_warn(
    tmp_path: Path, rank_files: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    log = logging.getLogger("shared.test")
    formatter = logging.Formatter("%(message)s")
    with log_to_folder(tmp_path, {"shared": logging.INFO}, rank=1, rank_files=rank_files, formatter=formatter):
        log.info("detail")
        log.warning("careful")
    files = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert files == ({"log.txt.rank1": "detail\ncareful\n"} if rank_files else {})
    assert capsys.readouterr().err == ("" if rank_files else "careful\n")


def test_divergence_names_iteration_and_learning_rates() -> None:
    error = Diverged("the loss is nan", 7, [0.05, 0.1])
    assert str(error) == "the loss is nan at iteration 7, learning rate 0.05, 0.1"
    assert error.record() == {"iteration": 7, "lr": 0.05, "what": "the loss is nan"}
    assert str(Diverged("the loss is nan")) == "the loss is nan"


class Loop(TrainerBase):
    """Sends itself a signal in one step."""

    def __init__(self, number: signal.Signals, at: int) -> None:
        super().__init__()
        self.model, self.number, self.at = torch.nn.Linear(1, 1), number, at

    def run_step(self) -> None:
        if self.iter == self.at:
            os.kill(os.getpid(), self.number)


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C as a terminal has it: what a shell starts in its background ignores it, and so would the loop."""
    with handle_signals([signal.SIGINT], signal.default_int_handler):
        yield


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2, signal.SIGINT])
def test_a_signal_stops_the_loop_after_its_step_and_a_save(number: signal.Signals) -> None:
    before, saved = signal.getsignal(number), []
    loop = Loop(number, at=3)
    loop.register_hooks([StopOnSignal(lambda: saved.append(loop.iter))])
    with pytest.raises(Preempted, match="4 of 10"):
        loop.train(0, 10)
    assert saved == [3] and signal.getsignal(number) == before
    last = Loop(number, at=9)
    last.register_hooks([StopOnSignal()])
    last.train(0, 10)
    assert last.iter == 10


def test_a_signal_after_the_last_step_ends_the_evaluation() -> None:
    class Evaluates(HookBase):
        def after_train(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    stop, loop = StopOnSignal(), Loop(signal.SIGTERM, at=99)
    loop.register_hooks([Evaluates(), stop])
    with pytest.raises(Preempted, match="all iterations are saved"):
        loop.train(0, 2)
    stop.after_train()
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_second_ctrl_c_leaves_at_once(root: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "from ssl_transfer.training.distributed import handle_stop\n"
        "with handle_stop(lambda: print('asked', flush=True)):\n"
        "    for _ in range(2):\n        os.kill(os.getpid(), signal.SIGINT)\n"
        "print('never')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n{code}"],
        cwd=root,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (130, "asked\n")
    assert "Ctrl-C again leaves at once" in done.stderr


class Line(ProgressLine):
    def describe(self, storage: EventStorage, now: Mapping[str, float], done: int) -> str:
        return f"{done}/{self.total} loss {now['loss']:g}"


@pytest.mark.parametrize("terminal", [False, True])
def test_the_first_line_comes_after_the_first_step_and_a_terminal_has_a_bar_instead(
    tmp_path: Path, terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stderr(io.StringIO):
        def isatty(self) -> bool:
            return terminal

    stream = Stderr()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    levels = {"ssl_transfer": logging.INFO, "detectron2": logging.INFO}
    with log_to_folder(tmp_path, levels, formatter=logging.Formatter("%(message)s")), EventStorage(0) as storage:
        line = Line(9, "loss")
        for step in range(3):
            storage.iter = step
            storage.put_scalar("loss", 5.0 - step)
            line.draw()
        line.write()
        line.write()
        logging.getLogger("detectron2.checkpoint").warning("chatter")
        warnings.warn("of torch", stacklevel=1)
        logging.getLogger("torch.fx").warning("of torch, too")
    log = (tmp_path / "log.txt").read_text()
    assert log.splitlines()[:3] == ["1/9 loss 5", "3/9 loss 3", "chatter"]
    assert "of torch" in log and "of torch, too" in log
    assert "chatter" not in stream.getvalue() and "of torch" not in stream.getvalue()
    if terminal:
        assert stream.getvalue().count(CLEAR) == 3 and "\n" not in stream.getvalue()
    else:
        assert stream.getvalue() == "1/9 loss 5\n3/9 loss 3\n"


def test_a_resumed_run_reads_a_large_metrics_file_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    with open(path, "w") as stream:
        stream.writelines(json.dumps({"iteration": i, "padding": "x" * 500}) + "\n" for i in range(10_000))
        stream.write('{"iteration": 99')
    tracemalloc.start()
    truncate_metrics(path, 9_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e6
    lines = path.read_text().splitlines()
    assert len(lines) == 9_000 and json.loads(lines[-1])["iteration"] == 8_999
