"""Features of images: read a backbone file, and run its frozen encoder over a set that all processes share."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.utils import comm
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models import ResNet
from torchvision.models.resnet import Bottleneck

from pretrain.evaluation.labelled_images import FixedView, ImageDataset, LabelledSet, load_images
from pretrain.models.encoder import ARCHITECTURES, backbone_tensors, build_encoder
from ssl_transfer.errors import UserError, nearest
from ssl_transfer.files import damaged_record, describe_unreadable, open_input, sha256_of
from ssl_transfer.formats.backbone import (
    BACKBONE_FORMAT,
    PTH_METADATA,
    BackboneMetadata,
    Preprocessing,
    check_backbone_file,
)

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Autocast's dtype for a precision other than fp32."""

CHUNK = 1024
"""Images per chunk, the unit that processes share. Fixed, so that results do not depend on the number of processes."""

BATCH = 256
"""Images per forward pass; CHUNK is a multiple of it."""


@dataclass(frozen=True)
class PixelNormalization:
    """Transform of uint8 images to the network's input.

    Attributes:
        mean, std: for each channel in the network's order, on the 0…1 scale.
        bgr: whether the network expects the channel order BGR.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    bgr: bool = False

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 RGB images (N, 3, H, W) to float32 on their device."""
        mean = torch.tensor(self.mean, device=images.device).view(1, 3, 1, 1)
        std = torch.tensor(self.std, device=images.device).view(1, 3, 1, 1)
        channels = images.flip(1) if self.bgr else images
        return channels.float().div(255).sub(mean).div(std)


def normalization_of(preprocessing: Preprocessing) -> PixelNormalization:
    """The transform that a file's preprocessing describes (0…255 scale there, 0…1 here)."""
    mean, std = (tuple(value / 255 for value in values) for values in (preprocessing.mean, preprocessing.std))
    return PixelNormalization(mean, std, preprocessing.channel_order == "BGR")


@dataclass(frozen=True)
class LoadedBackbone:
    """The network of a backbone file and its metadata.

    Attributes:
        encoder: its output is the pooled feature (pool5).
        width: of that feature.
        arch: as in `models.ARCHITECTURES`.
        preprocessing: of its input.
        origin: where the weights come from; empty if not recorded.
        path, sha256: the file.
    """

    encoder: ResNet
    width: int
    arch: str
    preprocessing: PixelNormalization
    origin: dict[str, Any]
    path: Path
    sha256: str


def read_backbone(path: str | Path) -> LoadedBackbone:
    """Read a backbone file: pre-training's, or tools/convert.py's safetensors or torchvision form.

    Raises:
        UserError: the file is missing, damaged, something else, or does not hold exactly its architecture's tensors.
    """
    file = Path(path).expanduser()
    try:
        with open_input(file) as stream:
            head = stream.read(9)
    except OSError as error:
        raise UserError(f"{describe_unreadable(file, error, 'weights')}; name a backbone file") from error
    metadata, tensors = _read_safetensors(file) if head[8:] == b"{" else _read_pth(file, head)
    if metadata.get("format") != BACKBONE_FORMAT:
        raise UserError(_explain_foreign(file, f"they are not marked as format {BACKBONE_FORMAT}"))
    header = BackboneMetadata.parse(metadata, f"weights {file}")
    arch = header.arch
    if arch not in ARCHITECTURES:
        raise UserError(f"weights {file}: arch {arch!r} is unknown; {nearest(arch, ARCHITECTURES)}")
    encoder, width = build_encoder(arch, zero_init_residual=False)
    if header.preprocessing.stride_in_1x1:
        _stride_in_1x1(encoder)
    _load_tensors(encoder, tensors, file, arch)
    normalization = normalization_of(header.preprocessing)
    return LoadedBackbone(encoder.eval(), width, arch, normalization, header.origin or {}, file, sha256_of(file))


def _read_safetensors(file: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    check_backbone_file(file)
    try:
        with safe_open(file, "pt") as stream:
            return stream.metadata() or {}, {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"weights {file}: truncated or damaged ({error}); make or download the file again") from error


def _read_pth(file: Path, head: bytes) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    if not head.startswith(b"PK\x03\x04"):
        raise UserError(_explain_foreign(file, "it is no backbone file"))
    damage = damaged_record(file)
    if damage:
        raise UserError(f"weights {file} are damaged ({damage}); restore them from a copy, or convert them again")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, AttributeError, pickle.UnpicklingError) as error:
        raise UserError(_explain_foreign(file, "it is no backbone file")) from error
    metadata = getattr(content, PTH_METADATA, None)
    if not isinstance(metadata, Mapping):
        raise UserError(_explain_foreign(file, "it has no preprocessing"))
    return dict(metadata), dict(content)


