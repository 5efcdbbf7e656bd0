"""Fetch a public set: download, verify, unpack next to the target, rename; a second call fetches what is missing.

Sources. URLs and MD5 of VOC: torchvision 0.29.1, datasets/voc.py. URLs and MD5 of COCO: PaddlePaddle/PaddleDetection,
ppdet/utils/download.py at 005e0ff8. Sizes: tensorflow/datasets, url_checksums/voc.txt and coco.txt at 333639b3 (VOC's
there are those of a mirror's files of the same names). URL and MD5 of CIFAR-10: torchvision 0.29.1, datasets/cifar.py;
size: what the server announces in downloads' public logs.
"""

from __future__ import annotations

import contextlib
import fcntl
import lzma
import os
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from ssl_transfer.console import Progress, megabytes
from ssl_transfer.errors import UserError, nearest, redact_urls
from ssl_transfer.files import md5_of
from transfer.tasks.cifar import write_image_folder
from transfer.weights.download import download

_VOC = "https://thor.robots.ox.ac.uk/pascal/VOC"
_COCO = "http://images.cocodataset.org"


@dataclass(frozen=True)
class Archive:
    """A published archive.

    Attributes:
        url: its published address.
        bytes: its size.
        md5: its digest, in hex.
    """

    url: str
    bytes: int
    md5: str

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[1]


@dataclass(frozen=True)
class SetFolder:
    """A folder of the data root that is created as a whole.

    Attributes:
        target: its path below the data root.
        inside: the path of its content inside the archives.
        archives: the archives it is unpacked from.
        convert: turns the unpacked files into the folder's final content and returns their number; None: they are it.
    """

    target: str
    inside: str
    archives: tuple[Archive, ...]
    convert: Callable[[Path], int] | None = None


def _folder(target: str, inside: str, *archives: tuple[str, int, str]) -> SetFolder:
    return SetFolder(target, inside, tuple(Archive(*archive) for archive in archives))


PUBLIC = {
    "voc2007": (
        _folder(
            "VOC2007",
            "VOCdevkit/VOC2007",
            (f"{_VOC}/voc2007/VOCtrainval_06-Nov-2007.tar", 460032000, "c52e279531787c972589f7e41ab4ae64"),
            (f"{_VOC}/voc2007/VOCtest_06-Nov-2007.tar", 451020800, "b6e924de25625d8de591ea690078ad9f"),
        ),
    ),
    "voc2012": (
        _folder(
            "VOC2012",
            "VOCdevkit/VOC2012",
            (f"{_VOC}/voc2012/VOCtrainval_11-May-2012.tar", 1999639040, "6cd6e144f989b92b3379bac3b3de84fd"),
        ),
    ),
    "coco": (
        _folder(
            "coco/annotations",
            "annotations",
            (f"{_COCO}/annotations/annotations_trainval2017.zip", 252907541, "f4bbac642086de4f52a3fdda2de5fa2c"),
        ),
        _folder(
            "coco/val2017", "val2017", (f"{_COCO}/zips/val2017.zip", 815585330, "442b8da7639aecaf257c1dceb8ba8c80")
        ),
        _folder(
            "coco/train2017",
            "train2017",
            (f"{_COCO}/zips/train2017.zip", 19336861798, "cced6f7f71b7629ddf16f17bbcfab6b2"),
        ),
    ),
    "cifar10": (
        SetFolder(
            "cifar10",
            "cifar-10-batches-py",
            (
                Archive(
                    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
                    170498071,
                    "c58f30108f718f92721af3b95e74349a",
                ),
            ),
            convert=write_image_folder,
        ),
    ),
}
"""The sets of `tools/data.py download`, by name."""

ARCHIVES = ".archives"
"""Folder of the downloaded archives below the data root."""
STAGING = ".unpacking"
"""Folder below the data root where archives are unpacked before the rename."""
SPARE = 1 << 28
"""Bytes that must stay free."""

Log = Callable[[str], None]


