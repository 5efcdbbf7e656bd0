"""Make the run folder of a release that later releases must read: run in its checkout, as root for a private Slurm.

    cd CHECKOUT && PYTHONPATH=$PWD python tests/compat/make.py OUT

OUT is then copied to `tests/compat/<commit>/`. It calls command lines (tools/*.py) almost alone, so that a later
release needs few changes here; 54cff5b was made by this file as it stood in the commit that added that folder.
Everything is made below /tmp/compat, whose path stands in the files and in the fingerprints.

    configs/       the recipes and the overlay, without `_BASE_`; measures.yaml and transfers.yaml, the experiments
    toy/           the images
    measures/      a run folder: a pre-training of each method; SimSiam's is done and evaluated, the others were killed
                   (SIGKILL at iteration 10 of 12, the newest checkpoint is of 8), and so was a linear evaluation
    transfers/     a run folder: from scratch on VOC07 (lr search, two trials) and COCO (killed after a checkpoint)
    slurm/         a run folder of jobs that Slurm ran, with trivial scripts in the tools' place
    weights/       a ResNet-50 of constants, converted: manifest, pickle and torchvision file (packed by xz)
    ends.json      what the killed jobs end with when nobody kills them
    *.table.json   what tools/table.py printed of the run folders, and *.plan.txt of launch.py
"""

from __future__ import annotations

import json
import lzma
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = Path.cwd()
BASE = Path("/tmp/compat")
METHODS = {
    "simsiam": {},
    "moco": {"MOCO": {"QUEUE_SIZE": 16}, "MODEL": {"BN_GROUP_SIZE": 0}},
    "byol": {"SOLVER": {"WARMUP_EPOCHS": 1}},
    "simclr": {"SOLVER": {"WARMUP_EPOCHS": 1}},
    "swav": {
        "SOLVER": {"WARMUP_EPOCHS": 1, "FINAL_LR": 0.0, "WARMUP_START_LR": 0.0},
        "SWAV": {"PROTOTYPES": 6, "QUEUE": 8, "QUEUE_START": 1, "FREEZE_STEPS": 2},
    },
    "supervised": {"SOLVER": {"STEPS": [2]}, "MODEL": {"BN_GROUP_SIZE": 0}},
}
RECIPES = {
    "simsiam": "simsiam_r50_b256_100ep_base",
    "moco": "moco_v2_r50_b256_100ep",
    "byol": "byol_r50_b4096_100ep",
    "simclr": "simclr_r50_b4096_100ep",
    "swav": "swav_r50_b4096_100ep",
    "supervised": "supervised_r50_b256_90ep",
}
SMALL = {
    "pretrain": {
        "TOY": True,
        "DATA": {"SIZE": 32, "WORKERS": 0},
        "MODEL": {"ARCH": "resnet18"},
        "SOLVER": {"BATCH_SIZE": 4, "EPOCHS": 3, "BASE_LR": 6.4},
        "CHECKPOINT": {"KEEP": 1},
        "LOG": {"PERIOD": 1, "TENSORBOARD": False},
    },
    "evaluate": {
        "TOY": True,
        "DATA": {"SIZE": 32, "RESIZE": 36, "WORKERS": 0},
        "KNN": {"K": 5},
        "LINEAR": {"BATCH_SIZE": 8, "EPOCHS": 3, "BASE_LR": 3.2},
    },
    "transfer": {
        "TRANSFER": {"TOY": True, "CLASSES": ["bus", "cat", "sheep"], "CHECK_COUNTS": False, "PREDICTIONS": 1},
        "MODEL": {
            "DEVICE": "cpu",
            "RESNETS": {"STEM_OUT_CHANNELS": 4, "RES2_OUT_CHANNELS": 8, "WIDTH_PER_GROUP": 2},
            "ANCHOR_GENERATOR": {"SIZES": [[16, 32, 64]]},
            "RPN": {
                "PRE_NMS_TOPK_TRAIN": 60,
                "POST_NMS_TOPK_TRAIN": 20,
                "PRE_NMS_TOPK_TEST": 60,
                "POST_NMS_TOPK_TEST": 10,
            },
            "ROI_HEADS": {"BATCH_SIZE_PER_IMAGE": 8},
            "ROI_BOX_HEAD": {"POOLER_RESOLUTION": 6},
            "ROI_MASK_HEAD": {"CONV_DIM": 8},
        },
        "INPUT": {"MIN_SIZE_TRAIN": [48, 64], "MIN_SIZE_TEST": 64, "MAX_SIZE_TRAIN": 128, "MAX_SIZE_TEST": 128},
        "DATALOADER": {"NUM_WORKERS": 0},
        "SOLVER": {"IMS_PER_BATCH": 2, "MAX_ITER": 12, "STEPS": [8], "WARMUP_ITERS": 2, "CHECKPOINT_PERIOD": 4},
        "TEST": {"PRECISE_BN": {"NUM_ITER": 2}},
    },
}
KILL_AT = 10
"""The iteration (from 0) of pre-training at whose beginning a killed job is killed."""