def _explain_foreign(file: Path, why: str) -> str:
    return (
        f"weights {file} cannot be evaluated as they are ({why}); convert them: "
        f"python tools/convert.py {file} {file.with_suffix('.safetensors').name} --to safetensors"
    )


def _stride_in_1x1(encoder: ResNet) -> None:
    """Move each bottleneck's stride from the 3×3 to the first 1×1 convolution, as Caffe's ResNets have it."""
    for module in encoder.modules():
        if isinstance(module, Bottleneck):
            module.conv1.stride, module.conv2.stride = module.conv2.stride, module.conv1.stride


def _load_tensors(encoder: ResNet, tensors: dict[str, torch.Tensor], file: Path, arch: str) -> None:
    expected = backbone_tensors(encoder)
    found = {n: t for n, t in tensors.items() if not n.startswith("fc.") and not n.endswith("num_batches_tracked")}
    odd = sorted(expected.keys() ^ found.keys())
    odd += [n for n in sorted(expected.keys() & found.keys()) if expected[n].shape != found[n].shape]
    if odd:
        what = "has another shape" if odd[0] in expected and odd[0] in found else "is missing"
        what = "is not expected" if odd[0] not in expected else what
        raise UserError(f"weights {file}: {odd[0]} {what} in a {arch} ({len(odd)} such tensors); convert them again")
    if not all(torch.isfinite(tensor).all() for tensor in found.values()):
        raise UserError(f"weights {file} hold numbers that are not finite; the run that made them has diverged")
    encoder.load_state_dict(found, strict=False)


@contextlib.contextmanager
def frozen(encoder: nn.Module) -> Iterator[None]:
    """Put the encoder into evaluation mode while the block runs; afterwards restore each module's mode."""
    modes = [(module, module.training) for module in encoder.modules()]
    encoder.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def feature_width(encoder: ResNet) -> int:
    """The width of an encoder's pooled feature: that of its last batch normalization."""
    return int([module for module in encoder.layer4.modules() if isinstance(module, _BatchNorm)][-1].num_features)


@dataclass(frozen=True)
class Extractor:
    """Computes features of uint8 images.

    Attributes:
        encoder: on its device, in evaluation mode while it is used (`frozen`); it is not changed.
        width: of its feature.
        preprocess: from uint8 RGB to its input.
        precision: of its forward pass: fp32, bf16 or fp16.
        channels_last: the memory format of its input.
    """

    encoder: nn.Module
    width: int
    preprocess: Callable[[torch.Tensor], torch.Tensor] | PixelNormalization
    precision: str = "fp32"
    channels_last: bool = False

    @property
    def device(self) -> torch.device:
        return next(self.encoder.parameters()).device

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Features (N, width), float32 or wider on the encoder's device, of uint8 images (N, 3, H, W) on any device."""
        if not len(images):
            return next(self.encoder.parameters()).new_empty(0, self.width)
        half = HALF.get(self.precision)
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        pixels = self.preprocess(images.to(self.device, non_blocking=True)).contiguous(memory_format=layout)
        with torch.autocast(self.device.type, half, enabled=half is not None):
            features = self.encoder(pixels)
        return features if features.dtype is torch.float64 else features.float()


def chunk_count(images: int) -> int:
    return -(-images // CHUNK)


def chunk_range(chunk: int, images: int) -> range:
    return range(chunk * CHUNK, min(images, (chunk + 1) * CHUNK))


def own_chunks(images: int) -> range:
    return range(comm.get_rank(), chunk_count(images), comm.get_world_size())


def own_image_count(images: LabelledSet) -> int:
    """The number of images of a set that this process computes."""
    return sum(len(chunk_range(chunk, len(images))) for chunk in own_chunks(len(images)))


def extract_chunks(
    extractor: Extractor, images: LabelledSet, view: FixedView, workers: int, step: Callable[[int], None]
) -> Iterator[tuple[int, torch.Tensor]]:
    """This process's chunks of a set, as (chunk, features).

    Args:
        extractor: its encoder is in evaluation mode.
        images: the set.
        view: of each image.
        workers: loader processes.
        step: called with the number of images of each batch done by this process.

    Raises:
        UserError: a file cannot be read; names it.
    """
    batches = [
        [(0, number) for number in chunk_range(chunk, len(images))[start : start + BATCH]]
        for chunk in own_chunks(len(images))
        for start in range(0, CHUNK, BATCH)
    ]
    batches = [batch for batch in batches if batch]
    loaded = load_images(ImageDataset(images.index, view), batches, workers, extractor.device.type == "cuda")
    for chunk in own_chunks(len(images)):
        count, parts = len(chunk_range(chunk, len(images))), []
        for _ in range(0, count, BATCH):
            parts.append(extractor(next(loaded).images))
            step(len(parts[-1]))
        yield chunk, torch.cat(parts)
