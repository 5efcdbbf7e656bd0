"""Learning rates of whole runs and resolved configs, beside what the originals compute and parse."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
from fvcore.common.config import CfgNode

from ssl_transfer.environment import ROOT
from tests.parity.compare_table import close_values, same
from tests.parity.comparison import Check, Outcome, Sources

IMAGES = 1281167
"""Of ImageNet's training set."""
EPOCHS = (100, 200, 400, 800)
CHANGE = "lr × 1.001"


def recipe(name: str, *words: str) -> CfgNode:
    """A resolved pre-training config."""
    from pretrain.config import load_config

    return load_config(ROOT / f"configs/pretrain/{name}.yaml", None, list(words))


def imported(checkout: Path, name: str) -> ModuleType:
    """A module of an original."""
    sys.path.insert(0, str(checkout))
    return importlib.import_module(name)


def rates(at: Callable[[int], float], count: int) -> list[float]:
    """Our learning rate of every iteration."""
    return [at(iteration) for iteration in range(count)]


def stepped(adjust: Callable[[Any, int], Any], epochs: int, per_epoch: int) -> list[float]:
    """The original's, which it sets once an epoch on an optimiser, for every iteration."""
    optimizer = SimpleNamespace(param_groups=[{"lr": 0.0}])
    found = []
    for epoch in range(epochs):
        adjust(optimizer, epoch)
        found.append(optimizer.param_groups[0]["lr"])
    return [float(rate) for rate in np.repeat(found, per_epoch)]


def outcome(ours: dict[str, list[float]], theirs: dict[str, list[float]]) -> Outcome:
    """All rates of all runs, and ours a thousandth larger."""
    changed = {name: [1.001 * rate for rate in run] for name, run in ours.items()}
    count = sum(map(len, theirs.values()))
    what = f"rates of {count} iterations"
    return Outcome([close_values(what, ours, theirs, 1e-12)], [close_values(what, changed, theirs, 1e-12)], CHANGE)


