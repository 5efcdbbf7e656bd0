"""What is done with each kind of file, and that it is counted; the same for every pipeline."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pretrain.data.decode import UnreadableImage, decode
from pretrain.data.pipelines import PIPELINES, build_pipeline
from ssl_transfer.errors import UserError

PHOTOS = Path(__file__).resolve().parents[4] / "shared" / "data" / "photos" / "train"


def _rgb() -> Image.Image:
    return Image.fromarray(np.random.RandomState(0).randint(0, 256, (40, 60, 3), dtype=np.uint8))


def _turned(file: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn when shown
    _rgb().save(file, exif=exif)


def _clear_palette(file: Path) -> None:
    image = _rgb().convert("P", palette=Image.Palette.ADAPTIVE)
    image.save(file, transparency=bytes([0, 128]))


def _deep(file: Path) -> None:
    Image.fromarray(np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)).save(file)


def _animated(file: Path) -> None:
    _rgb().save(file, save_all=True, append_images=[Image.new("RGB", (60, 40))])


KINDS: dict[str, tuple[str, Callable[[Path], None], set[str]]] = {
    "plain": ("a.jpg", lambda f: _rgb().save(f), set()),
    "progressive": ("a.JPEG", lambda f: _rgb().save(f, format="JPEG", progressive=True), set()),
    "grayscale": ("a.jpg", lambda f: _rgb().convert("L").save(f), {"grayscale"}),
    "CMYK JPEG": ("a.jpg", lambda f: _rgb().convert("CMYK").save(f), {"CMYK"}),
    "palette": ("a.png", lambda f: _rgb().convert("P").save(f), {"palette"}),
    "palette with transparency": ("a.png", _clear_palette, {"palette", "transparent"}),
    "transparent": ("a.png", lambda f: _rgb().convert("RGBA").save(f), {"transparent"}),
    "gray and transparent": ("a.png", lambda f: _rgb().convert("LA").save(f), {"grayscale", "transparent"}),
    "black and white": ("a.png", lambda f: _rgb().convert("1").save(f), {"grayscale"}),
    "turned": ("a.jpg", _turned, {"turned by EXIF"}),
    "animated": ("a.webp", _animated, {"animated"}),
    "misnamed": ("a.jpg", lambda f: _rgb().save(f, format="PNG"), {"of another format than named"}),
    "16-bit": ("a.png", _deep, {"grayscale", "16-bit"}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_counted_and_decoded_like_pillow(tmp_path: Path, kind: str) -> None:
    name, write, expected = KINDS[kind]
    write(tmp_path / name)
    reference, fast = build_pipeline("pil"), build_pipeline("opencv")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        theirs, met = decode(tmp_path / name, reference.decode)
        ours, met_too = decode(tmp_path / name, fast.decode)
    assert set(met) == set(met_too) == expected
    assert ours.dtype == np.uint8 and fast.image_size(ours) == reference.image_size(theirs)
    assert np.array_equal(ours, np.asarray(theirs))
    if kind != "16-bit":
        with warnings.catch_warnings(), Image.open(tmp_path / name) as image:
            warnings.simplefilter("ignore")
            assert np.array_equal(ours, np.asarray(image.convert("RGB")))  # as in the released code


def test_16_bit_values_keep_their_range(tmp_path: Path) -> None:
    _deep(tmp_path / "a.png")
    pixels, _ = decode(tmp_path / "a.png", build_pipeline("opencv").decode)
    assert pixels.min() == 0 and pixels.max() == 255 and len(np.unique(pixels)) == 256


def _cut(file: Path, share: float) -> None:
    _rgb().resize((300, 200)).save(file)
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])


def _two_frames(file: Path) -> None:
    _rgb().resize((300, 200)).save(file)
    content = file.read_bytes()
    middle = len(content) // 2
    file.write_bytes(content[:middle] + b"\xff\xc0" + content[middle + 2 :])


def wrong_table(file: Path) -> None:
    """Let its first Huffman table have more codes than there can be."""
    _rgb().resize((300, 200)).save(file)
    content = bytearray(file.read_bytes())
    content[content.index(b"\xff\xc4") + 5] = 255
    file.write_bytes(content)


BROKEN: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "empty": ("a.jpg", Path.touch, "it is empty"),
    "text": ("a.jpg", lambda f: f.write_text("no image"), "no format that Pillow knows"),
    "JPEG cut short": ("a.jpg", lambda f: _cut(f, 0.5), "truncated"),
    "JPEG with a second frame": ("a.jpg", _two_frames, "broken data stream"),
    "JPEG with a wrong table": ("a.jpg", wrong_table, "broken data stream"),
    "JPEG's header alone": ("a.jpg", lambda f: f.write_bytes(b"\xff\xd8\xff"), "no format that Pillow knows"),
    "PNG cut short": ("a.png", lambda f: _cut(f, 0.5), ""),
    "32-bit": ("a.tif", lambda f: Image.new("F", (8, 8)).save(f), "32-bit values have no known range"),
}


@pytest.mark.parametrize(("kind", "way"), product(BROKEN, PIPELINES))
def test_incomplete_image_is_refused_with_name_and_reason(tmp_path: Path, kind: str, way: str) -> None:
    name, write, why = BROKEN[kind]
    write(tmp_path / name)
    with pytest.raises(UnreadableImage) as caught:
        decode(tmp_path / name, build_pipeline(way).decode)
    said = str(caught.value)
    assert said.startswith(f"{tmp_path / name} cannot be read as an image (") and why in said and "\n" not in said


def test_decompression_bomb_is_refused_and_large_image_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _rgb().save(tmp_path / "a.jpg")
    for limit, large in ((40 * 60, ()), (40 * 60 - 1, ("very large",))):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert decode(tmp_path / "a.jpg", build_pipeline("opencv").decode)[1] == large
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40 * 60 // 2 - 1)
    with pytest.raises(UnreadableImage, match="decompression bomb"):
        decode(tmp_path / "a.jpg", build_pipeline("opencv").decode)


def test_missing_or_forbidden_file_is_not_an_unreadable_image(tmp_path: Path) -> None:
    for name, why in (("gone.jpg", "No such file"), ("", "Is a directory")):
        with pytest.raises(UserError, match=why) as caught:
            decode(tmp_path / name, build_pipeline("pil").decode)
        assert not isinstance(caught.value, UnreadableImage)


def test_photos_have_the_properties_in_their_readme() -> None:
    if not PHOTOS.is_dir():
        pytest.skip(f"{PHOTOS} is not there")
    met: Counter[str] = Counter()
    for file in sorted(PHOTOS.rglob("*.*")):
        with Image.open(file) as image:
            turned = image.getexif().get(0x0112, 1) > 1
            gray = image.mode == "L"
        found = set(decode(file, lambda image, _: image.size)[1])
        met.update(found)
        assert ("turned by EXIF" in found) == turned and ("grayscale" in found) == gray
    assert met["grayscale"] >= 1
