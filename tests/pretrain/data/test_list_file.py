"""List files: what a line may be, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from pretrain.data.index import find_images
from ssl_transfer.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("images/b/1.jpg", "images/a/2 of 3.JPEG", "images/c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def _list(folder: Path, text: str) -> str:
    (folder / "list.txt").write_text(text)
    return str(folder / "list.txt")


def test_order_and_paths_equal_the_list_file(folder: Path) -> None:
    text = f"# two images\n\nimages/b/1.jpg\r\n  images/a/2 of 3.JPEG\n{folder}/images/c.png\n"
    index = find_images(_list(folder, text))
    assert index.files == ("images/b/1.jpg", "images/a/2 of 3.JPEG", f"{folder}/images/c.png")
    assert [index.path(number).is_file() for number in range(3)] == [True] * 3
    assert index.labels is None and index.classes is None


def test_paths_are_relative_to_list_root(folder: Path) -> None:
    file = _list(folder, "b/1.jpg\n")
    index = find_images(file, list_root=str(folder / "images"))
    assert index.path(0) == folder / "images/b/1.jpg"


@pytest.mark.parametrize(
    ("text", "classes", "labels"),
    [
        ("images/b/1.jpg dog\nimages/a/2 of 3.JPEG cat\nimages/c.png dog", ("cat", "dog"), [1, 0, 1]),
        ("images/b/1.jpg 2\nimages/a/2 of 3.JPEG 0\nimages/c.png 02", ("0", "1", "2"), [2, 0, 2]),
        ("images/b/1.jpg\tbig dog\nimages/c.png\tcat", ("big dog", "cat"), [0, 1]),
        ("images/b/1.jpg 0\nimages/c.png cat", ("0", "cat"), [0, 1]),
        ("images/b/1.jpg 7000000000\nimages/c.png 5", ("5", "7000000000"), [1, 0]),
    ],
)
def test_classes(folder: Path, text: str, classes: tuple[str, ...], labels: list[int]) -> None:
    index = find_images(_list(folder, text))
    assert index.classes == classes and index.labels is not None and index.labels.tolist() == labels


def test_fingerprint_depends_on_names_order_and_classes(folder: Path) -> None:
    texts = ("images/b/1.jpg\nimages/c.png", "images/c.png\nimages/b/1.jpg", "images/b/1.jpg 0\nimages/c.png 1")
    marks = {find_images(_list(folder, text)).fingerprint for text in texts}
    assert len(marks) == 3
    assert find_images(_list(folder, "# again\n" + texts[0])).fingerprint in marks


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "lists no images"),
        ("# nothing\n", "lists no images"),
        ("images/b/1.jpg\n\nimages/notes.txt\n", "line 3: 'images/notes.txt' has no image extension"),
        ("images/b/1.jpg 1\nimages/c.png\n", "line 2: no class"),
        ("images/b/1.jpg\nimages/c.png 1\n", "line 2: a class"),
        ("# gone\nimages/gone.jpg\n", "line 2: .*images/gone.jpg does not exist; paths are relative to"),
    ],
)
def test_invalid_list_file_is_refused(folder: Path, text: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        find_images(_list(folder, text))
    assert str(folder / "list.txt") in str(caught.value)


def test_invalid_list_root_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match=r"DATA\.LIST_ROOT .*/gone does not exist"):
        find_images(_list(folder, "c.png"), list_root=str(folder / "gone"))
    with pytest.raises(UserError, match=r"DATA\.LIST_ROOT is set, but"):
        find_images(str(folder / "images"), list_root=str(folder))
