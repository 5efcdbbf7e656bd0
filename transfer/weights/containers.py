"""Read checkpoint files. The container (zip, pickle, safetensors, npz) is recognised by its bytes, not by the name.

Pickles, torch's among them, are read without running anything: `inert_pickle`. Only a trusted file may run its code.
"""

from __future__ import annotations

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

from ssl_transfer.errors import UserError, abbreviate
from ssl_transfer.files import describe_unreadable, open_input, sha256_of
from ssl_transfer.formats.backbone import PTH_METADATA, check_backbone_file
from ssl_transfer.formats.shards import INDEX_SUFFIX, index_digest, read_shard_index
from transfer.weights.inert_pickle import MAX_LISTED, NUMBER_KINDS, Foreign, Plain, as_tensor, children, count_tensors
from transfer.weights.torch_files import LEGACY_TORCH, check_entries, read_plain_pickle, read_stream, read_tar, read_zip

MAX_NESTING = 20


@dataclass(frozen=True)
class CheckpointFile:
    """The content of a checkpoint file.

    Attributes:
        path: as the user wrote it.
        kind: `torch`, `pickle`, `safetensors`, `npz` or `shards`.
        tree: nested dicts with tensors (arrays are tensors, too) and all other values in the file.
        bytes: the file's size.
        metadata: the strings of a safetensors file or of a converted `.pth`; empty for all others.
        foreign: objects of classes that are not opened: place → class, and how many tensors it holds.
    """

    path: str
    kind: str
    tree: Any
    bytes: int
    metadata: Mapping[str, str] = field(default_factory=dict)
    foreign: Mapping[str, tuple[str, int]] = field(default_factory=dict)

    @cached_property
    def sha256(self) -> str:
        """The file's SHA-256 in hex (of an index: `index_digest`); computed on first use."""
        return index_digest(Path(self.path), sha256_of) if self.kind == "shards" else sha256_of(self.path)

    def at(self, *keys: str) -> dict[str, Any] | None:
        """The mapping under nested keys (by default the whole file); None if there is none."""
        node = self.tree
        for key in keys:
            node = children(node).get(key)
        return dict(children(node)) or None

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
        UserError: the file is missing, cut short, damaged or in no known container.
    """
    file = Path(path)
    try:
        with open_input(file) as stream:
            head = stream.read(512)
    except OSError as error:
        raise UserError(f"{describe_unreadable(path, error)}; name a checkpoint file") from error
    if head.lstrip()[:1] == b"{" and file.name.endswith(INDEX_SUFFIX):
        return _read_shards(file)
    kind, read = _choose_reader(file, head)
    return CheckpointFile(str(path), kind, bytes=file.stat().st_size, **_call_reader(file, read, trust))


def _read_shards(path: Path) -> CheckpointFile:
    """The files that `model.safetensors.index.json` (transformers) names, as one flat state dict.

    Raises:
        UserError: the index is damaged, or a shard or tensor is missing, is there twice or is not in the index.
    """
    places, shards = read_shard_index(path)
    tree: dict[str, Any] = {}
    for shard in shards:
        for name, tensor in read_checkpoint(shard).tensors().items():
            place = places.get(name)
            if place != shard.name:
                raise UserError(f"{shard} holds {name}, which {path.name} places in {place}; download both again")
            tree[name] = tensor
    missing = [name for name in places if name not in tree]
    if missing:
        raise UserError(
            f"{path}: {abbreviate(missing)} is in no shard ({places[missing[0]]} should hold it); download it again"
        )
    size = sum(file.stat().st_size for file in (path, *shards))
    return CheckpointFile(str(path), "shards", tree, size)


Reader = Callable[[Path, bool], dict[str, Any]]
"""(path, trust) → `tree`, and `metadata` and `foreign` where there are any."""


def _choose_reader(path: Path, head: bytes) -> tuple[str, Reader]:
    if head.startswith(b"PK\x03\x04"):
        return _choose_zip_reader(path)
    if _is_safetensors(path, head):  # before pickle: the first byte, of the header's length, may be pickle's, too
        return "safetensors", _read_safetensors
    if head[:1] == b"\x80":
        return (
            ("torch", _pickled(read_stream))
            if LEGACY_TORCH in head[:24]
            else ("pickle", _pickled(read_plain_pickle, _load_pickle))
        )
    if head[:2] == b"\x1f\x8b":
        raise UserError(f"{path} is compressed; unpack it (tar -xzf {path}, or gunzip {path}) and name the checkpoint")
    if head[257:262] == b"ustar":
        return "torch", _pickled(read_tar)
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
        save = f"torch.save(torch.jit.load({str(path)!r}).state_dict(), 'weights.pth')"
        raise UserError(f'{path} is a TorchScript archive; if you trust it: python -c "import torch; {save}"')
    if any(name.endswith("/data.pkl") for name in names):
        return "torch", _pickled(read_zip)
    raise UserError(f"{path} is a zip archive without a checkpoint in it (no data.pkl, no .npy); unpack it first")


def _call_reader(path: Path, read: Reader, trust: bool) -> dict[str, Any]:
    """Call the container's reader and turn any exception into one line."""
    try:
        return read(path, trust)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # a damaged pickle and a trusted object's code can raise any exception
        if isinstance(error, ModuleNotFoundError):  # only a trusted pickle imports modules
            raise UserError(f"{path} needs the module {error.name}, which is not installed here") from error
        details = (str(error).strip() or "no details").splitlines()[0][:120]
        if operand := re.search(r"Unsupported operand \d+", str(error)):
            details = f"{operand.group()}, or saved with an unusual pickle protocol"
        reason = f"{type(error).__name__}: {details}"
        if trust:
            raise UserError(f"{path} cannot be opened by the code that it names ({reason})") from error
        raise UserError(f"{path} is cut short or damaged ({reason}); download it again") from error


