"""DATA.PIPELINE dali on a CPU: its files and crops are Pillow's, and the run stays a function of seed, epoch, index.

DALI rounds once where Pillow rounds twice, and repeats the pixels at a crop's edge where Pillow leaves them out: a
difference of up to 9 levels there, which the colour steps may enlarge. Elsewhere each step is within `levels.STEPS`.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from common.errors import UserError
from pretrain.data.augment import Recipe, apply, draw
from pretrain.data.benchmarks import draw_photos
from pretrain.data.dataset import Batch, TwoViews
from pretrain.data.decode import CONDITIONS, REPLACED, decode
from pretrain.data.index import find_images
from pretrain.data.loader import load_batches
from pretrain.data.pipelines import pipeline, why_no_dali
from pretrain.data.pipelines.base import Content, Files, Refused
from pretrain.data.pipelines.dali import Dali
from pretrain.data.pipelines.dali_crops import DaliCrops
from pretrain.data.randomness import stream
from pretrain.data.sampler import EpochBatches
from pretrain.engine.trainer import Trainer
from tests.needs import missing
from tests.pretrain.data.levels import PLAIN, SIZE, STEPS, levels, pictures
from tests.pretrain.data.test_decode import KINDS, wrong_table

PHOTOS = Path(__file__).resolve().parents[4] / "shared" / "data" / "photos"
CPU = torch.device("cpu")
EDGE = 3
"""Pixels of a view, or of its blur, that see the crop's edge."""


@pytest.fixture(autouse=True, scope="module")
def dali() -> None:
    if why := why_no_dali():
        missing(f"{why}; make setup-dali")


@pytest.mark.parametrize("step", STEPS)
def test_each_step_is_pillows_within_its_limit(step: str) -> None:
    view, mean, greatest = STEPS[step]
    images = list(pictures())
    theirs = np.stack([np.asarray(apply(image, view, SIZE)) for image in images]).astype(float)
    gaps = np.abs(levels("dali", images, [view] * len(images)) - theirs)
    assert gaps.mean() <= mean + 0.2 <= 2 and gaps.max() <= 12
    edge = EDGE + (13 if view.blur else 0)
    assert gaps[:, edge:-edge, edge:-edge].max() <= greatest + 0.01


def test_whole_views_are_close_and_drawn_alike() -> None:
    images = [pictures()[i % 6] for i in range(60)]
    views = [draw(Recipe(SIZE, solarize_prob=0.2), *image.size, stream(3, 1, i, 0)) for i, image in enumerate(images)]
    theirs = levels("pil", images, views)
    gaps = np.abs(levels("dali", images, views) - theirs).mean((1, 2, 3))
    assert gaps.mean() < 1.0 and gaps.max() < 3
    wrong = [replace(view, flip=not view.flip) for view in views]
    assert np.abs(levels("dali", images, wrong) - theirs).mean() > 15  # the limits tell


def test_a_sample_does_not_depend_on_its_batch() -> None:
    images = list(pictures())
    views = [draw(Recipe(SIZE), *image.size, stream(0, 0, i, 0)) for i, image in enumerate(images)]
    together = levels("dali", images, views)
    for i, (image, view) in enumerate(zip(images, views, strict=True)):
        assert np.array_equal(levels("dali", [image], [view])[0], together[i])


def _whole(way: Dali, file: Path, size: int) -> np.ndarray:
    """The top left corner of a file's image as DALI decodes it: uint8 (size, size, 3)."""
    room = way.room(1, 1, size)
    room.add(decode(file, way.pixels)[0], [replace(PLAIN, box=(0, 0, size, size))])
    files = room.content().files
    assert files is not None
    return DaliCrops(files, CPU).of(files)[0][0].permute(1, 2, 0).numpy()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_file_is_decoded_as_pillow_does(tmp_path: Path, kind: str) -> None:
    name, write, conditions = KINDS[kind]
    write(tmp_path / name)
    way = Dali()
    encoded, met = decode(tmp_path / name, way.pixels)
    theirs = np.asarray(decode(tmp_path / name, pipeline("pil").pixels)[0])
    assert set(met) == conditions and way.size(encoded) == (theirs.shape[1], theirs.shape[0])
    as_it_is = kind in ("plain", "progressive", "grayscale", "turned")
    assert (encoded.content == (tmp_path / name).read_bytes()) == as_it_is
    assert np.array_equal(_whole(way, tmp_path / name, 40), theirs[:40, :40])