DEBUG = """
import os, signal, sys
sys.path[:0] = [{root!r}, {here!r}]
import torchvision
from narrow_resnet import NarrowResNet
torchvision.models.resnet18 = NarrowResNet
from ssl_transfer.console import call_main
from tools import launch
if {kill} < 0:
    from pathlib import Path
    rename, renamed = Path.replace, []
    def replace(self, target):
        done = rename(self, target)
        renamed.append(Path(target).name)
        if renamed.count("checkpoint.pth") == -{kill}:
            os.kill(os.getpid(), signal.SIGKILL)
        return done
    Path.replace = replace
if {kill} > 0:
    from pretrain.engine.trainer import Trainer
    step = Trainer.run_step
    def run_step(self):
        if self.iter == {kill}:
            os.kill(os.getpid(), signal.SIGKILL)
        step(self)
    Trainer.run_step = run_step
sys.exit(call_main(launch.main, sys.argv[1:]))
"""
"""Runs launch.py in one process, so that the narrow network is everywhere; killed at an iteration of pre-training,
after that many checkpoints of a linear evaluation where it is below 0, or not where it is 0."""


def main() -> None:
    """Make everything below /tmp/compat, then copy it to OUT."""
    out = Path(sys.argv[1])
    assert not BASE.exists(), f"{BASE} is there already"
    (BASE / "configs").mkdir(parents=True)
    os.environ["OMP_NUM_THREADS"] = "1"
    sizes = "--photos 16 --voc2007 16 6 --voc2012 3 3 --coco 8 5"
    tool("data", "toy", BASE / "toy", *sizes.split())
    configs()
    experiments()
    from ends import machine

    ends = {"measures": measures(), "transfers": transfers(), "machine": machine()}
    slurm()
    weights()
    write(BASE / "ends.json", ends)
    for name in ("measures", "transfers"):
        (BASE / f"{name}.plan.txt").write_text(launch("plan", name).stdout)
        (BASE / f"{name}.table.json").write_text(tool("table", BASE / name, "--format", "json").stdout)
    shutil.copytree(BASE, out, ignore=shutil.ignore_patterns("whole*"), symlinks=True)


def configs() -> None:
    """The recipes as this commit has them, whole."""
    import yaml

    from ssl_transfer.config import load_with_base, merge_dict

    for method, changes in METHODS.items():
        recipe = load_with_base(ROOT / f"configs/pretrain/{RECIPES[method]}.yaml")
        merge_dict(recipe, json.loads(json.dumps(changes)))
        for key, value in (("PROJ_HIDDEN", 16), ("DIM", 8), ("PRED_DIM", 4)):
            if key in recipe["MODEL"]:
                recipe["MODEL"][key] = value
        (BASE / f"configs/{method}.yaml").write_text(yaml.safe_dump(recipe))
    for kind, name in (("linear", "linear_imagenet_lars_b4096_90ep"), ("knn", "knn_imagenet_k200_t0.2")):
        recipe = load_with_base(ROOT / f"configs/evaluation/{name}.yaml")
        (BASE / f"configs/{kind}.yaml").write_text(yaml.safe_dump(recipe))
    for task in ("voc07", "coco"):
        recipe = load_with_base(ROOT / f"configs/transfer/{task}.yaml")
        (BASE / f"configs/{task}.yaml").write_text(yaml.safe_dump(recipe))
    (BASE / "configs/narrow.yaml").write_text(yaml.safe_dump(SMALL))


