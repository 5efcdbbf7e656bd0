"""A backbone file read back into the encoder it came from, with the preprocessing that it wants."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torchvision.models import ResNet
from torchvision.models.resnet import Bottleneck

from common.errors import UserError, nearest
from common.files import sha256_of
from common.formats.backbone import BACKBONE_FORMAT, PTH_METADATA, BackboneMetadata, Preprocessing
from pretrain.models import ARCHITECTURES
from pretrain.models.encoder import backbone_tensors, build_encoder


@dataclass(frozen=True)
class PixelNormalization:
    """Transform of uint8 images to the network's input.

    Attributes:
        mean, std: for each channel in the network's order, on the 0…1 scale.
        bgr: whether the network wants blue first.
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


@dataclass(frozen=True)
class LoadedBackbone:
    """A file's network and what is known of it.

    Attributes:
        encoder: its output is the pooled feature (pool5).
        width: of that feature.
        arch: as in `models.ARCHITECTURES`.
        preprocessing: as the file has it.
        origin: where the weights come from; empty where nobody wrote it down.
        path, sha256: the file.
    """

    encoder: ResNet
    width: int
    arch: str
    preprocessing: PixelNormalization
    origin: dict[str, Any]
    path: Path
    sha256: str


def normalization_of(preprocessing: Preprocessing) -> PixelNormalization:
    """The transform that a file's preprocessing describes (0…255 scale there, 0…1 here)."""
    mean, std = (tuple(value / 255 for value in values) for values in (preprocessing.mean, preprocessing.std))
    return PixelNormalization(mean, std, preprocessing.channel_order == "BGR")


def read_backbone(path: str | Path) -> LoadedBackbone:
    """Read a backbone file: pre-training's, or tools/convert.py's safetensors or torchvision form.

    Raises:
        UserError: the file is missing, damaged, something else, or does not hold exactly its architecture's tensors.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"weights {file} {'is a folder' if file.is_dir() else 'does not exist'}; name a backbone file")
    metadata, tensors = _read_safetensors(file) if _is_safetensors(file) else _read_pth(file)
    if metadata.get("format") != BACKBONE_FORMAT:
        raise UserError(_foreign(file, f"it does not say that it is of the format {BACKBONE_FORMAT}"))
    header = BackboneMetadata.parse(metadata, f"weights {file}")
    arch = header.arch
    if arch not in ARCHITECTURES:
        raise UserError(f"weights {file}: arch is {arch!r}, which there is not; {nearest(arch, ARCHITECTURES)}")
    encoder, width = build_encoder(arch, zero_init_residual=False)
    if header.preprocessing.stride_in_1x1:
        _stride_in_1x1(encoder)
    _fill(encoder, tensors, file, arch)
    normalization = normalization_of(header.preprocessing)
    return LoadedBackbone(encoder.eval(), width, arch, normalization, header.origin or {}, file, sha256_of(file))


def _is_safetensors(file: Path) -> bool:
    with open(file, "rb") as stream:
        return stream.read(9)[8:] == b"{"


def _read_safetensors(file: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    try:
        with safe_open(file, "pt") as stream:
            return stream.metadata() or {}, {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"weights {file} is cut short or damaged ({error}); make or fetch it again") from error


def _read_pth(file: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    with open(file, "rb") as stream:
        if stream.read(4) != b"PK\x03\x04":
            raise UserError(_foreign(file, "it is no backbone file"))
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, AttributeError, pickle.UnpicklingError) as error:
        raise UserError(_foreign(file, "it is no backbone file")) from error
    metadata = getattr(content, PTH_METADATA, None)
    if not isinstance(metadata, Mapping):
        raise UserError(_foreign(file, "it carries no preprocessing"))
    return dict(metadata), dict(content)


def _foreign(file: Path, why: str) -> str:
    return (
        f"weights {file} cannot be evaluated as they are ({why}); convert them: "
        f"python tools/convert.py {file} {file.with_suffix('.safetensors').name} --to safetensors"
    )


def _stride_in_1x1(encoder: ResNet) -> None:
    """Move each bottleneck's stride from the 3×3 to the first 1×1 convolution, as Caffe's ResNets have it."""
    for module in encoder.modules():
        if isinstance(module, Bottleneck):
            module.conv1.stride, module.conv2.stride = module.conv2.stride, module.conv1.stride


def _fill(encoder: ResNet, tensors: dict[str, torch.Tensor], file: Path, arch: str) -> None:
    expected = backbone_tensors(encoder)
    kept = {n: t for n, t in tensors.items() if not n.startswith("fc.") and not n.endswith("num_batches_tracked")}
    odd = sorted(expected.keys() ^ kept.keys())
    odd += [n for n in sorted(expected.keys() & kept.keys()) if expected[n].shape != kept[n].shape]
    if odd:
        what = "has another shape" if odd[0] in expected and odd[0] in kept else "is missing"
        what = "is not expected" if odd[0] not in expected else what
        raise UserError(f"weights {file}: {odd[0]} {what} in a {arch} ({len(odd)} such tensors); convert them again")
    if not all(torch.isfinite(tensor).all() for tensor in kept.values()):
        raise UserError(f"weights {file} hold numbers that are not finite; the run that made them has diverged")
    encoder.load_state_dict(kept, strict=False)
