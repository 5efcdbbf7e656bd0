"""Verify a converted file: load it as its users do, compare every tensor and every stage's features with the source.

The source's features come from torchvision's own ResNet. The source itself need not stay in memory: its digests (in the
manifest) and its features are enough.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from ssl_transfer.config import load_with_base, merge_strict
from ssl_transfer.environment import ROOT
from ssl_transfer.errors import UserError, abbreviate
from ssl_transfer.formats.backbone import Preprocessing
from ssl_transfer.formats.manifest import Manifest, Proof, TensorEntry
from transfer.weights.converted import apply_preprocessing, tensor_sha256
from transfer.weights.resnet import BASIC, depth_of
from transfer.weights.tensor_names import has_fpn, in_detector

STAGES = ("stem", "res2", "res3", "res4", "res5")
HEIGHT, WIDTH = 128, 160

TOLERANCE = 1e-4
"""Largest allowed difference of features, relative to the stage's largest feature."""

NEW = re.compile(
    r"(proposal_generator\.rpn_head|roi_heads\.(box_predictor|box_head|mask_head|res5\.norm)"
    r"|backbone\.fpn_(lateral|output)[2-5])\."
)
"""The tensors of a detector that no pre-training provides."""


def fixed_image() -> torch.Tensor:
    """The image of the verification: (3, 128, 160), uint8, RGB; smooth waves and noise, different in each channel."""
    rows = torch.arange(HEIGHT, dtype=torch.float64)[:, None] / HEIGHT
    columns = torch.arange(WIDTH, dtype=torch.float64)[None, :] / WIDTH
    noise = torch.randint(0, 64, (3, HEIGHT, WIDTH), generator=torch.Generator().manual_seed(0))
    waves = torch.stack([torch.sin(6.28 * (k * rows + (4 - k) * columns)) * 60 + 40 * k + 30 for k in (1.0, 2.0, 3.0)])
    return (waves + noise).clamp(0, 255).to(torch.uint8)


def preprocess(image: torch.Tensor, preprocessing: Preprocessing) -> torch.Tensor:
    """An RGB uint8 image (3, H, W) as the network's input (1, 3, H, W), float32."""
    channels = image if preprocessing.channel_order == "RGB" else image.flip(0)
    mean, std = (
        torch.tensor(values, dtype=torch.float32)[:, None, None] for values in (preprocessing.mean, preprocessing.std)
    )
    return ((channels.to(torch.float32) - mean) / std)[None]


def resnet_features(
    arch: str, tensors: Mapping[str, torch.Tensor], preprocessing: Preprocessing
) -> dict[str, torch.Tensor]:
    """Features of the test image by torchvision's own ResNet.

    Args:
        arch: one of `resnet.BLOCKS`.
        tensors: by torchvision's names.
        preprocessing: with `stride_in_1x1` (Caffe) each stage's stride is in the first 1×1 convolution.

    Returns:
        stage → (1, channels, height, width), float32; `stem` is after the max-pool.
    """
    net = build_resnet(arch, tensors, preprocessing.stride_in_1x1)
    with torch.no_grad():
        x = net.maxpool(net.relu(net.bn1(net.conv1(preprocess(fixed_image(), preprocessing)))))
        features = {"stem": x}
        for stage, layer in zip(STAGES[1:], (net.layer1, net.layer2, net.layer3, net.layer4), strict=True):
            x = features[stage] = layer(x)
    return features


def build_resnet(arch: str, tensors: Mapping[str, torch.Tensor], stride_in_1x1: bool = False) -> Any:
    """torchvision's ResNet over the given tensors themselves (no copy), in eval mode, without its classifier."""
    import torchvision

    with torch.device("meta"):
        net = getattr(torchvision.models, arch)(weights=None)
    net.fc = torch.nn.Identity()
    counters = {k: torch.tensor(0) for k in net.state_dict() if k.endswith("num_batches_tracked")}
    net.load_state_dict({**tensors, **counters}, strict=True, assign=True)
    if stride_in_1x1:
        for layer in (net.layer2, net.layer3, net.layer4):
            layer[0].conv1.stride, layer[0].conv2.stride = (2, 2), (1, 1)
    return net.eval().requires_grad_(False)


