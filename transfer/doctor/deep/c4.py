"""The C4 detector for the doctor: a small one whose steps can be compared between devices, and VOC's for its speed."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from common.workload import FP32, Steps, Way

if TYPE_CHECKING:
    import torch

    from transfer.engine.detection_trainer import DetectionTrainer

SMALL = (
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", "16", "MODEL.RESNETS.RES2_OUT_CHANNELS", "32"),
    *("MODEL.RESNETS.WIDTH_PER_GROUP", "8", "MODEL.ANCHOR_GENERATOR.SIZES", "[[16, 32, 64]]"),
    # More than there are, so that none is drawn: a GPU's random numbers are not the CPU's.
    *("MODEL.RPN.BATCH_SIZE_PER_IMAGE", "512", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "128"),
    *("MODEL.RPN.PRE_NMS_TOPK_TRAIN", "100", "MODEL.RPN.POST_NMS_TOPK_TRAIN", "24"),
    *("MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", "6", "SOLVER.IMS_PER_BATCH", "2"),
    *("SOLVER.BASE_LR", "0.002", "SOLVER.WARMUP_ITERS", "0", "SOLVER.STEPS", "[]"),
)
"""Overrides of the VOC07 config that make the small one."""
SIDE, BATCHES, CLASSES = 80, 4, 20
SCALE = 2.0**10
"""Where the small one's fp16 scaler begins: from torch's 2**16 it may skip the first steps, which it is there for."""

Batch = list[dict[str, Any]]


@dataclass(frozen=True)
class Detector:
    """A `common.workload.Workload`: Faster R-CNN C4 with the extra norm, by fine-tuning's trainer."""

    name: str = "C4"
    real: str = "R50-C4 of VOC07 at 800 × 1067, 2 images: a batch of 16 on 8 GPUs"
    images: int = 2
    ways: tuple[Way, ...] = (Way(), Way(tf32=True), Way("fp16"), Way("fp16", channels_last=True))
    more_images: tuple[int, ...] = (4, 8, 16)
    benchmark: bool = False
    on_cpu: tuple[str, ...] = ()

    def small(self, device: str, way: Way = FP32) -> Steps:
        """Narrow, at 80², 2 images a step, 4 batches; RPN and head see every anchor and proposal."""
        import torch

        draw = torch.Generator().manual_seed(2)
        batches = [[image(draw, SIDE, SIDE) for _ in range(2)] for _ in range(BATCHES)]
        return _steps(config(device, SMALL), batches, way, SCALE)

    def full(self, device: str, way: Way, images: int) -> Steps:
        """The published runs' detector from random weights, at the rate that its warm-up begins with."""
        import torch

        draw = torch.Generator().manual_seed(2)
        return _steps(config(device, ()), [[image(draw, 800, 1067) for _ in range(images)]], way)


def image(draw: torch.Generator, height: int, width: int) -> dict[str, Any]:
    """Smooth noise (uint8) with three objects, as Detectron2's mapper hands an image over."""
    import torch
    from detectron2.structures import Boxes, Instances

    coarse = torch.rand(1, 3, height // 8, width // 8, generator=draw) * 255
    pixels = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0].byte()
    corner = torch.rand(3, 2, generator=draw) * 0.5
    far = corner + 0.2 + torch.rand(3, 2, generator=draw) * 0.3
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(torch.cat([corner, far], 1) * torch.tensor([width, height, width, height]))
    instances.gt_classes = torch.randint(CLASSES, (3,), generator=draw)
    return {"image": pixels, "height": height, "width": width, "instances": instances}


def config(device: str, overrides: tuple[str, ...]) -> Any:
    """VOC07's config as a trial from scratch in one process settles it."""
    from common.environment import ROOT
    from transfer.engine.config import load_config
    from transfer.engine.guards import resolve_norm
    from transfer.engine.prepare import resolve_preprocessing
    from transfer.weights.canonical import TORCHVISION

    loaded = load_config(ROOT / "configs/transfer/voc07.yaml", overrides=("MODEL.DEVICE", device, *overrides))
    cfg = loaded.cfg
    cfg.SEED, cfg.MODEL.WEIGHTS, cfg.MODEL.ROI_HEADS.NUM_CLASSES = 0, "", CLASSES
    resolve_norm(cfg, 1)
    resolve_preprocessing(cfg, TORCHVISION, loaded.set_keys)
    return cfg


def _steps(cfg: Any, batches: list[Batch], way: Way, scale: float = 2.0**16) -> Steps:
    from detectron2.utils.events import EventStorage

    trainer = _trainer(cfg, way, scale)
    trainer.stepper.data_loader = itertools.cycle(batches)
    trainer.iter, storage = 0, EventStorage(0)

    def step() -> float:
        with storage as trainer.storage:
            trainer.run_step()
        trainer.iter += 1
        storage.step()
        return float(storage.latest()["total_loss"][0])

    return Steps(step, trainer.detector, trainer.optimizer)


def _trainer(cfg: Any, way: Way, scale: float) -> DetectionTrainer:
    """The trainer of a trial; half precision by Detectron2's AMPTrainer, as SOLVER.AMP has it."""
    import torch
    from detectron2.engine import AMPTrainer

    from transfer.engine.detection_trainer import DetectionTrainer
    from transfer.engine.trial import build_detector

    cfg.TRANSFER.CHANNELS_LAST, cfg.TRANSFER.TF32 = way.channels_last, way.tf32
    torch.manual_seed(cfg.SEED)  # Detectron2 draws the weights on the CPU: they are the same on every device
    trainer = DetectionTrainer(cfg, build_detector(cfg))
    if way.precision != "fp32":
        half = {"bf16": torch.bfloat16, "fp16": torch.float16}[way.precision]
        scaler = torch.amp.GradScaler("cuda", init_scale=scale, enabled=half is torch.float16)
        trainer.stepper = AMPTrainer(trainer.model, (), trainer.optimizer, grad_scaler=scaler, precision=half)
    return trainer