def test_a_jpeg_that_holds_rgb_is_decoded_as_pillow_does(tmp_path: Path) -> None:
    pictures()[0].save(tmp_path / "a.jpg", keep_rgb=True)
    assert np.array_equal(_whole(Dali(), tmp_path / "a.jpg", 64), np.asarray(Image.open(tmp_path / "a.jpg"))[:64, :64])


def test_views_of_drawn_photos(tmp_path: Path) -> None:
    draw_photos(tmp_path, 8)
    index = find_images(str(tmp_path))
    keys = [(0, i) for i in range(len(index))]
    both = []
    for way in ("dali", "pil"):
        dataset = TwoViews(index, Recipe(SIZE), 0, way=way)
        batch = dataset.__getitems__(keys)
        assert isinstance(batch, Batch)
        both.append(torch.stack(dataset.pipeline.finish(Content(batch.views, batch.draws, batch.files), CPU)))
    gaps = 255 * 0.225 * (both[0] - both[1]).abs()
    assert gaps.mean() < 1.0 and gaps.mean((2, 3, 4)).max() < 2


@pytest.mark.slow
def test_statistics_of_views_of_photos() -> None:
    if not PHOTOS.is_dir():
        pytest.skip(f"{PHOTOS} is not there")
    paths = sorted((PHOTOS / "train").rglob("*.*"))
    images = [decode(path, pipeline("pil").pixels)[0] for path in paths]
    views = [draw(Recipe(224), *image.size, stream(0, 0, i, 0)) for i, image in enumerate(images)]
    ours, theirs = (levels(way, images, views, 224) for way in ("dali", "pil"))
    gaps = np.abs(ours - theirs)
    assert gaps.mean() < 1.0 and gaps.mean((1, 2, 3)).max() < 4
    assert np.abs(ours.mean((0, 1, 2)) - theirs.mean((0, 1, 2))).max() < 0.5
    assert np.abs(ours.std((0, 1, 2)) / theirs.std((0, 1, 2)) - 1).max() < 0.01


def _load(images: Path, workers: int, start: int = 0, rank: int = 0, world: int = 1, last: bool = False) -> list[Batch]:
    dataset = TwoViews(find_images(str(images)), Recipe(32), 5, 4, way="dali")
    return list(load_batches(dataset, EpochBatches(14, 4, 5, start, 7, rank, world), workers, CPU, last))


def _equal(ours: list[Batch], theirs: list[Batch]) -> bool:
    pairs = zip(ours, theirs, strict=True)
    return all(torch.equal(a.indices, b.indices) and all(map(torch.equal, a.views, b.views)) for a, b in pairs)


def test_workers_processes_and_a_later_start_change_nothing(images: Path) -> None:
    alone = _load(images, 0)
    assert [len(batch.views) for batch in alone] == [4] * 7 and not torch.equal(*alone[0].views[:2])
    assert (
        _equal(alone, _load(images, 1)) and _equal(alone, _load(images, 2)) and _equal(alone[3:], _load(images, 1, 3))
    )
    for rank in range(2):
        for batch, whole in zip(_load(images, 0, rank=rank, world=2), alone, strict=True):
            assert all(torch.equal(ours, all_[rank::2]) for ours, all_ in zip(batch.views, whole.views, strict=True))
    for last, layout in ((False, torch.contiguous_format), (True, torch.channels_last)):
        (batch, *_) = _load(images, 0, last=last)
        assert all(view.is_contiguous(memory_format=layout) for view in batch.views)


def test_one_pipeline_serves_smaller_batches_and_another_is_built_for_larger_ones() -> None:
    way, made = Dali(), []
    for count, size in ((3, 16), (2, 16), (4, 16), (4, 24)):
        room = way.room(count, 2, size)
        for image in pictures()[:count]:
            room.add(way.pixels(image, b""), [PLAIN, PLAIN])
        assert [view.shape for view in way.finish(room.content(), CPU)] == [(count, 3, size, size)] * 2
        made.append(way._crops)
    assert made[0] is made[1] and made[1] is not made[2] and made[2] is not made[3]


def test_what_dali_has_built_is_not_sent_to_other_processes() -> None:
    way = Dali()
    room = way.room(1, 1, 16)
    room.add(way.pixels(pictures()[0], b""), [PLAIN])
    way.finish(room.content(), CPU)
    assert pickle.loads(pickle.dumps(way))._crops is None


