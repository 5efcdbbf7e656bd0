"""Hostile checkpoint files: they try to run code, to take all memory or never to end. Each is written from opcodes."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch

PROTOCOL = b"\x80\x04"


def text(value: str) -> bytes:
    """A short string's opcodes."""
    return b"\x8c" + bytes([len(value)]) + value.encode()


def name(module: str, attribute: str) -> bytes:
    """A class or function, from the stack."""
    return text(module) + text(attribute) + b"\x93"


def call(module: str, attribute: str, arguments: bytes) -> bytes:
    return name(module, attribute) + arguments + b"R"


def code_that_runs(mark: Path) -> Iterator[tuple[str, bytes]]:
    """Pickles that would make `mark` if one of their calls ran."""
    command = text(f"touch {mark}")
    source = text(f"open({str(mark)!r}, 'w')")
    get = call("builtins", "getattr", b"(" + name("builtins", "__dict__") + text("get") + b"t")
    yield "system", call("posix", "system", command + b"\x85")
    yield "eval", call("builtins", "eval", source + b"\x85")
    yield "exec", call("builtins", "exec", source + b"\x85")
    yield "getattr chain", get + text("eval") + b"\x85R" + source + b"\x85R"
    yield "global", b"cposix\nsystem\n" + command + b"\x85R"
    yield "python 2", b"c__builtin__\neval\n" + source + b"\x85R"
    yield "dotted", call("os", "path.os.system", command + b"\x85")
    yield "new object", name("subprocess", "Popen") + command + b"\x85\x81"
    yield "keywords", name("subprocess", "Popen") + b")}" + text("args") + command + b"s\x92"
    yield "old instance", b"(" + name("posix", "system") + command + b"o"
    yield "inst", b"(" + command + b"iposix\nsystem\n"
    yield "state", name("torch.nn.modules.linear", "Linear") + b")\x81}" + text("__class__") + command + b"sb"
    yield "state of a class", name("collections", "OrderedDict") + b"}" + text("__init__") + command + b"sb"
    yield "state of a dict", call("collections", "OrderedDict", b")") + b"}" + text("items") + command + b"sb"
    yield "method of an item", call("operator", "methodcaller", b"(" + text("system") + command + b"t") + b")R"
    yield "torch's own load", call("torch", "load", command + b"\x85")
    yield "bytes of a storage", call("torch.storage", "_load_from_bytes", b"C\x02c." + b"\x85")
    yield (
        "rebuilt from a type",
        call("torch._tensor", "_rebuild_from_type_v2", b"(" + name("posix", "system") + b"N" + command + b"\x85Nt"),
    )
    yield "numpy", call("numpy.testing._private.utils", "runstring", b"(" + source + b"}t")
    yield "memoised", name("posix", "system") + b"\x94h\x00" + command + b"\x85R"
    yield "extension", b"\x82\x01"


def bad_arguments() -> Iterator[tuple[str, bytes]]:
    """The known functions with arguments that they never get."""
    for function in ("_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_parameter", "_rebuild_qtensor"):
        for arguments in (
            b")",
            b"N\x85",
            b"(" + b"N" * 7 + b"t",
            b"(" + text("x") * 8 + b"t",
            b"(" + b"K\x01" * 7 + b"t",
        ):
            yield function, call("torch._utils", function, arguments)
    for module, function in (("numpy.core.multiarray", "_reconstruct"), ("numpy.core.multiarray", "scalar")):
        for arguments in (b")", b"N\x85", b"(" + name("numpy", "ndarray") + b"J\xff\xff\xff\x7f\x85C\x01bt"):
            yield function, call(module, function, arguments) + b"NN\x86b"
    yield "dtype", call("numpy", "dtype", text("O8") + b"\x85")
    yield "dtype of a text", call("numpy", "dtype", text("f4, " * 40) + b"\x85")
    yield "set of a dict", call("builtins", "set", b"}\x85") + b"N\x85\x90"
    yield "items of a number", b"K\x01K\x01K\x01s"
    yield "no stack", b"0000"
    yield "negative long", b"\x8b\xff\xff\xff\xff"
    yield "recursive tuple", b"(h\x00t\x94"


