"""Read a pickle without importing or running anything that it names.

Plain values, numpy arrays of numbers and torch tensors become themselves; every other class or function becomes a
`Foreign`, which records its arguments and runs nothing. A hostile pickle is bounded: each part that is read has a price
in bytes, paid from `BUDGET`; no key is hashed but a short scalar; nothing recurses; and an array or a tensor is a view
of bytes that are in the file.
"""

from __future__ import annotations

import math
import mmap
import pickle
import struct
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

NUMBER_KINDS = "biuf"
"""numpy's kinds of the numbers that a pickled array may hold: booleans, integers, floats."""

BUDGET = 800_000_000
"""Bytes of Python objects that a file may make, besides twice its own size."""

PRICE = 80
"""Bytes of the largest object that one opcode or operand may make; a call and a name cost more."""

MAX_NAME, MAX_DIMENSIONS, LONG = 1000, 64, 1 << 12
MAX_FOREIGN = 1000
"""Foreign objects that are listed."""
MAX_LISTED = 64
"""Items of a list that is searched for tensors and state dicts."""

Buffer = bytes | bytearray | mmap.mmap


@dataclass(eq=False, slots=True, repr=False)
class Foreign:
    """Stands for a class, a function or an object that the pickle names.

    Attributes:
        name: dotted name of the class or function.
        parts: arguments, states and appended items.
        items: what was set by key: the content of a subclass of dict.
    """

    name: str
    parts: list[Any] = field(default_factory=list)
    items: dict[Any, Any] | None = None

    def __repr__(self) -> str:
        return f"<{self.name}>"

    def extend(self, items: list[Any]) -> None:
        """Items of a subclass of list, or of a set."""
        self.parts.extend(items)

    def append(self, item: Any) -> None:
        self.parts.append(item)

    add = append


class StateDict(dict[Any, Any]):
    """A dict whose attributes (an OrderedDict may have some) are kept beside its items."""

    attributes: Any = None


Plain = tuple[Any, dict[str, Foreign], Any]
"""A tree of dicts, the foreign objects in it by path, and the attributes of its outermost dict."""


@dataclass(frozen=True, eq=False, slots=True)
class Storage:
    """Memory of tensors in a torch file.

    Attributes:
        key: its name in the file.
        dtype: of its elements.
        count: of elements.
        start: first element in the memory that `key` names.
    """

    key: Any
    dtype: torch.dtype
    count: int
    start: int = 0


@dataclass(frozen=True, eq=False, slots=True)
class StoredTensor:
    """A strided view of a storage; checked to lie within it."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def __post_init__(self) -> None:
        shaped = len(self.size) == len(self.stride) <= MAX_DIMENSIONS
        if not isinstance(self.storage, Storage) or not isinstance(self.size, tuple) or not shaped:
            raise pickle.UnpicklingError("a tensor without storage or shape")
        if not all(type(n) is int and 0 <= n < 1 << 60 for n in (self.offset, *self.size, *self.stride)):
            raise pickle.UnpicklingError("a tensor with a wrong shape")
        count = self.storage.count * self.storage.dtype.itemsize // self.dtype.itemsize
        if 0 not in self.size and self.offset + self.extent >= count:
            raise pickle.UnpicklingError(f"a tensor of shape {list(self.size)} in a storage of {count} elements")

    @property
    def extent(self) -> int:
        """The distance from its first to its last element."""
        return sum((n - 1) * step for n, step in zip(self.size, self.stride, strict=True))


@dataclass(frozen=True, eq=False, slots=True)
class _Known:
    """A class or function of the pickle that is replaced by one of this module."""

    name: str
    make: Callable[..., Any]


@dataclass(eq=False, slots=True)
class _DType:
    """numpy.dtype; `dtype` is None for anything but plain numbers."""

    dtype: np.dtype[Any] | None

    def build(self, state: Any) -> None:
        order = state[1]
        if self.dtype is not None and order in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(order)


@dataclass(eq=False, slots=True)
class _Array:
    """numpy.ndarray; `value` is a read-only view of the pickle's bytes, None for an array of anything but numbers."""

    value: Any = None
    built: bool = False

    def build(self, state: Any) -> None:
        _version, shape, dtype, fortran, data = state
        self.value, self.built = _view(data, dtype, shape, "F" if fortran else "C"), True


