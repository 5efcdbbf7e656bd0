"""Read checkpoint files. The container (zip, pickle, safetensors, npz) is recognised by its bytes, not by the name.

A plain pickle is read by an unpickler that only creates numpy arrays and plain types: it never calls any class that
the file names.
"""

from __future__ import annotations

import argparse
import json
import math
import pickle
import re
import struct
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from common.errors import UserError
from common.files import sha256_of
from common.formats.backbone import PTH_METADATA

LEGACY_TORCH = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"
"""torch's magic number as a pickled long: how a file of torch.save before version 1.6 begins."""

NUMBER_KINDS = "biuf"
"""numpy's kinds of the numbers that a pickled array may hold: booleans, integers, floats."""

MAX_NESTING = 20


@dataclass(frozen=True)
class CheckpointFile:
    """The content of a checkpoint file.

    Attributes:
        path: as the user wrote it.
        kind: `torch`, `pickle`, `safetensors` or `npz`.
        tree: nested dicts with tensors (arrays are tensors, too) and all other values in the file.
        bytes: the file's size.
        metadata: the strings of a safetensors file or of a converted `.pth`; empty for all others.
    """

    path: str
    kind: str
    tree: Any
    bytes: int
    metadata: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def sha256(self) -> str:
        """The file's SHA-256 in hex; computed on first use."""
        return sha256_of(self.path)

    def at(self, *keys: str) -> dict[str, Any] | None:
        """The mapping under nested keys (by default the whole file); None if there is none."""
        node = self.tree
        for key in keys:
            node = node.get(key) if isinstance(node, Mapping) else None
        return dict(node) if isinstance(node, Mapping) else None

    def tensors(self, *keys: str) -> dict[str, torch.Tensor]:
        """The tensors directly under nested keys, by name; empty if there are none."""
        node = self.at(*keys) or {}
        return {k: v for k, v in node.items() if isinstance(k, str) and isinstance(v, torch.Tensor)}


def read_checkpoint(path: str | Path, trust: bool = False) -> CheckpointFile:
    """Read a checkpoint in any container.

    Args:
        path: the file.
        trust: let the file's pickle run code; only for a file from a trusted source.

    Raises:
        UserError: the file is missing, cut short, damaged, in no known container, or needs foreign classes.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"{path} {'is a folder' if file.is_dir() else 'does not exist'}; name a checkpoint file")
    try:
        with open(file, "rb") as stream:
            head = stream.read(64)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    kind, read = _choose_reader(file, head)
    tree, metadata = _call_reader(file, read, trust)
    return CheckpointFile(str(path), kind, _arrays_to_tensors(tree), file.stat().st_size, metadata)


Reader = Callable[[Path, bool], tuple[Any, dict[str, str]]]


def _choose_reader(path: Path, head: bytes) -> tuple[str, Reader]:
    if head.startswith(b"PK\x03\x04"):
        return _choose_zip_reader(path)
    if _is_safetensors(path, head):  # before pickle: the first byte, of the header's length, may be pickle's, too
        return "safetensors", _read_safetensors
    if head[:1] == b"\x80":
        return ("torch", _read_torch) if LEGACY_TORCH in head[:24] else ("pickle", _read_pickle)
    if not head:
        raise UserError(f"{path} is empty; download it again")
    if head.startswith(b"version https://git-lfs"):
        raise UserError(f"{path} is a Git LFS pointer, not the checkpoint itself; run `git lfs pull`")
    if head.startswith(b"\x89HDF"):
        raise UserError(
            f"{path} is an HDF5 file (Keras): its network pads with SAME, torch's does not; use a PyTorch checkpoint"
        )
    if head.lstrip()[:1] in (b"<", b"{"):
        raise UserError(f"{path} is a text file (a web page or JSON?), not a checkpoint; download it again")
    raise UserError(f"{path} is not a checkpoint: neither a zip or pickle of torch, nor safetensors, pickle or npz")


def _is_safetensors(path: Path, head: bytes) -> bool:
    """Whether a header's length (8 bytes) and a JSON object begin the file, even if it is cut short after that."""
    if head[8:9] != b"{":
        return False
    pickled = head[:1] == b"\x80"
    return not pickled or 8 + int.from_bytes(head[:8], "little") <= path.stat().st_size


def _choose_zip_reader(path: Path) -> tuple[str, Reader]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise UserError(f"{path} is cut short or damaged ({error}); download it again") from error
    if names and all(name.endswith(".npy") for name in names):
        return "npz", _read_npz
    if any(name.endswith("/constants.pkl") for name in names):
        raise UserError(f"{path} is a TorchScript archive; save its state_dict() with torch.save instead")
    if any(name.endswith("/data.pkl") for name in names):
        return "torch", _read_torch
    raise UserError(f"{path} is a zip archive without a checkpoint in it (no data.pkl, no .npy); unpack it first")