def test_what_dali_refuses_is_one_line_and_the_next_batch_is_made_as_ever() -> None:
    files = Files(torch.zeros(50, dtype=torch.uint8), torch.tensor([50]), (torch.tensor([[0, 0, 8, 8]]).int(),), 8)
    way = Dali()
    with pytest.raises(Refused, match=r"DALI cannot crop a batch \(.*\); DATA\.PIPELINE crops") as caught:
        way.finish(Content(draws=(torch.zeros(1, 12),), files=files), CPU)
    assert "\n" not in str(caught.value)
    room = way.room(1, 1, 16)
    room.add(way.pixels(pictures()[0], b""), [PLAIN])
    assert len(way.finish(room.content(), CPU)) == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_is_refused_late_is_named_or_replaced_as_others_are(tmp_path: Path, workers: int) -> None:
    draw_photos(tmp_path, 6)
    index = find_images(str(tmp_path))
    wrong_table(index.path(2))

    def load(way: str, unreadable: str) -> tuple[list[Batch], list[int]]:
        dataset = TwoViews(index, Recipe(32), 5, way=way, unreadable=unreadable)
        loaded = load_batches(dataset, EpochBatches(6, 3, 5, 0, 4), workers, CPU)
        return list(loaded), loaded.met.tolist()

    with pytest.raises(UserError, match=f"^{re.escape(str(index.path(2)))} cannot be read as an image .broken data"):
        load("dali", "error")
    (ours, met), (theirs, met_too) = load("dali", "replace"), load("pil", "replace")
    assert met == met_too and met[CONDITIONS.index(REPLACED)] == 2
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.indices, b.indices)
        assert all((x - y).abs().mean() < 0.03 for x, y in zip(a.views, b.views, strict=True))


def test_a_batch_that_is_read_again_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_photos(tmp_path, 14)
    before, of, calls = _load(tmp_path, 0), DaliCrops.of, []

    def refuse_every_other(self: DaliCrops, files: Files) -> list[torch.Tensor]:
        calls.append(files)
        if len(calls) % 2:
            raise RuntimeError("none of these")
        return of(self, files)

    monkeypatch.setattr(DaliCrops, "of", refuse_every_other)
    assert _equal(before, _load(tmp_path, 0)) and len(calls) == 2 * len(before)


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_run_that_broke_off_ends_as_the_unbroken_one(
    pretrain: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: str
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    words = ("DATA.PIPELINE", "dali", "DATA.WORKERS", workers)
    assert pretrain(whole, *words) == 0
    step = Trainer.run_step

    def crash(self: Trainer) -> None:
        if self.iter == 4:
            raise RuntimeError("the power went")
        step(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "run_step", crash)
        with pytest.raises(RuntimeError, match="the power went"):
            pretrain(broken, *words)
    assert (broken / "last_checkpoint").read_text() == "checkpoint_0000003.pth\n"
    assert pretrain(broken, *words, "--resume") == 0
    assert (broken / "backbone.safetensors").read_bytes() == (whole / "backbone.safetensors").read_bytes()
    ends = [torch.load(folder / "checkpoint_0000006.pth", weights_only=True)["method"] for folder in (broken, whole)]
    assert ends[0].keys() == ends[1].keys() and all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_for_a_gpu_everything_is_composed_on_that_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as it can be seen without one: what DALI is asked for, before it builds it."""
    from nvidia.dali.pipeline import Pipeline

    made: list[Any] = []
    monkeypatch.setattr(Pipeline, "build", lambda _self: None)
    monkeypatch.setattr(Pipeline, "set_outputs", lambda _self, *nodes: made.extend(nodes))
    files = Files(torch.zeros(9, dtype=torch.uint8), torch.tensor([4, 5]), (torch.zeros(2, 4).int(),) * 2, 8)
    for device, number, where in (("cuda:1", 1, "gpu"), ("cpu", None, "cpu")):
        made.clear()
        crops = DaliCrops(files, torch.device(device))
        assert crops.pipeline.device_id == number and crops.pipeline.max_batch_size == 2
        assert [node.device for node in made] == [where, where]
        assert crops.serves(files, torch.device(device)) and not crops.serves(files, torch.device("cuda:0"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_gives_the_cpus_views(tmp_path: Path) -> None:
    draw_photos(tmp_path, 8)
    dataset = TwoViews(find_images(str(tmp_path)), Recipe(SIZE), 0, way="dali")
    batch = dataset.__getitems__([(0, i) for i in range(8)])
    assert isinstance(batch, Batch)
    content = Content(batch.views, batch.draws, batch.files)
    ours, theirs = (torch.stack(dataset.pipeline.finish(content, torch.device(one))).cpu() for one in ("cuda", "cpu"))
    assert 255 * 0.225 * (ours - theirs).abs().mean() < 1
