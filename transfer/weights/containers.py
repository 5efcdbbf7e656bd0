"""What a file is (zip, pickle, safetensors, npz) and what it holds, told by its bytes and never by its name."""

from __future__ import annotations

import argparse
import json
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.errors import UserError
from common.files import sha256_of
from transfer.weights import unpickle

LEGACY_TORCH = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"
"""torch's magic number as a pickled long: what a file of torch.save before version 1.6 starts with."""


METADATA = "backbone_metadata"
"""The attribute under which our own `.pth` carries what a safetensors file has as metadata."""


@dataclass(frozen=True)
class Content:
    """A checkpoint file, read.

    Attributes:
        path: as the user named it.
        kind: `torch`, `pickle`, `safetensors` or `npz`.
        tree: nested dicts with tensors (arrays already turned into tensors) and whatever else the file holds.
        metadata: the strings of a safetensors file or of our own `.pth`; empty for the others.
        bytes: the file's size.
    """

    path: str
    kind: str
    tree: Any
    bytes: int
    metadata: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def sha256(self) -> str:
        """The file's digest, hex; computed when first asked for."""
        return sha256_of(self.path)

    def at(self, *keys: str) -> dict[str, Any] | None:
        """The mapping under nested keys (the whole file's for none); None when there is none."""
        node = self.tree
        for key in keys:
            node = node.get(key) if isinstance(node, Mapping) else None
        return dict(node) if isinstance(node, Mapping) else None

    def tensors(self, *keys: str) -> dict[str, torch.Tensor]:
        """The tensors directly under nested keys, by name; empty when there are none."""
        node = self.at(*keys) or {}
        return {k: v for k, v in node.items() if isinstance(k, str) and isinstance(v, torch.Tensor)}


def load(path: str | Path, trust: bool = False) -> Content:
    """Read a checkpoint of any container.

    Args:
        path: the file.
        trust: let the file's own pickle run; only for a file whose maker the user trusts.

    Raises:
        UserError: the file is missing, cut short, damaged, of no known container, or needs foreign classes.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"{path} {'is a folder' if file.is_dir() else 'does not exist'}; name a checkpoint file")
    try:
        with open(file, "rb") as stream:
            head = stream.read(64)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    kind, read = _kind(file, head)
    tree, metadata = _guarded(file, read, trust)
    return Content(str(path), kind, _arrays_to_tensors(tree), file.stat().st_size, metadata)


Reader = Callable[[Path, bool], tuple[Any, dict[str, str]]]


def _kind(path: Path, head: bytes) -> tuple[str, Reader]:
    if head.startswith(b"PK\x03\x04"):
        return _zip_kind(path)
    if _is_safetensors(path, head):  # before pickle: its first byte, a header's length, may be pickle's, too
        return "safetensors", _read_safetensors
    if head[:1] == b"\x80":
        return ("torch", _read_torch) if LEGACY_TORCH in head[:24] else ("pickle", _read_pickle)
    if not head:
        raise UserError(f"{path} is empty; fetch it again")
    if head.startswith(b"version https://git-lfs"):
        raise UserError(f"{path} is a Git LFS pointer, not the checkpoint itself; fetch it with `git lfs pull`")
    if head.startswith(b"\x89HDF"):
        raise UserError(f"{path} is an HDF5 file (Keras): its net pads with SAME, torch's does not; take a PyTorch one")
    if head.lstrip()[:1] in (b"<", b"{"):
        raise UserError(f"{path} is a text file (a web page or JSON?), not a checkpoint; fetch it again")
    raise UserError(f"{path} is no checkpoint: neither a zip or pickle of torch, nor safetensors, pickle or npz")


def _is_safetensors(path: Path, head: bytes) -> bool:
    """Eight bytes of a header's length, then the header, which is JSON. A file cut short within it is one, too."""
    if head[8:9] != b"{":
        return False
    pickled = head[:1] == b"\x80"
    return not pickled or 8 + int.from_bytes(head[:8], "little") <= path.stat().st_size


def _zip_kind(path: Path) -> tuple[str, Reader]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise UserError(f"{path} is cut short or damaged ({error}); fetch it again") from error
    if names and all(name.endswith(".npy") for name in names):
        return "npz", _read_npz
    if any(name.endswith("/constants.pkl") for name in names):
        raise UserError(f"{path} is a TorchScript archive; save its state_dict() with torch.save instead")
    if any(name.endswith("/data.pkl") for name in names):
        return "torch", _read_torch
    raise UserError(f"{path} is a zip archive without a checkpoint in it (no data.pkl, no .npy); unpack it first")


