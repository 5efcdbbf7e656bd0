"""The trainings that `doctor.py --deep` runs on a device: SimSiam and the C4 detector, small and of the real size."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

    from transfer.engine.detection_trainer import DetectionTrainer


@dataclass(frozen=True)
class PrecisionConfig:
    """Precision, memory format and compilation of training steps.

    Attributes:
        precision: fp32, bf16 or fp16 (autocast).
        channels_last: memory format of model and images.
        compiled: whether the model is compiled with torch.compile.
        tf32: whether a GPU may round the inputs of float32 products to TF32.
    """

    precision: str = "fp32"
    channels_last: bool = False
    compiled: bool = False
    tf32: bool = False

    def __str__(self) -> str:
        marks = {"TF32": self.tf32, "channels_last": self.channels_last, "compile": self.compiled}
        return " + ".join([self.precision, *(mark for mark, on in marks.items() if on)])


FP32 = PrecisionConfig()


@dataclass(frozen=True)
class TrainStep:
    """A training that runs step by step and cycles through its batches.

    Attributes:
        step: runs one step and returns the loss before the update.
        model: the model, on its device.
        optimizer: of the model's parameters.
    """

    step: Callable[[], float]
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer


class Workload(Protocol):
    """A training of this project, by its own trainer.

    Attributes:
        name: the model's name.
        real: describes a step of the real size.
        images: images per GPU in such a step.
        precisions: precision configs whose speed is measured, the trainer's default first.
        more_images: larger numbers of images per GPU whose memory is measured.
        benchmark: whether the trainer sets cudnn.benchmark.
        on_cpu: precisions other than fp32 that the trainer supports on a CPU.
    """

    @property
    def name(self) -> str: ...

    @property
    def real(self) -> str: ...

    @property
    def images(self) -> int: ...

    @property
    def precisions(self) -> tuple[PrecisionConfig, ...]: ...

    @property
    def more_images(self) -> tuple[int, ...]: ...

    @property
    def benchmark(self) -> bool: ...

    @property
    def on_cpu(self) -> tuple[str, ...]: ...

    def small(self, device: str, precision: PrecisionConfig = FP32) -> TrainStep:
        """A small model with fixed weights and batches, the same on every device."""
        ...

    def full(self, device: str, precision: PrecisionConfig, images: int) -> TrainStep:
        """The model of the published runs on one batch of `images`, which is on the device."""
        ...


SIMSIAM_SMALL = {"ARCH": "resnet18", "PROJ_HIDDEN": 64, "DIM": 64, "PRED_DIM": 16}
"""MODEL keys of the small SimSiam, which has every kind of layer of the real one."""
SIMSIAM_BATCH, SIMSIAM_SIDE, BATCHES = 16, 32, 4
SCALE = 2.0**10
"""Initial scale of the small trainings' fp16 GradScaler; with torch's 2**16 the first steps may be skipped."""

Views = list["torch.Tensor"]


@dataclass(frozen=True)
class SimSiamWorkload:
    """SimSiam, by the trainer of pre-training."""

    name: str = "SimSiam"
    real: str = "ResNet-50 at 224², 32 images of two views: a batch of 256 on 8 GPUs"
    images: int = 32
    precisions: tuple[PrecisionConfig, ...] = (
        PrecisionConfig(),
        PrecisionConfig(tf32=True),
        PrecisionConfig("bf16"),
        PrecisionConfig("bf16", channels_last=True),
        PrecisionConfig("bf16", channels_last=True, compiled=True),
    )
    more_images: tuple[int, ...] = (64, 128, 256)
    benchmark: bool = True
    on_cpu: tuple[str, ...] = ("bf16",)

    def small(self, device: str, precision: PrecisionConfig = FP32) -> TrainStep:
        """The first blocks of a ResNet-18's stages at 32², 16 images a step, 4 batches."""
        import torch

        draw = torch.Generator().manual_seed(1)
        shape = (SIMSIAM_BATCH, 3, SIMSIAM_SIDE, SIMSIAM_SIDE)
        first = [torch.randn(shape, generator=draw) for _ in range(BATCHES)]
        batches = [[view, view + 0.5 * torch.randn(shape, generator=draw)] for view in first]
        return _simsiam_steps(small_config(), batches, device, precision, small=True)

    def full(self, device: str, precision: PrecisionConfig, images: int) -> TrainStep:
        """The base recipe's model, at the learning rate of its whole batch."""
        import torch

        from pretrain.config import defaults

        draw = torch.Generator(device).manual_seed(1)
        views = [torch.randn(images, 3, 224, 224, generator=draw, device=device) for _ in range(2)]
        return _simsiam_steps(defaults(), [views], device, precision)