def _load_torch(path: Path) -> Any:
    if zipped := zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            check_entries(path, archive)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.load(path, map_location="cpu", weights_only=False, mmap=zipped)


def _load_pickle(path: Path) -> Any:
    with open(path, "rb") as stream:
        return pickle.load(stream, encoding="latin1")


def _pickled(read: Callable[[Path], Plain], load: Callable[[Path], Any] = _load_torch) -> Reader:
    """A reader of pickles: `load` runs a trusted file's code."""

    def read_pickles(path: Path, trust: bool) -> dict[str, Any]:
        if not trust:
            return _describe_plain(*read(path))
        tree = load(path)
        return {**open_objects(tree), "metadata": _string_dict(getattr(tree, PTH_METADATA, None))}

    return read_pickles


def _describe_plain(tree: Any, foreign: dict[str, Foreign], attributes: Any) -> dict[str, Any]:
    counts = count_tensors(foreign)
    return {
        "tree": tree,
        "metadata": _string_dict(attributes.get(PTH_METADATA) if isinstance(attributes, dict) else None),
        "foreign": {path: (value.name, counts[path]) for path, value in foreign.items()},
    }


def _string_dict(value: Any) -> dict[str, str]:
    valid = isinstance(value, dict) and all(isinstance(v, str) for pair in value.items() for v in pair)
    return dict(value) if valid else {}


def open_objects(root: Any) -> dict[str, Any]:
    """The tree of a trusted file with plain dicts and tensors: modules and other objects give their state dict.

    Runs the objects' own code; where it fails, the object stays closed and its error is among `foreign`.
    """
    made: dict[int, tuple[Any, Any]] = {}
    foreign: dict[str, tuple[str, int]] = {}

    def convert(value: Any, path: str) -> Any:
        if isinstance(value, np.ndarray) and value.dtype.kind in NUMBER_KINDS:
            return as_tensor(value)
        if isinstance(value, (list, tuple)) and len(value) <= MAX_LISTED and path.count(".") < MAX_NESTING:
            return [convert(item, f"{path}.{index}".lstrip(".")) for index, item in enumerate(value)]
        if isinstance(value, _CLOSED) or path.count(".") >= MAX_NESTING:
            return value
        if id(value) not in made:
            made[id(value)] = (value, {})  # an object may hold itself
            try:
                items = _items_of(value)
                made[id(value)] = (value, value if items is None else made[id(value)][1])
                for key, inner in [] if items is None else [(key, items[key]) for key in items]:
                    made[id(value)][1][key] = convert(inner, f"{path}.{key}".lstrip("."))
            except (Exception, SystemExit) as error:
                details = (str(error).strip() or "no details").splitlines()[0][:120]
                name = f"{type(value).__module__}.{type(value).__qualname__}"
                foreign[path] = (f"{name}, whose own code fails: {type(error).__name__}: {details}", 0)
        return made[id(value)][1]

    return {"tree": convert(root, ""), "foreign": foreign}


_CLOSED = (torch.Tensor, np.ndarray, str, int, float, bytes, type, list, tuple, set)


def _items_of(value: Any) -> Mapping[Any, Any] | None:
    if isinstance(value, Mapping):
        return value
    if callable(getattr(value, "state_dict", None)):
        return _items_of(value.state_dict())
    return getattr(value, "__dict__", None)


def _read_safetensors(path: Path, trust: bool) -> dict[str, Any]:
    from safetensors import safe_open

    with open(path, "rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        if length > path.stat().st_size:
            raise UserError(f"{path} is cut short or damaged (a header of {length} bytes); download it again")
        json.loads(stream.read(length))
    check_backbone_file(path)
    with safe_open(str(path), framework="pt", device="cpu") as file:
        tree = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return {"tree": tree, "metadata": dict(file.metadata() or {})}


def _read_npz(path: Path, trust: bool) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    return {"tree": {k: as_tensor(v) if v.dtype.kind in NUMBER_KINDS else v for k, v in arrays.items()}}
