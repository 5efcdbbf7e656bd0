"""The proof that nothing was lost: Detectron2's own checkpointer, both C4 detectors, every tensor, every feature."""

from __future__ import annotations

import contextlib
import gc
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from common.errors import UserError
from transfer.weights import architecture
from transfer.weights.canonical import Preprocessing
from transfer.weights.canonicalise import some
from transfer.weights.manifest import digest
from transfer.weights.names import in_detector
from transfer.weights.preprocessing import apply_to
from transfer.weights.reference import STAGES, fixed_image

TOLERANCE = 1e-4
"""Largest difference of features allowed, as a part of the stage's largest feature."""

NEW = re.compile(r"(proposal_generator\.rpn_head|roi_heads\.(box_predictor|mask_head|res5\.norm))\.")
"""The only tensors of a C4 detector that no pre-training brings."""


@dataclass(frozen=True)
class Proof:
    """What was shown of a written file.

    Attributes:
        tensors: how many equal the source, of how many: `265/265`.
        forward_max_abs_diff: largest difference of any feature over all stages and detectors.
        loader: what loaded it: `detectron2`, `torchvision`, `safetensors`.
    """

    tensors: str
    forward_max_abs_diff: float
    loader: str

    def line(self) -> str:
        """The proof in one line."""
        return f"{self.tensors} tensors · forward max |Δ| {self.forward_max_abs_diff:.0e} · {self.loader} load exact"

    def as_dict(self) -> dict[str, Any]:
        """As the manifest holds it."""
        return {
            "tensors": self.tensors,
            "forward_max_abs_diff": self.forward_max_abs_diff,
            f"{self.loader}_load": "exact",
        }


def prove_detectron2(path: Path, manifest: Mapping[str, Any], expected: Mapping[str, torch.Tensor]) -> Proof:
    """Load a written `.pkl` into Faster and Mask R-CNN C4 and compare with the source.

    The source comes as digests (in the manifest) and as features (`reference.features`), so that it need not stay
    in memory.

    Args:
        path: the `.pkl`.
        manifest: tensor digests of the source by Detectron2's names, architecture and preprocessing block.
        expected: features of the source weights by stage.

    Raises:
        UserError: a tensor was not loaded or differs, a tensor is new that should not be, or the features differ.
    """
    block = Preprocessing.from_dict(manifest["preprocessing"], str(path))
    worst = 0.0
    for mask in (False, True):
        cfg = c4_config(manifest["arch"], block, mask)
        model = blank_detector(cfg)
        load(model, path)
        compare_tensors(model, manifest["tensors"], str(path))
        worst = max(worst, compare_features(detector_features(model, cfg.INPUT.FORMAT), expected, str(path)))
        del model
        gc.collect()  # a detector holds itself in cycles; two at a time would be half the peak memory more
    total = manifest["count"]
    return Proof(f"{total}/{total}", worst, "detectron2")


def c4_config(arch: str, block: Preprocessing, mask: bool) -> Any:
    """Detectron2's config of the C4 detector with the extra norm, as fine-tuning builds it, on the CPU."""
    from detectron2.config import get_cfg

    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.MASK_ON = mask
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.DEPTH = architecture.depth_of(arch)
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res4"]
    cfg.MODEL.RESNETS.NORM = "BN"
    cfg.MODEL.ROI_HEADS.NAME = "Res5ROIHeadsExtraNorm"
    apply_to(cfg, block)
    return cfg


def blank_detector(cfg: Any) -> torch.nn.Module:
    """The detector of a config in eval mode, blank."""
    from detectron2.modeling import build_model

    from transfer.modeling import register

    register()
    with _NoRandomInit():
        model = build_model(cfg).eval()
    blank(model)
    return model


def blank(model: torch.nn.Module) -> None:
    """Put NaN in place of every weight, so that whatever a file does not bring stays visible.

    The tensors that no file may bring are one NaN seen from everywhere: they take no memory, and a file that brings
    one of them cannot be loaded.
    """
    nan = torch.tensor(float("nan"))
    saved = model.state_dict().keys()
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if name in saved and value.is_floating_point():
            value.data = nan.expand(value.shape) if NEW.match(name) else value.data.fill_(nan)