def simsiam_schedules(sources: Sources) -> Outcome:
    """`adjust_learning_rate` of main_simsiam.py for batch 256, and of main_lincls.py."""
    from pretrain.evaluation.linear import scaled_lr
    from pretrain.optim.schedule import CosineByEpoch, build_schedule

    original, linear = (imported(sources.files[0], name) for name in ("main_simsiam", "main_lincls"))
    ours, theirs = {}, {}
    for epochs in EPOCHS:
        cfg, per_epoch = recipe(f"simsiam_r50_b256_{epochs}ep_base"), IMAGES // 256
        args, peak = SimpleNamespace(epochs=epochs), parsed_by(original, ["DATA"])["lr"] * 256 / 256

        def adjust(optimizer: Any, epoch: int, args: Any = args, peak: float = peak) -> None:
            original.adjust_learning_rate(optimizer, peak, epoch, args)

        theirs[f"{epochs}"] = stepped(adjust, epochs, per_epoch)
        ours[f"{epochs}"] = rates(build_schedule(cfg, per_epoch).at, epochs * per_epoch)
    probe = linear_recipe()
    found, per_epoch = parsed_by(linear, ["DATA"]), -(-IMAGES // probe.BATCH_SIZE)
    args, peak = SimpleNamespace(epochs=found["epochs"]), found["lr"] * found["batch_size"] / 256
    theirs["linear"] = stepped(
        lambda optimizer, epoch: linear.adjust_learning_rate(optimizer, peak, epoch, args), probe.EPOCHS, per_epoch
    )
    ours["linear"] = rates(CosineByEpoch(scaled_lr(probe), probe.EPOCHS, per_epoch).at, probe.EPOCHS * per_epoch)
    return outcome(ours, theirs)


def linear_recipe() -> CfgNode:
    """The section LINEAR of the released linear evaluation."""
    from pretrain.evaluation.config import defaults

    cfg = defaults()
    cfg.merge_from_file(str(ROOT / "configs/evaluation/linear_imagenet_lars_b4096_90ep.yaml"))
    return cfg.LINEAR


def moco_schedule(sources: Sources) -> Outcome:
    """`adjust_learning_rate` of main_moco.py with --cos."""
    from pretrain.optim.schedule import build_schedule

    original, per_epoch, ours, theirs = _main_moco(sources.files[0]), IMAGES // 256, {}, {}
    for epochs in EPOCHS:
        args = SimpleNamespace(lr=0.03, cos=True, epochs=epochs)

        def adjust(optimizer: Any, epoch: int, args: Any = args) -> None:
            original.adjust_learning_rate(optimizer, epoch, args)

        theirs[f"{epochs}"] = stepped(adjust, epochs, per_epoch)
        schedule = build_schedule(recipe(f"moco_v2_r50_b256_{epochs}ep"), per_epoch)
        ours[f"{epochs}"] = rates(schedule.at, epochs * per_epoch)
    return outcome(ours, theirs)


class _Loader:
    """In place of a loader: its length, which is all that the schedule reads."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.sampler = mock.MagicMock()

    def __len__(self) -> int:
        return IMAGES // 4096


def swav_schedules(sources: Sources) -> Outcome:
    """The `lr_schedule` that main_swav.py's `main` hands to `train`, with the words of its released script."""
    from pretrain.optim.schedule import build_schedule

    original = _main_swav(sources.files[0])
    ours, theirs = {}, {}
    for epochs in EPOCHS:
        words = [*_script(sources.files[0]), "--epochs", str(epochs)]
        theirs[f"{epochs}"] = [float(rate) for rate in _schedule_of_main(original, words)]
        per_epoch = IMAGES // 4096
        ours[f"{epochs}"] = rates(
            build_schedule(recipe(f"swav_r50_b4096_{epochs}ep"), per_epoch).at, epochs * per_epoch
        )
    return outcome(ours, theirs)


def _main_swav(checkout: Path) -> ModuleType:
    importlib.import_module("torchvision")  # first: torch checks what is imported
    for name in ("apex", "apex.parallel", "apex.parallel.LARC", "pandas"):
        sys.modules[name] = mock.MagicMock()
    return imported(checkout, "main_swav")


def _main_moco(checkout: Path) -> ModuleType:
    """main_moco.py at the recorded commit names its own package by a path of its authors' site."""
    for part in ("builder", "loader"):
        sys.modules[f"deeplearning.cross_image_ssl.moco.{part}"] = imported(checkout, f"moco.{part}")
    for name in ("deeplearning", "deeplearning.cross_image_ssl", "deeplearning.cross_image_ssl.moco"):
        sys.modules[name] = mock.MagicMock()
    return imported(checkout, "main_moco")


def _script(checkout: Path) -> list[str]:
    """The options of scripts/swav_400ep_2x224_pretrain.sh that are not places of one cluster."""
    text = (checkout / "scripts/swav_400ep_2x224_pretrain.sh").read_text()
    words = shlex.split(re.sub(r"\\\n", " ", text[text.index("main_swav.py") + len("main_swav.py") :]))
    pairs = re.split(r" (?=--)", " ".join(words))
    return " ".join(pair for pair in pairs if "$" not in pair).split()


def _schedule_of_main(original: Any, words: Sequence[str]) -> Any:
    """Run `main` up to its first epoch: data, model and processes are stand-ins."""

    class Enough(Exception):
        pass

    def train(*arguments: Any) -> None:
        raise Enough(arguments[4])

    names = ("init_distributed_mode", "fix_random_seeds", "MultiCropDataset", "restart_from_checkpoint", "LARC")
    with contextlib.ExitStack() as stack:
        for name in names:
            stack.enter_context(mock.patch.object(original, name, mock.MagicMock()))
        stand_in = mock.MagicMock(return_value=(mock.MagicMock(), mock.MagicMock()))
        stack.enter_context(mock.patch.object(original, "initialize_exp", stand_in))
        stack.enter_context(mock.patch.object(original, "resnet_models", SimpleNamespace(resnet50=mock.MagicMock())))
        stack.enter_context(mock.patch.object(original, "train", train))
        original.apex.amp.initialize.return_value = (mock.MagicMock(), mock.MagicMock())
        stack.enter_context(mock.patch("torch.utils.data.DataLoader", _Loader))
        for name in ("torch.utils.data.distributed.DistributedSampler", "torch.nn.parallel.DistributedDataParallel"):
            stack.enter_context(mock.patch(name, mock.MagicMock()))
        stack.enter_context(mock.patch("torch.optim.SGD", mock.MagicMock()))
        parse = original.parser.parse_args
        parsed = parse([*words, "--world_size", "64"])
        parsed.gpu_to_work_on = None
        stack.enter_context(mock.patch.object(original.parser, "parse_args", lambda: parsed))
        try:
            original.main()
        except Enough as found:
            return found.args[0]
    raise AssertionError("main ended before it trained")


def byol_schedules(sources: Sources) -> Outcome:
    """`learning_schedule` of byol/utils/schedules.py for the recipes of batch 4096."""
    from pretrain.optim.schedule import build_schedule
    from tests.pretrain.golden import make_lars
    from tests.pretrain.golden.harness import load_module

    cfgs = {epochs: recipe(f"byol_r50_b4096_{epochs}ep") for epochs in EPOCHS}
    per_epoch = IMAGES // 4096
    ours = {f"{e}": rates(build_schedule(cfg, per_epoch).at, e * per_epoch) for e, cfg in cfgs.items()}
    make_lars.name_numpy_as_jax()
    schedule, theirs = load_module(sources.files[0] / "byol/utils/schedules.py").learning_schedule, {}
    for epochs, cfg in cfgs.items():
        total, base = epochs * per_epoch, cfg.SOLVER.BASE_LR
        theirs[f"{epochs}"] = schedule(np.arange(total), 4096, base, total, 10 * per_epoch).tolist()
    return outcome(ours, theirs)


def detection_schedules(sources: Sources) -> Outcome:
    """The scheduler that the original's Trainer builds, beside ours, for every iteration of both schedules."""
    from detectron2.solver import build_lr_scheduler

    ours, theirs, change = {}, {}, {}
    original, cfgs = _detection(sources, "moco")
    for task, (mine, other) in cfgs.items():
        theirs[task] = _walk(original.Trainer.build_lr_scheduler, other)
        ours[task] = _walk(build_lr_scheduler, mine)
        mine.SOLVER.WARMUP_ITERS += 1
        change[task] = _walk(build_lr_scheduler, mine)
    what = f"rates of {sum(map(len, theirs.values()))} iterations"
    checks = [[close_values(what, found, theirs, 1e-12)] for found in (ours, change)]
    return Outcome(*checks, "one warm-up iteration more")


def _walk(build: Callable[[Any, Any], Any], cfg: CfgNode) -> list[float]:
    import torch

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], cfg.SOLVER.BASE_LR)
    scheduler, found = build(cfg, optimizer), []
    for _ in range(cfg.SOLVER.MAX_ITER):
        found.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return found


