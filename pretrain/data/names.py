"""Many file names in little memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np


class Names(Sequence[str]):
    """A sequence of strings that is two arrays: 1.28 million names without as many Python objects.

    Reading it touches no reference count but the arrays', so that the memory stays shared with forked loader processes.

    Args:
        text: the names in UTF-8 (undecodable bytes of file names kept), each but the first after a newline.
        starts: (N + 1,) int64: where each name starts in `text`; the last is one past its end, plus one.
    """

    def __init__(self, text: bytes, starts: np.ndarray) -> None:
        self.text, self.starts = text, starts

    @classmethod
    def of(cls, names: Iterable[str]) -> Names:
        """The names of an iterable, in its order."""
        parts = [name.encode(errors="surrogateescape") for name in names]
        starts = np.zeros(len(parts) + 1, dtype=np.int64)
        np.cumsum([len(part) + 1 for part in parts], out=starts[1:])
        return cls(b"\n".join(parts), starts)

    def __len__(self) -> int:
        return len(self.starts) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        place = index % len(self)
        start, end = int(self.starts[place]), int(self.starts[place + 1]) - 1
        return self.text[start:end].decode(errors="surrogateescape")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(str.__eq__, self, other))

    def __hash__(self) -> int:
        return hash(self.text)
