"""VOC's layout as label tools write it: what is read, what is adjusted and said, and what stays refused."""

from __future__ import annotations

import random
import re
import unicodedata
from dataclasses import replace
from encodings.aliases import aliases
from pathlib import Path

import pytest
from PIL import Image

from ssl_transfer.errors import UserError
from transfer.tasks.datasets import DatasetDict, Split
from transfer.tasks.reading import ImageFolder, Reading
from transfer.tasks.task import Dataset, read_split
from transfer.tasks.voc import read_voc
from transfer.tasks.voc_lists import image_list

CLASSES = ("cat", "dog", "船")
WIDTH, HEIGHT = 60, 40
SIZE = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"


def thing(name: str = "cat", box: str = "2 3 30 20", more: str = "") -> str:
    sides = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box.split(), strict=True))
    return f"<object><name>{name}</name>{more}<bndbox>{sides}</bndbox></object>"


def xml(*things: str, size: str = SIZE, filename: str = "other.jpg", head: str = "") -> str:
    return f"{head}<annotation><filename>{filename}</filename>{size}{''.join(things or (thing(),))}</annotation>"


def picture(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT), (90, 120, 60)).save(file)


def put(folder: Path, image_id: str, ending: str = "jpg", content: str | bytes = "") -> None:
    """An image and its annotation."""
    picture(folder / f"JPEGImages/{image_id}.{ending}")
    file = folder / f"Annotations/{image_id}.xml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else (content or xml()).encode())


def listed(folder: Path, text: str | bytes) -> Split:
    """A split whose list has this text."""
    file = folder / "ImageSets/Main/train.txt"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return Split("own", "voc", folder, "train")


def one(folder: Path, content: str | bytes) -> Dataset:
    """The set of one image with this annotation."""
    put(folder, "a", content=content)
    return read_split(listed(folder, "a\n"), CLASSES)


def refused(split: Split) -> str:
    with pytest.raises(UserError) as error:
        read_split(split, CLASSES)
    assert "\n" not in str(error.value)
    return str(error.value)


# ---- lists


def some_ids(rng: random.Random) -> list[str]:
    """Ids with spaces, brackets, dots, accents and folders; some end like a flag."""
    words = ["IMG", "photo", "Kopie", "v1.2", "(1)", "0001", "été", "船", "a-b_c", "1", "0"]
    ids: set[str] = set()
    while len(ids) < 8:
        stem = rng.choice([" ", " ", ".", "_"]).join(rng.choices(words, k=rng.randint(1, 3)))
        ids.add(rng.choice(["", "", "a/", "b/c d/"]) + stem)
    return rng.sample(sorted(ids), len(ids))


def spelled(image_id: str, rng: random.Random, flagged: bool) -> str:
    """A line that names the id in another way."""
    line = rng.choice(["", "", "./", "JPEGImages/", "/home/me/set/JPEGImages/", "Annotations/"]) + image_id
    line += rng.choice(["", ".jpg", ".JPG", ".png", ".jpeg"]) if not line.startswith("A") else rng.choice(["", ".xml"])
    line = line.replace("/", "\\") if rng.random() < 0.3 else line
    return line + (rng.choice(["  1", " -1", "\t0"]) if flagged else rng.choice(["", " "]))


@pytest.mark.parametrize("seed", range(12))
def test_a_list_names_its_images_in_any_spelling_and_encoding(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    ids = some_ids(rng)
    for image_id in ids:
        put(tmp_path, image_id, rng.choice(["jpg", "JPG", "png"]))
    as_they_are = rng.random() < 0.3
    flagged = not as_they_are and rng.random() < 0.3
    lines = ids if as_they_are else [spelled(image_id, rng, flagged) for image_id in ids]
    text = rng.choice(["\n", "\r\n", "\n\n"]).join(lines) + rng.choice(["", "\n"])
    split = listed(tmp_path, text.encode(rng.choice(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "gb18030", "gbk"])))
    assert image_list(split) == ids
    assert [record.image_id for record in read_voc(split, CLASSES)] == ids


