"""Batches: which images, in which order, for any number of processes and workers, from any iteration on."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DistributedSampler

from pretrain.data.augment import MEAN as MEANS
from pretrain.data.augment import STD as STDS
from pretrain.data.augment import AugmentationConfig
from pretrain.data.dataset import Batch, MultiViewDataset
from pretrain.data.index import find_images
from pretrain.data.loader import BatchLoader
from pretrain.data.pipelines import PIPELINES
from pretrain.data.sampler import ResumableBatchSampler
from ssl_transfer.errors import UserError

MEAN, STD = (torch.tensor(numbers).view(1, 3, 1, 1) for numbers in (MEANS, STDS))


def _load(
    images: Path, workers: int, start: int = 0, stop: int = 7, rank: int = 0, world: int = 1, **words: str
) -> list[Batch]:
    dataset = MultiViewDataset(find_images(str(images)), AugmentationConfig(32), seed=5, **words)
    sampler = ResumableBatchSampler(len(dataset), 4, 5, start=start, stop=stop, rank=rank, world_size=world)
    return list(BatchLoader(dataset, sampler, workers, torch.device("cpu")))


def _equal(ours: list[Batch], theirs: list[Batch]) -> bool:
    return len(ours) == len(theirs) and all(
        torch.equal(a.indices, b.indices) and all(map(torch.equal, a.views, b.views))
        for a, b in zip(ours, theirs, strict=True)
    )


def test_epoch_is_a_permutation_without_the_incomplete_batch() -> None:
    batches = list(ResumableBatchSampler(11, 4, 0, start=0, stop=6))
    for epoch in range(3):
        seen = list(chain(*batches[2 * epoch : 2 * epoch + 2]))
        assert {e for e, _ in seen} == {epoch}
        numbers = [index for _, index in seen]
        assert len(set(numbers)) == 8 and set(numbers) <= set(range(11))
    assert batches[:2] != [[(0, index) for _, index in batch] for batch in batches[2:4]]


def test_order_depends_on_the_seed() -> None:
    assert list(ResumableBatchSampler(50, 10, 0, start=0, stop=5)) != list(
        ResumableBatchSampler(50, 10, 1, start=0, stop=5)
    )


def test_later_start_gives_the_remaining_batches() -> None:
    whole = list(ResumableBatchSampler(11, 4, 3, start=0, stop=9))
    for start in range(9):
        assert list(ResumableBatchSampler(11, 4, 3, start=start, stop=9)) == whole[start:]


@pytest.mark.parametrize("world", [2, 4])
def test_processes_split_each_step_like_distributed_sampler(world: int) -> None:
    whole = list(ResumableBatchSampler(16, 8, 0, start=0, stop=4))
    shares = [
        list(ResumableBatchSampler(16, 8, 0, start=0, stop=4, rank=rank, world_size=world)) for rank in range(world)
    ]
    for step, batch in enumerate(whole):
        assert sorted(chain(*(share[step] for share in shares))) == sorted(batch)
        for rank in range(world):
            theirs = list(DistributedSampler(batch, world, rank, shuffle=False))
            assert shares[rank][step] == [batch[place] for place in theirs]


def test_result_does_not_depend_on_workers(images: Path) -> None:
    alone = _load(images, 0)
    assert _equal(alone, _load(images, 1)) and _equal(alone, _load(images, 2))
    assert _equal(alone[4:], _load(images, 2, start=4))
    assert alone[0].views[0].shape == (4, 3, 32, 32) and alone[0].views[0].dtype == torch.float32
    assert not torch.equal(*alone[0].views)


def test_processes_together_have_the_views_of_a_single_one(images: Path) -> None:
    alone = _load(images, 0)
    for rank in range(2):
        for batch, whole in zip(_load(images, 0, rank=rank, world=2), alone, strict=True):
            assert torch.equal(batch.indices, whole.indices[rank::2])
            assert torch.equal(batch.views[1], whole.views[1][rank::2])


def test_second_pair_of_views_does_not_change_the_first(images: Path) -> None:
    index = find_images(str(images))
    two, four = (
        MultiViewDataset(index, AugmentationConfig(32), 5, views=views).__getitems__([(0, i) for i in range(3)])
        for views in (2, 4)
    )
    assert isinstance(two, Batch) and isinstance(four, Batch)
    assert len(two.views) == 2 and len(four.views) == 4
    assert torch.equal(four.indices, two.indices) and all(map(torch.equal, two.views, four.views[:2]))
    assert not any(torch.equal(four.views[i], four.views[j]) for i in range(4) for j in range(i))


def test_views_differ_between_epochs(images: Path) -> None:
    dataset = MultiViewDataset(find_images(str(images)), AugmentationConfig(32), seed=0)
    first, second = dataset[0, 3], dataset[1, 3]
    assert not isinstance(first, str) and not isinstance(second, str)
    assert not torch.equal(first.views[0], second.views[0])


def test_global_random_state_is_not_changed(images: Path) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    for workers in (0, 1):
        _load(images, workers)
        assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_image_is_reported_in_one_line(tmp_path: Path, workers: int) -> None:
    for number in range(4):
        (tmp_path / f"{number}.jpg").write_text("no image")
    with pytest.raises(UserError) as caught:
        _load(tmp_path, workers, stop=1)
    assert "\n" not in str(caught.value) and ".jpg cannot be read as an image" in str(caught.value)


@pytest.mark.parametrize("way", PIPELINES)
def test_workers_load_where_opencv_has_started_threads(images: Path, root: Path, way: str) -> None:
    """No thread survives a fork: a worker that waits for one of OpenCV's waits for ever."""
    script = f"""
import cv2, numpy, os
from pathlib import Path
from tests.pretrain.data.test_batches import _load
before = len(os.listdir("/proc/self/task"))
cv2.setNumThreads(2)
cv2.GaussianBlur(numpy.zeros((2000, 2000, 3), numpy.uint8), (9, 9), 2)
assert len(os.listdir("/proc/self/task")) > before, "OpenCV has a thread of its own"
assert len(_load(Path({str(images)!r}), 2, stop=2, pipeline={way!r})) == 2
"""
    subprocess.run([sys.executable, "-c", script], cwd=root, check=True, timeout=120)


