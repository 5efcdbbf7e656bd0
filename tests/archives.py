"""Archives of folders as their publishers make them, and what lies below a folder."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path


def tar(folder: Path, below: str, wanted: Callable[[Path], bool] = lambda _: True) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file() and wanted(file):
                archive.add(file, f"{below}/{file.relative_to(folder)}")
    return stream.getvalue()


def zipped(folder: Path, below: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, f"{below}/{file.relative_to(folder)}")
    return stream.getvalue()


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