@pytest.mark.parametrize(
    ("names", "text", "ids"),
    [
        (["IMG 0001 (1)", "Photo A", "Photo B"], "IMG 0001 (1)\nPhoto A\nPhoto B\n", None),
        (["000012", "000017"], "000012  1\n000017 -1\n", ["000012", "000017"]),
        (["IMG 1", "IMG 0"], "IMG 1\nIMG 0\n", None),  # ids that end like a flag
        (["IMG 1", "IMG"], "IMG 1\nIMG\n", None),
        (["IMG 1"], "IMG 1 1\n", ["IMG 1"]),
        (["a.b", "a.jpg"], "a.b\na.jpg\n", None),
        (["x"], "x -1", ["x"]),
    ],
)
def test_only_a_last_column_of_flags_is_cut_off(
    tmp_path: Path, names: list[str], text: str, ids: list[str] | None
) -> None:
    for name in names:
        put(tmp_path, name)
    assert image_list(listed(tmp_path, text)) == (ids or names)


@pytest.mark.parametrize("encoding", ["gb18030", "shift_jis", "euc_kr", "big5", "cp1251", "koi8_r", "cp1252"])
def test_a_list_in_an_encoding_that_names_no_file_is_refused(tmp_path: Path, encoding: str) -> None:
    text = {"cp1251": "Фото", "koi8_r": "Фото", "cp1252": "été", "euc_kr": "사진"}.get(encoding, "寫真 1")
    put(tmp_path, text)
    split = listed(tmp_path, text.encode(encoding))
    assert image_list(split) == [text]
    assert re.search("image list read as", " ".join(read_split(split, CLASSES).adjustments))
    for folder in ("Annotations", "JPEGImages"):
        (tmp_path / folder).rename(tmp_path / f"{folder}.gone")
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "JPEGImages").mkdir()
    assert "train.txt" in refused(split) and "UTF-8" in refused(split)


def test_a_missing_file_is_named_as_it_should_be_called(tmp_path: Path) -> None:
    put(tmp_path, "IMG 1")
    assert "JPEGImages/IMG 2.jpg does not exist" in refused(listed(tmp_path, "IMG 1\nIMG 2\n"))
    (tmp_path / "Annotations/IMG 1.xml").unlink()
    assert "Annotations/IMG 1.xml does not exist" in refused(listed(tmp_path, "IMG 1.jpg\n"))


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_accents_of_macos_are_the_same_letters(tmp_path: Path, forms: tuple[str, str]) -> None:
    """A name may hold é as one character or as two, in the list and on the disk."""
    there, written = (unicodedata.normalize(form, "Été 1") for form in forms)
    put(tmp_path, there)
    (record,) = read_voc(listed(tmp_path, written), CLASSES)
    assert record.file == str(tmp_path / f"JPEGImages/{there}.jpg")
    picture = ImageFolder(tmp_path / "JPEGImages")
    assert picture.find(f"{written}.jpg", tmp_path, Reading()) == record.file


# ---- images