def memory_bombs(big: int) -> Iterator[tuple[str, bytes]]:
    """Small pickles that would take far more memory or time than they have bytes.

    Args:
        big: opcodes to repeat; 20 million exceed what is allowed.
    """
    lists = b"]\x94" + b"".join(b"](h" + bytes([i]) * 1 + b"h" + bytes([i]) + b"e\x94" for i in range(200))
    yield "shared lists", lists
    tuples = b")\x94" + b"".join(b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86\x94" for i in range(200))
    yield "shared tuples as a key", b"}" + tuples + b"Ns"
    yield "shared tuples in a set", b"\x8f(" + tuples + b"\x90"
    dicts = b"}\x94" + b"".join(
        b"}(" + b"".join(text(f"k{j}") + b"h" + bytes([i]) for j in range(200)) + b"u\x94" for i in range(200)
    )
    yield "shared dicts", dicts
    yield "deep tuple as a key", b"}" + b")" + b"\x85" * 500_000 + b"Ns"
    yield "deep dicts", (b"}" + text("a")) * 200_000 + b"N" + b"s" * 200_000
    yield "a far memo", b"Nr\xff\xff\xff\xff"
    yield "a long text", b"\x8d" + struct.pack("<Q", 1 << 40) + b"abc"
    yield "a long bytearray", b"\x96" + struct.pack("<Q", 1 << 40) + b"abc"
    yield "long bytes", b"\x8e" + struct.pack("<Q", 1 << 62) + b"abc"
    yield "a long frame", b"\x95" + struct.pack("<Q", 1 << 62) + b"N"
    yield "a great number", b"\x8b" + struct.pack("<I", 50_000_000) + b"\x7f" * 50_000_000
    same_hash = b"}(" + b"".join(
        b"\x8a\x0a" + ((i << 61) - i).to_bytes(10, "little", signed=True) + b"N" for i in range(60_000)
    )
    yield "keys of one hash", same_hash + b"u"
    yield "wide text", b"X" + struct.pack("<I", 20_000_004) + "𝄞".encode() + b"a" * 20_000_000
    if big:
        yield from _amplifiers()
        yield "lists", b"](" + b"]" * big + b"e"
        yield "sets", b"](" + b"\x8f" * big + b"e"
        yield "dicts in dicts", b"}N" * big
        yield "marks", b"(" * big
        yield "floats", b"](" + b"G????????" * big + b"e"
        yield "classes", b"](cposix\nsystem\n\x94" + b"h\x00)\x81" * big + b"e"
        yield "memos", b"N" + b"\x94" * big


def _amplifiers() -> Iterator[tuple[str, bytes]]:
    """Small loops over a large object."""
    yield (
        "a text encoded again and again",
        b"X"
        + struct.pack("<I", 1_000_000)
        + b"a" * 1_000_000
        + (b"\x94c_codecs\nencode\n\x940" + b"](" + b"h\x01h\x00\x85R" * 10_000 + b"e"),
    )
    copies = b"}(" + b"".join(b"M" + struct.pack("<H", i) + b"N" for i in range(60_000)) + b"u\x94"
    yield (
        "a dict copied again and again",
        copies + b"ccollections\nOrderedDict\n\x940](" + b"h\x01h\x00\x85R" * 20_000 + b"e",
    )
    pairs = b"](" + b"NN\x86" * 200_000 + b"e\x94ccollections\nOrderedDict\n\x940]("
    yield "a dict of one key made again and again", pairs + b"h\x01h\x00\x85R" * 100_000 + b"e"


def zipped(data: bytes, storage: bytes = b"", compression: int = zipfile.ZIP_STORED) -> bytes:
    """A torch file with this pickle and one storage."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/data/0", storage)
        archive.writestr("archive/version", "3\n")
    return buffer.getvalue()


def a_tensor(count: int, offset: int, size: bytes, stride: bytes) -> bytes:
    """The pickle of a float tensor: a storage that claims `count` elements, and its view."""
    long = lambda value: b"\x8a\x08" + struct.pack("<q", value)  # noqa: E731
    storage = b"(" + text("storage") + name("torch", "FloatStorage") + text("0") + text("cpu") + long(count) + b"tQ"
    return call("torch._utils", "_rebuild_tensor_v2", b"(" + storage + long(offset) + size + stride + b"\x89Nt")


def false_tensors() -> Iterator[tuple[str, bytes]]:
    """Tensors that claim more than their storage has."""
    huge = b"\x8a\x08" + struct.pack("<q", 1 << 40)
    yield "a huge storage", a_tensor(1 << 40, 0, huge + b"\x85", b"K\x01\x85")
    yield "an offset behind the end", a_tensor(4, 1 << 40, b"K\x01\x85", b"K\x01\x85")
    yield "a stride behind the end", a_tensor(4, 0, b"K\x02\x85", huge + b"\x85")
    yield "a negative offset", a_tensor(4, -1, b"K\x01\x85", b"K\x01\x85")
    yield "a negative size", a_tensor(4, 0, b"J\xff\xff\xff\xff\x85", b"K\x01\x85")
    yield "more sizes than strides", a_tensor(4, 0, b"K\x01K\x01\x86", b"K\x01\x85")
    yield "a size that overflows", a_tensor(4, 0, huge + huge + b"\x86", huge + huge + b"\x86")
    yield "a text as size", a_tensor(4, 0, text("x"), text("x"))


def containers(folder: Path) -> Iterator[tuple[str, Path]]:
    """Whole files whose container lies."""

    def write(file: str, content: bytes) -> Path:
        (folder / file).write_bytes(content)
        return folder / file

    bomb = bytearray(zipped(bytes(1000), bytes(1000), zipfile.ZIP_DEFLATED))
    place = bomb.index(b"PK\x01\x02")
    bomb[place + 24 : place + 28] = struct.pack("<I", 3 << 30)
    yield "a zip bomb", write("bomb.pth", bytes(bomb))
    overlapping = bytearray(zipped(b"\x80\x04N.", bytes(1000)))
    place = overlapping.rindex(b"PK\x01\x02", 0, overlapping.rindex(b"PK\x01\x02"))
    overlapping[place + 20 : place + 28] = struct.pack("<II", 1 << 31, 1 << 31)
    yield "an entry longer than the file", write("overlap.pth", bytes(overlapping))
    buffer = io.BytesIO()
    torch.save({"state_dict": {"a": torch.zeros(4)}}, buffer, _use_new_zipfile_serialization=False)
    legacy = buffer.getvalue()
    place = legacy.rindex(struct.pack("<q", 4))
    for count in (1 << 60, -1):
        content = legacy[:place] + struct.pack("<q", count) + legacy[place + 8 :]
        yield f"a legacy storage of {count}", write(f"legacy_{count}.pth", content)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for part, content in (("storages", pickle.dumps(1 << 60)), ("tensors", pickle.dumps(0)), ("pickle", b"N.")):
            entry = tarfile.TarInfo(part)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    yield "a tar of too many storages", write("t.tar", buffer.getvalue())