class _NoRandomInit(TorchFunctionMode):
    """Leaves out the drawing of random numbers while a model is built: they would be overwritten, and cost a second."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if func in (torch.Tensor.normal_, torch.Tensor.uniform_) else func(*args, **(kwargs or {}))


def load(model: torch.nn.Module, path: Path) -> None:
    """Load a file as fine-tuning does, with the checkpointer's tables kept off the terminal.

    Raises:
        UserError: the checkpointer itself fails, as it does on a file without a single tensor.
    """
    from detectron2.checkpoint import DetectionCheckpointer

    try:
        with _quiet("detectron2", "fvcore"):
            DetectionCheckpointer(model).load(str(path))
    except (IndexError, KeyError, ValueError, RuntimeError, AssertionError) as error:
        raise UserError(f"{path}: Detectron2 cannot load it ({type(error).__name__}: {error})") from error


def compare_tensors(model: torch.nn.Module, source: Mapping[str, Mapping[str, Any]], where: str) -> None:
    """Every tensor of the source is in the detector bit for bit, and only the known new ones are untouched.

    Args:
        model: a `blank_detector` after `load`.
        source: Detectron2's ResNet name → entry with its `sha256`.
        where: the file, for messages.

    Raises:
        UserError: names the tensors at fault.
    """
    state = {name: value for name, value in model.state_dict().items() if value.is_floating_point()}
    wanted = {in_detector(name): entry["sha256"] for name, entry in source.items()}
    differ = [name for name, sha in wanted.items() if name not in state or digest(state[name]) != sha]
    if differ:
        raise UserError(
            f"{where}: {len(wanted) - len(differ)}/{len(wanted)} tensors are in the detector; "
            f"not loaded or changed: {some(differ)}"
        )
    rest = {name: value for name, value in state.items() if name not in wanted}
    unknown = [name for name in rest if not NEW.match(name)]
    if unknown:
        raise UserError(f"{where}: the detector has tensors that no source brings: {some(unknown)}")
    touched = [name for name, value in rest.items() if not value.isnan().all()]
    if touched:
        raise UserError(f"{where}: brings tensors that should be new: {some(touched)}")


def detector_features(model: torch.nn.Module, channel_order: str) -> dict[str, torch.Tensor]:
    """Features of stem … res5 on the fixed image, through the detector's own preprocessing; the extra norm apart.

    Args:
        model: a C4 detector in eval mode.
        channel_order: INPUT.FORMAT, the order in which its data loader hands it images.
    """
    image = fixed_image() if channel_order == "RGB" else fixed_image().flip(0)
    found: dict[str, torch.Tensor] = {}

    def remember(stage: str) -> Any:
        return lambda _module, _inputs, output: found.__setitem__(stage, output)

    backbone: Any = model.backbone
    hooks = [getattr(backbone, stage).register_forward_hook(remember(stage)) for stage in STAGES[:-1]]
    with torch.no_grad():
        x = backbone(model.preprocess_image([{"image": image}]).tensor)["res4"]  # type: ignore[operator]
        for name, block in model.roi_heads.res5.named_children():  # type: ignore[union-attr]
            x = block(x) if name != "norm" else x
    for hook in hooks:
        hook.remove()
    return {**found, "res5": x}


def compare_features(got: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], where: str) -> float:
    """The largest absolute difference over all stages.

    Raises:
        UserError: a stage differs by more than `TOLERANCE` of its largest feature, or is not finite.
    """
    worst = 0.0
    for stage in STAGES:
        ours, theirs = got[stage], expected[stage]
        largest = float(theirs.abs().max())
        if not torch.isfinite(theirs).all():
            raise UserError(f"{where}: the source weights' own features overflow at {stage}; no detector can use them")
        gap = float((ours - theirs).abs().max()) if ours.shape == theirs.shape else float("inf")
        if not gap <= TOLERANCE * largest:
            raise UserError(
                f"{where}: features differ from the source's at {stage}: max |Δ| {gap:.1e}, largest feature "
                f"{largest:.1e}; channel order, mean/std or stride_in_1x1 do not fit these weights"
            )
        worst = max(worst, gap)
    return worst


@contextlib.contextmanager
def _quiet(*names: str) -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