def fetch(name: str, root: Path, mirror: str | None = None, keep: bool = True, log: Log = lambda _: None) -> list[str]:
    """Download and unpack one public set below a data root.

    An existing folder is left unchanged. Archives are stored in `root/.archives`; one that was copied there by hand is
    used, too.

    Args:
        name: `voc2007`, `voc2012`, `coco` or `cifar10`.
        root: the data root.
        mirror: URL of a folder with the archives; None: their published addresses.
        keep: keep the archives after they are unpacked.
        log: receives lines of progress.

    Returns:
        The folders that were created.

    Raises:
        UserError: no such set, too little space, the server fails, or the bytes differ from the published ones.
    """
    if name not in PUBLIC:
        raise UserError(f"download {name}: no such set; {nearest(name, PUBLIC)}")
    made = []
    with _locked(root):
        missing = [folder for folder in PUBLIC[name] if not (root / folder.target).exists()]
        for folder in PUBLIC[name]:
            if folder not in missing:
                log(f"{root / folder.target} exists already and is left unchanged")
        _require_space(
            root, sum(_estimate_bytes(root, folder) for folder in missing), f"downloading and unpacking {name}"
        )
        for folder in missing:
            archives = [_archive(archive, root, mirror, log) for archive in folder.archives]
            _place(folder, archives, root, log)
            made.append(folder.target)
            if not keep:
                for archive in archives:
                    archive.unlink()
                    log(f"removed {archive}")
    return made


def _archive(archive: Archive, root: Path, mirror: str | None, log: Log) -> Path:
    """Download an archive unless it exists, and verify it."""
    file = root / ARCHIVES / archive.name
    url = archive.url if mirror is None else f"{mirror.rstrip('/')}/{archive.name}"
    existed = file.exists()
    if not existed:
        log(f"downloading {redact_urls(url)}")
        download(url, file, megabytes(archive.name))
    fault = _fault(archive, file)
    if fault and existed:
        raise UserError(f"{file} {fault}; remove it and run the command again")
    if fault:
        file.unlink()
        raise UserError(f"{url} {fault}; it was removed: run the command again, or give another --mirror")
    log(f"{archive.name}: MD5 {archive.md5}, as published")
    return file


def _fault(archive: Archive, file: Path) -> str:
    """How a file differs from the published one; an empty string where it does not."""
    size = file.stat().st_size
    if size != archive.bytes:
        return f"has {size} bytes, published are {archive.bytes}"
    digest = md5_of(file)
    return "" if digest == archive.md5 else f"has the MD5 {digest}, published is {archive.md5}"


def _place(folder: SetFolder, archives: list[Path], root: Path, log: Log) -> None:
    """Unpack next to the target, flush and rename, so that the folder is complete or missing."""
    staging = root / STAGING / folder.target
    if staging.exists():  # left by a killed run
        shutil.rmtree(staging)
    total = sum(unpacked_bytes(archive, folder.inside) for archive in archives)
    _require_space(root, total, f"unpacking {folder.target}")
    log(f"unpacking {', '.join(archive.name for archive in archives)}")
    progress = Progress(total // 1_000_000 or 1, f"unpacking {folder.target}", "MB")
    done = 0

    def report(size: int) -> None:
        nonlocal done
        before, done = done, done + size
        progress.step(done // 1_000_000 - before // 1_000_000)

    files = sum(unpack(archive, folder.inside, staging, report) for archive in archives)
    if folder.convert is not None:
        files = folder.convert(staging)
    os.sync()  # one flush for tens of thousands of small files
    target = root / folder.target
    target.parent.mkdir(parents=True, exist_ok=True)
    staging.rename(target)
    with contextlib.suppress(OSError):  # not empty while another folder of the set is missing
        staging.parent.rmdir()
        (root / STAGING).rmdir()
    log(f"{target}: {files} files")


def _estimate_bytes(root: Path, folder: SetFolder) -> int:
    """Estimate the bytes that the download and the unpacked folder need.

    Images are hardly compressed in an archive, so they need about the same again; the exact number is checked before
    they are unpacked.
    """
    unpacked = sum(archive.bytes for archive in folder.archives)
    return unpacked + sum(
        archive.bytes - _downloaded_bytes(root / ARCHIVES / archive.name) for archive in folder.archives
    )


def _downloaded_bytes(file: Path) -> int:
    part = file.with_name(file.name + ".part")
    found = file if file.exists() else part
    return found.stat().st_size if found.exists() else 0


def _require_space(root: Path, needed: int, what: str) -> None:
    free = shutil.disk_usage(root).free
    if needed and needed + SPARE > free:
        raise UserError(
            f"{what} needs {_gigabytes(needed)} GB below {root}, {_gigabytes(free)} GB are free; "
            "free some space or give another ROOT"
        )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f}"


@contextlib.contextmanager
def _locked(root: Path) -> Iterator[None]:
    """Allow one fetch at a time below a data root."""
    try:
        (root / ARCHIVES).mkdir(parents=True, exist_ok=True)
        stream = open(root / ARCHIVES / ".lock", "w")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise UserError(f"cannot write below {root}: {error.strerror}; choose another ROOT") from error
    with stream:
        with contextlib.suppress(OSError):  # without locks, concurrent processes are not detected
            fcntl.flock(stream, fcntl.LOCK_EX)  # released when the file is closed, also after a kill
        yield


Member = tuple[PurePosixPath, int, Callable[[], IO[bytes]]]
"""A regular file: its path inside the archive, its size, and what opens it."""
BROKEN = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError)
"""Exceptions of the standard library for truncated, damaged or invalid archives."""