def _guarded(path: Path, read: Reader, trust: bool) -> tuple[Any, dict[str, str]]:
    """Run a container's reader; whatever a damaged file makes it raise becomes one line."""
    try:
        return read(path, trust)
    except UserError:
        raise
    except unpickle.ForeignClass as error:
        raise UserError(_foreign(path, str(error))) from error
    except Exception as error:  # a damaged pickle can raise anything at all
        foreign = re.search(r"GLOBAL ([\w.]+)", str(error))
        if foreign and isinstance(error, pickle.UnpicklingError):
            raise UserError(_foreign(path, foreign.group(1))) from error
        if isinstance(error, ModuleNotFoundError):  # only a trusted pickle can ask for a module
            raise UserError(f"{path} needs the module {error.name}, which is not installed here") from error
        line = (str(error).strip() or "no more is known").splitlines()[0][:120]
        if operand := re.search(r"Unsupported operand \d+", str(error)):
            line = f"{operand.group()}, or saved with an unusual pickle protocol"
        raise UserError(f"{path} is cut short or damaged ({type(error).__name__}: {line}); fetch it again") from error


def _foreign(path: Path, name: str) -> str:
    hint = ""
    if name.split(".")[0] in ("haiku", "jax", "jaxlib", "optax"):
        hint = " (a JAX checkpoint: trained with SAME padding, which torch's ResNet does not have)"
    return (
        f"{path} needs the foreign class {name} to be unpickled{hint}, which could run any code; "
        "if you trust its maker, add --trust-checkpoint"
    )


def _read_torch(path: Path, trust: bool) -> tuple[Any, dict[str, str]]:
    zipped = zipfile.is_zipfile(path)
    if zipped:
        _check_sums(path)
    with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace, *_numpy_scalars()]):
        warnings.simplefilter("ignore")
        tree = torch.load(path, map_location="cpu", weights_only=not trust, mmap=zipped)
    return tree, _strings(getattr(tree, METADATA, None))


def _strings(value: Any) -> dict[str, str]:
    whole = isinstance(value, dict) and all(isinstance(v, str) for pair in value.items() for v in pair)
    return dict(value) if whole else {}


def _numpy_scalars() -> list[Any]:
    """What a numpy number (a loss, an epoch) in a checkpoint needs: harmless, and many trainers leave one."""
    scalar = np.float64(0).__reduce__()[0]
    names = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    return [*names, np.dtype, *{type(np.dtype(code)) for code in ("f4", "f8", "i4", "i8", "?")}]


def _check_sums(path: Path) -> None:
    """torch reads a zip without looking at its checksums; a flipped bit would pass as a weight."""
    with zipfile.ZipFile(path) as archive:
        bad = archive.testzip()
    if bad is not None:
        raise UserError(f"{path} is damaged: the checksum of {bad} does not match; fetch it again")


def _read_pickle(path: Path, trust: bool) -> tuple[Any, dict[str, str]]:
    with open(path, "rb") as stream:
        return (pickle.load(stream, encoding="latin1") if trust else unpickle.load_plain(stream)), {}


def _read_safetensors(path: Path, trust: bool) -> tuple[Any, dict[str, str]]:
    from safetensors import safe_open

    with open(path, "rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        if length > path.stat().st_size:
            raise UserError(f"{path} is cut short or damaged (a header of {length} bytes); fetch it again")
        json.loads(stream.read(length))
    with safe_open(str(path), framework="pt", device="cpu") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118


def _read_npz(path: Path, trust: bool) -> tuple[Any, dict[str, str]]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}, {}


def _arrays_to_tensors(value: Any, depth: int = 0) -> Any:
    """The tree with every numeric array as a tensor over the same memory."""
    if isinstance(value, np.ndarray) and value.dtype.kind in unpickle.KINDS:
        return as_tensor(value)
    if isinstance(value, Mapping) and depth < 20:
        return {k: _arrays_to_tensors(v, depth + 1) for k, v in value.items()}
    return value


def as_tensor(array: np.ndarray) -> torch.Tensor:
    """A tensor over the array's memory, read-only or not; a foreign byte order is turned first."""
    native = array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable.*")
        return torch.from_numpy(native)