@pytest.mark.parametrize("seed", range(6))
def test_an_image_is_found_whatever_its_ending(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    endings = {f"{folder}{n}": rng.choice(["jpg", "JPG", "jpeg", "JPEG", "png", "PNG", "bmp", "tif", "webp"])
               for n in range(6) for folder in ("", "s u b/")}  # fmt: skip
    for image_id, ending in endings.items():
        put(tmp_path, image_id, ending)
    dataset = read_split(listed(tmp_path, "\n".join(endings)), CLASSES)
    assert [record.file for record in dataset.records] == [
        str(tmp_path / f"JPEGImages/{name}.{ending}") for name, ending in endings.items()
    ]
    others = sum(ending != "jpg" for ending in endings.values())
    assert [f"{others} images found" in text for text in dataset.adjustments] == [True] * bool(others)


def test_several_images_of_a_stem_are_named_and_extension_chooses(tmp_path: Path) -> None:
    put(tmp_path, "a", "png")
    picture(tmp_path / "JPEGImages/a.bmp")
    split = listed(tmp_path, "a\n")
    assert "a.bmp" in refused(split) and "a.png" in refused(split)
    assert read_voc(replace(split, extension="bmp"), CLASSES)[0].file.endswith("a.bmp")
    put(tmp_path, "a", "png", xml(filename=r"C:\photos\a.png"))
    assert read_voc(split, CLASSES)[0].file.endswith("a.png")
    picture(tmp_path / "JPEGImages/a.jpg")
    dataset = read_split(split, CLASSES)
    assert dataset.records[0].file.endswith("a.jpg")  # EXTENSION's default, as ever
    assert "1 images that exist with several endings" in " ".join(dataset.adjustments)
    assert read_voc(replace(split, strict=True), CLASSES)[0].file.endswith("a.jpg")


def test_an_image_is_found_by_the_filename_unless_it_is_another_one_s(tmp_path: Path) -> None:
    put(tmp_path, "first")
    put(tmp_path, "second", content=xml(filename="D:/data/Photo 2.PNG"))
    (tmp_path / "JPEGImages/second.jpg").rename(tmp_path / "JPEGImages/Photo 2.png")
    split = listed(tmp_path, "first\nsecond\n")
    dataset = read_split(split, CLASSES)
    assert dataset.records[1].file == str(tmp_path / "JPEGImages/Photo 2.png")
    assert "1 images found by the filename" in " ".join(dataset.adjustments)
    put(tmp_path, "second", content=xml(filename="first.jpg"))  # stale: the image of another annotation
    (tmp_path / "JPEGImages/second.jpg").unlink()
    assert "second.jpg does not exist" in refused(split)
    put(tmp_path, "first", content=xml(filename="Photo 2.png"))
    put(tmp_path, "second", content=xml(filename="Photo 2.png"))
    for name in ("first", "second"):
        (tmp_path / f"JPEGImages/{name}.jpg").unlink()
    assert "Photo 2.png is the image of first and of second" in refused(split)


@pytest.mark.parametrize(
    ("images", "annotations"),
    [("images", "annotations"), ("Images", "xml"), ("JPEGImages", "labels"), ("img", "Annotations"), (".", ".")],
)
def test_flat_folders_are_found(tmp_path: Path, images: str, annotations: str) -> None:
    put(tmp_path, "a")
    for name, target in (("JPEGImages/a.jpg", images), ("Annotations/a.xml", annotations)):
        (tmp_path / target).mkdir(exist_ok=True)
        (tmp_path / name).rename(tmp_path / target / Path(name).name)
    for name in ("JPEGImages", "Annotations"):
        if not any((tmp_path / name).iterdir()):
            (tmp_path / name).rmdir()
    split = listed(tmp_path, "a\n")
    dataset = read_split(split, CLASSES)
    assert dataset.records[0].file == str(tmp_path / images / "a.jpg")
    assert "another folder than" in " ".join(dataset.adjustments)
    assert "does not exist" in refused(replace(split, strict=True))


# ---- XML


def encodings() -> list[str]:
    """Every encoding that Python knows in which a declaration can be recognised: ASCII's bytes, or UTF-16 or 32."""
    found = []
    for name in sorted(set(aliases.values())):
        try:
            if xml().encode(name) == xml().encode() or name.startswith(("utf_16", "utf_32")):
                found.append(name)
        except (LookupError, UnicodeError, ValueError):
            continue
    return found


def test_an_annotation_is_read_in_every_encoding_that_python_knows(tmp_path: Path) -> None:
    names = encodings()
    assert len(names) > 80
    plain = one(tmp_path / "utf8", xml()).records[0].annotations
    for name in names:
        word = next((w for w in ("船", "чаша", "été", "사진", "cat") if _holds(w, name)), "cat")
        classes = (*CLASSES, word)
        head = f'<?xml version="1.0" encoding="{name}"?>'
        for content in (xml(head=head), xml(thing(word), filename=f"{word}.jpg", head=head)):
            put(tmp_path / name, "a", content=content.encode(name))
            records = read_voc(listed(tmp_path / name, "a\n"), classes)
            assert classes[records[0].annotations[0].label] in ("cat", word), name
            assert [a.box for a in records[0].annotations] == [a.box for a in plain], name


def _holds(word: str, encoding: str) -> bool:
    try:
        return word.encode(encoding).decode(encoding) == word
    except (LookupError, UnicodeError, ValueError):
        return False


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (xml(thing("船"), head='<?xml version="1.0" encoding="utf-16"?>').encode(), "another encoding"),
        (xml(head='<?xml version="1.0" encoding="unicode"?>').encode(), "another encoding"),
        (xml(thing("船"), filename="鎔.jpg", head='<?xml version="1.0" encoding="gb2312"?>').encode("gbk"), ""),
        (b"\xef\xbb\xbf" + xml(head='<?xml version="1.0" encoding="gb2312"?>').encode(), ""),
        (b"\n  " + xml(head='<?xml version="1.0"?>').encode(), ""),
        (xml(filename="照片.jpg").encode("gbk"), "characters replaced"),
        (xml(thing("船")).encode("utf-16"), ""),
        (xml(thing("船")).encode("utf-16-le"), ""),
    ],
)
def test_a_wrong_declaration_stops_nothing_that_can_be_read(tmp_path: Path, content: bytes, said: str) -> None:
    dataset = one(tmp_path, content)
    assert len(dataset.records[0].annotations) == 1
    assert said in " ".join(dataset.adjustments) and bool(said) == bool(dataset.adjustments)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (xml(thing("船"), head='<?xml version="1.0" encoding="unicode"?>').encode("gbk"), ["object 1", "UTF-8"]),
        (xml(thing("船")).encode("gbk"), ["object 1", "UTF-8"]),
        (b'<?xml version="1.0" encoding="unicode"?><annotation>', ["unicode", "UTF-8"]),
        (b"<html></html>", ["size/width"]),
        (xml(thing(), "<object><name>cat</name></object>").encode(), ["object 2", "bndbox/xmin"]),
        *((xml(thing(), thing(box=f"1 2 {value} 9")).encode(), ["object 2", "bndbox/xmax", value])
          for value in ("nan", "inf", "-inf", "1e999", "text", "3,5", "0x10")),
        *((xml(size=f"<size><width>{value}</width><height>40</height></size>").encode(), ["the image", value])
          for value in ("nan", "inf", "-60", "wide")),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_named_with_file_and_object(tmp_path: Path, content: bytes, words: list[str]) -> None:
    put(tmp_path, "a", content=content)
    message = refused(listed(tmp_path, "a\n"))
    assert all(word in message for word in ["a.xml", *words]), message


