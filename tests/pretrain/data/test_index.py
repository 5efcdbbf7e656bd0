"""Which files are images, in which order, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from pretrain.data.decode import decode_rgb
from pretrain.data.index import find_images
from ssl_transfer.errors import UserError


def _touch(folder: Path, *names: str) -> None:
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x")


def test_order_equals_image_folder(tmp_path: Path) -> None:
    _touch(
        tmp_path,
        "train/b-1/2.jpg",
        "train/b/10.JPEG",
        "train/b/2.png",
        "train/a/z.jpg",
        "train/a b/1.webp",
        "val/c/1.jpg",
    )
    index = find_images(str(tmp_path))
    theirs = [Path(file) for file, _ in ImageFolder(tmp_path / "train").samples]
    assert [index.path(number) for number in range(len(index))] == theirs


def test_labels_equal_image_folder(tmp_path: Path) -> None:
    _touch(tmp_path, "train/b/deep/10.jpg", "train/b/2.png", "train/a/z.jpg", "train/a b/1.webp")
    index, theirs = find_images(str(tmp_path)), ImageFolder(tmp_path / "train")
    assert index.classes == tuple(theirs.classes) and index.labels is not None
    ours = {index.path(number): int(label) for number, label in enumerate(index.labels)}
    assert ours == {Path(file): label for file, label in theirs.samples}
    _touch(tmp_path, "train/1.jpg")
    index = find_images(str(tmp_path))
    assert index.classes is None and index.labels is None


def test_train_folder_class_folders_and_flat_folders_are_indexed(tmp_path: Path) -> None:
    _touch(
        tmp_path, "a/train/x/1.jpg", "a/val/x/2.jpg", "b/x/1.jpg", "b/y/deep/2.jpg", "c/2.jpg", "c/1.jpg", "c/notes.txt"
    )
    assert find_images(str(tmp_path / "a")).files == ("x/1.jpg",)
    assert find_images(str(tmp_path / "b")).files == ("x/1.jpg", "y/deep/2.jpg")
    assert find_images(str(tmp_path / "c")).files == ("1.jpg", "2.jpg")


def test_hidden_files_are_skipped_and_links_followed_without_loops(tmp_path: Path) -> None:
    _touch(tmp_path, "set/a/1.jpg", "set/a/._1.jpg", "set/.cache/2.jpg", "elsewhere/3.jpg")
    (tmp_path / "set/b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set/a/up").symlink_to(tmp_path / "set")
    assert find_images(str(tmp_path / "set")).files == ("a/1.jpg", "b/3.jpg")


def test_fingerprint_depends_on_names_and_order(tmp_path: Path) -> None:
    _touch(tmp_path, "one/1.jpg", "one/2.jpg", "two/1.jpg", "two/2.jpg", "three/1.jpg", "three/3.jpg")
    one, two, three = (find_images(str(tmp_path / name)).fingerprint for name in ("one", "two", "three"))
    assert one == two != three


@pytest.mark.parametrize(
    ("root", "said"),
    [
        ("", "is not set"),
        ("missing", "does not exist"),
        ("file", "has no image extension"),
        ("file/x", "cannot be read"),
    ],
)
def test_invalid_root_is_refused(tmp_path: Path, root: str, said: str) -> None:
    _touch(tmp_path, "file")
    with pytest.raises(UserError, match=said):
        find_images(str(tmp_path / root) if root else "")


def test_empty_folder_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{tmp_path} holds no images"):
        find_images(str(tmp_path))


def test_every_mode_becomes_rgb(tmp_path: Path) -> None:
    colour = (200, 30, 90)
    rgb = Image.new("RGB", (6, 4), colour)
    rgb.save(tmp_path / "rgb.png")
    rgb.convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "palette.png")
    rgb.convert("L").save(tmp_path / "grey.png")
    rgb.convert("CMYK").save(tmp_path / "cmyk.tif")
    rgb.convert("RGBA").save(tmp_path / "alpha.png")
    for name in ("rgb.png", "palette.png", "cmyk.tif", "alpha.png"):
        image = decode_rgb(tmp_path / name)
        assert (image.mode, image.size, image.getpixel((0, 0))) == ("RGB", (6, 4), colour), name
    red, green, blue = decode_rgb(tmp_path / "grey.png").getpixel((1, 1))
    assert red == green == blue == rgb.convert("L").getpixel((1, 1))


def test_exif_orientation_is_not_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (6, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by a quarter turn when shown
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert decode_rgb(tmp_path / "turned.jpg").size == (6, 4)


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no image")
    Image.effect_noise((64, 64), 50).save(tmp_path / "whole.jpg")
    content = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(content[: len(content) // 2])
    for name in ("text.jpg", "cut.jpg", "missing.jpg"):
        with pytest.raises(UserError, match=f"{tmp_path / name} cannot be read as an image"):
            decode_rgb(tmp_path / name)
