"""Run facebookresearch/moco's detection code and ours side by side at full width, fp32, on a CPU: ten recorded batches.

    python tests/transfer/parity/compare_moco.py MOCO_CHECKOUT DATA [--task T] [--steps N] [--workers N] [KEY VALUE …]

DATA holds VOC2007, VOC2012 and coco in Detectron2's layout, of any size. Both trainers start from one state dict, read
the same batches (after the mapper) and find torch seeded alike before each step. KEY VALUE changes ours alone: a change
that matters must make the comparison fail. Images are small and RoIs few, so that two cores do; everything else is each
side's own. Exit 0 when all is equal, 1 when something differs.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import sys
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
sys.path[:0] = [str(HERE), str(ROOT)]

import torch  # noqa: E402
from compare_table import Check, close, compare_steps  # noqa: E402

SEED = 1
ORDER = 20
"""Batches whose images are compared, those trained on among them."""
SMALL = (
    *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "INPUT.MIN_SIZE_TRAIN", "(96, 112, 128)"),
    *("INPUT.MAX_SIZE_TRAIN", "192", "MODEL.RPN.POST_NMS_TOPK_TRAIN", "100"),
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "12", "SOLVER.IMS_PER_BATCH", "2"),
)


def ours(folder: Path, task: str, data: Path, steps: int, workers: int, words: tuple[str, ...]) -> None:
    """Record the batches and the initial state, then train on them."""
    from detectron2.engine import hooks
    from detectron2.utils.events import EventStorage
    from moco_original import Enough, Record, state_of

    from transfer.engine import detection_data as loading
    from transfer.engine.detection_trainer import DetectionTrainer
    from transfer.engine.precise_bn import update_synchronised
    from transfer.engine.prepare import TrialRequest, prepare
    from transfer.engine.seeding import sampler_seeds
    from transfer.engine.trial import build_seeded_detector

    settings = ("TRANSFER.DATA_ROOT", str(data), "TRANSFER.CHECK_COUNTS", "False", *SMALL)
    settings = (*settings, *loaders(workers), *words)
    file = ROOT / f"configs/transfer/{task}.yaml"
    request = TrialRequest(config_file=file, overrides=settings, weights="scratch", seed=SEED, output=folder / "ours")
    prepared, loaded = prepare(request)
    cfg, dicts = prepared.cfg, loading.training_dicts(loaded, prepared.cfg)
    seed = sampler_seeds(cfg.SEED, 1)[0]
    stream = loading.training_batches(dicts, cfg, seed, stop=ORDER, workers=0, order_of_workers=workers)
    order, batches = [], []
    for batch in stream:
        order.append([image["file_name"] for image in batch])
        batches += [batch] if len(batches) < steps else []
    model = build_seeded_detector(cfg)
    torch.save({"batches": batches, "state": state_of(model)}, folder / "recorded.pt")
    trainer = DetectionTrainer(cfg, model)
    record = Record(steps, trainer._lr)
    trainer.register_hooks([hooks.LRScheduler(trainer.optimizer, trainer.scheduler), record])
    with contextlib.suppress(Enough):
        trainer.run(batches, 0)
    trained = state_of(model)
    with EventStorage():  # Detectron2's heads log what they sample
        update_synchronised(model, seeded(batches))
    found = {"steps": record.rows, "order": order, "trained": trained, "precise": state_of(model)}
    torch.save({**found, "config": settings_of(cfg)}, folder / "ours.pt")


def theirs(folder: Path, checkout: Path, task: str, data: Path, workers: int) -> None:
    """The original, started by its own `setup` and `Trainer`, on what was recorded."""
    os.environ["DETECTRON2_DATASETS"] = str(data)
    import moco_original
    from detectron2.engine import default_argument_parser
    from detectron2.utils.events import EventStorage
    from fvcore.nn.precise_bn import update_bn_stats

    from transfer.engine.seeding import STEP, seed_torch

    original = moco_original.load(checkout)
    words = [*SMALL, *loaders(workers), "SEED", str(SEED), "OUTPUT_DIR", str(folder / "theirs")]
    arguments = ["--config-file", str(moco_original.config_file(checkout, task)), *words]
    cfg = original.setup(default_argument_parser().parse_args(arguments))
    trainer = original.Trainer(cfg)
    initial = moco_original.state_of(trainer.model)
    order = [[image["file_name"] for image in batch] for batch in islice(iter(trainer.data_loader), ORDER)]
    recorded = torch.load(folder / "recorded.pt", weights_only=False)
    trainer.model.load_state_dict(recorded["state"])
    batches = recorded["batches"]
    steps = moco_original.train_original(trainer, batches, lambda i: seed_torch(SEED, STEP, 0, i))
    trained = moco_original.state_of(trainer.model)
    with EventStorage():
        update_bn_stats(trainer.model, seeded(batches), len(batches))  # as its hook PreciseBN does
    found = {"initial": initial, "steps": steps, "order": order, "trained": trained}
    found["precise"] = moco_original.state_of(trainer.model)
    torch.save({**found, "config": settings_of(cfg)}, folder / "theirs.pt")


def loaders(workers: int) -> tuple[str, str]:
    """How many workers the original's loader has."""
    return ("DATALOADER.NUM_WORKERS", str(workers))