def verify_detectron2(path: Path, manifest: Manifest, expected: Mapping[str, torch.Tensor]) -> Proof:
    """Load a written `.pkl` into Faster and Mask R-CNN C4 and Mask R-CNN FPN and compare it with the source.

    One file serves all of them: Detectron2's checkpointer matches `res5.2.conv3.weight` with the one name of the
    detector that ends with it. C4 has no form with ResNet-18 or -34.

    Args:
        path: the `.pkl`.
        manifest: tensor digests of the source by Detectron2's names, architecture and preprocessing.
        expected: the source's features by stage, as `resnet_features` returns them.

    Raises:
        UserError: a tensor was not loaded or differs, an unexpected tensor is new, or the features differ.
    """
    arch, block = manifest.arch, manifest.preprocessing
    configs = [] if arch in BASIC else [c4_config(arch, block, mask) for mask in (False, True)]
    worst = 0.0
    for cfg in [*configs, fpn_config(arch, block)]:
        model = build_nan_detector(cfg)
        load_checkpoint(model, path)
        compare_tensors(model, manifest.tensors, str(path))
        worst = max(worst, compare_features(detector_features(model, cfg.INPUT.FORMAT), expected, str(path)))
        del model
        gc.collect()  # a detector has reference cycles; two at a time would add half to the peak memory
    return Proof(tensors=f"{manifest.count}/{manifest.count}", forward_max_abs_diff=worst, detectron2_load="exact")


def c4_config(arch: str, preprocessing: Preprocessing, mask: bool) -> Any:
    """Detectron2's config of the C4 detector with the extra norm, as in fine-tuning, on the CPU."""
    cfg = _base_config(arch, preprocessing)
    cfg.MODEL.MASK_ON = mask
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res4"]
    cfg.MODEL.ROI_HEADS.NAME = "Res5ROIHeadsExtraNorm"
    return cfg


def fpn_config(arch: str, preprocessing: Preprocessing) -> Any:
    """Detectron2's config of Mask R-CNN FPN, as in fine-tuning (configs/transfer/base_rcnn_fpn.yaml), on the CPU."""
    cfg = _base_config(arch, preprocessing)
    values = load_with_base(ROOT / "configs" / "transfer" / "base_rcnn_fpn.yaml")["MODEL"]
    merge_strict(cfg, {"MODEL": {**values, "MASK_ON": True}}, "base_rcnn_fpn.yaml")
    for section in (cfg.MODEL.RESNETS, cfg.MODEL.FPN, cfg.MODEL.ROI_BOX_HEAD, cfg.MODEL.ROI_MASK_HEAD):
        section.NORM = "BN"
    return cfg


def _base_config(arch: str, preprocessing: Preprocessing) -> Any:
    from detectron2.config import get_cfg

    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.DEPTH = depth_of(arch)
    cfg.MODEL.RESNETS.NORM = "BN"
    if arch in BASIC:
        cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    apply_preprocessing(cfg, preprocessing)
    return cfg


def build_nan_detector(cfg: Any) -> torch.nn.Module:
    """Build a config's detector in eval mode, with NaN in every weight."""
    from detectron2.modeling import build_model

    from transfer.modeling import register

    register()
    with _SkipRandomInit():
        model = build_model(cfg).eval()
    fill_nan(model)
    return model


def fill_nan(model: torch.nn.Module) -> None:
    """Replace every weight by NaN, so that whatever a file does not provide is detected.

    The tensors that no file may provide become expanded views of one NaN: they take no memory, and a file that contains
    one of them cannot be loaded.
    """
    nan = torch.tensor(float("nan"))
    saved = model.state_dict().keys()
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if name in saved and value.is_floating_point():
            value.data = nan.expand(value.shape) if NEW.match(name) else value.data.fill_(nan)


