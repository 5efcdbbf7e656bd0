"""The first commands of README and docs/getting-started.md, as they stand there: a wheel, an empty folder, toy data.

The environment holds the wheel and what it needs, and cannot see the checkout. Two things are put into the folder: a
checkpoint, and an overlay named `cpu` with steps as small as they can be, which is found before the shipped one. The
second door, own images, is `test_own_data_page.py`, which runs with the same wheel.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import yaml

from tests.integration.commands import ROOT, run_script
from tests.integration.test_own_data_page import TINY, blocks
from tests.transfer.weights.made_checkpoints import heads, prefixed, resnet, save

ONCE = "--set tasks.voc07.trials=1 --set tasks.voc0712.trials=1"
SMALL = f"--set overlay=cpu {ONCE} --set local.slots=2 --cluster local"
TOY = "--photos 8 --voc2007 6 4 --voc2012 4 4 --coco 6 5"


def commands(page: str, heading: str) -> list[str]:
    """The command lines of the indented blocks of a page's section, continued lines joined, comments left out."""
    text = (ROOT / page).read_text().partition(f"{heading}\n")[2].partition("\n#")[0]
    lines = re.findall(r"^    (\S.*)$", re.sub(r"\\\n\s*", "", text), re.MULTILINE)
    assert lines, f"{page} has no commands below {heading}"
    return [line.partition("  #")[0].rstrip() for line in lines]


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """A folder with a MoCo v2 checkpoint and the smallest overlay."""
    encoder = prefixed(resnet(), "module.encoder_q.") | heads("module.encoder_q.fc.0.weight", "module.queue")
    save(tmp_path / "checkpoint_0199.pth.tar", {"state_dict": encoder | prefixed(resnet(seed=1), "module.encoder_k.")})
    toy = {"TOY": True, "CHECK_COUNTS": False, "CLASSES": ["bus", "cat", "sheep"]}
    section = {**TINY["transfer"], "TRANSFER": toy}
    (tmp_path / "cpu.yaml").write_text(yaml.safe_dump({"transfer": section}))
    return tmp_path


def run(script: list[str], folder: Path, wheel_bin: Path) -> str:
    printed = run_script("\n".join(script), folder, wheel_bin)
    assert str(ROOT) not in printed.replace(sys.prefix, "")  # where what the wheel requires is installed
    return printed


@pytest.mark.slow
def test_a_checkpoint_s_way_to_its_row_beside_the_published_ones(wheel_bin: Path, empty: Path) -> None:
    """README's first example; only the download is left out, for toy sets that lie where it would put VOC."""
    convert, download, submit, table = commands("README.md", "## Your row beside the published rows")
    toys = [f"ssl-transfer data toy toy {TOY}", f"ln -s toy/detection {download.split()[-1]}"]
    assert "265/265 tensors" in run([convert, *toys, f"{submit} {SMALL}", f"{table} --allow-toy"], empty, wheel_bin)
    page = (empty / "table.html").read_text()
    assert "mine" in page and "75.5" in page  # SimSiam's published AP50 on VOC07
    results = [json.loads(file.read_text()) for file in empty.glob("runs/one_checkpoint/**/result.json")]
    assert sorted(result["task"] for result in results) == ["coco", "voc07", "voc0712"]
    assert all(result["guards"]["weights_loaded"].startswith("265/265") for result in results)
    (lines,) = blocks("python", ROOT / "README.md")
    code = lines.replace('published="rows"', 'published="rows", allow_toy=True') + "print(len(trials), 'trials')\n"
    (empty / "lines.py").write_text(code)
    printed = run(["python lines.py"], empty, wheel_bin)
    assert "75.5" in printed and "3 trials" in printed.splitlines()


@pytest.mark.slow
def test_the_way_without_a_gpu(wheel_bin: Path, empty: Path) -> None:
    toy, *others = commands("docs/getting-started.md", "### Without a GPU")
    assert [line.split()[1] for line in others] == ["convert", "transfer", "table"]
    printed = run([f"{toy} {TOY}", *others], empty, wheel_bin)
    assert re.search(r"\| mine .*toy", printed) and "75.5" in printed


@pytest.mark.slow
def test_the_cluster_s_plan_needs_no_slurm(wheel_bin: Path, tmp_path: Path) -> None:
    """Of the third door's commands; tests/slurm runs what follows on a private cluster."""
    door = commands("docs/getting-started.md", "## I want Table 5 on my cluster")
    roots, plan = (line for line in door if line.startswith("D=") or line.split()[1:3] == ["launch", "plan"])
    for name in ("imagenet", "detection"):
        (tmp_path / name).mkdir()
    printed = run([roots.replace("/data/", f"{tmp_path}/"), plan], tmp_path, wheel_bin)
    assert "finetune.simsiam_base.voc07" in printed and "GPU-hours" in printed