def seeded(batches: list[Any]) -> Any:
    """The batches, torch seeded before each."""
    for number, batch in enumerate(batches):
        torch.manual_seed(number)
        yield batch


def settings_of(cfg: Any) -> dict[str, Any]:
    """Every setting that may change a number; with one process naiveSyncBN is BN [detectron2: NaiveSyncBatchNorm]."""
    from transfer.engine.config import flatten_config

    skipped = ("TRANSFER.", "OUTPUT_DIR", "VERSION", "MODEL.WEIGHTS")
    settings = {key: value for key, value in flatten_config(cfg).items() if not key.startswith(skipped)}
    norm = settings["MODEL.RESNETS.NORM"]
    return {**settings, "MODEL.RESNETS.NORM": "BN" if norm == "naiveSyncBN" else norm}


def compare(a: dict[str, Any], b: dict[str, Any], initial: dict[str, torch.Tensor]) -> list[Check]:
    """All that is held equal; `a` is ours."""
    mine, other = a["config"], b["config"]
    keys = [key for key in sorted({*mine, *other}) if mine.get(key) != other.get(key)]
    changed = "; ".join(f"{key} {mine.get(key)}, theirs {other.get(key)}" for key in keys)
    return [
        Check("resolved settings", not keys, changed or f"{len(mine)} keys"),
        Check("images of the batches", a["order"] == b["order"], f"{ORDER} batches in order"),
        close("initial state, same SEED", initial, b["initial"], 0.0),
        close("state after the last step", a["trained"], b["trained"], 1e-5),
        close("state after precise BN", a["precise"], b["precise"], 1e-4),
    ]


def apart(function: Any, *words: Any) -> None:
    """Run in a process of its own: the two heads bear one name in one registry."""
    process = multiprocessing.get_context("spawn").Process(target=function, args=words)
    process.start()
    process.join()
    if process.exitcode:
        sys.exit(f"{function.__name__} failed with exit code {process.exitcode}")


def main() -> int:
    """Run both, compare, print; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--task", choices=("voc0712_trainval", "coco_2x"), default="voc0712_trainval")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--workers", type=int, default=4, help="of the original's loader (default: Detectron2's 4)")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="for ours alone")
    args = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data, workers = args.data.resolve(), args.workers
        apart(ours, folder, args.task, data, args.steps, workers, tuple(args.overrides))
        apart(theirs, folder, args.checkout.resolve(), args.task, data, workers)
        a, b = (torch.load(folder / f"{side}.pt", weights_only=False) for side in ("ours", "theirs"))
        initial = torch.load(folder / "recorded.pt", weights_only=False)["state"]
    title = f"{args.task}: ours beside facebookresearch/moco's, seed {SEED}, torch {torch.__version__}"
    lines, losses = compare_steps(a["steps"], b["steps"])
    checks = [losses, *compare(a, b, initial)]
    sys.stdout.write("\n".join([title, *lines, *map(str, checks)]) + "\n")
    return 0 if all(check.ok for check in checks) else 1


if __name__ == "__main__":
    sys.exit(main())
