"""Convert a checkpoint: read, write to a hidden folder, verify, move into place. On any error nothing is written."""

from __future__ import annotations

import contextlib
import gc
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from ssl_transfer.errors import UserError
from ssl_transfer.files import remove_partial_files, temporary_name
from ssl_transfer.formats.manifest import Manifest
from ssl_transfer.writer_lock import WriterLock
from transfer.weights import public
from transfer.weights.converted import build_manifest, has_manifest, manifest_path
from transfer.weights.download import ProgressCallback
from transfer.weights.normalize import read_backbone
from transfer.weights.output_formats import OutputFormat, check_stride, choose_output_format
from transfer.weights.resnet import Backbone
from transfer.weights.verify import resnet_features


def convert(
    path: str | Path,
    out: str | Path,
    *,
    source: str = "auto",
    branch: str | None = None,
    to: str | None = None,
    verify: bool = True,
    trust: bool = False,
    prefix: str | None = None,
    report: Callable[[str], None] = lambda _stage: None,
) -> Manifest:
    """Convert a checkpoint; the output and its manifest appear only if everything succeeded.

    Args:
        path: any checkpoint of a known layout.
        out: the file to write; its manifest is written beside it.
        source: a layout's name, or `auto`.
        branch: `online`, `target`, or None for the layout's own default.
        to: an output format's name, or None for the one that the ending of `out` implies.
        verify: compare the written file with the source.
        trust: let the checkpoint's pickle run code.
        prefix: where in the file the ResNet is, instead of a layout.
        report: called as `reading`, `converting` and `verifying` begin.

    Returns:
        The manifest as written beside and inside the file; its proof is None without verification.

    Raises:
        UserError: the input or an option is wrong, or the verification failed.
    """
    out = Path(out)
    output = choose_output_format(out, to)
    _check_replaceable(Path(path), out)
    with WriterLock(out, file=True, purpose="OUT"):
        _remove_leftovers(out)
        report("reading")
        backbone = read_backbone(path, source, branch, trust, prefix)
        report("converting")
        check_stride(output, backbone.preprocessing, str(path))
        expected = resnet_features(backbone.arch, backbone.tensors, backbone.preprocessing) if verify else None
        with _hidden_folder(out) as folder:
            hidden = folder / out.name
            manifest = _write(hidden, output, backbone)
            del backbone  # verification needs digests and features only: peak memory stays low
            gc.collect()  # readers may leave cycles, which would keep the mapped file
            if expected is not None:
                report("verifying")
                proof = output.verify(hidden, manifest, expected)
                manifest = _write_proof(hidden, output, manifest.model_copy(update={"proof": proof}))
            manifest.write(manifest_path(out))
            _move(hidden, out)
    return manifest


def _write(path: Path, output: OutputFormat, backbone: Backbone) -> Manifest:
    manifest = build_manifest(backbone, output.rename)
    tensors = {output.rename(name): tensor for name, tensor in backbone.tensors.items()}
    output.write(path, tensors, manifest)
    return manifest


def _write_proof(path: Path, output: OutputFormat, manifest: Manifest) -> Manifest:
    """Write the verified tensors again with the proof in the manifest, and read the file back."""
    output.write(path, output.read(path)[0], manifest)
    return output.read(path)[1]


def _move(hidden: Path, out: Path) -> None:
    """Rename the file, which was flushed to disk. The manifest beside it exists by then; the one inside counts."""
    hidden.replace(out)


@contextlib.contextmanager
def _hidden_folder(out: Path) -> Iterator[Path]:
    """A folder on the output's file system, so that the output is moved into place by a rename; removed at the end."""
    folder = temporary_name(out)
    try:
        folder.mkdir()
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_leftovers(out: Path) -> None:
    """Remove the hidden folders of conversions to `out` that were killed; earlier releases named them otherwise.

    A folder that holds anything else than such a file is the user's.
    """
    remove_partial_files(out.parent, [manifest_path(out).name])
    pattern = re.compile(re.escape(f".{out.name}.") + r"([0-9a-f]{8}\.tmp|[a-z0-9_]{8})")
    ours = re.compile(rf"{re.escape(out.name)}|\.{re.escape(out.name)}\.[0-9a-f]+\.tmp")
    for folder in out.parent.iterdir():
        if pattern.fullmatch(folder.name) and folder.is_dir() and not folder.is_symlink():
            files = list(folder.iterdir())
            if all(ours.fullmatch(file.name) and file.is_file() for file in files):
                shutil.rmtree(folder, ignore_errors=True)


def _check_replaceable(path: Path, out: Path) -> None:
    """The output may replace an earlier output of this tool, but no other file."""
    if out.is_dir():
        raise UserError(f"{out} is a folder; name a file in it")
    if not out.exists():
        return
    if path.exists() and out.samefile(path):
        raise UserError(f"{out} is the input itself; choose another name for the output")
    if not has_manifest(out):
        raise UserError(f"{out} exists and was not written by this tool (no manifest beside it); choose another name")


def ensure_converted(
    weights: str, folder: str | Path, download_allowed: bool = False, progress: ProgressCallback | None = None
) -> Path:
    """A converted `.pkl` for `read_converted`: the given one, or a new one from a checkpoint of any known layout.

    Args:
        weights: `zoo:NAME`, `hf-hub:ORG/NAME`, a converted `.pkl`, or any checkpoint.
        folder: where `weights.pkl` is written if it is needed.
        download_allowed: whether the network may be used; False on compute nodes.
        progress: called during a download.

    Raises:
        UserError: the zoo has no such name, the file is missing, or it cannot be converted.
    """
    path, entry = public.resolve(weights, progress, download_allowed)
    if entry is None and Path(path).suffix == ".pkl" and has_manifest(path):
        return Path(path)
    source, branch = (entry.layout or "auto", entry.branch) if entry else ("auto", None)
    out = Path(folder) / "weights.pkl"
    convert(path, out, source=source, branch=branch)
    return out
