"""What a backbone can be written as: each format's tensor names, file endings, writer, reader and verification."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from ssl_transfer.errors import UserError, nearest
from ssl_transfer.files import atomic_write
from ssl_transfer.formats.backbone import PTH_METADATA, BackboneMetadata, Preprocessing, float32_safetensors
from ssl_transfer.formats.manifest import Manifest, Proof
from transfer.weights.containers import read_checkpoint
from transfer.weights.converted import check_manifest, read_converted
from transfer.weights.match import Tensors, same_name
from transfer.weights.tensor_names import to_detectron2
from transfer.weights.verify import compare_features, resnet_features, verify_detectron2

AUTHOR = "ssl-detection-transfer"
"""Without an author Detectron2 takes a `.pkl` for Caffe2's and renames its tensors."""


@dataclass(frozen=True, kw_only=True)
class OutputFormat:
    """A format.

    Attributes:
        name: what `--to` calls it.
        suffixes: allowed file endings; the first is the usual one.
        rename: torchvision's tensor name → the format's.
        write: (path, tensors by the format's names, manifest) → a file.
        read: path → tensors and manifest, both checked.
        verify: (path, manifest, the source's features) → the proof.
    """

    name: str
    suffixes: tuple[str, ...]
    rename: Callable[[str], str]
    write: Callable[[Path, Tensors, Manifest], None]
    read: Callable[[Path], tuple[dict[str, torch.Tensor], Manifest]]
    verify: Callable[[Path, Manifest, Tensors], Proof]


def _write_detectron2(path: Path, tensors: Tensors, manifest: Manifest) -> None:
    """A dict of plain types and numpy arrays, which Detectron2's checkpointer matches by name."""
    content = {
        "model": {name: tensor.numpy() for name, tensor in tensors.items()},
        "__author__": AUTHOR,
        "matching_heuristics": True,
        "manifest": manifest.as_sealed_dict(),
    }
    with atomic_write(path) as stream:
        pickle.dump(content, stream, protocol=4)


def _write_torchvision(path: Path, tensors: Tensors, manifest: Manifest) -> None:
    """A flat state dict, which torchvision, timm and mmdetection load as it is.

    The metadata are an attribute of the OrderedDict: `load_state_dict` ignores it and `weights_only` loading allows it.
    Each tensor is cloned, because torch.save writes a tensor's whole storage.
    """
    state = OrderedDict((name, tensor.detach().clone()) for name, tensor in tensors.items())
    setattr(state, PTH_METADATA, _metadata(manifest))
    with atomic_write(path) as stream:
        torch.save(state, stream)


def _write_safetensors(path: Path, tensors: Tensors, manifest: Manifest) -> None:
    """torchvision's names as safetensors: a backbone file with a manifest in its metadata."""
    arrays = {name: tensor.contiguous().numpy() for name, tensor in tensors.items()}
    with atomic_write(path) as stream:
        stream.writelines(float32_safetensors(arrays, _metadata(manifest)))


def _metadata(manifest: Manifest) -> dict[str, str]:
    return BackboneMetadata(
        arch=manifest.arch,
        branch=manifest.source.branch,
        preprocessing=manifest.preprocessing,
        manifest=manifest.as_sealed_dict(),
        origin=manifest.origin,
    ).encode()


def _read_backbone_file(path: Path) -> tuple[dict[str, torch.Tensor], Manifest]:
    """A converted `.pth` or `.safetensors`, compared with its manifest."""
    checkpoint = read_checkpoint(path)
    metadata = BackboneMetadata.parse(checkpoint.metadata, path)
    return checkpoint.tensors(), check_manifest(metadata.manifest, checkpoint.tensors(), str(path))


def _verify_backbone_file(path: Path, manifest: Manifest, expected: Tensors) -> Proof:
    """Load a `.pth` or `.safetensors` into torchvision's ResNet and compare tensors and features with the source."""
    tensors, written = _read_backbone_file(path)
    if written.tensors != manifest.tensors:
        raise UserError(f"{path}: the written tensors are not the source's")
    actual = resnet_features(manifest.arch, tensors, written.preprocessing)
    worst = compare_features(actual, expected, str(path))
    return Proof(tensors=f"{len(tensors)}/{manifest.count}", forward_max_abs_diff=worst, torchvision_load="exact")


OUTPUT_FORMATS = {
    output.name: output
    for output in (
        OutputFormat(
            name="detectron2",
            suffixes=(".pkl",),
            rename=to_detectron2,
            write=_write_detectron2,
            read=read_converted,
            verify=verify_detectron2,
        ),
        OutputFormat(
            name="torchvision",
            suffixes=(".pth", ".pt"),
            rename=same_name,
            write=_write_torchvision,
            read=_read_backbone_file,
            verify=_verify_backbone_file,
        ),
        OutputFormat(
            name="safetensors",
            suffixes=(".safetensors",),
            rename=same_name,
            write=_write_safetensors,
            read=_read_backbone_file,
            verify=_verify_backbone_file,
        ),
    )
}


def check_stride(output: OutputFormat, preprocessing: Preprocessing, where: str) -> None:
    """Check that the format can express where a stage's stride is; torchvision's names cannot.

    Raises:
        UserError: the stride is in the 1×1 convolution and the format is not Detectron2's.
    """
    if preprocessing.stride_in_1x1 and output.name != "detectron2":
        raise UserError(
            f"{where}: its stride is in the 1×1 convolution (Caffe), torchvision's ResNet has it in the 3×3: written "
            f"as {output.name} the weights would compute something else; use --to detectron2"
        )


def choose_output_format(out: Path, name: str | None) -> OutputFormat:
    """The format that `--to` names, or that the output's ending implies.

    Raises:
        UserError: unknown, or the ending is another format's.
    """
    suffixes = [suffix for output in OUTPUT_FORMATS.values() for suffix in output.suffixes]
    if name is None:
        fitting = [output for output in OUTPUT_FORMATS.values() if out.suffix in output.suffixes]
        if not fitting:
            raise UserError(f"{out}: the output must end with one of {', '.join(suffixes)}; or use --to")
        return fitting[0]
    if name not in OUTPUT_FORMATS:
        raise UserError(f"--to {name}: unknown format; {nearest(name, OUTPUT_FORMATS)}")
    output = OUTPUT_FORMATS[name]
    if out.suffix not in output.suffixes:
        raise UserError(f"{out}: a file for {name} must end with {' or '.join(output.suffixes)}")
    return output
