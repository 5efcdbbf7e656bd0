"""Processes over gloo that each evaluate a part of a made set; a module of its own so that they can import it."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import coco_cases as cases
import numpy as np
from detectron2.utils import comm

from ssl_transfer.training import distributed as starting
from transfer.engine.detection_data import register_metadata
from transfer.evaluation.evaluators import build_evaluator
from transfer.evaluation.matching import describe_detections
from transfer.tasks.task import Dataset


def world(folder: Path) -> tuple[Dataset, cases.Batches]:
    """The same set and detections in every process."""
    rng = np.random.default_rng(11)
    dataset = cases.made_annotations(folder / f"set{comm.get_rank()}", rng, images=9)
    return dataset, cases.detections(dataset, rng, 5, 2)


def run(folder: Path, processes: int) -> None:
    """Start them."""
    starting.launch(measure, (folder,), processes)


def measure(folder: Path) -> None:
    """Evaluate this rank's part with both evaluators, then with one of the other rank's images."""
    dataset, found = world(folder)
    rank = comm.get_rank()
    mine = found[:5] if rank == 0 else found[5:]
    said: dict[str, object] = {}
    for name in ("hotcoco", "pycocotools"):
        evaluator = build_evaluator(name, dataset, register_metadata(dataset), masks=True)
        with contextlib.redirect_stdout(io.StringIO()):
            said[name] = cases.answer(evaluator, mine)
        collected = evaluator.collector.gather()
        if collected is not None:
            kept = describe_detections(dataset, collected, toy=False, keep_masks=True)
            said[f"{name}, file"] = kept.write(folder / f"{name}.safetensors")
        try:
            cases.answer(evaluator, mine + found[:rank])
        except RuntimeError as error:
            said[f"{name}, padded"] = str(error)
    (folder / f"rank{rank}.json").write_text(json.dumps(said))