class ForeignClassError(Exception):
    """The pickle needs something other than an array or a plain type; the only argument is the dotted name."""


def _call_reader(path: Path, read: Reader, trust: bool) -> tuple[Any, dict[str, str]]:
    """Call the container's reader and turn any exception into one line."""
    try:
        return read(path, trust)
    except UserError:
        raise
    except ForeignClassError as error:
        raise UserError(_explain_foreign_class(path, str(error))) from error
    except Exception as error:  # a damaged pickle can raise any exception
        foreign = re.search(r"GLOBAL ([\w.]+)", str(error))
        if foreign and isinstance(error, pickle.UnpicklingError):
            raise UserError(_explain_foreign_class(path, foreign.group(1))) from error
        if isinstance(error, ModuleNotFoundError):  # only a trusted pickle imports modules
            raise UserError(f"{path} needs the module {error.name}, which is not installed here") from error
        details = (str(error).strip() or "no details").splitlines()[0][:120]
        if operand := re.search(r"Unsupported operand \d+", str(error)):
            details = f"{operand.group()}, or saved with an unusual pickle protocol"
        reason = f"{type(error).__name__}: {details}"
        raise UserError(f"{path} is cut short or damaged ({reason}); download it again") from error


def _explain_foreign_class(path: Path, name: str) -> str:
    hint = ""
    if name.split(".")[0] in ("haiku", "jax", "jaxlib", "optax"):
        hint = " (a JAX checkpoint: trained with SAME padding, which torch's ResNet does not have)"
    return (
        f"{path} needs the foreign class {name} to be unpickled{hint}, which could run any code; "
        "if you trust its source, add --trust-checkpoint"
    )


def _read_torch(path: Path, trust: bool) -> tuple[Any, dict[str, str]]:
    zipped = zipfile.is_zipfile(path)
    if zipped:
        _check_zip_checksums(path)
    with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace, *_numpy_scalars()]):
        warnings.simplefilter("ignore")
        tree = torch.load(path, map_location="cpu", weights_only=not trust, mmap=zipped)
    return tree, _string_dict(getattr(tree, PTH_METADATA, None))


def _string_dict(value: Any) -> dict[str, str]:
    valid = isinstance(value, dict) and all(isinstance(v, str) for pair in value.items() for v in pair)
    return dict(value) if valid else {}


def _numpy_scalars() -> list[Any]:
    """What unpickling a numpy number (a loss, an epoch) needs: harmless, and many trainers save one."""
    scalar = np.float64(0).__reduce__()[0]
    names = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    return [*names, np.dtype, *{type(np.dtype(code)) for code in ("f4", "f8", "i4", "i8", "?")}]


def _check_zip_checksums(path: Path) -> None:
    """torch ignores a zip's checksums: a flipped bit would be read as a weight."""
    with zipfile.ZipFile(path) as archive:
        bad = archive.testzip()
    if bad is not None:
        raise UserError(f"{path} is damaged: the checksum of {bad} does not match; download it again")


def _read_pickle(path: Path, trust: bool) -> tuple[Any, dict[str, str]]:
    with open(path, "rb") as stream:
        return (pickle.load(stream, encoding="latin1") if trust else load_plain_pickle(stream)), {}


def _read_safetensors(path: Path, trust: bool) -> tuple[Any, dict[str, str]]:
    from safetensors import safe_open

    with open(path, "rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        if length > path.stat().st_size:
            raise UserError(f"{path} is cut short or damaged (a header of {length} bytes); download it again")
        json.loads(stream.read(length))
    with safe_open(str(path), framework="pt", device="cpu") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118


def _read_npz(path: Path, trust: bool) -> tuple[Any, dict[str, str]]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}, {}


def _arrays_to_tensors(value: Any, depth: int = 0) -> Any:
    """The tree with every numeric array as a tensor over the same memory."""
    if isinstance(value, np.ndarray) and value.dtype.kind in NUMBER_KINDS:
        return _as_tensor(value)
    if isinstance(value, Mapping) and depth < MAX_NESTING:
        return {k: _arrays_to_tensors(v, depth + 1) for k, v in value.items()}
    return value


def _as_tensor(array: np.ndarray) -> torch.Tensor:
    """A tensor over the array's memory, read-only or not; only another byte order needs a copy."""
    native = array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable.*")
        return torch.from_numpy(native)


def load_plain_pickle(stream: BinaryIO) -> Any:
    """Read one pickle of numpy arrays of numbers and plain types.

    Arrays are read-only views of the pickle's own bytes: nothing is copied.

    Raises:
        ForeignClassError: the pickle names anything else; none of it has run.
        Exception: whatever pickle raises on a damaged stream.
    """
    return _replace_stand_ins(_PlainUnpickler(stream).load())