def _make_dtype(code: Any, *_options: Any) -> _DType:
    plain = isinstance(code, str) and len(code) <= 3 and code.isalnum() and code[0] in NUMBER_KINDS
    return _DType(np.dtype(code) if plain else None)


def _view(data: Any, dtype: Any, shape: Any, order: str) -> np.ndarray | None:
    """The array over `data`, if type, shape and length agree; None if its elements are not numbers."""
    if not isinstance(dtype, _DType):
        raise pickle.UnpicklingError("an array without a type")
    if dtype.dtype is None:
        return None
    if isinstance(data, str):  # a protocol-2 pickle of Python 2, read as latin-1
        data = data.encode("latin-1")
    sizes = shape if isinstance(shape, tuple) and len(shape) <= MAX_DIMENSIONS else (-1,)
    if not isinstance(data, (bytes, memoryview)) or not all(type(n) is int and n >= 0 for n in sizes):
        raise pickle.UnpicklingError("an array without bytes or shape")
    if len(data) != math.prod(sizes) * dtype.dtype.itemsize:
        raise pickle.UnpicklingError(f"an array of shape {list(sizes)} with {len(data)} bytes")
    return np.frombuffer(data, dtype.dtype).reshape(sizes, order="F" if order == "F" else "C")


def _make_scalar(dtype: Any, data: Any = b"") -> Any:
    array = _view(data, dtype, (), "C") if isinstance(data, (bytes, str)) else None
    return Foreign("numpy.scalar") if array is None else array.item()


def _size_of(made: Any) -> int:
    """The memory that a stand-in has taken besides the file's own bytes."""
    if isinstance(made, _Array) and made.value is not None and not made.value.dtype.isnative:
        return int(made.value.nbytes)
    return len(made) if isinstance(made, bytes) else 0


def _encode(text: Any, codec: Any = "latin1") -> bytes:
    """`_codecs.encode`, for the only use that pickle makes of it: protocol 2 writes bytes as latin-1 text."""
    if not isinstance(text, str) or codec not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError("an unusual use of _codecs.encode")
    return text.encode("latin-1")


def _make_dict(*arguments: Any) -> StateDict:
    """dict, OrderedDict, Counter and defaultdict of pairs, of a dict or of a factory."""
    made = StateDict()
    for argument in arguments:
        pairs = argument.items() if isinstance(argument, dict) else argument if isinstance(argument, list) else ()
        made.update((_key(key), value) for key, value in pairs)
    return made


def _rebuild_v2(storage: Any, offset: Any, size: Any, stride: Any, *_rest: Any) -> StoredTensor:
    return StoredTensor(storage, getattr(storage, "dtype", torch.uint8), offset, size, stride)


def _rebuild_v3(storage: Any, offset: Any, size: Any, stride: Any, _grad: Any, _hooks: Any, dtype: Any, *_: Any) -> Any:
    return StoredTensor(storage, DTYPES[dtype.name], offset, size, stride)


def _rebuild_from_type(function: Any, _type: Any, arguments: Any, _state: Any) -> Any:
    if not isinstance(function, _Known) or not function.name.startswith("torch._utils._rebuild_"):
        return Foreign("torch._tensor._rebuild_from_type_v2", [function, arguments])
    return function.make(*arguments)