def _detection(sources: Sources, name: str) -> tuple[ModuleType, dict[str, tuple[CfgNode, CfgNode]]]:
    """The original's train_net, and our config beside its own of each task, both at full size."""
    sys.path.insert(0, str(ROOT / "tests/transfer/parity"))
    import moco_original
    from detectron2.engine import default_argument_parser

    from ssl_transfer.formats.backbone import TORCHVISION
    from transfer.engine.config import load_config
    from transfer.engine.guards import resolve_norm
    from transfer.engine.prepare import resolve_preprocessing
    from transfer.tasks.classes import BENCHMARK

    original, found = moco_original.load(sources.files[0], name), {}
    for task in moco_original.ORIGINALS[name][2]:
        loaded = load_config(ROOT / f"configs/transfer/{task}.yaml", overrides=("MODEL.DEVICE", "cpu"))
        cfg = loaded.cfg
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(BENCHMARK["coco" if "coco" in task else "voc"])
        resolve_norm(cfg, 8)
        resolve_preprocessing(cfg, TORCHVISION, loaded.set_keys)
        file = moco_original.config_file(sources.files[0], task, name)
        words = ["OUTPUT_DIR", str(sources.scratch), "MODEL.DEVICE", cfg.MODEL.DEVICE, "SEED", str(cfg.SEED)]
        other = original.setup(default_argument_parser().parse_args(["--config-file", str(file), *words]))
        found[task] = cfg, other.clone()
    return original, found


def moco_detection_configs(sources: Sources) -> Outcome:
    """Every key of both resolved configs that may change a number."""
    return _detection_configs(sources, "moco", {})


def densecl_detection_config(sources: Sources) -> Outcome:
    """The same; DenseCL says SyncBN where MoCo, and ours, says naiveSyncBN."""
    return _detection_configs(sources, "densecl", {"SyncBN": "naiveSyncBN"})


def _detection_configs(sources: Sources, name: str, norms: dict[str, str]) -> Outcome:
    from tests.transfer.parity.compare_moco import compare_settings, settings_of

    checks: list[Check] = []
    spoilt: list[Check] = []
    for mine, other in _detection(sources, name)[1].values():
        theirs = settings_of(other, 8)
        theirs = {key: norms.get(v, v) if key.endswith(".NORM") else v for key, v in theirs.items()}
        checks.append(compare_settings(settings_of(mine, 8), theirs))
        mine.MODEL.RPN.PRE_NMS_TOPK_TEST += 1
        spoilt.append(compare_settings(settings_of(mine, 8), theirs))
    return Outcome(checks, spoilt, "one key + 1")


def parsed_by(original: ModuleType, words: Sequence[str]) -> dict[str, Any]:
    """What the original's parser makes of a command line."""
    parser: argparse.ArgumentParser = original.parser  # type: ignore[attr-defined]
    return vars(parser.parse_args(list(words)))


