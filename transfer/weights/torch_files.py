"""Read the files of torch.save without running anything in them: zip (since 1.6), one stream (since 0.1), and tar."""

from __future__ import annotations

import mmap
import pickle
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ssl_transfer.errors import UserError
from transfer.weights.inert_pickle import (
    STORAGE_TYPES,
    Buffer,
    Foreign,
    InertUnpickler,
    Plain,
    Storage,
    StoredTensor,
    to_plain,
)

LEGACY_TORCH = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"
"""torch's magic number as a pickled long: how a file of torch.save before version 1.6 begins."""

MAX_COMPRESSED = 1 << 30
"""Bytes that the compressed entries of one zip may unpack to."""

ALIGNMENT = 16


def read_zip(path: Path) -> Plain:
    """Read a zip file of torch.save. Tensors are views of the mapped file.

    Raises:
        UserError: a checksum does not match, or the entries claim more than the file can hold.
        Exception: whatever a damaged stream leads to.
    """
    with zipfile.ZipFile(path) as archive:
        check_entries(path, archive)
        folder = next(name for name in archive.namelist() if name.endswith("/data.pkl")).removesuffix("data.pkl")
        order = archive.read(f"{folder}byteorder") if f"{folder}byteorder" in archive.namelist() else b"little"
        data = _map(path)

        def memory(key: str) -> tuple[Buffer, int, int]:
            entry = archive.getinfo(f"{folder}data/{key}")
            if entry.compress_type != zipfile.ZIP_STORED:
                return archive.read(entry), 0, entry.file_size
            names = struct.unpack_from("<HH", data, entry.header_offset + 26)
            return data, entry.header_offset + 30 + sum(names), entry.file_size

        tree = InertUnpickler(archive.read(f"{folder}data.pkl"), persistent=_storage).load()
        return to_plain(tree, _Memory(memory, swapped=order == b"big"))


def check_entries(path: Path, archive: zipfile.ZipFile) -> None:
    """Check sizes and checksums, which torch ignores: a flipped bit would be read as a weight.

    Raises:
        UserError: a checksum does not match, or the entries claim more than the file can hold.
    """
    entries = archive.infolist()
    stored = [entry for entry in entries if entry.compress_type == zipfile.ZIP_STORED]
    sizes_fit = all(entry.file_size == entry.compress_size for entry in stored)
    sizes_fit &= sum(entry.compress_size for entry in entries) <= path.stat().st_size
    if not sizes_fit or sum(entry.file_size for entry in entries) > path.stat().st_size + MAX_COMPRESSED:
        raise UserError(f"{path} is damaged: its entries claim more bytes than it has; download it again")
    bad = archive.testzip()
    if bad is not None:
        raise UserError(f"{path} is damaged: the checksum of {bad} does not match; download it again")


def _map(path: Path) -> mmap.mmap:
    with open(path, "rb") as stream:
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)


def _storage(pid: Any) -> Any:
    """What torch's persistent ids stand for: memory, or (in old files) the class of a module."""
    if isinstance(pid, tuple) and len(pid) in (5, 6) and pid[0] == "storage":
        _, kind, key, _location, count, *view = pid
        dtype = STORAGE_TYPES.get(getattr(kind, "name", ""))
        start, count = (view[0][1], view[0][2]) if view and view[0] is not None else (0, count)
        if dtype is not None and isinstance(key, str) and all(type(n) is int and n >= 0 for n in (start, count)):
            return Storage(key, dtype, count, start)
    if isinstance(pid, tuple) and len(pid) == 4 and pid[0] == "module" and isinstance(pid[1], Foreign):
        return pid[1]
    raise pickle.UnpicklingError("a persistent id that torch does not write")