DTYPES = {str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}
_STORAGES = (
    "Bool:bool Double:float64 Float:float32 Half:float16 BFloat16:bfloat16 Long:int64 Int:int32 Short:int16 Char:int8 "
    "Byte:uint8 ComplexDouble:complex128 ComplexFloat:complex64 QInt32:int32 QInt8:int8 QUInt8:uint8 QUInt4x2:uint8 "
    "QUInt2x4:uint8"
)
STORAGE_TYPES = {
    f"{module}.{kind}Storage": DTYPES[f"torch.{name}"]
    for module in ("torch", "torch.cuda")
    for kind, name in (pair.split(":") for pair in _STORAGES.split())
} | {"torch.storage.UntypedStorage": torch.uint8}
_SAME = (
    *(f"builtins.{name}" for name in ("set", "frozenset", "list", "tuple", "bytearray")),
    *(f"torch._utils._rebuild_{name}" for name in ("parameter", "parameter_with_state")),
    *(f"torch._utils._rebuild_device_tensor_from_{name}" for name in ("numpy", "cpu_tensor")),
    "torch.Size",
)
_DICTS = ("collections.OrderedDict", "collections.defaultdict", "collections.Counter", "builtins.dict")
_KNOWN: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(_SAME, lambda value, *_rest: value),
    **dict.fromkeys(_DICTS, _make_dict),
    "numpy.dtype": _make_dtype,
    "_codecs.encode": _encode,
    "torch._utils._rebuild_tensor": _rebuild_v2,
    "torch._utils._rebuild_tensor_v2": _rebuild_v2,
    "torch._utils._rebuild_tensor_v3": _rebuild_v3,
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
}
for _core in ("numpy.core", "numpy._core"):
    _KNOWN[f"{_core}.multiarray._reconstruct"] = lambda *_arguments: _Array()
    _KNOWN[f"{_core}.multiarray.scalar"] = _make_scalar
    _KNOWN[f"{_core}.numeric._frombuffer"] = lambda data, dtype, shape, order: _Array(
        _view(data, dtype, shape, order), True
    )


def _key(value: Any) -> Any:
    """A key of a dict. Hashing a nested tuple could take forever, and equal hashes of great numbers can be made."""
    if isinstance(value, (str, bool, float, type(None))) or (type(value) is int and abs(value) < 1 << 60):
        return value
    if isinstance(value, bytes) and len(value) < 256:
        return value
    return value if isinstance(value, (Foreign, _Known)) else Foreign("builtins.object", [value])


class _Input:
    """The file object that the machine reads: counts what it costs, and returns long parts as views of the file."""

    def __init__(self, data: Buffer, position: int) -> None:
        self.data, self.view = data, memoryview(data)
        self.position = position
        self.budget = BUDGET + 2 * len(data)

    def pay(self, price: int) -> None:
        self.budget -= price
        if self.budget < 0:
            raise pickle.UnpicklingError("more objects than a checkpoint has")

    def read(self, count: int) -> Any:
        start, self.position = self.position, self.position + count
        if self.position > len(self.view):
            raise EOFError("ran out of input")
        self.pay(PRICE + (count if count < LONG else 0))
        return self.data[start : self.position] if count < LONG else self.view[start : self.position]

    def readline(self) -> bytes:
        end = self.data.find(b"\n", self.position, self.position + MAX_NAME) + 1
        return bytes(self.read((end or len(self.data) + 1) - self.position))