class _SkipRandomInit(TorchFunctionMode):
    """Skip random initialisation while a model is built: it takes a second and would be overwritten."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if func in (torch.Tensor.normal_, torch.Tensor.uniform_) else func(*args, **(kwargs or {}))


def load_checkpoint(model: torch.nn.Module, path: Path) -> None:
    """Load a file as fine-tuning does, without the checkpointer's tables in the log.

    Raises:
        UserError: the checkpointer fails, as it does on a file without a single tensor.
    """
    from detectron2.checkpoint import DetectionCheckpointer

    try:
        with _silence("detectron2", "fvcore"):
            DetectionCheckpointer(model).load(str(path))
    except (IndexError, KeyError, ValueError, RuntimeError, AssertionError) as error:
        raise UserError(f"{path}: Detectron2 cannot load it ({type(error).__name__}: {error})") from error


def compare_tensors(model: torch.nn.Module, source: Mapping[str, TensorEntry], where: str) -> None:
    """Check that the detector has every tensor of the source bit for bit, and that the others are untouched.

    Args:
        model: of `build_nan_detector`, after `load_checkpoint`.
        source: Detectron2's ResNet name → digest.
        where: the file, for messages.

    Raises:
        UserError: names the tensors at fault.
    """
    state = {name: value for name, value in model.state_dict().items() if value.is_floating_point()}
    fpn = has_fpn(state)
    wanted = {in_detector(name, fpn): entry.sha256 for name, entry in source.items()}
    differ = [name for name, sha in wanted.items() if name not in state or tensor_sha256(state[name]) != sha]
    if differ:
        raise UserError(
            f"{where}: {len(wanted) - len(differ)}/{len(wanted)} tensors are in the detector; "
            f"not loaded or changed: {abbreviate(differ)}"
        )
    rest = {name: value for name, value in state.items() if name not in wanted}
    unknown = [name for name in rest if not NEW.match(name)]
    if unknown:
        raise UserError(f"{where}: the detector has tensors that no source provides: {abbreviate(unknown)}")
    touched = [name for name, value in rest.items() if not value.isnan().all()]
    if touched:
        raise UserError(f"{where}: contains tensors that should be new: {abbreviate(touched)}")


def detector_features(model: torch.nn.Module, channel_order: str) -> dict[str, torch.Tensor]:
    """Features of the test image by stage, through the detector's own preprocessing, without the extra norm.

    Args:
        model: a C4 or FPN detector in eval mode.
        channel_order: INPUT.FORMAT, the channel order in which a data loader would pass the image.
    """
    image = fixed_image() if channel_order == "RGB" else fixed_image().flip(0)
    features: dict[str, torch.Tensor] = {}

    def store(stage: str) -> Any:
        return lambda _module, _inputs, output: features.__setitem__(stage, output)

    backbone: Any = model.backbone
    resnet: Any = getattr(backbone, "bottom_up", backbone)
    stages = [stage for stage in STAGES if hasattr(resnet, stage)]
    hooks = [getattr(resnet, stage).register_forward_hook(store(stage)) for stage in stages]
    with torch.no_grad():
        x = resnet(model.preprocess_image([{"image": image}]).tensor)  # type: ignore[operator]
        if "res5" not in stages:
            x = x["res4"]
            for name, block in model.roi_heads.res5.named_children():  # type: ignore[union-attr]
                x = block(x) if name != "norm" else x
            features["res5"] = x
    for hook in hooks:
        hook.remove()
    return features


def compare_features(actual: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], where: str) -> float:
    """The largest absolute difference over all stages.

    Raises:
        UserError: a stage differs by more than `TOLERANCE` of its largest feature, or is not finite.
    """
    worst = 0.0
    for stage in STAGES:
        ours, theirs = actual[stage], expected[stage]
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
def _silence(*names: str) -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
