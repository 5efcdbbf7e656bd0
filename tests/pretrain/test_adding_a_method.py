"""The worked example of docs/guides/methods.md: a new method needs only its file and its recipe."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import yaml

from pretrain import methods
from ssl_transfer.console import call_main
from ssl_transfer.training.distributed import launch
from tools.pretrain import main

PAGE = Path(__file__).resolve().parents[2] / "docs/guides/methods.md"
WORDS = ["MODEL.ARCH", "resnet18", "MODEL.PROJ_HIDDEN", "16", "MODEL.DIM", "8", "DATA.SIZE", "32", "DATA.WORKERS", "0"]
WORDS += ["SOLVER.BATCH_SIZE", "4", "SOLVER.EPOCHS", "2", "SOLVER.WARMUP_EPOCHS", "0", "LOG.PERIOD", "1"]


def _block(language: str) -> str:
    found = re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(found) == 1
    block: str = found[0]
    return block


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that holds the example's file and counts as one of `pretrain.methods`."""
    (tmp_path / "barlow_twins.py").write_text(_block("python"))
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    return tmp_path


def test_method_needs_only_its_file_and_recipe(folder: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, output = folder / "recipe.yaml", folder / "out"
    recipe.write_text(_block("yaml"))
    words = ["--config-file", str(recipe), "--output", str(output), *WORDS, "DATA.ROOT", str(images)]
    assert call_main(main, [*words, "BARLOW_TWINS.REDUNDANCY", "-1.0"]) == 2
    assert "BARLOW_TWINS.REDUNDANCY is -1.0; it must be above 0" in capsys.readouterr().err
    assert call_main(main, words) == 0
    assert (output / "backbone.safetensors").exists()
    rows = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    assert len(rows) == 6 and all(-1 <= row["correlation"] <= 1 for row in rows)
    assert call_main(main, [*words[:-2], "DATA.ROOT", str(images), "METHOD", "barlow"]) == 2
    assert "did you mean barlow_twins" in capsys.readouterr().err


def test_recipe_is_complete() -> None:
    assert yaml.safe_load(_block("yaml"))["METHOD"] == "barlow_twins"


def _gradients(folder: str) -> None:
    """Of the narrowest network, over the processes there are, averaged as in training."""
    import torch.distributed as dist

    methods.__path__.append(folder)
    module = methods._module("barlow_twins")
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    torch.manual_seed(0)
    views = torch.randn(2, 8, 6, dtype=torch.float64)
    weight = torch.nn.Linear(6, 4, bias=False).double()
    output = module.BarlowTwins(weight, torch.nn.Identity(), 4, 0.0051)(*views[:, rank::world])
    output.loss.backward()
    gradient = weight.weight.grad
    assert gradient is not None
    if world > 1:
        dist.all_reduce(gradient)
        gradient /= world
    torch.save((output.loss.detach(), gradient), Path(folder) / f"{world}.pt")


def test_two_processes_equal_one_with_the_whole_batch(folder: Path) -> None:
    for count in (1, 2):
        launch(_gradients, (str(folder),), count)
    (one, alone), (two, together) = (torch.load(folder / f"{count}.pt") for count in (1, 2))
    torch.testing.assert_close(two, one)
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-13)
