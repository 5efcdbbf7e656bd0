"""The image lists of the batches equal Detectron2's own loader's; augmentation depends on place in the run alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import build_detection_train_loader
from detectron2.data.datasets.coco import load_coco_json
from detectron2.data.datasets.pascal_voc import load_voc_instances
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng

from transfer.engine.batch_sampler import DetectionBatchSampler as Sampler
from transfer.engine.detection_data import test_batches as batches_for_test
from transfer.engine.detection_data import to_detectron2, training_batches, training_dicts
from transfer.engine.prepare import TrialRequest, load_task_of, prepare
from transfer.engine.seeding import AUGMENT, PRECISE_BN, numpy_seeded, sampler_seeds, seed_torch
from transfer.tasks.task import load_task

RequestFactory = Callable[..., TrialRequest]


def images(count: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [{"index": i, "width": int(w), "height": int(h)} for i, (w, h) in enumerate(rng.integers(1, 4, (count, 2)))]


def same(item: dict[str, Any]) -> dict[str, Any]:
    return item


@pytest.mark.parametrize("workers", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize(("rank", "world_size"), [(0, 1), (0, 2), (1, 2), (2, 3)])
def test_the_order_equals_detectron2_s_for_the_same_seed(
    monkeypatch: pytest.MonkeyPatch, workers: int, grouped: bool, rank: int, world_size: int
) -> None:
    """Detectron2's loader after `SEED: 5`, over several epochs of 23 images; and resumed after 17 batches."""
    found = images(23)
    monkeypatch.setattr(comm, "get_rank", lambda: rank)
    monkeypatch.setattr(comm, "get_world_size", lambda: world_size)
    monkeypatch.setattr("detectron2.data.build.get_world_size", lambda: world_size)
    monkeypatch.setattr(comm, "all_gather", lambda data: [data])
    seed_all_rng(5)  # rank 0's seed, whose draw all ranks share
    loader = build_detection_train_loader(
        found, mapper=same, total_batch_size=4 * world_size, aspect_ratio_grouping=grouped, num_workers=workers
    )
    theirs = [[item["index"] for item in batch] for batch in itertools.islice(loader, 40)]
    wide = [image["width"] > image["height"] for image in found] if grouped else None

    def ours(start: int) -> list[list[int]]:
        seed = sampler_seeds(5, 1)[0]
        batches = Sampler(
            len(found), seed, 4, wide, rank=rank, world_size=world_size, start=start, stop=40, order_of_workers=workers
        )
        return [indices for _, indices in batches]

    assert ours(0) == theirs and ours(17) == theirs[17:]


def test_with_grouping_the_order_depends_on_the_number_of_workers() -> None:
    """So whose order is replayed must be said; ours does not depend on the workers that replay it."""
    wide = [bool(i % 3) for i in range(20)]
    orders = [[i for _, i in Sampler(20, 5, 4, wide, stop=20, order_of_workers=n)] for n in (0, 1, 2, 4)]
    assert orders[0] == orders[1] and orders[0] != orders[2] != orders[3] != orders[0]


def test_training_replays_four_workers_and_precise_bn_none(make_request: RequestFactory) -> None:
    """Four is Detectron2's default, which MoCo's configs leave as it is; for precise BN it takes none."""
    prepared, task = prepare(make_request("SOLVER.IMS_PER_BATCH", "2", task="voc0712"))
    dicts = training_dicts(task, prepared.cfg)
    numbers = {image["file_name"]: index for index, image in enumerate(dicts)}
    wide = [image["width"] > image["height"] for image in dicts]
    for stream, workers in ((AUGMENT, 4), (PRECISE_BN, 0)):
        batches = training_batches(dicts, prepared.cfg, 3, stream=stream, stop=8)
        found = [[numbers[image["file_name"]] for image in batch] for batch in batches]
        assert found == [i for _, i in Sampler(len(dicts), 3, 2, wide, stop=8, order_of_workers=workers)]


