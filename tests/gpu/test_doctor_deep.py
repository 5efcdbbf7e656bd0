"""`doctor.py --deep`: what its command line says and answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ssl_transfer.console import call_main
from tools import doctor
from transfer.doctor.finding import Finding, healthy, render


def test_deep_findings_stand_below_the_others_and_in_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "examine", lambda _root: [Finding("torch", "ok", "2")])
    monkeypatch.setattr(doctor, "examine_deeply", lambda: [Finding("C4", "skipped", "no GPU here", "", "unknown")])
    assert call_main(doctor.main, ["--deep"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["ok       torch  2", "skipped  C4     no GPU here", "                normal: unknown"]
    assert call_main(doctor.main, ["--deep", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[1]["normal"] == "unknown"
    assert call_main(doctor.main, []) == 0
    assert "C4" not in capsys.readouterr().out


def test_wrong_numbers_are_exit_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "examine", lambda _root: [])
    monkeypatch.setattr(doctor, "examine_deeply", lambda: [Finding("C4 fp32 on cuda:0", "wrong", "loss 1e-02", "stop")])
    assert call_main(doctor.main, ["--deep"]) == 1
    assert capsys.readouterr().out.splitlines()[1].strip() == "→ stop"


def test_of_many_processes_the_first_prints(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "examine", lambda _root: [Finding("torch", "ok", "2")])
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "127.0.0.1"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert call_main(doctor.main, []) == 0
    assert capsys.readouterr().out == ""
    monkeypatch.setenv("RANK", "0")
    assert call_main(doctor.main, []) == 0
    assert "torch" in capsys.readouterr().out


def test_skipped_is_healthy_and_the_normal_value_precedes_the_advice() -> None:
    findings = [Finding("a", "skipped", "1"), Finding("b", "warning", "2", "do this", "3")]
    assert healthy(findings) and not healthy([*findings, Finding("c", "wrong", "4")])
    assert render(findings).splitlines()[1:] == ["warning  b  2", "            normal: 3", "            → do this"]


def test_without_a_checkout_deep_is_skipped_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "ROOT", tmp_path)
    (finding,) = doctor.examine_deeply()
    assert finding.state == "skipped" and "doctor.py --deep" in finding.advice