def experiments() -> None:
    """Two experiments; paths below /tmp/compat, as they stand in the fingerprints."""
    import yaml

    at = f"{BASE}/configs"
    measures = {
        "name": "measures",
        "run_dir": f"{BASE}/measures",
        "overlay": f"{at}/narrow.yaml",
        "data": {"images": f"{BASE}/toy/photos"},
        "rows": {
            **{method: {"label": method, "pretrain": {"config": f"{at}/{method}.yaml"}} for method in METHODS},
            "killed": {"pretrain": {"config": f"{at}/simsiam.yaml", "overrides": {"SEED": 1}}},
        },
        "tasks": {},
        "evaluations": {
            "knn": {"kind": "knn", "config": f"{at}/knn.yaml"},
            "linear": {"kind": "linear", "config": f"{at}/linear.yaml"},
            "sgd": {"kind": "linear", "config": f"{at}/linear.yaml", "overrides": {"LINEAR.OPTIMIZER": "sgd"}},
        },
    }
    transfers = {
        "name": "transfers",
        "run_dir": f"{BASE}/transfers",
        "overlay": f"{at}/narrow.yaml",
        "data": {"detection": f"{BASE}/toy/detection"},
        "rows": {
            "scratch": {"label": "from scratch", "scratch": True, "expected": "scratch"},
            "high": {"label": "high lr", "scratch": True, "finetune": {"SOLVER.BASE_LR": 1e30}},
        },
        "tasks": {
            "voc07": {"config": f"{at}/voc07.yaml", "trials": 2},
            "coco": {"config": f"{at}/coco.yaml", "trials": 1},
        },
        "lr_search": {"grid": [0.01, 0.02], "select_on": "heldout", "rows": ["scratch"], "tasks": ["voc07"]},
        "local": {"slots": 2},
    }
    for name, content in (("measures", measures), ("transfers", transfers)):
        (BASE / f"configs/{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))


def measures() -> dict[str, Any]:
    """SimSiam pre-trained and evaluated, the other methods killed; what they end with where nobody kills them."""
    whole = ("--set", f"run_dir={BASE}/whole_measures", "--cluster", "debug")
    debug("submit", "measures", *whole)
    from ends import end_of

    ends = {}
    for job in jobs(BASE / "whole_measures"):
        if job["kind"] == "pretrain" or job["name"] == "evaluate.simsiam.sgd":
            ends[job["name"]] = end_of(BASE / "whole_measures" / job["dir"])
    debug("retry", "measures", "pretrain.simsiam", "--cluster", "debug")  # and its evaluations
    [folder] = (BASE / "measures/jobs").glob("evaluate.simsiam.sgd-*")
    shutil.rmtree(folder)
    debug("retry", "measures", "evaluate.simsiam.sgd", "--cluster", "debug", kill=-2)
    for row in (*METHODS, "killed"):
        if row != "simsiam":
            debug("retry", "measures", f"pretrain.{row}", "--cluster", "debug", kill=KILL_AT)
    for job in jobs(BASE / "measures"):
        if job["name"] == "pretrain.simsiam":
            for file in (BASE / "measures" / job["dir"]).glob("checkpoint_*.pth"):
                file.unlink()  # a finished run's is read by nobody
    return ends


def transfers() -> dict[str, Any]:
    """All trials; then COCO's anew, killed."""
    launch("submit", "transfers", "--set", f"run_dir={BASE}/whole_transfers")
    from ends import end_of

    ends = {}
    for job in jobs(BASE / "whole_transfers"):
        if job["name"] == "finetune.scratch.coco.s1":
            ends[job["name"]] = end_of(BASE / "whole_transfers" / job["dir"])
    words = [sys.executable, str(ROOT / "tools/launch.py"), "submit", f"{BASE}/configs/transfers.yaml"]
    process = subprocess.Popen(words, cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL)
    name = "finetune.scratch.coco.s1"
    while True:
        folders = list((BASE / "transfers/jobs").glob(f"{name}-*"))
        others = [job for job in jobs(BASE / "transfers") if job["name"] not in (name, "table")]
        ended = [read(BASE / "transfers" / job["dir"] / "job.json").get("ended") for job in others]
        written = folders and (folders[0] / "last_checkpoint").exists()
        if folders and (folders[0] / "result.json").exists():
            # Too late: the trial was through before the others. Take its end away and go back to its first checkpoint.
            raise SystemExit("the COCO trial ended before it could be killed; make it longer")
        if written and not hasattr(main, "stopped"):
            pid = read(folders[0] / "job.json")["process"]["pid"]
            os.kill(pid, signal.SIGSTOP)
            main.stopped = True  # type: ignore[attr-defined]
        if written and others and all(ended):
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            break
        time.sleep(0.002)
    for file in (BASE / "transfers/jobs").glob("*/model_*.pth"):
        if not file.parent.name.startswith(name):
            file.unlink()  # a finished trial's are read by nobody
    for file in (BASE / "transfers/jobs").glob("*/predictions/*.jpg"):
        if "voc07.s1" not in str(file):
            file.unlink()
    return ends


def slurm() -> None:
    """The small experiment of tests/slurm on a private cluster: done, failed, diverged and cancelled jobs."""
    code = f"""
import os, sys, tempfile
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
from tests.slurm.private_cluster import PrivateCluster
from tests.slurm.slurm_world import make_slurm_world
base = Path({str(BASE / "whole_slurm")!r}); base.mkdir()
with tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True) as folder:
    cluster = PrivateCluster(Path(folder))
    try:
        cluster.start()
        os.environ |= {{**cluster.environment, "FAKE_DIR": str(base), "XDG_CONFIG_HOME": str(base)}}
        world = make_slurm_world(base, cluster)
        world.file.write_text(world.file.read_text().replace("name: whole_slurm", "name: slurm"))
        bad, high = {{"exit": 2, "say": "not a checkpoint"}}, {{"diverge": True}}
        world.order(convert__simsiam=bad, finetune__scratch__voc07__s2=high)
        assert world.submit() == 0
        print(world.wait_until_over())
        (base / "status.txt").write_text(str(world.statuses()))
    finally:
        cluster.stop()
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    shutil.copytree(BASE / "whole_slurm/run", BASE / "slurm", ignore=shutil.ignore_patterns("*.pkl", "slurm"))
    shutil.copytree(BASE / "whole_slurm/configs", BASE / "slurm_configs")
    shutil.copy(BASE / "whole_slurm/experiment.yaml", BASE / "configs/slurm.yaml")


def weights() -> None:
    """A ResNet-50 whose every tensor is a constant: it packs well."""
    import torch

    from transfer.weights.resnet import tensor_shapes

    folder = BASE / "weights"
    folder.mkdir()
    whole = BASE / "whole_weights"
    whole.mkdir()
    tensors = {}
    for index, (name, shape) in enumerate(tensor_shapes("resnet50").items()):
        tensors[name] = torch.full(shape, 0.5 + index / 1024 if "running_var" in name else index / 2**20)
    torch.save(tensors, whole / "resnet50-00000000.pth")
    for end, to in (("pkl", "detectron2"), ("safetensors", "safetensors")):
        tool(
            "convert",
            whole / "resnet50-00000000.pth",
            whole / f"constants.{end}",
            "--source",
            "torchvision",
            "--to",
            to,
        )
        shutil.copy(whole / "constants.manifest.json", folder / f"constants_{end}.manifest.json")
        (folder / f"constants.{end}.xz").write_bytes(lzma.compress((whole / f"constants.{end}").read_bytes()))


def debug(verb: str, name: str, *words: str, kill: int = 0) -> None:
    code = DEBUG.format(root=str(ROOT), here=str(HERE), kill=kill)
    done = subprocess.run([sys.executable, "-c", code, verb, f"{BASE}/configs/{name}.yaml", *words], cwd=ROOT)
    assert done.returncode in ((-signal.SIGKILL,) if kill else (0, 1)), done  # 1: other jobs have no result yet


def launch(verb: str, name: str, *words: str) -> subprocess.CompletedProcess[str]:
    return tool("launch", verb, f"{BASE}/configs/{name}.yaml", *words)


def tool(name: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / f"{name}.py"), *map(str, words)]
    return subprocess.run(command, cwd=ROOT, check=True, text=True, stdout=subprocess.PIPE)


def jobs(run: Path) -> list[dict[str, Any]]:
    return list(read(run / "graph.json").get("jobs", []))


def read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text())) if path.exists() else {}


def write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, sort_keys=True) + "\n")


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(HERE)]
    main()