@pytest.mark.parametrize("way", ["opencv", "crops"])
def test_fast_pipelines_do_not_depend_on_workers_processes_and_start(images: Path, way: str) -> None:
    alone = _load(images, 0, pipeline=way)
    for workers in (1, 3):
        assert _equal(alone, _load(images, workers, pipeline=way))
    assert _equal(alone[3:], _load(images, 1, start=3, pipeline=way))
    for rank in range(2):
        for batch, whole in zip(_load(images, 0, rank=rank, world=2, pipeline=way), alone, strict=True):
            assert all(torch.equal(ours, all_[rank::2]) for ours, all_ in zip(batch.views, whole.views, strict=True))
    reference = _load(images, 0)
    gaps = [(a.views[0] - b.views[0]).abs().mean() for a, b in zip(alone, reference, strict=True)]
    assert 0 < max(gaps) < 0.05 and all(map(torch.equal, (b.indices for b in alone), (b.indices for b in reference)))


@pytest.mark.parametrize("way", ["pil", "opencv", "crops"])
def test_views_have_the_requested_memory_format(images: Path, way: str) -> None:
    dataset = MultiViewDataset(find_images(str(images)), AugmentationConfig(32), seed=5, pipeline=way)
    for last in (False, True):
        batch = next(
            BatchLoader(dataset, ResumableBatchSampler(14, 4, 5, start=0, stop=1), 0, torch.device("cpu"), last)
        )
        layout = torch.channels_last if last else torch.contiguous_format
        assert all(view.is_contiguous(memory_format=layout) for view in batch.views)


@pytest.mark.parametrize("way", ["pil", "opencv", "crops"])
def test_second_view_may_have_another_augmentation(images: Path, way: str) -> None:
    """As in BYOL: the views differ in blur and solarization only."""
    index, first = find_images(str(images)), AugmentationConfig(32, blur_prob=0.0, solarize_prob=0.0)
    second = replace(first, solarize_prob=1.0)

    def load(**words: Any) -> list[Batch]:
        dataset = MultiViewDataset(index, first, 5, views=4, pipeline=way, **words)
        return list(BatchLoader(dataset, ResumableBatchSampler(14, 4, 5, start=0, stop=2), 0, torch.device("cpu")))

    plain, other = load(), load(second_augmentation=second)
    assert _equal(plain, load(second_augmentation=first))
    for a, b in zip(plain, other, strict=True):
        for one in (0, 2):
            assert torch.equal(a.views[one], b.views[one])
        for two in (1, 3):
            x, y = ((normal * STD + MEAN) * 255 for normal in (a.views[two], b.views[two]))
            assert torch.allclose(torch.where(x.round() < 128, x, 255 - x), y, atol=1e-3) and not torch.equal(x, y)
    assert _equal(other, load(second_augmentation=second))


