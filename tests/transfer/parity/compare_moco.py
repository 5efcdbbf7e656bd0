"""Run a detection code of the field and ours side by side at full width, fp32, on a CPU: a few recorded batches.

    python tests/transfer/parity/compare_moco.py CHECKOUT DATA [--task T] [--steps N] [--workers N] [--processes N]
        [--original NAME] [--bn-momentum M] [KEY VALUE …]

CHECKOUT is facebookresearch/moco, or with --original densecl WXinlong/DenseCL, whose detection code is its kin. DATA
holds VOC2007, VOC2012 and coco in Detectron2's layout, of any size. Both trainers start from one state dict, read
the same batches (after the mapper) and find torch seeded alike before each step. KEY VALUE and --bn-momentum change
ours only: a change that matters must make the comparison fail. Images are small and RoIs few, so that two cores do;
everything else is each side's own. Losses, weights, buffers and momenta of every process are compared. Exit 0 when all
is equal, 1 when something differs.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import sys
import tempfile
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any
from unittest import mock

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
sys.path[:0] = [str(HERE), str(ROOT)]

import moco_original  # noqa: E402
import torch  # noqa: E402
from moco_original import Enough, Record, state_of  # noqa: E402

from tests.parity.compare_table import (  # noqa: E402
    Check,
    close,
    compare_steps,
    momenta_of,
    same,
    set_bn_momentum,
)

SEED = 1
SMALL = (
    *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "INPUT.MIN_SIZE_TRAIN", "(96, 112, 128)"),
    *("INPUT.MAX_SIZE_TRAIN", "192", "MODEL.RPN.POST_NMS_TOPK_TRAIN", "100"),
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "12", "SOLVER.IMS_PER_BATCH", "2"),
)


@dataclass(frozen=True)
class Setting:
    """What is run.

    Attributes:
        checkout: the original's.
        data: VOC2007, VOC2012 and coco.
        task: one of ours.
        original: a key of `moco_original.ORIGINALS`.
        steps, processes: how many.
        workers: of the original's loader.
        order: batches whose images are compared, those trained on among them.
    """

    checkout: Path
    data: Path
    task: str = "voc0712_trainval"
    original: str = "moco"
    steps: int = 10
    processes: int = 1
    workers: int = 4
    order: int = 20


def ours(folder: Path, setting: Setting, words: tuple[str, ...], bn_momentum: float | None) -> None:
    """Prepare a trial and train it; `words` and `bn_momentum` change it."""
    from ssl_transfer.training.distributed import launch
    from transfer.engine.prepare import TrialRequest, prepare

    settings = ("TRANSFER.DATA_ROOT", str(setting.data), "TRANSFER.CHECK_COUNTS", "False")
    settings = (*settings, *SMALL, *loaders(setting.workers), *words)
    file = ROOT / f"configs/transfer/{setting.task}.yaml"
    request = TrialRequest(
        config_file=file,
        overrides=settings,
        weights="scratch",
        seed=SEED,
        output=folder / "trial",
        num_gpus=setting.processes,
    )
    prepared, loaded = prepare(request)
    launch(_ours, (folder, setting, prepared, loaded, bn_momentum), setting.processes)


def _ours(folder: Path, setting: Setting, prepared: Any, loaded: Any, bn_momentum: float | None) -> None:
    """In each process: record the batches and the initial state, then train on them."""
    from detectron2.engine import hooks
    from detectron2.utils import comm

    from transfer.engine import detection_data as loading
    from transfer.engine.detection_trainer import DetectionTrainer
    from transfer.engine.precise_bn import update_synchronised
    from transfer.engine.seeding import sampler_seeds
    from transfer.engine.trial import build_seeded_detector

    cfg, dicts = prepared.cfg, loading.training_dicts(loaded, prepared.cfg)
    seed = sampler_seeds(cfg.SEED, 1)[0]
    stream = loading.training_batches(dicts, cfg, seed, stop=setting.order, workers=0, order_of_workers=setting.workers)
    order, batches = [], []
    for batch in stream:
        order.append([image["file_name"] for image in batch])
        batches += [batch] if len(batches) < setting.steps else []
    model = build_seeded_detector(cfg)
    initial = state_of(model)
    set_bn_momentum(model, bn_momentum)
    trainer = DetectionTrainer(cfg, model)
    record = Record(setting.steps, trainer._lr)
    trainer.register_hooks([hooks.LRScheduler(trainer.optimizer, trainer.scheduler), record])
    with contextlib.suppress(Enough):
        trainer.run(batches, 0)
    found = {"steps": record.rows, "order": order, "initial": initial, "batches": batches}
    found |= {"trained": state_of(model), "momenta": momenta_of(model, trainer.optimizer)}
    found["precise"] = _precise(model, batches, update_synchronised if setting.processes == 1 else None)
    torch.save({**found, "config": settings_of(cfg, setting.processes)}, folder / f"{comm.get_rank()}.pt")


def _precise(model: Any, batches: list[Any], update: Any) -> dict[str, torch.Tensor]:
    """The state after precise BN by `update`, or fvcore's, which leaves each of several ranks its own statistics."""
    from detectron2.utils.events import EventStorage
    from fvcore.nn.precise_bn import update_bn_stats

    with EventStorage():  # Detectron2's heads log what they sample
        if update is None:
            update_bn_stats(model, seeded(batches), len(batches))  # as Detectron2's hook PreciseBN does
        else:
            update(model, seeded(batches))
    return state_of(model)