def test_the_second_sampler_seed_is_precise_bn_s() -> None:
    seed_all_rng(5)
    assert sampler_seeds(5, 2) == [comm.shared_random_seed(), comm.shared_random_seed()]


def test_batches_from_an_iteration_on_are_the_tail_of_all() -> None:
    whole = list(Sampler(10, 3, 2, None, stop=50))
    assert [iteration for iteration, _ in whole] == list(range(50))
    assert list(Sampler(10, 3, 2, None, start=37, stop=50)) == whole[37:]


def test_the_ranks_share_each_epoch_between_them() -> None:
    ranks = [
        list(itertools.chain(*(b for _, b in Sampler(12, 3, 2, None, rank=rank, world_size=3, stop=2))))
        for rank in range(3)
    ]
    assert sorted(itertools.chain(*ranks)) == list(range(12))


@pytest.mark.parametrize("workers", [0, 2])
def test_augmentation_depends_only_on_seed_rank_iteration_and_slot(make_request: RequestFactory, workers: int) -> None:
    prepared, task = prepare(make_request(task="coco"))
    dicts = training_dicts(task, prepared.cfg)
    whole = list(training_batches(dicts, prepared.cfg, 3, stop=6, workers=0))
    np.random.seed(99)  # whatever the generators were doing before
    tail = list(training_batches(dicts, prepared.cfg, 3, start=2, stop=6, workers=workers))
    for ours, theirs in zip(tail, whole[2:], strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert a["image_id"] == b["image_id"] and torch.equal(a["image"], b["image"])
            assert torch.equal(a["instances"].gt_boxes.tensor, b["instances"].gt_boxes.tensor)
    prepared.cfg.SEED = 2
    other = list(training_batches(dicts, prepared.cfg, 3, stop=6, workers=0))
    assert any(
        a[0]["image"].shape != b[0]["image"].shape or not torch.equal(a[0]["image"], b[0]["image"])
        for a, b in zip(whole, other, strict=True)
    )


def test_numpy_s_generator_is_restored() -> None:
    np.random.seed(1)
    expected = np.random.rand(3)
    np.random.seed(1)
    with numpy_seeded(1, 2, 3):
        np.random.rand()
    assert np.array_equal(np.random.rand(3), expected)


def test_positions_in_a_run_draw_different_numbers() -> None:
    drawn = set()
    for where in itertools.product((0, 1), (1, 3), (0, 1), (0, 1, 2)):
        seed_torch(*where)
        drawn.add(torch.rand(1).item())
    assert len(drawn) == 24


@pytest.mark.parametrize("real", [False, True])
def test_the_dicts_equal_those_of_detectron2_s_own_readers(
    toy_detection: Path, request: pytest.FixtureRequest, real: bool
) -> None:
    root = request.getfixturevalue("real_data") / "detection" if real else toy_detection
    classes = () if real else ("bus", "cat", "sheep")
    task = load_task("voc", ["voc_2007_trainval"], "voc_2007_test", root, classes=classes, check_counts=False)
    theirs = load_voc_instances(str(root / "VOC2007"), "trainval", list(task.classes))
    assert [to_detectron2(record, "voc") for record in task.train[0].records] == theirs
    task = load_task("coco", ["coco_2017_train"], "coco_2017_val", root, classes=classes, check_counts=False)
    theirs = load_coco_json(
        str(root / "coco/annotations/instances_train2017.json"), str(root / "coco/train2017"), f"coco_{real}"
    )
    assert [to_detectron2(record, "coco") for record in task.train[0].records] == theirs


def test_images_with_only_crowds_are_tested_and_not_trained_on(make_request: RequestFactory) -> None:
    prepared, task = prepare(make_request(task="coco"))
    usable = [r for r in task.train[0].records if any(not thing.crowd for thing in r.annotations)]
    assert 0 < len(training_dicts(task, prepared.cfg)) == len(usable) < len(task.train[0].records)
    tested = [image["image_id"] for batch in batches_for_test(task.test, prepared.cfg) for image in batch]
    assert tested == [record.image_id for record in load_task_of(prepared.cfg).test.records]
