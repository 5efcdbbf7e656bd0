"""Seeded mutations of a valid COCO file and of a valid VOC set: does what `data.py check` passes train to its end?

    python tests/integration/mutations.py coco 0 300      # one JSON line a seed, as `Outcome`
    python tests/integration/mutations.py voc 0 300

Each seed makes a set of a few tiny images, changes one to three things in it (values, types, structure, encodings,
names, images), checks it, and fine-tunes a narrow detector for two steps with evaluation, all in this process.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import math
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from ssl_transfer.errors import UserError  # noqa: E402

CLASSES = ["ship", "plane"]
SECONDS = 60
SIZE = (48, 40)
VALUES: list[Any] = [
    *(math.nan, math.inf, -math.inf, -1, 0, 1e30, 10**400, 2**63, 0.5, -0.0, 3, 1e-9, "", "7", "abc", "640.0", "１"),
    *(None, True, False, [], {}, [[]], [[[[]]]], "é" * 300, "a\x00b", "../x.jpg", [1, 2, 3, 4], {"a": 1}),
]
NARROW = {
    "MODEL": {
        "DEVICE": "cpu",
        "RESNETS": {"STEM_OUT_CHANNELS": 8, "RES2_OUT_CHANNELS": 16, "WIDTH_PER_GROUP": 4},
        "ANCHOR_GENERATOR": {"SIZES": [[16, 32]]},
        "RPN": {"PRE_NMS_TOPK_TRAIN": 30, "POST_NMS_TOPK_TRAIN": 8, "PRE_NMS_TOPK_TEST": 20, "POST_NMS_TOPK_TEST": 4},
        "ROI_HEADS": {"BATCH_SIZE_PER_IMAGE": 8},
        "ROI_BOX_HEAD": {"POOLER_RESOLUTION": 6},
        "ROI_MASK_HEAD": {"CONV_DIM": 16},
    },
    "INPUT": {"MIN_SIZE_TRAIN": [48], "MIN_SIZE_TEST": 48, "MAX_SIZE_TRAIN": 96, "MAX_SIZE_TEST": 96},
    "DATALOADER": {"NUM_WORKERS": 0},
    "SOLVER": {"IMS_PER_BATCH": 2, "MAX_ITER": 2, "STEPS": [1], "WARMUP_ITERS": 1, "BASE_LR": 1e-3},
    "TEST": {"PRECISE_BN": {"NUM_ITER": 1}},
}


@dataclass
class Outcome:
    """What became of one seed.

    Attributes:
        seed: of the mutations.
        changes: what was changed.
        check: faults of `data.py check`; empty where it passes.
        training: `done`, `diverged`, or the error's line.
        crash: traceback of an exception that is no UserError; empty where there is none.
        peak_mib: the process's greatest memory until then.
    """

    seed: int
    changes: list[str]
    check: list[str]
    training: str
    crash: str
    peak_mib: int


def run(kind: str, seed: int, folder: Path) -> Outcome:
    """Make a set in an empty folder, mutate it, check it, train on it."""
    rng = random.Random(f"{kind} {seed}")
    make, mutate = (make_coco, mutate_coco) if kind == "coco" else (make_voc, mutate_voc)
    config = make(folder, rng)
    changes = [mutate(folder, rng) for _ in range(rng.choice([1, 1, 2, 3]))] if seed else []
    crash = ""
    signal.alarm(SECONDS)  # ends the process: a hang is a fault
    try:
        check = _check(config)
    except Exception:
        check, crash = ["crash"], traceback.format_exc()
    try:
        training = _train(config, folder / "run", seed)
    except UserError as error:
        training = str(error)
    except Exception:
        training, crash = "crash", crash + traceback.format_exc()
    signal.alarm(0)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    peak = int(status["VmHWM"].split()[0]) // 1024  # ru_maxrss would count the parent before exec
    return Outcome(seed, changes, check, training, crash, peak)


def _check(config: Path) -> list[str]:
    from transfer.doctor.check import check_task, render_split, task_of

    try:
        found = check_task(task_of(config, None))
    except UserError as error:
        return [str(error)]
    "\n".join(line for one in found for line in render_split(one)).encode()  # what a terminal has to show
    return [fault for one in found for fault in one.faults]


def _train(config: Path, output: Path, seed: int) -> str:
    from transfer.engine.prepare import TrialRequest
    from transfer.engine.trial import run_trial

    with contextlib.redirect_stdout(io.StringIO()):
        return run_trial(TrialRequest(config_file=config, weights="scratch", seed=seed, output=output)).status


def _draw(file: Path, rng: random.Random, size: tuple[int, int] = SIZE) -> tuple[int, int, int, int]:
    """Draw one box on a plain image; x0, y0, x1, y1."""
    width, height = size
    x0, y0 = rng.randrange(0, width // 2), rng.randrange(0, height // 2)
    x1, y1 = rng.randrange(x0 + 8, width), rng.randrange(y0 + 8, height)
    image = Image.new("RGB", size, tuple(rng.randrange(60, 200) for _ in range(3)))
    ImageDraw.Draw(image).rectangle((x0, y0, x1, y1), fill=(200, 30, 30))
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file)
    return x0, y0, x1, y1


def _write_config(folder: Path, base: str, splits: dict[str, Any], **more: Any) -> Path:
    own = {"TASK": "own", "DATA_ROOT": str(folder), "CLASSES": CLASSES, "SPLITS": splits, "PREDICTIONS": 1, **more}
    content = json.loads(json.dumps(NARROW))
    model = own.pop("MODEL", {})
    content["MODEL"] |= model
    content |= {"_BASE_": str(ROOT / "configs/transfer" / base), "TRANSFER": own}
    content["DATASETS"] = {"TRAIN": ["t_train"], "TEST": ["t_test"]}
    (folder / "task.yaml").write_text(yaml.safe_dump(content))
    return folder / "task.yaml"


def make_coco(folder: Path, rng: random.Random) -> Path:
    """Train and test file with polygons, a crowd and, for half of the seeds, the task with masks."""
    for split, ids in (("train", range(1, 5)), ("val", range(5, 8))):
        images, annotations = [], []
        for number in ids:
            name = f"{number:06d}.jpg"
            x0, y0, x1, y1 = _draw(folder / "coco" / name, rng)
            images.append({"id": number, "file_name": name, "width": SIZE[0], "height": SIZE[1], "license": 1})
            box = [x0, y0, x1 - x0, y1 - y0]
            polygon = [x0, y0, x1, y0, x1, y1, x0, y1]
            annotations.append(
                {"id": number * 10, "image_id": number, "category_id": 1 + number % 2, "bbox": box}
                | {"area": box[2] * box[3], "iscrowd": 0, "segmentation": [polygon]}
            )
        counts = [100, 50, SIZE[0] * SIZE[1] - 150]
        crowd = {"id": 999, "image_id": ids[0], "category_id": 1, "bbox": [2, 10, 2, 30], "area": 50, "iscrowd": 1}
        annotations.append({**crowd, "segmentation": {"counts": counts, "size": [SIZE[1], SIZE[0]]}})
        categories = [{"id": k, "name": name, "supercategory": ""} for k, name in enumerate(CLASSES, start=1)]
        content = {"info": {"year": 2020}, "images": images, "annotations": annotations, "categories": categories}
        (folder / "coco" / f"{split}.json").write_text(json.dumps(content))
    splits = {
        name: {"LAYOUT": "coco", "FOLDER": "coco", "ANNOTATIONS": f"coco/{file}.json"}
        for name, file in (("t_train", "train"), ("t_test", "val"))
    }
    evaluator = rng.choice(["hotcoco", "pycocotools"])
    return _write_config(folder, "coco.yaml", splits, EVALUATOR=evaluator, MODEL={"MASK_ON": rng.random() < 0.5})


def mutate_coco(folder: Path, rng: random.Random) -> str:
    """Change one thing; its description."""
    file = folder / "coco" / rng.choice(["train.json", "train.json", "val.json"])
    change = rng.choice([*COCO_CHANGES, _any_value, _any_value, _structure, _structure])
    if change in (_encoding, _image, _rename):
        return f"{file.name}: {change(file, rng)}"
    try:
        content = json.loads(file.read_bytes())
        said = change(content, rng)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError, ZeroDivisionError):
        return "nothing: an earlier change is in the way"
    file.write_text(json.dumps(content))
    return f"{file.name}: {change.__name__} {said}"


def _places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, Any, tuple[Any, ...]]]:
    """Every (container, key, path) below a node."""
    items = list(node.items()) if isinstance(node, dict) else list(enumerate(node)) if isinstance(node, list) else []
    found = [(node, key, (*path, key)) for key, _ in items]
    return found + [place for key, value in items for place in _places(value, (*path, key))]


def _any_value(content: Any, rng: random.Random) -> str:
    node, key, path = rng.choice(_places(content))
    node[key] = rng.choice(VALUES)
    return f"{path} = {node[key]!r:.40}"


def _structure(content: Any, rng: random.Random) -> str:
    node, key, path = rng.choice(_places(content))
    how = rng.choice(["remove", "twice", "reverse", "text", "move", "wrap"])
    if how == "remove":
        del node[key]
    elif how == "twice" and isinstance(node, list):
        node.append(json.loads(json.dumps(node[key])))
    elif how == "reverse" and isinstance(node[key], list):
        node[key].reverse()
    elif how == "text":
        node[key] = str(node[key])
    elif how == "move" and isinstance(node, dict):
        node[f"{key}_"] = node.pop(key)
    else:
        node[key] = [node[key]]
    return f"{how} {path}"


def _every(content: Any, rng: random.Random) -> str:
    """One key of all entries of a list, as a label tool would write it."""
    name = rng.choice(["images", "annotations", "categories"])
    key = rng.choice(sorted(content[name][0]))
    change: Callable[[Any], Any] = rng.choice(
        [str, float, lambda v: f"{v:06d}", lambda _: 0, lambda _: None, lambda v: v + 1]
    )
    drop = rng.random() < 0.3
    for entry in content[name]:
        if drop:
            entry.pop(key)
        else:
            entry[key] = change(entry[key])
    return f"{name}.{key}"


def _box(content: Any, rng: random.Random) -> str:
    entry = rng.choice(content["annotations"])
    x, y, w, h = entry["bbox"]
    boxes = (
        *([x, y, x + w, y + h], [x / 48, y / 40, w / 48, h / 40], [x, y, 0, h], [x, y, w, -h], [-3, y, w, h]),
        *([x, y, w + 5, h + 40], [x, y, 48 - x + 4, h], [-3000, -3000, 9000, 9000], [48, 40, 3, 3], [x, y, 1e-9, h]),
        *([0, 0, 48, 40], [x, y], [*entry["bbox"], 1], [str(x), y, w, h], [47.5, 39.5, 3, 3]),
    )
    entry["bbox"] = rng.choice(boxes)
    return str(entry["bbox"])


def _mask(content: Any, rng: random.Random) -> str:
    entry = rng.choice(content["annotations"])
    size = [SIZE[1], SIZE[0]]
    masks: tuple[Any, ...] = (
        *([], [[]], [[1, 2]], [[1, 2, 3, 4]], [[1, 2, 3, 4, 5]], [[1, 2, 3, 4, 5, 6, 7]], [1, 2, 3, 4, 5, 6], None),
        *([[math.nan, 5, 20, 5, 20, 20]], [[1, 2, "3", 4, 5, 6]], [[1e12, 2, 3, 4, 5, 6]], [[-60, -60, 90, 4, 5, 90]]),
        *([[0.1, 0.2, 0.3, 0.4, 0.5, 0.6]], [[5] * 6], [[1, 2, 30, 2, 30, 20], [1, 1]], [[None] * 6], [[[1, 2, 3]]]),
        *({"size": size, "counts": [1920]}, {"size": size, "counts": [0, 1920]}, {"size": size, "counts": [5, 5]}),
        *({"size": size[::-1], "counts": [1920]}, {"size": size, "counts": [-5, 1925]}, {"counts": [1920]}),
        *({"size": [40.0, 48.0], "counts": [1920]}, {"size": size, "counts": ["1920"]}, {"size": size, "counts": None}),
        *({"size": size, "counts": _compressed(rng)}, {"size": size, "counts": _compressed(rng)[:-1]}),
        *({"size": size, "counts": "".join(chr(rng.randrange(30, 130)) for _ in range(9))}, {"size": size}, {}),
        *({"size": size, "counts": "~" * 40}, {"size": size, "counts": ""}, {"size": ["a", "b"], "counts": "1"}, "x"),
    )
    entry["segmentation"] = rng.choice(masks)
    return f"{entry['segmentation']!r:.70}"


def _compressed(rng: random.Random) -> str:
    import numpy as np
    import pycocotools.mask

    mask = np.zeros((SIZE[1], SIZE[0]), dtype=np.uint8, order="F")
    mask[rng.randrange(20) : 30, 5 : rng.randrange(10, 40)] = 1
    return str(pycocotools.mask.encode(mask)["counts"].decode())


def _categories(content: Any, rng: random.Random) -> str:
    listed = content["categories"]
    changes: dict[str, list[Any]] = {
        "root": [{"id": 0, "name": "things", "supercategory": "none"}, *listed],
        "root of the same name": [{"id": 0, "name": "ship"}, *listed],
        "other": [*listed, {"id": 3, "name": "car"}],
        "one less": listed[:1],
        "renamed": [{**listed[0], "name": "shipp"}, *listed[1:]],
        "reversed": listed[::-1],
        "ids twice": [{**one, "id": 1} for one in listed],
        "numbers": [{**one, "name": number} for number, one in enumerate(listed)],
        "names swapped": [{**one, "name": other["name"]} for one, other in zip(listed, listed[::-1], strict=True)],
        "braces": [*listed, {"id": 9, "name": "{0} {count}"}],
    }
    how = rng.choice(sorted(changes))
    content["categories"] = changes[how]
    return how


def _ids(content: Any, rng: random.Random) -> str:
    how = rng.choice(["huge", "text", "negative", "mixed", "from 0", "twice", "other image", "names"])
    change: Callable[[int], Any] = {
        "huge": lambda n: 2**60 + n,
        "text": lambda n: f"{n:06d}",
        "negative": lambda n: -n,
        "mixed": lambda n: str(n) if n % 2 else float(n),
        "from 0": lambda n: n - content["images"][0]["id"],
        "twice": lambda _: content["images"][0]["id"],
        "other image": lambda n: n,
        "names": lambda n: f"image {n}",
    }[how]
    for entry in content["annotations"]:
        entry["image_id"] = change(entry["image_id"])
    for image in content["images"]:
        image["id"] = change(image["id"])
    if how == "from 0":
        for number, entry in enumerate(content["annotations"]):
            entry["id"] = number
    if how == "other image":
        content["annotations"][0]["image_id"] = 77
    return how


def _file_names(content: Any, rng: random.Random) -> str:
    how = rng.choice(["backslash", "folder", "upper", "ending", "no ending", "path", "one"])
    images = content["images"] if how != "one" else content["images"][:1]
    for image in images:
        name = image["file_name"]
        image["file_name"] = {
            "backslash": f"images\\{name}",
            "folder": f"some/where/{name}",
            "upper": name.upper(),
            "ending": name.replace(".jpg", ".png"),
            "no ending": name.removesuffix(".jpg"),
            "path": f"/data/{name}",
            "one": content["images"][-1]["file_name"],
        }[how]
    return how


def _encoding(file: Path, rng: random.Random) -> str:
    """Of a JSON or an XML file."""
    content = file.read_bytes()
    how = rng.choice(
        [
            "utf-8-sig",
            "utf-16",
            "utf-32",
            "utf-16-le",
            "latin-1",
            "cut",
            "empty",
            "more",
            "zeros",
            "flip",
            "deep",
            "cp037",
        ]
    )
    if how == "cut":
        content = content[: rng.randrange(len(content) + 1)]
    elif how in ("empty", "more", "zeros", "deep"):
        content = {"empty": b"", "more": content + b"}", "zeros": bytes(40), "deep": b"[" * 5000}[how]
    elif how == "flip":
        spoilt = bytearray(content)
        for _ in range(3 if spoilt else 0):
            spoilt[rng.randrange(len(spoilt))] = rng.randrange(256)
        content = bytes(spoilt)
    else:
        text = (
            content.decode(errors="replace").replace("ship", "sh\u00efp")
            if how == "latin-1"
            else content.decode(errors="replace")
        )
        content = text.encode(how, errors="replace")
    file.write_bytes(content)
    return f"bytes {how}"


def _image(file: Path, rng: random.Random) -> str:
    """Of a file below the folder of a set."""
    images = sorted(one for one in file.parent.rglob("*.jpg"))
    images = images or sorted(one for one in file.parents[1].rglob("*.jpg"))
    if not images:
        return "nothing: no image is left"
    image = rng.choice(images)
    how = rng.choice(["gone", "empty", "text", "cut", "size", "thin", "gray", "png", "turned", "folder"])
    if how in ("size", "thin"):
        _draw(image, rng, (40, 48)) if how == "size" else Image.new("RGB", (1, 900)).save(image)
    elif how in ("gray", "png", "turned"):
        with contextlib.suppress(OSError), Image.open(image) as pixels:
            pixels.load()
            exif = pixels.getexif()
            exif[274] = 6
            mode = pixels.convert("L") if how == "gray" else pixels
            mode.save(image, "PNG" if how == "png" else "JPEG", **({"exif": exif} if how == "turned" else {}))
    elif how in ("gone", "folder"):
        image.unlink()
        if how == "folder":
            image.mkdir()
    else:
        image.write_bytes({"empty": b"", "text": b"<html>", "cut": image.read_bytes()[:-300]}[how])
    return f"image {image.name} {how}"


def _rename(file: Path, rng: random.Random) -> str:
    """Of an image file, by which annotations know it."""
    images = sorted(one for one in file.parent.rglob("*.jpg")) or sorted(one for one in file.parents[1].rglob("*.jpg"))
    if not images:
        return "nothing: no image is left"
    image = rng.choice(images)
    how = rng.choice([".JPG", ".jpeg", ".png", ".xyz", " .jpg", "both"])
    if how == "both":
        for ending in (".png", ".jpeg"):
            shutil.copy(image, image.with_suffix(ending))
        image.unlink()
    else:
        image.rename(image.with_name(image.stem + how))
    return f"image {image.name} renamed {how}"


COCO_CHANGES = [
    _every,
    _every,
    _box,
    _box,
    _mask,
    _mask,
    _mask,
    _categories,
    _ids,
    _file_names,
    _encoding,
    _image,
    _rename,
]


def make_voc(folder: Path, rng: random.Random) -> Path:
    """A VOC folder with a training and a test list."""
    voc = folder / "voc"
    for part in ("Annotations", "ImageSets/Main"):
        (voc / part).mkdir(parents=True)
    for split, ids in (("train", range(1, 5)), ("test", range(5, 8))):
        for number in ids:
            x0, y0, x1, y1 = _draw(voc / "JPEGImages" / f"{number:06d}.jpg", rng)
            box = f"<xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax>"
            flags = "<pose>Left</pose><truncated>0</truncated><difficult>0</difficult>"
            size = f"<size><width>{SIZE[0]}</width><height>{SIZE[1]}</height><depth>3</depth></size>"
            thing = f"<object><name>{CLASSES[number % 2]}</name>{flags}<bndbox>{box}</bndbox></object>"
            head = f"<folder>voc</folder><filename>{number:06d}.jpg</filename>"
            text = f'<?xml version="1.0" encoding="utf-8"?>\n<annotation>\n{head}\n{size}\n{thing}\n</annotation>\n'
            (voc / "Annotations" / f"{number:06d}.xml").write_text(text)
        (voc / "ImageSets/Main" / f"{split}.txt").write_text("".join(f"{number:06d}\n" for number in ids))
    splits = {
        name: {"LAYOUT": "voc", "FOLDER": "voc", "IMAGE_SET": image_set}
        for name, image_set in (("t_train", "train"), ("t_test", "test"))
    }
    return _write_config(folder, "voc07.yaml", splits, EVALUATOR=rng.choice(["exact", "detectron2"]))


def mutate_voc(folder: Path, rng: random.Random) -> str:
    """Change one thing; its description."""
    voc = folder / "voc"
    file = rng.choice(sorted(one for one in (voc / "Annotations").rglob("*.xml") if one.is_file()) or [voc / "x.xml"])
    change = rng.choice(
        [_xml_value, _xml_value, _xml_value, _xml_tag, _xml_tag, _encoding, _image, _rename, _list, _names]
    )
    try:
        return f"{file.name}: {change(file, rng)}"
    except (OSError, IndexError, UnicodeDecodeError):
        return "nothing: an earlier change is in the way"


def _xml_value(file: Path, rng: random.Random) -> str:
    import re

    text = file.read_text()
    tag = rng.choice(
        ["xmin", "ymin", "xmax", "ymax", "width", "height", "name", "difficult", "filename", "depth", "pose"]
    )
    value = rng.choice(
        [
            *(
                "",
                "0",
                "-1",
                "nan",
                "inf",
                "1e30",
                "12.5",
                "30",
                "44",
                "49",
                "52",
                "9999",
                "abc",
                " 7 ",
                "１２",
                "true",
            ),
            *("ship", "plane ", "Ship", "0.3", "&lt;", "9" * 400, "1_0", "0x10", "{count}"),
        ]
    )
    file.write_text(re.sub(f"<{tag}>[^<]*</{tag}>", f"<{tag}>{value}</{tag}>", text, count=1))
    return f"{tag} = {value!r:.20}"


def _xml_tag(file: Path, rng: random.Random) -> str:
    import re

    text = file.read_text()
    tags = ["xmin", "bndbox", "size", "width", "name", "object", "difficult", "annotation", "filename", "truncated"]
    tag = rng.choice(tags)
    how = rng.choice(["remove", "twice", "rename", "empty", "comment", "entity", "doctype"])
    whole = re.compile(rf"<{tag}>.*?</{tag}>", re.DOTALL)
    if how == "entity":
        text = text.replace("<annotation>", '<!DOCTYPE a [<!ENTITY a "ship"><!ENTITY b "&a;&a;&a;">]>\n<annotation>', 1)
        text = text.replace(">ship<", ">&a;<")
    elif how == "doctype":
        text = text.replace("<annotation>", '<!DOCTYPE annotation SYSTEM "file:///none">\n<annotation>', 1)
    else:
        to: dict[str, Callable[[Any], str]] = {
            "remove": lambda _: "",
            "twice": lambda found: found[0] * 2,
            "rename": lambda found: found[0].replace(tag, f"{tag}s"),
            "empty": lambda _: f"<{tag}/>",
            "comment": lambda found: f"<!-- -->{found[0]}",
        }
        text = whole.sub(to[how], text, count=1)
    file.write_text(text)
    return f"{how} {tag}"


def _list(file: Path, rng: random.Random) -> str:
    """The list of a split."""
    target = file.parents[1] / "ImageSets/Main" / rng.choice(["train.txt", "test.txt"])
    lines = target.read_text(errors="replace").splitlines()
    changes = {
        "endings": [f"{line}.jpg" for line in lines],
        "flags": [f"{line} -1" for line in lines],
        "twice": [*lines, lines[0]],
        "empty": [],
        "blank lines": ["", *lines, "", " "],
        "unknown": [*lines, "000099"],
        "paths": [f"JPEGImages/{line}.jpg" for line in lines],
        "backslashes": [f"JPEGImages\\{line}.jpg" for line in lines],
        "carriage returns": [f"{line}\r" for line in lines],
        "tabs": [f"{line}\t1" for line in lines],
        "hostile": [*lines, "../../x", "a" * 400, "\x00", "*"],
    }
    how = rng.choice([*sorted(changes), "utf-16", "utf-8-sig", "gone"])
    if how == "gone":
        target.unlink()
        return f"{target.name} gone"
    encoding = how if how.startswith("utf") else "utf-8"
    target.write_text("\n".join(changes.get(how, lines)) + "\n", encoding=encoding, newline="")
    return f"{target.name} {how}"


def _names(file: Path, rng: random.Random) -> str:
    """Give one image, its XML and its line in a list another name, as people have them."""
    voc = file.parents[1]
    new = rng.choice(["a b", "sub/c", "tile.12", "d (1)", "é", "0", "x'y", "{count}"])
    for part, ending in (("Annotations", ".xml"), ("JPEGImages", ".jpg")):
        old = voc / part / f"{file.stem}{ending}"
        target = voc / part / f"{new}{ending}"
        target.parent.mkdir(exist_ok=True)
        old.rename(target)
    for listed in (voc / "ImageSets/Main").glob("*.txt"):
        listed.write_text(listed.read_text().replace(file.stem, new))
    return f"{file.stem} is called {new!r}"


def main(kind: str, first: int, last: int) -> None:
    """Run seeds and print their outcomes."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (12 << 30, hard))  # a set that eats memory ends here, not the machine
    for seed in range(first, last):
        folder = Path(tempfile.mkdtemp(prefix="mutation-"))
        try:
            sys.stdout.write(f"{json.dumps(asdict(run(kind, seed, folder)))}\n")
            sys.stdout.flush()
        finally:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=("coco", "voc"))
    parser.add_argument("first", type=int, help="seed")
    parser.add_argument("last", type=int, help="seed after the last one")
    args = parser.parse_args()
    main(args.kind, args.first, args.last)