def keys_equal(pairs: dict[str, tuple[Any, Any]]) -> Check:
    """Ours beside theirs, by the original's option."""
    wrong = [f"{key} {mine}, theirs {other}" for key, (mine, other) in pairs.items() if mine != other]
    return same("options", not wrong, "; ".join(wrong) or f"{len(pairs)} options")


def configs(names: dict[str, Any], theirs: dict[str, Any], change: str) -> Outcome:
    """Each of `names`, and one of them changed."""
    pairs = {key: (mine, theirs[key]) for key, mine in names.items()}
    value, other = pairs[change]
    return Outcome([keys_equal(pairs)], [keys_equal({**pairs, change: (2 * value, other)})], f"{change} × 2")


def simsiam_configs(sources: Sources) -> Outcome:
    """The parsers of main_simsiam.py (its default batch of 512) and main_lincls.py beside our recipes."""
    cfg = recipe("simsiam_r50_b512_100ep_base")
    found = parsed_by(imported(sources.files[0], "main_simsiam"), ["--fix-pred-lr", "DATA"])
    ours = _common(cfg) | {"dim": cfg.MODEL.DIM, "pred_dim": cfg.MODEL.PRED_DIM, "fix_pred_lr": cfg.SOLVER.FIX_PRED_LR}
    first = configs(ours, found, "weight_decay")
    probe = linear_recipe()
    theirs = parsed_by(imported(sources.files[0], "main_lincls"), ["--lars", "DATA"])
    ours = {"lr": probe.BASE_LR, "batch_size": probe.BATCH_SIZE, "epochs": probe.EPOCHS, "momentum": probe.MOMENTUM}
    ours |= {"weight_decay": probe.WEIGHT_DECAY, "lars": probe.OPTIMIZER == "lars"}
    second = configs(ours, theirs, "lr")
    return Outcome(first.checks + second.checks, first.spoilt, first.change)


def _common(cfg: CfgNode) -> dict[str, Any]:
    solver = cfg.SOLVER
    return {
        "arch": cfg.MODEL.ARCH,
        "lr": solver.BASE_LR,
        "batch_size": solver.BATCH_SIZE,
        "epochs": solver.EPOCHS,
        "momentum": solver.MOMENTUM,
        "weight_decay": solver.WEIGHT_DECAY,
    }


def moco_config(sources: Sources) -> Outcome:
    """main_moco.py's parser with the words of MoCo v2 in its README."""
    words = ["--mlp", "--moco-t", "0.2", "--aug-plus", "--cos", "DATA"]
    cfg = recipe("moco_v2_r50_b256_200ep")
    own = {"moco_dim": cfg.MODEL.DIM, "moco_k": cfg.MOCO.QUEUE_SIZE, "moco_m": cfg.MOCO.MOMENTUM}
    own |= {"moco_t": cfg.MOCO.TEMPERATURE, "mlp": cfg.MODEL.PROJ_LAYERS == 2}
    own |= {"cos": cfg.SOLVER.SCHEDULE == "cosine_by_epoch"}
    return configs(_common(cfg) | own, parsed_by(_main_moco(sources.files[0]), words), "moco_m")


def swav_config(sources: Sources) -> Outcome:
    """main_swav.py's parser with the words of its script for 400 epochs of two views."""
    theirs = parsed_by(_main_swav(sources.files[0]), _script(sources.files[0]))
    theirs["batch_size"] *= 64  # of one of the script's processes
    cfg = recipe("swav_r50_b4096_400ep")
    swav, solver, augment = cfg.SWAV, cfg.SOLVER, cfg.AUGMENT
    ours = {
        "arch": cfg.MODEL.ARCH,
        "size_crops": [cfg.DATA.SIZE],
        "min_scale_crops": [augment.CROP_SCALE[0]],
        "max_scale_crops": [augment.CROP_SCALE[1]],
        "temperature": swav.TEMPERATURE,
        "epsilon": swav.EPSILON,
        "sinkhorn_iterations": swav.SINKHORN_STEPS,
        "feat_dim": cfg.MODEL.DIM,
        "hidden_mlp": cfg.MODEL.PROJ_HIDDEN,
        "nmb_prototypes": swav.PROTOTYPES,
        "queue_length": swav.QUEUE,
        "freeze_prototypes_niters": swav.FREEZE_STEPS,
        "epochs": solver.EPOCHS,
        "batch_size": solver.BATCH_SIZE,
        "base_lr": solver.BASE_LR * solver.BATCH_SIZE / 256,
        "final_lr": solver.FINAL_LR,
        "start_warmup": solver.WARMUP_START_LR,
        "warmup_epochs": solver.WARMUP_EPOCHS,
        "wd": solver.WEIGHT_DECAY,
    }
    return configs(ours, theirs, "wd")
