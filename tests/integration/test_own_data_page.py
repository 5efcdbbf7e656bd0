"""docs/guides/own_data.md, run from top to bottom on generated images, with a wheel: what stands there works."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from ssl_transfer.console import call_main
from ssl_transfer.errors import EXIT_FAILURE, EXIT_OK
from tests.integration.commands import run_script
from tools.data import main as data
from transfer.engine.config import load_config
from transfer.engine.result import metric
from transfer.toy.build import Size, build_toy_sets

PAGE = Path(__file__).resolve().parents[2] / "docs/guides/own_data.md"
ON = 'ON="--overlay cpu"'
# As the CPU overlay, but each step as small as it can be.
TINY = {
    "pretrain": {
        "TOY": True,
        "DATA": {"SIZE": 32, "WORKERS": 0},
        "SOLVER": {"BATCH_SIZE": 16, "EPOCHS": 1},
        "MODEL": {"PROJ_HIDDEN": 64, "DIM": 64, "PRED_DIM": 16},
        "LOG": {"TENSORBOARD": False},
    },
    "transfer": {
        "TRANSFER": {"TOY": True},
        "MODEL": {
            "DEVICE": "cpu",
            "ROI_HEADS": {"BATCH_SIZE_PER_IMAGE": 4},
            "ROI_BOX_HEAD": {"POOLER_RESOLUTION": 4},
            "RPN": {
                "PRE_NMS_TOPK_TRAIN": 50,
                "POST_NMS_TOPK_TRAIN": 10,
                "PRE_NMS_TOPK_TEST": 20,
                "POST_NMS_TOPK_TEST": 3,
            },
        },
        "INPUT": {"MIN_SIZE_TRAIN": [48], "MIN_SIZE_TEST": 48},
        "DATALOADER": {"NUM_WORKERS": 0},
        "SOLVER": {"IMS_PER_BATCH": 2, "MAX_ITER": 2, "STEPS": [], "WARMUP_ITERS": 0},
        "TEST": {"PRECISE_BN": {"NUM_ITER": 1}},
    },
}


def blocks(language: str, page: Path = PAGE) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with nothing but the page's YAML files below own/."""
    (tmp_path / "own").mkdir()
    for text in blocks("yaml"):
        (tmp_path / text.split()[1]).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_page_s_tasks_are_what_it_says(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build_toy_sets(place / "own/toy", size=Size(photos=8, voc2007=(6, 3), voc2012=(3, 3), coco=(5, 5)))
    for name, target in (("voc", "toy/detection/VOC2007"), ("coco", "toy/detection/coco")):
        (place / "own" / name).symlink_to(target)
    for task, kind in (("own_voc", "voc2012"), ("own_coco", "coco")):
        cfg = load_config(Path(f"own/{task}.yaml"), overrides=("MODEL.DEVICE", "cpu")).cfg
        assert task == cfg.TRANSFER.TASK and metric(cfg) == kind and cfg.SOLVER.MAX_ITER == 4000
        assert call_main(data, ["check", "--config-file", f"own/{task}.yaml"]) == EXIT_OK
    assert "own_voc_train" in capsys.readouterr().out
    (place / "own/voc/Annotations").rename(place / "own/voc/elsewhere")
    assert call_main(data, ["check", "--config-file", "own/own_voc.yaml"]) == EXIT_FAILURE


def test_the_page_is_read_whole() -> None:
    assert len(blocks("yaml")) == 3 and len(blocks("bash")) >= 9
    assert sum(ON in block for block in blocks("bash")) == 1
    options = {"EXTENSION", "YEAR", "COUNT", "ANNOTATIONS", "IMAGE_SET", "FOLDER", "LAYOUT"}
    from ssl_transfer.formats.splits import SplitEntry

    assert (
        set(SplitEntry.model_fields)
        == options
        == set(re.findall(r"^\| `([A-Z_]+)` \|", PAGE.read_text(), re.MULTILINE))
    )


@pytest.mark.slow
def test_the_page_runs_from_top_to_bottom(place: Path, wheel_bin: Path) -> None:
    (place / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    script = "\n".join(blocks("bash")).replace(ON, 'ON="--overlay tiny"')
    script = script.replace("toy own/toy\n", "toy own/toy --photos 32 --voc2007 12 4 --coco 6 5\n")
    run_script(script, place, wheel_bin)
    results = sorted((place / "own/runs/table").rglob("result.json"))
    assert len(results) == 5 and (place / "own/runs/table.html").is_file()
    found = [json.loads(file.read_text()) for file in results]
    assert {result["task"] for result in found} == {"own_voc", "own_coco"}
    chosen = json.loads((place / "own/runs/search/lr_search.json").read_text())["chosen"]
    searched = [result for result in found if "lr_search" in result]
    assert len(searched) == 2 and {result["settings"]["lr"] for result in searched} == {chosen}
    assert all(result["weights"]["name"] in ("simsiam", "scratch") for result in found)