def theirs(folder: Path, setting: Setting, recorded: Path) -> None:
    """The original, on what was recorded."""
    from ssl_transfer.training.distributed import launch

    launch(_theirs, (folder, setting, recorded), setting.processes)


def _theirs(folder: Path, setting: Setting, recorded: Path) -> None:
    """In each process: the original, started by its own `setup` and `Trainer`."""
    from detectron2.engine import default_argument_parser, defaults
    from detectron2.utils import comm

    from transfer.engine.seeding import STEP, seed_torch

    rank, build_ddp = comm.get_rank(), defaults.create_ddp_model
    # A model on the CPU has no device number.
    defaults.create_ddp_model = lambda model, **words: build_ddp(model, device_ids=None, **words)
    original = moco_original.load(setting.checkout, setting.original)
    words = [*SMALL, *loaders(setting.workers), "SEED", str(SEED), "OUTPUT_DIR", str(folder / "theirs")]
    file = moco_original.config_file(setting.checkout, setting.task, setting.original)
    cfg = original.setup(default_argument_parser().parse_args(["--config-file", str(file), *words]))
    trainer = original.Trainer(cfg)
    initial = state_of(trainer.model)
    order = [[image["file_name"] for image in batch] for batch in islice(iter(trainer.data_loader), setting.order)]
    ours = torch.load(recorded / f"{rank}.pt", weights_only=False)
    getattr(trainer.model, "module", trainer.model).load_state_dict(ours["initial"])
    batches = ours["batches"]
    steps = moco_original.train_original(trainer, batches, lambda i: seed_torch(SEED, STEP, rank, i))
    found = {"initial": initial, "steps": steps, "order": order, "trained": state_of(trainer.model)}
    found["momenta"] = momenta_of(trainer.model, trainer.optimizer)
    found["precise"] = _precise(trainer.model, batches, None)
    torch.save({**found, "config": settings_of(cfg, setting.processes)}, folder / f"{rank}.pt")


def loaders(workers: int) -> tuple[str, str]:
    """How many workers the original's loader has."""
    return ("DATALOADER.NUM_WORKERS", str(workers))


def seeded(batches: list[Any]) -> Any:
    """The batches, torch seeded before each."""
    for number, batch in enumerate(batches):
        torch.manual_seed(number)
        yield batch


def settings_of(cfg: Any, processes: int = 1) -> dict[str, Any]:
    """Every setting that may change a number; with one process each synchronised norm is BN."""
    from ssl_transfer.config import flatten_config

    skipped = ("TRANSFER.", "OUTPUT_DIR", "VERSION", "MODEL.WEIGHTS")
    settings = {key: value for key, value in flatten_config(cfg).items() if not key.startswith(skipped)}
    plain = {"naiveSyncBN": "BN", "SyncBN": "BN"} if processes == 1 else {}
    return {key: plain.get(value, value) if key.endswith(".NORM") else value for key, value in settings.items()}