def unpacked_bytes(archive: Path, inside: str) -> int:
    """Sum of the sizes of the files below `inside`.

    Raises:
        UserError: the archive is truncated or damaged.
    """
    return sum(size for _, size, _ in _members(archive, inside))


def unpack(archive: Path, inside: str, target: Path, report: Callable[[int], None] | None = None) -> int:
    """Unpack the regular files below `inside` into `target`; links and special files are skipped.

    Args:
        archive: a `.tar` (also compressed) or a `.zip`.
        inside: a folder of the archive.
        target: the folder to write.
        report: called with the bytes of each file written.

    Returns:
        Number of files written.

    Raises:
        UserError: the archive is damaged, has no such folder or a path that leads out of it, or the disk is full.
    """
    count = 0
    for path, size, opened in _members(archive, inside):
        place = target / path
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with closing(opened()) as source, open(place, "wb") as stream:
                shutil.copyfileobj(source, stream, 1 << 20)
                written = stream.tell()
        except BROKEN as error:
            raise _broken(archive, error) from error
        except OSError as error:
            raise UserError(
                f"cannot write {place}: {error.strerror or error}; free some space and run the command again"
            ) from error
        if written != size:
            raise UserError(f"{archive}: {path} should have {size} bytes and has {written}; fetch the archive again")
        count += 1
        if report:
            report(size)
    if not count:
        raise UserError(f"{archive} holds no files below {inside}/; is it the right archive?")
    return count


def _members(archive: Path, inside: str) -> Iterator[Member]:
    """The regular files below `inside`, their paths relative to it."""
    try:
        yield from _zip_members(archive, inside) if archive.suffix == ".zip" else _tar_members(archive, inside)
    except BROKEN as error:
        raise _broken(archive, error) from error


def _tar_members(archive: Path, inside: str) -> Iterator[Member]:
    with tarfile.open(archive) as tar:
        for member in tar:
            path = _below(member.name, inside, archive)
            if path is not None and member.isfile():
                yield path, member.size, lambda member=member: tar.extractfile(member)  # type: ignore[misc]


def _zip_members(archive: Path, inside: str) -> Iterator[Member]:
    with zipfile.ZipFile(archive) as packed:
        for member in packed.infolist():
            path = _below(member.filename, inside, archive)
            kind = member.external_attr >> 28  # 0o10 is a regular file, 0 where the archive was not made on Unix
            if path is not None and not member.is_dir() and kind in (0, 0o10):
                yield path, member.file_size, lambda member=member: packed.open(member)  # type: ignore[misc]


def _below(name: str, inside: str, archive: Path) -> PurePosixPath | None:
    """A member's path relative to `inside`; None for one that is elsewhere.

    Raises:
        UserError: it is absolute or leads upwards.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise UserError(f"{archive}: the member {name!r} leads out of the archive; it is not unpacked")
    top = PurePosixPath(inside)
    return path.relative_to(top) if top in path.parents else None


def _broken(archive: Path, error: Exception) -> UserError:
    return UserError(f"{archive} is not a complete archive ({' '.join(str(error).split())}); fetch it again")
