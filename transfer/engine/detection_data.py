"""From a task's records to the model's input batches, through Detectron2's mapper."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, MetadataCatalog, build_detection_test_loader
from detectron2.data.build import filter_images_with_only_crowd_annotations
from detectron2.data.common import DatasetFromList
from detectron2.structures import BoxMode
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset

from ssl_transfer.config import flatten_config
from ssl_transfer.errors import UserError
from ssl_transfer.training.distributed import ignore_stop_signals
from transfer.engine.batch_sampler import DetectionBatchSampler
from transfer.engine.config import ORDER_OF_WORKERS
from transfer.engine.seeding import AUGMENT, PRECISE_BN, numpy_seeded
from transfer.tasks import task as tasks
from transfer.tasks.datasets import Annotation, DatasetDict
from transfer.tasks.images import decode_fault
from transfer.tasks.masks import whole_polygons


def to_detectron2(record: DatasetDict, layout: str) -> dict[str, Any]:
    """A record as Detectron2's dataset dict, equal to that of `load_voc_instances` or `load_coco_json`."""
    found = [annotation_dict(thing, layout) for thing in record.annotations]
    return {
        "file_name": record.file,
        "image_id": record.image_id,
        "height": record.height,
        "width": record.width,
        # Of published splits also what has no polygon of three points is read: the metric counts it.
        "annotations": [one for one in found if one.get("segmentation") != []],
    }


def annotation_dict(thing: Annotation, layout: str) -> dict[str, Any]:
    """An object as Detectron2's annotation."""
    return _voc_annotation(thing) if layout == "voc" else _coco_annotation(thing)


def _voc_annotation(thing: Annotation) -> dict[str, Any]:
    x0, y0, x1, y1 = thing.box
    # VOC counts pixels from 1 and includes the last: the whole image is (1, W), in coordinates (0, W).
    return {"category_id": thing.label, "bbox": [x0 - 1.0, y0 - 1.0, x1, y1], "bbox_mode": BoxMode.XYXY_ABS}


def _coco_annotation(thing: Annotation) -> dict[str, Any]:
    found = {
        "iscrowd": int(thing.crowd),
        "bbox": list(thing.box),
        "category_id": thing.label,
        "bbox_mode": BoxMode.XYWH_ABS,
    }
    masks = thing.segmentation
    if masks is None:
        return found
    return {**found, "segmentation": whole_polygons(masks) if isinstance(masks, list) else masks}


def training_dicts(task: tasks.Task, cfg: CfgNode) -> list[dict[str, Any]]:
    """All training images in the order Detectron2 concatenates them, without those that have only crowds.

    Raises:
        UserError: no image remains, or the detector cannot be trained or measured with these annotations.
    """
    for _, fault in tasks.training_faults(task, tasks.TaskSettings.of(flatten_config(cfg))):
        raise UserError(fault)
    dicts = [to_detectron2(record, task.layout) for dataset in task.train for record in dataset.records]
    return filter_images_with_only_crowd_annotations(dicts) if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS else dicts


class BrokenImage(UserError):
    """An image that cannot be decoded; a loader's worker passes the message on with its traceback, as text."""

    def __init__(self, message: str) -> None:
        super().__init__(message.rpartition(f"{type(self).__name__}: ")[2].rstrip())