class _Memory:
    """Tensors over the memory of storages, each made once.

    Args:
        find: a storage's key → buffer, start and length in bytes.
        swapped: whether its numbers are big-endian.
    """

    def __init__(self, find: Callable[[Any], tuple[Buffer, int, int]], swapped: bool = False) -> None:
        self.find = find
        self.swapped = swapped
        self.made: dict[Any, torch.Tensor] = {}

    def __call__(self, tensor: StoredTensor) -> torch.Tensor:
        storage = tensor.storage
        if storage.key not in self.made:
            self.made[storage.key] = self._make(storage.key, storage.dtype.itemsize)
        flat = self.made[storage.key]
        flat = flat[: flat.numel() // tensor.dtype.itemsize * tensor.dtype.itemsize].view(tensor.dtype)
        start = storage.start * storage.dtype.itemsize // tensor.dtype.itemsize + tensor.offset
        if 0 in tensor.size:
            return torch.empty(tensor.size, dtype=tensor.dtype)
        if start + tensor.extent >= flat.numel():
            raise EOFError(f"storage {storage.key} has only {flat.numel()} elements")
        return flat.as_strided(tensor.size, tensor.stride, start)

    def _make(self, key: Any, itemsize: int) -> torch.Tensor:
        """All bytes of a storage; aligned, and in this machine's byte order."""
        buffer, start, length = self.find(key)
        if not 0 <= length <= len(buffer) - start:
            raise EOFError(f"storage {key} is cut off")
        if length == 0:
            return torch.empty(0, dtype=torch.uint8)
        if start % ALIGNMENT:
            buffer, start = bytearray(memoryview(buffer)[start : start + length]), 0
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*not writable.*")
            flat = torch.frombuffer(buffer, dtype=torch.uint8, count=length, offset=start)
        return flat.view(-1, itemsize).flip(1).flatten() if self.swapped else flat


def read_stream(path: Path) -> Plain:
    """Read a file of torch.save before version 1.6: pickles, then the storages."""
    return to_plain(*_read_stream(_map(path)))


def _read_stream(data: Buffer) -> tuple[Any, _Memory]:
    storages: dict[str, Storage] = {}

    def persistent(pid: Any) -> Any:
        found = _storage(pid)
        if isinstance(found, Storage):
            storages.setdefault(found.key, found)
        return found

    machine = InertUnpickler(data, persistent=persistent)
    machine.load(), machine.load()  # the magic number, the format's version
    system = machine.load()
    tree = machine.load()
    keys, position, places = machine.load(), machine.position, {}
    for key in keys:
        (count,) = struct.unpack_from("<q", data, position)
        length = count * storages[key].dtype.itemsize
        if not 0 <= length <= len(data) - position - 8:
            raise EOFError(f"storage {key} is cut off")
        places[key] = (data, position + 8, length)
        position += 8 + length
    return tree, _Memory(places.__getitem__, swapped=system.get("little_endian") is False)


def read_plain_pickle(path: Path) -> Plain:
    """Read one pickle of numpy arrays, torch tensors and plain types. Arrays are views of the pickle's bytes."""
    content = path.read_bytes()
    storages: dict[int, tuple[Any, Storage, tuple[Buffer, int, int]]] = {}

    def load_storage(data: Any) -> Storage:
        """`torch.storage._load_from_bytes`: a tensor in a plain pickle is a stream of torch.save with one storage."""
        if id(data) not in storages:
            storage, memory = _read_stream(bytes(data))
            place = memory.find(storage.key)
            storages[id(data)] = data, Storage(id(data), storage.dtype, storage.count, storage.start), place
        return storages[id(data)][1]

    machine = InertUnpickler(content, known={"torch.storage._load_from_bytes": load_storage})
    return to_plain(machine.load(), _Memory(lambda key: storages[key][2]))


def read_tar(path: Path) -> Plain:
    """Read a file of torch.save before version 0.1.10: a tar of the storages, the tensors and a pickle.

    Raises:
        UserError: another tar.
    """
    with tarfile.open(path, "r:") as archive:
        names = ("storages", "tensors", "pickle")
        parts = [archive.getmember(name) if name in archive.getnames() else None for name in names]
        if any(part is None or not part.isreg() or part.issparse() for part in parts):
            raise UserError(f"{path} is a tar archive; unpack it (tar -xf {path}) and name the checkpoint in it")
        storages, tensors, data = (archive.extractfile(part).read() for part in parts)  # type: ignore[union-attr, arg-type]
    found: dict[Any, Any] = {}
    places: dict[str, tuple[Buffer, int, int]] = {}
    machine = InertUnpickler(storages)
    for _ in range(machine.load()):
        key, _location, kind = machine.load()
        dtype = STORAGE_TYPES[kind.name]
        (count,) = struct.unpack_from("<q", storages, machine.position)
        found[key] = Storage(str(key), dtype, count)
        places[str(key)] = (storages, machine.position + 8, count * dtype.itemsize)
        machine.input.position += 8 + count * dtype.itemsize
    for target, root, start, count in machine.load():
        found[target] = Storage(str(root), found[root].dtype, count, start)
    machine = InertUnpickler(tensors)
    for _ in range(machine.load()):
        key, storage, _kind = machine.load()
        rank = struct.unpack_from("<q", tensors, machine.position)[0] & 0xFFFFFFFF
        numbers = struct.unpack_from(f"<{2 * rank + 1}q", tensors, machine.position + 8)
        machine.input.position += 16 + 16 * rank
        dtype = found[storage].dtype
        found[key] = StoredTensor(found[storage], dtype, numbers[-1], numbers[:rank], numbers[rank:-1])
    tree = InertUnpickler(data, persistent=lambda pid: pid[0] if isinstance(pid, tuple) else found[int(pid)]).load()
    return to_plain(tree, _Memory(places.__getitem__))
