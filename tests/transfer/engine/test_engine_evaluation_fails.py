"""An evaluation that fails: before the first step where it can be known, else with the command that repeats it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ssl_transfer.console import call_main
from ssl_transfer.errors import EXIT_OK, EXIT_USAGE, UserError
from tools.transfer import main
from transfer.engine.prepare import TrialRequest, command_of
from transfer.engine.trial import run_trial
from transfer.evaluation.coco_evaluator import HotCOCOEvaluator
from transfer.evaluation.voc_evaluator import VOCEvaluator

RequestFactory = Callable[..., TrialRequest]


def break_it(*_: Any) -> None:
    raise KeyError("area")


def test_an_evaluator_that_cannot_measure_the_split_is_found_before_the_first_step(
    make_request: RequestFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = make_request(task="coco")
    monkeypatch.setattr(HotCOCOEvaluator, "_measure", break_it)
    with pytest.raises(
        UserError, match=r"instances_val2017\.json: the evaluator hotcoco fails on coco_2017_val .*area"
    ):
        run_trial(request)
    assert not list(request.output.glob("*.pth")) and not (request.output / "metrics.json").exists()


def test_one_that_fails_after_the_training_names_the_command_that_evaluates_the_kept_weights(
    make_request: RequestFactory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    request = make_request(output=tmp_path / "a trial")
    whole, calls = VOCEvaluator.evaluate, iter(range(9))

    def fail_later(self: VOCEvaluator) -> Any:
        return whole(self) if next(calls) == 0 else break_it()  # 0: the rehearsal

    with monkeypatch.context() as patch:
        patch.setattr(VOCEvaluator, "evaluate", fail_later)
        words = shlex.split(command_of(request))
        assert words[:2] == ["python", "tools/transfer.py"]
        assert call_main(main, words[2:]) == EXIT_USAGE
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: the evaluation failed (KeyError: 'area')")
    assert (request.output / "model_final.pth").is_file() and not (request.output / "result.json").exists()
    assert "Traceback" in (request.output / "log.txt").read_text()
    found = re.search(r"python (tools/transfer\.py .*)", said)
    assert found is not None
    steps = len((request.output / "metrics.json").read_text().splitlines())
    assert call_main(main, shlex.split(found[1])[1:]) == EXIT_OK
    assert json.loads((request.output / "result.json").read_text())["metrics"]["bbox"]["AP"] is not None
    assert len((request.output / "metrics.json").read_text().splitlines()) <= steps + 1  # nothing was trained again
