"""Unpickling that can only make numpy arrays and plain types: no class of anybody's is ever called."""

from __future__ import annotations

import math
import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np

KINDS = "biuf"
"""Kinds of number an array may hold: booleans, integers, floats."""


class ForeignClass(Exception):
    """The pickle asks for something other than an array or a plain type; its only argument is the dotted name."""


class _DType:
    """Stands in for numpy.dtype while unpickling: takes its arguments, never runs numpy's own code on them."""

    def __init__(self, code: Any, align: Any = False, copy: Any = False) -> None:
        self.dtype = np.dtype(code) if isinstance(code, str) and len(code) <= 3 and code.isalnum() else None
        if self.dtype is None or self.dtype.kind not in KINDS:
            raise ForeignClass(f"numpy.dtype({code!r})")

    def __setstate__(self, state: Any) -> None:
        order = state[1]
        if self.dtype is None or order not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError("not a plain number type")
        self.dtype = self.dtype if order == "|" else self.dtype.newbyteorder(order)


class _Array:
    """Stands in for numpy.ndarray while unpickling; `value` is the array, a read-only view of the pickle's bytes."""

    value: np.ndarray | None = None

    def __init__(self, *arguments: Any) -> None:
        """numpy's `_reconstruct(ndarray, (0,), b"b")`: an empty array, to be filled by its state."""

    def __setstate__(self, state: Any) -> None:
        _version, shape, dtype, fortran, data = state
        self.value = _view(data, dtype, shape, "F" if fortran else "C")


def _view(data: Any, dtype: Any, shape: Any, order: str) -> np.ndarray:
    """The array over `data`, once type, shape and length agree."""
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
    """`_codecs.encode`, for the one use pickle makes of it: bytes written as latin-1 text under protocol 2."""
    if not isinstance(text, str) or codec not in ("latin1", "latin-1"):
        raise ForeignClass("_codecs.encode")
    return text.encode("latin-1")


def _stand_ins() -> dict[tuple[str, str], Callable[..., Any]]:
    found: dict[tuple[str, str], Callable[..., Any]] = {
        ("collections", "OrderedDict"): OrderedDict,
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _DType,
        ("_codecs", "encode"): _encode,
    }
    for core in ("numpy.core", "numpy._core"):
        found[f"{core}.multiarray", "_reconstruct"] = _Array
        found[f"{core}.multiarray", "scalar"] = _Scalar
        found[f"{core}.numeric", "_frombuffer"] = _FromBuffer
    return found


class _Unpickler(pickle.Unpickler):
    def __init__(self, stream: BinaryIO) -> None:
        super().__init__(stream, encoding="latin1")
        self.allowed = _stand_ins()

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.allowed:
            raise ForeignClass(f"{module}.{name}")
        return self.allowed[module, name]


def load_plain(stream: BinaryIO) -> Any:
    """Read one pickle that holds numpy arrays of numbers and plain types alone.

    Arrays come back as read-only views of the pickle's own bytes: nothing is copied.

    Raises:
        ForeignClass: the pickle names anything else; nothing of it has run.
        Exception: whatever pickle raises on a damaged stream.
    """
    return _settle(_Unpickler(stream).load())


def _settle(value: Any, depth: int = 0) -> Any:
    """The stand-ins replaced by the arrays they hold; containers rebuilt as plain ones.

    The depth is bounded because a container that holds itself would never end.
    """
    if depth > 20:
        raise pickle.UnpicklingError("nested more than 20 deep")
    if isinstance(value, _Array):
        if value.value is None:
            raise pickle.UnpicklingError("an array without content")
        return value.value if value.value.shape or not isinstance(value, _Scalar) else value.value.item()
    if isinstance(value, dict):
        return {_settle(k, depth + 1): _settle(v, depth + 1) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_settle(v, depth + 1) for v in value)
    if isinstance(value, (str, bytes, bytearray, int, float, bool, complex, set, frozenset, type(None))):
        return value
    raise ForeignClass(type(value).__name__)