@pytest.mark.parametrize(
    "size",
    ["", "<size/>", "<size><width>0</width><height>0</height></size>", f"<size><width>{WIDTH}</width></size>",
     "<size><width></width><height> </height></size>"],
)  # fmt: skip
def test_an_image_without_a_size_has_its_own(tmp_path: Path, size: str) -> None:
    dataset = one(tmp_path, xml(size=size))
    assert (dataset.records[0].width, dataset.records[0].height) == (WIDTH, HEIGHT)
    assert "1 images without a size" in " ".join(dataset.adjustments)


@pytest.mark.parametrize("seed", range(8))
def test_boxes_a_few_pixels_outside_are_clipped_and_said(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    things, wanted, most = [], [], 0.0
    for _ in range(6):
        out = [rng.choice([0, 0, round(rng.uniform(1.1, 5), 1)]) for _ in range(4)]
        box = (1 - out[0], 1 - out[1], WIDTH + out[2], HEIGHT + out[3])
        things.append(thing(box=" ".join(map(str, box)), more=rng.choice(["", "<truncated>1</truncated>"])))
        wanted.append((1, 1, WIDTH, HEIGHT))
        most = max(most, *out)
    dataset = one(tmp_path, xml(*things))
    assert [a.box for a in dataset.records[0].annotations] == wanted
    assert not any(a.difficult for a in dataset.records[0].annotations)
    assert most == 0 or f"up to {most:.3g} px outside" in " ".join(dataset.adjustments)
    put(tmp_path, "a", content=xml(*things, thing(box=f"1 1 {WIDTH + 5.1 + rng.random() * 90} {HEIGHT}")))
    assert re.search(r"a\.xml, object 7: .* outside", refused(listed(tmp_path, "a\n")))


@pytest.mark.parametrize("box", ["-4 1 0 9", f"{WIDTH + 2} 1 {WIDTH + 4} 9", "9 9 2 20", "5 12.5 9 12.4"])
def test_a_box_of_which_nothing_is_left_is_refused(tmp_path: Path, box: str) -> None:
    put(tmp_path, "a", content=xml(thing(box=box)))
    assert "a.xml, object 1" in refused(listed(tmp_path, "a\n"))


def test_numbers_with_decimals_are_kept(tmp_path: Path) -> None:
    box = one(tmp_path, xml(thing(box="1.5 2.25 30.125 20.0"), size=SIZE.replace("60", "60.0"))).records[0]
    assert box.annotations[0].box == (1.5, 2.25, 30.125, 20) and box.width == WIDTH


def lenient(folder: Path) -> dict[str, Split]:
    """Sets that are read with an adjustment, by its kind."""
    made = {}
    for name, content, ending, text in (
        ("ending", xml(), "png", "a\n"),
        ("line", xml(), "jpg", "a.jpg\n"),
        ("size", xml(size=""), "jpg", "a\n"),
        ("box", xml(thing(box=f"1 1 {WIDTH + 3} 9")), "jpg", "a\n"),
        ("flag", xml(thing(more="<difficult>maybe</difficult>")), "jpg", "a\n"),
        ("encoding", xml(head='<?xml version="1.0" encoding="utf-16"?>'), "jpg", "a\n"),
    ):
        put(folder / name, "a", ending, content)
        made[name] = listed(folder / name, text)
    return made


def test_what_is_adjusted_is_said_once_and_refused_in_a_published_set(tmp_path: Path) -> None:
    for name, split in lenient(tmp_path).items():
        dataset = read_split(split, CLASSES)
        assert len(dataset.adjustments) == 1 and len(dataset.records) == 1, name
        assert str(split.folder) in refused(replace(split, strict=True)), name


def test_a_clean_set_has_the_same_records_read_strictly(tmp_path: Path) -> None:
    put(tmp_path, "a", content=xml(thing(box="0 0 60 40"), thing("dog", more="<difficult>1</difficult>")))
    put(tmp_path, "b", content=xml(thing("dog", box="60 40 61 41")))
    split = listed(tmp_path, "b\na\n")
    dataset = read_split(split, CLASSES)
    assert dataset.records == read_split(replace(split, strict=True), CLASSES).records and not dataset.adjustments
    assert [a.box for record in dataset.records for a in record.annotations][:2] == [(60, 40, 61, 41), (0, 0, 60, 40)]


def mutated(text: bytes, rng: random.Random) -> bytes:
    """An annotation with one thing changed: a byte, a number, a tag, a piece left out or doubled, its encoding."""
    values = [b"", b"0", b"-1", b"nan", b"1e9", b"-inf", b"x", b"\xff", b"1" * 400, b"\0", "船".encode("gbk")]
    spans = [m.span(1) for m in re.finditer(rb">([^<>]*)<", text)]
    start, end = rng.choice(spans)
    kind = rng.randrange(6)
    if kind == 0:
        return text[:start] + rng.choice(values) + text[end:]
    if kind == 1:
        cut = sorted(rng.sample(range(len(text)), 2))
        return text[: cut[0]] + text[cut[1] :]
    if kind == 2:
        cut = sorted(rng.sample(range(len(text)), 2))
        return text[: cut[1]] + text[cut[0] :]
    if kind == 3:
        place = rng.randrange(len(text))
        return text[:place] + bytes([rng.randrange(256)]) + text[place + 1 :]
    if kind == 4:
        return text.decode("latin-1").encode(rng.choice(["utf-16", "utf-32", "utf-16-be", "cp037", "utf-7"]))
    head = f'<?xml version="1.0" encoding="{rng.choice(["gb2312", "big5", "utf-32", "hex", "nothing", "cp037"])}"?>'
    return head.encode() + text


def test_a_changed_annotation_is_read_with_sane_values_or_refused_by_name(tmp_path: Path) -> None:
    text = xml(thing(), thing("dog", more="<difficult>1</difficult>")).encode()
    put(tmp_path, "a")
    split, file = listed(tmp_path, "a\n"), tmp_path / "Annotations/a.xml"
    outcomes = {True: 0, False: 0}
    for seed in range(300):
        file.write_bytes(mutated(text, random.Random(seed)))
        faults: list[str] = []
        records = read_voc(split, CLASSES, Reading(faults=faults))
        assert len(records) + len(faults) == 1 and all("a.xml" in fault and "\n" not in fault for fault in faults)
        assert all(_is_sane(record) for record in records), seed
        outcomes[bool(faults)] += 1
    assert min(outcomes.values()) > 50


def _is_sane(record: DatasetDict) -> bool:
    inside = all(
        0 <= x0 <= x1 <= record.width + 1 and 0 <= y0 <= y1 <= record.height + 1
        for x0, y0, x1, y1 in (a.box for a in record.annotations)
    )
    return inside and record.width > 0 and record.height > 0