class _DType:
    """Stands in for numpy.dtype during unpickling: takes its arguments, but never runs numpy's code on them."""

    def __init__(self, code: Any, align: Any = False, copy: Any = False) -> None:
        self.dtype = np.dtype(code) if isinstance(code, str) and len(code) <= 3 and code.isalnum() else None
        if self.dtype is None or self.dtype.kind not in NUMBER_KINDS:
            raise ForeignClassError(f"numpy.dtype({code!r})")

    def __setstate__(self, state: Any) -> None:
        order = state[1]
        if self.dtype is None or order not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError("not a plain number type")
        self.dtype = self.dtype if order == "|" else self.dtype.newbyteorder(order)


class _Array:
    """Stands in for numpy.ndarray during unpickling; `value` is the array, a read-only view of the pickle's bytes."""

    value: np.ndarray | None = None

    def __init__(self, *arguments: Any) -> None:
        """numpy's `_reconstruct(ndarray, (0,), b"b")`: an empty array, which `__setstate__` fills."""

    def __setstate__(self, state: Any) -> None:
        _version, shape, dtype, fortran, data = state
        self.value = _view(data, dtype, shape, "F" if fortran else "C")


def _view(data: Any, dtype: Any, shape: Any, order: str) -> np.ndarray:
    """The array over `data`, if type, shape and length agree."""
    if not isinstance(dtype, _DType) or dtype.dtype is None:
        raise pickle.UnpicklingError("an array without a number type")
    if isinstance(data, str):  # a protocol-2 pickle of Python 2, read as latin-1
        data = data.encode("latin-1")
    sizes = tuple(shape)
    if not isinstance(data, (bytes, bytearray)) or not all(type(n) is int and n >= 0 for n in sizes):
        raise pickle.UnpicklingError("an array without bytes or shape")
    if len(data) != math.prod(sizes) * dtype.dtype.itemsize:
        raise pickle.UnpicklingError(f"an array of shape {list(sizes)} with {len(data)} bytes")
    return np.frombuffer(data, dtype.dtype).reshape(sizes, order="F" if order == "F" else "C")


class _FromBuffer(_Array):
    """numpy's `_frombuffer(data, dtype, shape, order)`, as protocol 5 writes arrays."""

    def __init__(self, data: Any, dtype: Any, shape: Any, order: Any) -> None:
        self.value = _view(data, dtype, shape, "F" if order == "F" else "C")


class _Scalar(_Array):
    """numpy's `scalar(dtype, bytes)`."""

    def __init__(self, dtype: Any, data: Any = b"") -> None:
        self.value = _view(data, dtype, (), "C")


def _encode(text: Any, codec: Any = "latin1") -> bytes:
    """`_codecs.encode`, for the only use that pickle makes of it: protocol 2 writes bytes as latin-1 text."""
    if not isinstance(text, str) or codec not in ("latin1", "latin-1"):
        raise ForeignClassError("_codecs.encode")
    return text.encode("latin-1")


def _stand_ins() -> dict[tuple[str, str], Callable[..., Any]]:
    stand_ins: dict[tuple[str, str], Callable[..., Any]] = {
        ("collections", "OrderedDict"): OrderedDict,
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _DType,
        ("_codecs", "encode"): _encode,
    }
    for core in ("numpy.core", "numpy._core"):
        stand_ins[f"{core}.multiarray", "_reconstruct"] = _Array
        stand_ins[f"{core}.multiarray", "scalar"] = _Scalar
        stand_ins[f"{core}.numeric", "_frombuffer"] = _FromBuffer
    return stand_ins


class _PlainUnpickler(pickle.Unpickler):
    def __init__(self, stream: BinaryIO) -> None:
        super().__init__(stream, encoding="latin1")
        self.allowed = _stand_ins()

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.allowed:
            raise ForeignClassError(f"{module}.{name}")
        return self.allowed[module, name]


def _replace_stand_ins(value: Any, depth: int = 0) -> Any:
    """Replace the stand-ins by their arrays and rebuild containers as plain ones.

    The depth is bounded, because a container that holds itself would recurse without end.
    """
    if depth > MAX_NESTING:
        raise pickle.UnpicklingError(f"nested more than {MAX_NESTING} deep")
    if isinstance(value, _Array):
        if value.value is None:
            raise pickle.UnpicklingError("an array without content")
        return value.value if value.value.shape or not isinstance(value, _Scalar) else value.value.item()
    if isinstance(value, dict):
        return {_replace_stand_ins(k, depth + 1): _replace_stand_ins(v, depth + 1) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_replace_stand_ins(v, depth + 1) for v in value)
    if isinstance(value, (str, bytes, bytearray, int, float, bool, complex, set, frozenset, type(None))):
        return value
    raise ForeignClassError(type(value).__name__)