def test_single_view_is_the_first_of_two(images: Path) -> None:
    index = find_images(str(images))
    one, two = (
        MultiViewDataset(index, AugmentationConfig(32), 5, views=views).__getitems__([(0, i) for i in range(3)])
        for views in (1, 2)
    )
    assert isinstance(one, Batch) and isinstance(two, Batch)
    assert len(one.views) == 1 and torch.equal(one.views[0], two.views[0])


@pytest.mark.parametrize("workers", [0, 2])
def test_labels_belong_to_their_images(images: Path, workers: int) -> None:
    index = find_images(str(images))
    dataset = MultiViewDataset(index, AugmentationConfig(32), seed=5, labels=index.labels)
    sampler = ResumableBatchSampler(14, 4, 5, start=0, stop=3)
    batches = list(BatchLoader(dataset, sampler, workers, torch.device("cpu")))
    for batch in batches:
        folders = [index.files[i].split("/")[0] for i in batch.indices.tolist()]
        assert batch.labels is not None and batch.labels.dtype == torch.int64
        assert batch.labels.tolist() == [("class0", "class1").index(folder) for folder in folders]
    assert len({label for batch in batches for label in batch.labels.tolist()}) == 2
    assert _equal(batches, _load(images, workers, stop=3)) and _load(images, 0, stop=1)[0].labels is None


def test_replacement_image_has_its_own_label(images: Path, tmp_path: Path) -> None:
    index = find_images(str(_broken(images, tmp_path / "broken", (6,))))  # the last of class0; 7 is of class1
    dataset = MultiViewDataset(index, AugmentationConfig(32), 5, unreadable="replace", labels=index.labels)
    batch = dataset.__getitems__([(0, 5), (0, 6), (0, 7)])
    assert isinstance(batch, Batch) and batch.indices.tolist() == [5, 6, 7] and batch.labels is not None
    assert batch.labels.tolist() == [0, 1, 1]


def _broken(images: Path, folder: Path, broken: tuple[int, ...]) -> Path:
    """A copy of `images` whose files of these numbers hold no image."""
    shutil.copytree(images, folder)
    index = find_images(str(folder))
    for number in broken:
        index.path(number).write_bytes(index.path(number).read_bytes()[:50])
    return folder


@pytest.mark.parametrize("way", ["pil", "crops"])
def test_unreadable_image_is_replaced_by_the_next(images: Path, tmp_path: Path, way: str) -> None:
    folder = _broken(images, tmp_path / "broken", (3, 4, 13))
    words = {"pipeline": way, "unreadable": "replace"}
    alone = _load(folder, 0, **words)
    assert _equal(alone, _load(folder, 2, **words)) and _equal(alone[2:], _load(folder, 1, start=2, **words))
    index, whole = find_images(str(folder)), _load(images, 0, pipeline=way)
    for batch, before in zip(alone, whole, strict=True):
        assert torch.equal(batch.indices, before.indices)
        for place, number in enumerate(batch.indices.tolist()):
            same = torch.equal(batch.views[0][place], before.views[0][place])
            assert same == (number not in (3, 4, 13))
    for number, taken in ((3, 5), (4, 5), (13, 0)):
        dataset = MultiViewDataset(index, AugmentationConfig(32), 5, pipeline=way, unreadable="replace")
        pixels, met, read = dataset._read(number)
        assert met == ("replaced",) and read == taken and np.array_equal(pixels, dataset._read(taken)[0])


def test_replacement_is_limited(images: Path, tmp_path: Path) -> None:
    folder = _broken(images, tmp_path / "broken", tuple(range(14)))
    with pytest.raises(UserError, match="14 images in a row cannot be read; the last: "):
        _load(folder, 0, unreadable="replace")
    folder = _broken(images, tmp_path / "gone", ())
    index = find_images(str(folder))
    index.path(3).unlink()
    said = MultiViewDataset(index, AugmentationConfig(32), 5, unreadable="replace")[0, 3]
    assert isinstance(said, str) and str(index.path(3)) in said and "No such file or directory" in said