class InertUnpickler(pickle._Unpickler):
    """pickle's own machine in Python; what could call, import, hash or set anything foreign is replaced.

    Args:
        data: the file's bytes.
        position: where the first pickle begins; after `load`, where the next one begins.
        persistent: what a persistent id stands for; without it the file may not have one.
        known: functions in place of further names.
    """

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(pickle._Unpickler.dispatch)

    def __init__(
        self,
        data: Buffer,
        position: int = 0,
        persistent: Callable[[Any], Any] | None = None,
        known: Mapping[str, Callable[..., Any]] | None = None,
    ) -> None:
        self.input = _Input(data, position)
        super().__init__(self.input, encoding="latin1")
        self.persistent = persistent
        self.known = {**_KNOWN, **(known or {})}

    if TYPE_CHECKING:  # typeshed does not list them
        stack: list[Any]
        append: Callable[[Any], None]
        read: Callable[[int], Any]
        pop_mark: Callable[[], list[Any]]

    @property
    def position(self) -> int:
        return self.input.position

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a class or function: nothing is imported."""
        dotted = f"{module.replace('__builtin__', 'builtins')}.{name}"
        self.input.pay(PRICE + len(dotted))
        return _Known(dotted, self.known[dotted]) if dotted in self.known else Foreign(dotted)

    def persistent_load(self, pid: Any) -> Any:
        if self.persistent is None:
            raise pickle.UnpicklingError("a persistent id outside a torch file")
        return self.persistent(pid)

    def _instantiate(self, function: Any, arguments: Any) -> None:
        """Push what a call makes: a stand-in's result, or a `Foreign` with these arguments."""
        if not isinstance(arguments, (tuple, list)):
            raise pickle.UnpicklingError("a call without arguments")
        copied = sum(len(argument) for argument in arguments if isinstance(argument, (list, dict)))
        self.input.pay(PRICE + 8 * len(arguments) + PRICE * copied)
        if isinstance(function, _Known):
            made = function.make(*arguments)
            self.input.pay(_size_of(made))
            self.append(made)
        elif isinstance(function, Foreign):
            self.append(Foreign(function.name, list(arguments)))
        else:
            raise pickle.UnpicklingError(f"a call of something that is no class ({type(function).__name__})")

    def _call(self) -> None:
        arguments = self.stack.pop()
        self._instantiate(self.stack.pop(), arguments)

    def _call_with_keywords(self) -> None:
        keywords, arguments, function = self.stack.pop(), self.stack.pop(), self.stack.pop()
        self._instantiate(Foreign(getattr(function, "name", "?")), [*arguments, keywords])

    def _build(self) -> None:
        """`__setstate__`: recorded, never run."""
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, (_DType, _Array)):
            target.build(state)
            self.input.pay(_size_of(target))
        elif isinstance(target, Foreign):
            target.parts.append(state)
        elif isinstance(target, StateDict):
            target.attributes = state

    def _set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Foreign):
            target.items = {} if target.items is None else target.items
            target = target.items
        if not isinstance(target, dict):
            raise pickle.UnpicklingError("items without a dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_key(key)] = value

    def _make_dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self._set_items(items)

    def _long(self) -> None:
        (length,) = struct.unpack("<i", self.read(4))
        if length > MAX_NAME:
            raise pickle.UnpicklingError("a number longer than any checkpoint's")
        self.append(pickle.decode_long(self.read(length)))

    def _text(self, code: str, encoding: str) -> None:
        length = struct.unpack(code, self.read(struct.calcsize(code)))[0]
        self.input.pay(length)
        text = str(self.read(length), encoding, "surrogatepass" if encoding == "utf-8" else "strict")
        self.input.pay(text.__sizeof__() - length)  # up to four bytes a character
        self.append(text)


InertUnpickler.dispatch |= {
    code[0]: handler
    for code, handler in (
        *((code, InertUnpickler._call) for code in (pickle.REDUCE, pickle.NEWOBJ)),
        (pickle.NEWOBJ_EX, InertUnpickler._call_with_keywords),
        (pickle.BUILD, InertUnpickler._build),
        (pickle.SETITEM, lambda m: m._set_items([m.stack.pop(-2), m.stack.pop()])),
        (pickle.SETITEMS, lambda m: m._set_items(m.pop_mark())),
        (pickle.DICT, InertUnpickler._make_dict),
        (pickle.EMPTY_SET, lambda m: m._instantiate(Foreign("builtins.set"), ())),
        (pickle.FROZENSET, lambda m: m._instantiate(Foreign("builtins.frozenset"), m.pop_mark())),
        (pickle.FRAME, lambda m: m.read(8)),
        (pickle.LONG4, InertUnpickler._long),
        (pickle.BYTEARRAY8, InertUnpickler.dispatch[pickle.BINBYTES8[0]]),
        (pickle.BINSTRING, lambda m: m._text("<I", "latin-1")),
        (pickle.SHORT_BINSTRING, lambda m: m._text("<B", "latin-1")),
        (pickle.BINUNICODE, lambda m: m._text("<I", "utf-8")),
        (pickle.SHORT_BINUNICODE, lambda m: m._text("<B", "utf-8")),
        (pickle.BINUNICODE8, lambda m: m._text("<Q", "utf-8")),
    )
}


def children(node: Any) -> Mapping[Any, Any]:
    """What a node of the tree holds by key; the items of a short list by number."""
    if isinstance(node, (list, tuple)) and len(node) <= MAX_LISTED:
        return {str(index): item for index, item in enumerate(node)}
    return node if isinstance(node, Mapping) else {}


def as_mapping(value: Any) -> dict[Any, Any] | None:
    """The items of a dict or of an object of a subclass of it; None for anything else."""
    return value if isinstance(value, dict) else value.items if isinstance(value, Foreign) else None


def to_plain(root: Any, resolve: Callable[[StoredTensor], torch.Tensor]) -> Plain:
    """The tree with tensors in place of arrays and stored tensors.

    Each object is converted once and in place, so that a tree of shared objects costs no more than its size.
    """
    made: dict[int, tuple[Any, Any]] = {}
    foreign: dict[str, Foreign] = {}
    todo: list[tuple[str, dict[Any, Any] | list[Any]]] = []

    def convert(value: Any, path: str) -> Any:
        if isinstance(value, Foreign) and value.items is None:
            if len(foreign) < MAX_FOREIGN:
                foreign.setdefault(path, value)
            return value
        mapping: Any = as_mapping(value)
        if isinstance(value, (list, tuple)) and len(value) <= MAX_LISTED:
            mapping = value if isinstance(value, list) else list(value)
        if mapping is None and not isinstance(value, (StoredTensor, _Array)):
            return value
        if id(value) not in made:
            new: Any = mapping
            if mapping is not None:
                todo.append((path, mapping))
            else:
                new = resolve(value) if isinstance(value, StoredTensor) else _array_to_tensor(value)
            made[id(value)] = (value, new)  # the original too: its id must not be given to another
        return made[id(value)][1]

    tree = convert(root, "")
    while todo:
        path, mapping = todo.pop()
        for key, value in mapping.items() if isinstance(mapping, dict) else enumerate(mapping):
            mapping[key] = convert(value, f"{path}.{key}"[:200].lstrip(".") if isinstance(key, (str, int)) else path)
    return tree, foreign, getattr(root, "attributes", None)


def _array_to_tensor(array: _Array) -> Any:
    if not array.built:
        raise pickle.UnpicklingError("an array without content")
    return Foreign("numpy.ndarray") if array.value is None else as_tensor(array.value)


def as_tensor(array: np.ndarray) -> Any:
    """A tensor over the array's memory, read-only or not; only another byte order needs a copy."""
    native = array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*not writable.*")
            return torch.from_numpy(native)
    except TypeError:  # a type that torch does not have
        return Foreign("numpy.ndarray")


def count_tensors(objects: Mapping[str, Foreign]) -> dict[str, int]:
    """How many tensors and arrays each foreign object holds that no earlier one does."""
    seen: set[int] = set()
    counts = dict.fromkeys(objects, 0)
    for path, root in objects.items():
        todo: list[Any] = [root]
        while todo:
            value = todo.pop()
            if not isinstance(value, _HOLDERS) or id(value) in seen:
                continue
            seen.add(id(value))
            if isinstance(value, Foreign):
                todo += [*value.parts, *(value.items or {}).values()]
            elif isinstance(value, (dict, list, tuple)):
                todo += value.values() if isinstance(value, dict) else value
            else:
                counts[path] += 1
    return counts


_HOLDERS = (dict, list, tuple, Foreign, StoredTensor, _Array)