class NamingMapper(DatasetMapper):
    """Detectron2's mapper; an image that cannot be decoded ends the trial in one line that names it."""

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Decode and augment an image.

        Raises:
            BrokenImage: the file is no complete image of the annotated size.
        """
        try:
            mapped: dict[str, Any] = super().__call__(dataset_dict)
        except Exception as error:
            fault = decode_fault((dataset_dict["file_name"], dataset_dict["width"], dataset_dict["height"]))
            if not fault:
                raise
            raise BrokenImage(f"{fault}; data.py check --decode finds all of them before a trial") from error
        return mapped


class MappedBatches(Dataset[list[dict[str, Any]]]):
    """Batches by (iteration, indices), augmented with randomness that is a function of their position in the run.

    Args:
        dicts: Detectron2's dataset dicts.
        mapper: Detectron2's dataset mapper.
        position: seed, stream and rank, which precede the iteration in the position.
    """

    def __init__(self, dicts: list[dict[str, Any]], mapper: DatasetMapper, position: tuple[int, int, int]) -> None:
        self.images = DatasetFromList(dicts, copy=False)
        self.mapper = mapper
        self.position = position

    def __getitem__(self, item: tuple[int, list[int]]) -> list[dict[str, Any]]:
        """Decode and augment one batch."""
        iteration, indices = item
        batch = []
        for slot, index in enumerate(indices):
            with numpy_seeded(*self.position, iteration, slot):
                batch.append(self.mapper(self.images[index]))
        return batch


def training_batches(
    dicts: list[dict[str, Any]],
    cfg: CfgNode,
    sampler_seed: int,
    *,
    stream: int = AUGMENT,
    start: int = 0,
    stop: int | None = None,
    workers: int | None = None,
    order_of_workers: int = ORDER_OF_WORKERS,
) -> Iterable[list[dict[str, Any]]]:
    """Mapped batches of this rank.

    Args:
        dicts: `training_dicts`.
        cfg: SEED, SOLVER.IMS_PER_BATCH (over all ranks), DATALOADER and INPUT are read.
        sampler_seed: seed of the image order.
        stream: the stream of the augmentations' randomness.
        start, stop: the iterations wanted.
        workers: loader processes; None: DATALOADER.NUM_WORKERS. Any number gives the same batches.
        order_of_workers: the batches are those that so many workers of Detectron2's loader would give.
    """
    rank, world_size = comm.get_rank(), comm.get_world_size()
    wide = [image["width"] > image["height"] for image in dicts] if cfg.DATALOADER.ASPECT_RATIO_GROUPING else None
    batches = DetectionBatchSampler(
        len(dicts),
        sampler_seed,
        cfg.SOLVER.IMS_PER_BATCH // world_size,
        wide,
        rank=rank,
        world_size=world_size,
        start=start,
        stop=stop,
        # Detectron2 loads for precise BN without workers [detectron2: DefaultTrainer.build_hooks].
        order_of_workers=0 if stream == PRECISE_BN else order_of_workers,
    )
    return DataLoader(
        MappedBatches(dicts, NamingMapper(cfg, is_train=True), (cfg.SEED, stream, rank)),
        sampler=batches,
        batch_size=None,
        collate_fn=_as_is,
        num_workers=cfg.DATALOADER.NUM_WORKERS if workers is None else workers,
        worker_init_fn=ignore_stop_signals,
        generator=torch.Generator(),  # else the loader draws a number from the generator that samples RoIs
    )


def _as_is(batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return batch


def test_batches(dataset: tasks.Dataset, cfg: CfgNode) -> Any:
    """The test images of this rank, one at a time; each image once over all ranks."""
    dicts = [to_detectron2(record, dataset.split.layout) for record in dataset.records]
    loader = build_detection_test_loader(
        dicts, mapper=NamingMapper(cfg, is_train=False), num_workers=cfg.DATALOADER.NUM_WORKERS
    )
    loader.worker_init_fn = ignore_stop_signals
    return loader


def register_metadata(dataset: tasks.Dataset) -> str:
    """Register a split with Detectron2's MetadataCatalog as `transfer/<split>`; a second call replaces it.

    Returns:
        The name in the catalog.
    """
    name = f"transfer/{dataset.split.name}"
    if name in MetadataCatalog:
        MetadataCatalog.remove(name)
    metadata = MetadataCatalog.get(name)
    metadata.set(thing_classes=list(dataset.classes))
    if dataset.split.layout == "voc":
        metadata.set(dirname=str(dataset.split.folder), split=dataset.split.image_set, year=dataset.split.year)
    else:
        ids = {category: label for label, category in enumerate(dataset.category_ids)}
        metadata.set(
            json_file=str(dataset.split.annotations),
            image_root=str(dataset.split.folder),
            thing_dataset_id_to_contiguous_id=ids,
        )
    return name
