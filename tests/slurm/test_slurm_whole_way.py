"""The real tools on the private cluster: pre-train, convert, search the lr, fine-tune and tabulate, over both nodes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.slurm.slurm_world import SlurmWorld
from transfer.experiment.commands import Tools

pytestmark = pytest.mark.slow
SHORT = {"SOLVER.MAX_ITER": 4, "SOLVER.STEPS": [3], "SOLVER.WARMUP_ITERS": 1, "TEST.PRECISE_BN.NUM_ITER": 1}


def experiment(world: SlurmWorld) -> None:
    """configs/experiments/demo.yaml with every stage cut to a few steps, two processes on two nodes each."""
    toy, small = world.base / "toy", {"cpus": 1, "memory_gb": 1}
    recipe = {"SOLVER.EPOCHS": 1, "SOLVER.BATCH_SIZE": 8, "DATA.SIZE": 32, "LOG.PERIOD": 1}
    content = {
        "name": world.base.name,
        "run_dir": str(world.run_dir),
        "overlay": "configs/overlays/cpu.yaml",
        "data": {"images": str(toy / "photos"), "detection": str(toy / "detection")},
        "rows": {
            "simsiam": {
                "label": "SimSiam",
                "expected": "simsiam_base",
                "pretrain": {"config": "configs/pretrain/simsiam_r50_b256_200ep_base.yaml", "overrides": recipe},
            }
        },
        "tasks": {"voc07": {"config": "configs/transfer/voc07.yaml", "overrides": SHORT}},
        "lr_search": {"grid": [0.002], "select_on": "test"},
        "resources": {
            "default": {**small, "nodes": 2, "gpus": 0, "tasks": 1, "hours": 1},
            **dict.fromkeys(("convert", "choose", "table"), small),
        },
    }
    world.file.write_text(yaml.safe_dump(content, sort_keys=False))


def test_from_images_to_table_over_both_nodes(world: SlurmWorld, root: Path) -> None:
    sizes = ["--photos", "16", "--voc2007", "8", "6", "--voc2012", "4", "4", "--coco", "8", "6"]
    subprocess.run([sys.executable, root / "tools/data.py", "toy", world.base / "toy", *sizes], check=True, cwd=root)
    experiment(world)
    world.tools = Tools(python=sys.executable)
    assert world.submit() == 0
    statuses = world.wait_until_over(700)
    assert set(statuses.values()) == {"done"}, {name: world.state(name).error for name in statuses}
    graph = world.open().graph

    def result(name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((world.run_dir / graph[name].outputs[0]).read_text())
        return found

    chosen = result("choose.simsiam.voc07")["chosen"]
    trial = result("finetune.simsiam.voc07.s1")
    assert chosen == 0.002 and trial["settings"]["lr"] == chosen
    assert trial["lr_search"]["chosen"] == chosen
    assert trial["settings"]["num_processes"] == 2
    assert trial["guards"]["weights_loaded"].startswith("265/265")
    assert trial["weights"]["sha256"] and trial["environment"]["commit"] and trial["environment"]["host"]
    assert result("pretrain.simsiam")["num_processes"] == 2
    assert "SimSiam" in (world.run_dir / "table.md").read_text()
