"""docs/reference/api.md: its examples run, in the page's order."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ssl_transfer.environment import ROOT
from ssl_transfer.errors import UserError

PAGE = ROOT / "docs/reference/api.md"


def blocks() -> dict[str, str]:
    """The page's Python blocks by their headings."""
    sections = PAGE.read_text().split("\n## ")[1:]
    return {text.partition("\n")[0]: "".join(re.findall(r"```python\n(.*?)```", text, re.S)) for text in sections}


def test_each_section_has_an_example() -> None:
    assert len(blocks()) == 5 and all(blocks().values())


def test_importing_it_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'detectron2', 'numpy', 'pydantic', 'yaml', 'PIL'}"
    code = (
        f"import sys; before = set(sys.modules); from transfer import *; assert not {heavy} & set(sys.modules) - before"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_losses_and_heads_need_no_config() -> None:
    names: dict[str, Any] = {}
    exec(blocks()["Losses and heads"], names)
    output, loss = names["output"], names["loss"].detach()
    assert -1 <= output.loss.item() <= 1 and output.embedding.shape == (8, 512)
    # Batch statistics, not running ones: the same images and weights give the loss that the method computed.
    assert loss.item() == pytest.approx(output.loss.item(), abs=1e-5)
    assert names["contrast"].item() > 0


def test_results_are_flat_and_tabulated() -> None:
    from transfer import read_results, table

    trials = read_results(ROOT / "tests/compat/54cff5b/measures")
    assert {trial["task"] for trial in trials} == {"linear_3ep"}
    assert all(not isinstance(value, dict) for trial in trials for value in trial.values())
    linear = trials[0]
    assert (linear["toy"], linear["comparable"]) == (True, False) and 0 <= linear["linear/top1"] <= 100
    assert linear["settings/LINEAR.EPOCHS"] == 3 and Path(linear["source"]).name == "result.json"
    assert table(ROOT / "tests/compat/54cff5b/measures", format="csv", allow_toy=True).count("\n") >= 3


def test_wrong_arguments_are_one_line() -> None:
    from transfer import convert, fine_tune, read_results, table

    with pytest.raises(UserError, match="runs/gone does not exist"):
        read_results("runs/gone")
    with pytest.raises(UserError, match=r"'markdwon' is unknown; .*md"):
        table(format="markdwon")
    with pytest.raises(UserError, match=r"gone\.pth"):
        convert("gone.pth", "out.pkl")
    with pytest.raises(UserError, match="voc7 does not exist; did you mean voc07"):
        fine_tune("voc7", "scratch", "runs/x", seed=1)


@pytest.mark.slow
def test_the_page_from_checkpoint_to_table(
    tmp_path: Path, toy_detection: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch
    import torchvision

    weights = torchvision.models.resnet50().state_dict()
    encoder = {f"module.encoder_q.{k}": v for k, v in weights.items() if not k.startswith("fc.")}
    (tmp_path / "datasets/toy").mkdir(parents=True)
    (tmp_path / "datasets/toy/detection").symlink_to(toy_detection)
    monkeypatch.chdir(tmp_path)
    torch.save({"epoch": 200, "arch": "resnet50", "state_dict": encoder}, "moco_v2.pth.tar")
    names: dict[str, Any] = {}
    for heading in ("Convert a checkpoint", "Fine-tune and evaluate", "Read results", "Tabulate"):
        exec(blocks()[heading], names)
    assert names["manifest"].proof is not None and names["manifest"].source.branch == "online"
    assert names["result"]["status"] == "done" and names["result"]["settings"]["iterations"] == 2
    (trial,) = names["trials"]
    assert trial["bbox/AP50"] == names["result"]["metrics"]["bbox"]["AP50"] and trial["row"] == "moco_v2"
    assert "moco_v2" in capsys.readouterr().out and names["page"].startswith("<!")