def compare_settings(mine: dict[str, Any], other: dict[str, Any]) -> Check:
    """Two resolved configs, key by key."""
    keys = [key for key in sorted({*mine, *other}) if mine.get(key) != other.get(key)]
    changed = "; ".join(f"{key} {mine.get(key)}, theirs {other.get(key)}" for key in keys)
    return same("resolved settings", not keys, changed or f"{len(mine)} keys")


def compare(a: dict[str, Any], b: dict[str, Any]) -> list[Check]:
    """All that must be equal in one process; `a` is ours."""
    return [
        compare_settings(a["config"], b["config"]),
        same("images of the batches", a["order"] == b["order"], f"{len(a['order'])} batches in order"),
        close("initial state, same SEED", a["initial"], b["initial"], 0.0),
        close("weights and buffers after the last step", a["trained"], b["trained"], 1e-5),
        close("momenta after the last step", a["momenta"], b["momenta"], 1e-5),
        close("state after precise BN", a["precise"], b["precise"], 1e-4),
    ]


def apart(function: Any, *words: Any) -> None:
    """Run in a process of its own: the two heads bear one name in one registry."""
    process = multiprocessing.get_context("spawn").Process(target=function, args=words)
    process.start()
    process.join()
    if process.exitcode:
        sys.exit(f"{function.__name__} failed with exit code {process.exitcode}")


class Sides:
    """Both sides' runs, in a folder.

    Args:
        folder: where to keep what they recorded.
        setting: what is run.
    """

    def __init__(self, folder: Path, setting: Setting) -> None:
        self.folder, self.setting = folder, setting

    def run_ours(self, name: str, words: tuple[str, ...] = (), bn_momentum: float | None = None) -> None:
        """Run ours under a name."""
        (self.folder / name).mkdir()
        apart(ours, self.folder / name, self.setting, words, bn_momentum)

    def run_theirs(self, name: str) -> None:
        """Run the original on what our run of that name recorded."""
        (self.folder / "theirs").mkdir()
        with mock.patch.dict(os.environ, DETECTRON2_DATASETS=str(self.setting.data)):  # read on import
            apart(theirs, self.folder / "theirs", self.setting, self.folder / name)

    def compare(self, name: str) -> tuple[list[str], list[Check]]:
        """A line a step, and the checks of all processes."""
        lines: list[str] = []
        checks: list[Check] = []
        for rank in range(self.setting.processes):
            a, b = (torch.load(self.folder / side / f"{rank}.pt", weights_only=False) for side in (name, "theirs"))
            if rank == 0:  # Detectron2 logs the mean over processes there
                lines, losses = compare_steps(a["steps"], b["steps"])
                checks.append(losses)
            checks += compare(a, b)
        return lines, checks


def main() -> int:
    """Run both, compare, print; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--task", default="voc0712_trainval")
    parser.add_argument("--original", choices=tuple(moco_original.ORIGINALS), default="moco")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--workers", type=int, default=4, help="of the original's loader (default: Detectron2's 4)")
    parser.add_argument("--bn-momentum", type=float, help="of ours only")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="for ours only")
    args = parser.parse_intermixed_args()
    checkout, data = args.checkout.resolve(), args.data.resolve()
    setting = Setting(checkout, data, args.task, args.original, args.steps, args.processes, args.workers)
    with tempfile.TemporaryDirectory() as name:
        sides = Sides(Path(name), setting)
        sides.run_ours("ours", tuple(args.overrides), args.bn_momentum)
        sides.run_theirs("ours")
        lines, checks = sides.compare("ours")
    title = f"{args.task}: ours beside {args.original}'s, seed {SEED}, torch {torch.__version__}"
    sys.stdout.write("\n".join([title, *lines, *map(str, checks)]) + "\n")
    return 0 if all(check.ok for check in checks) else 1


if __name__ == "__main__":
    sys.exit(main())