def small_config() -> Any:
    """Config of the small SimSiam."""
    from pretrain.config import defaults

    cfg = defaults()
    cfg.MODEL.update(SIMSIAM_SMALL)
    cfg.SOLVER.BATCH_SIZE, cfg.SOLVER.BASE_LR = SIMSIAM_BATCH, 0.05 * 256 / SIMSIAM_BATCH
    return cfg


def _keep_first_blocks(encoder: Any) -> None:
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        setattr(encoder, stage, getattr(encoder, stage)[:1])


def _simsiam_steps(
    cfg: Any, batches: list[Views], device: str, precision: PrecisionConfig, small: bool = False
) -> TrainStep:
    """Build method and trainer as the engine does, with a loader that cycles through `batches`."""
    import torch
    from detectron2.utils.events import EventStorage

    from pretrain.data.dataset import Batch
    from pretrain.engine.trainer import Trainer
    from pretrain.methods import build_method
    from pretrain.optim.optimizer import build_optimizer

    torch.manual_seed(0)  # weights are drawn on the CPU: equal on every device
    order: Any = {"memory_format": torch.channels_last if precision.channels_last else torch.contiguous_format}
    method = build_method(cfg)
    if small:
        _keep_first_blocks(method.encoder)
    method = method.to(device).to(**order)
    placed = [tuple(view.to(device).contiguous(**order) for view in views) for views in batches]

    def rounds() -> Iterator[Batch]:
        for views in itertools.cycle(placed):
            yield Batch(views, torch.arange(len(views[0])))

    trainer = Trainer(
        method,
        build_optimizer(method, cfg),
        rounds(),
        precision=precision.precision,
        compile_model=precision.compiled,
    )
    if small and precision.precision == "fp16":
        trainer.scaler = torch.amp.GradScaler(trainer.device.type, init_scale=SCALE)
    if not small:  # as in a run: losses are read one step late except where a line is logged
        trainer.sync_at = lambda iteration: (iteration + 1) % cfg.LOG.PERIOD == 0
    trainer.iter, storage = 0, EventStorage(0)

    def step() -> float:
        with storage as trainer.storage:
            trainer.run_step()
        trainer.iter += 1
        storage.step()
        return trainer.latest.get("loss", math.nan)

    return TrainStep(step, method, trainer.optimizer)


C4_SMALL = (
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", "16", "MODEL.RESNETS.RES2_OUT_CHANNELS", "32"),
    *("MODEL.RESNETS.WIDTH_PER_GROUP", "8", "MODEL.ANCHOR_GENERATOR.SIZES", "[[16, 32, 64]]"),
    # More than there are, so that none is sampled: a GPU's random numbers differ from the CPU's.
    *("MODEL.RPN.BATCH_SIZE_PER_IMAGE", "512", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "128"),
    *("MODEL.RPN.PRE_NMS_TOPK_TRAIN", "100", "MODEL.RPN.POST_NMS_TOPK_TRAIN", "24"),
    *("MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", "6", "SOLVER.IMS_PER_BATCH", "2"),
    *("SOLVER.BASE_LR", "0.002", "SOLVER.WARMUP_ITERS", "0", "SOLVER.STEPS", "[]"),
)
"""Overrides of the VOC07 config for the small detector."""
C4_SIDE, CLASSES = 80, 20

Batch = list[dict[str, Any]]


