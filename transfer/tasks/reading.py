"""What reading a split found besides its images: faults, and adjustments of what label tools write in their own way.

Each split is read once, by `transfer.tasks.task.read_split`, into records whose values were all looked at. `data.py
check`, `launch.py plan`, training and evaluation use these records and nothing else of the annotation files.
"""

from __future__ import annotations

import contextlib
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ssl_transfer.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

IMAGE_ENDINGS = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"))
"""Endings, in any case, that an image may have where its name in the annotations has another one or none."""
ORIENTATION = 274
"""The EXIF tag of the camera's orientation; Detectron2 rotates the image accordingly before it reads the size."""
ROTATED = (5, 6, 7, 8)
"""Values that swap width and height."""
SMALLEST_SLACK, RELATIVE_SLACK = 5.0, 0.01


@dataclass
class Reading:
    """Faults and adjustments of one split.

    Attributes:
        strict: refuse what would be adjusted; so are published splits read, and all with TRANSFER.STRICT.
        faults: where given, errors of images and objects are collected here; else the first one is raised.
        adjusted: adjustments as text → number of times, and the greatest extent.
    """

    strict: bool = False
    faults: list[str] | None = None
    adjusted: dict[str, tuple[int, float]] = field(default_factory=dict)

    def add_fault(self, fault: str | UserError) -> None:
        """Collect a fault, or raise it."""
        if self.faults is None:
            raise fault if isinstance(fault, UserError) else UserError(fault)
        self.faults.append(one_line(str(fault)))

    def adjust(self, text: str, refusal: str, extent: float = 0.0) -> None:
        """Count an adjustment.

        Args:
            text: what is done, such as `iscrowd missing: taken as 0`; equal texts are counted together, and `{count}`
                and `{extent}` in it become their number and the greatest extent.
            refusal: the error where the split is read strictly: what is wrong, with file and object, and what to do.
            extent: such as the pixels by which a box exceeds its image.

        Raises:
            UserError: the split is read strictly.
        """
        if self.strict:
            raise UserError(refusal)
        count, most = self.adjusted.get(text, (0, 0.0))
        self.adjusted[text] = count + 1, max(most, extent)

    def adjustments(self) -> tuple[str, ...]:
        """The adjustments as text, in the order in which they first occurred."""
        return tuple(
            one_line(text.replace("{count}", str(count)).replace("{extent}", f"{most:.3g}"))
            for text, (count, most) in self.adjusted.items()
        )


def one_line(text: str) -> str:
    """Text that any terminal and log can show; half a pair of UTF-16, which JSON may hold, has no bytes in UTF-8."""
    return " ".join(text.encode(errors="backslashreplace").decode().split())


def slack_of(side: float) -> float:
    """Pixels by which a box may exceed an image's side and is clipped; a box further outside is refused."""
    return max(SMALLEST_SLACK, RELATIVE_SLACK * side)


@dataclass(frozen=True)
class ImageFolder:
    """The image files below a folder, found by the names that annotations have for them.

    Attributes:
        path: the folder.
    """

    path: Path

    def find(self, name: str, listed_in: Path, reading: Reading) -> str:
        """The path of an image.

        In this order: the name itself; with `/` for each backslash; another ending of the same stem; the same in the
        folder itself, without the name's own folders.

        Args:
            name: a path relative to the folder, with or without its ending.
            listed_in: the file that has the name, for messages.

        Raises:
            UserError: there is no such image, several, or the split is read strictly and its name is another one.
        """
        if name in self._names or (name and _exists(self.path / name)):
            return str(self.path / name)
        lists = f"{self.path / name} does not exist, but {listed_in} lists it; is the set complete?"
        plain = name.replace("\\", "/")
        for candidate in dict.fromkeys((plain, plain.rpartition("/")[2])):
            found = (
                [self.path / candidate] if candidate and _exists(self.path / candidate) else self._of_stem(candidate)
            )
            if len(found) > 1:
                several = " and ".join(str(one) for one in found[:2])
                raise UserError(f"{listed_in}: {name!r} may be {several}; name one of them, or remove the others")
            if found:
                reading.adjust("{count} images found under another ending or folder than listed", lists)
                return str(found[0])
        raise UserError(lists)

    def has_others(self, file: str) -> bool:
        """Whether there are other images of a file's stem in its folder."""
        path = Path(file)
        return len(self._stems(path.parent).get(unicodedata.normalize("NFC", path.stem), [])) > 1

    def _of_stem(self, name: str) -> list[Path]:
        """The images of a name's stem; a dot may belong to it: `tile.12` is the image tile.12.jpg."""
        parent, _, last = name.rpartition("/")
        last = unicodedata.normalize("NFC", last)
        stems, file = self._stems(self.path / parent), Path(last)
        return stems.get(last) or (stems.get(file.stem, []) if file.suffix.lower() in IMAGE_ENDINGS else [])

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(file.name for file in _entries(self.path))

    @cached_property
    def _by_folder(self) -> dict[Path, dict[str, list[Path]]]:
        return {}

    def _stems(self, folder: Path) -> dict[str, list[Path]]:
        if folder not in self._by_folder:
            stems: dict[str, list[Path]] = {}
            for file in sorted(_entries(folder)) if _exists(folder) else ():
                if file.suffix.lower() in IMAGE_ENDINGS:
                    # A file from macOS has an accent as a letter of its own.
                    stems.setdefault(unicodedata.normalize("NFC", file.stem), []).append(file)
            self._by_folder[folder] = stems
        return self._by_folder[folder]


def image_size(file: str) -> tuple[int, int]:
    """Width and height of an image from its header, as `oriented_size`.

    Raises:
        UserError: it cannot be read as an image.
    """
    from PIL import Image  # here: tools/doctor.py imports this module without Pillow

    try:
        with Image.open(file) as image:
            return oriented_size(image)
    except Exception as error:  # Pillow's decoders raise exceptions of many types
        raise UserError(
            f"{file} cannot be read as an image ({' '.join(str(error).split())}); fetch it again"
        ) from error


def oriented_size(image: Image.Image) -> tuple[int, int]:
    """Width and height after the rotation by EXIF."""
    width, height = image.size
    return (height, width) if image.getexif().get(ORIENTATION) in ROTATED else (width, height)


def _entries(folder: Path) -> Iterable[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise UserError(
            f"cannot list {folder}: {error.strerror}; point TRANSFER.DATA_ROOT at the folder that holds it"
        ) from error


def _exists(path: Path) -> bool:
    """Whether there is such a file or folder; False too for a name that none can have, such as one of 300 letters."""
    with contextlib.suppress(OSError, ValueError):
        return path.exists()
    return False