@dataclass(frozen=True)
class DetectorWorkload:
    """Faster R-CNN C4 with the extra norm, by the trainer of fine-tuning."""

    name: str = "C4"
    real: str = "R50-C4 of VOC07 at 800 × 1067, 2 images: a batch of 16 on 8 GPUs"
    images: int = 2
    precisions: tuple[PrecisionConfig, ...] = (
        PrecisionConfig(),
        PrecisionConfig(tf32=True),
        PrecisionConfig("fp16"),
        PrecisionConfig("fp16", channels_last=True),
    )
    more_images: tuple[int, ...] = (4, 8, 16)
    benchmark: bool = False
    on_cpu: tuple[str, ...] = ()

    def small(self, device: str, precision: PrecisionConfig = FP32) -> TrainStep:
        """Narrow, at 80², 2 images a step, 4 batches; RPN and head see every anchor and proposal."""
        import torch

        draw = torch.Generator().manual_seed(2)
        batches = [[random_image(draw, C4_SIDE, C4_SIDE) for _ in range(2)] for _ in range(BATCHES)]
        return _detector_steps(detector_config(device, C4_SMALL), batches, precision, SCALE)

    def full(self, device: str, precision: PrecisionConfig, images: int) -> TrainStep:
        """The detector of the published runs with random weights, at the initial learning rate of the warm-up."""
        import torch

        draw = torch.Generator().manual_seed(2)
        batch = [random_image(draw, 800, 1067) for _ in range(images)]
        return _detector_steps(detector_config(device, ()), [batch], precision)


def random_image(draw: torch.Generator, height: int, width: int) -> dict[str, Any]:
    """Smooth noise (uint8) with three objects, in the format of Detectron2's mapper."""
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


def detector_config(device: str, overrides: tuple[str, ...]) -> Any:
    """VOC07's config, resolved as for a trial from scratch in one process."""
    from ssl_transfer.environment import ROOT
    from ssl_transfer.formats.backbone import TORCHVISION
    from transfer.engine.config import load_config
    from transfer.engine.guards import resolve_norm
    from transfer.engine.prepare import resolve_preprocessing

    loaded = load_config(ROOT / "configs/transfer/voc07.yaml", overrides=("MODEL.DEVICE", device, *overrides))
    cfg = loaded.cfg
    cfg.SEED, cfg.MODEL.WEIGHTS, cfg.MODEL.ROI_HEADS.NUM_CLASSES = 0, "", CLASSES
    resolve_norm(cfg, 1)
    resolve_preprocessing(cfg, TORCHVISION, loaded.set_keys)
    return cfg


def _detector_steps(cfg: Any, batches: list[Batch], precision: PrecisionConfig, scale: float = 2.0**16) -> TrainStep:
    from detectron2.utils.events import EventStorage

    trainer = _detector_trainer(cfg, precision, scale)
    trainer.stepper.data_loader = itertools.cycle(batches)
    trainer.iter, storage = 0, EventStorage(0)

    def step() -> float:
        with storage as trainer.storage:
            trainer.run_step()
        trainer.iter += 1
        storage.step()
        return float(storage.latest()["total_loss"][0])

    return TrainStep(step, trainer.detector, trainer.optimizer)


def _detector_trainer(cfg: Any, precision: PrecisionConfig, scale: float) -> DetectionTrainer:
    """The trainer of a trial; half precision by Detectron2's AMPTrainer, as with SOLVER.AMP."""
    import torch
    from detectron2.engine import AMPTrainer

    from transfer.engine.detection_trainer import DetectionTrainer
    from transfer.engine.trial import build_detector

    cfg.TRANSFER.CHANNELS_LAST, cfg.TRANSFER.TF32 = precision.channels_last, precision.tf32
    torch.manual_seed(cfg.SEED)  # weights are drawn on the CPU: equal on every device
    trainer = DetectionTrainer(cfg, build_detector(cfg))
    if precision.precision != "fp32":
        half = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision.precision]
        scaler = torch.amp.GradScaler("cuda", init_scale=scale, enabled=half is torch.float16)
        trainer.stepper = AMPTrainer(trainer.model, (), trainer.optimizer, grad_scaler=scaler, precision=half)
    return trainer
