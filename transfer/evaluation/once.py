"""Guard around any evaluator: over all processes each test image is measured exactly once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from transfer.tasks.task import Dataset


class EachImageOnce(DatasetEvaluator):
    """Refuses an evaluation in which an image came twice (a padded sampler), not at all, or from elsewhere.

    Detectron2's evaluators take whatever comes: a repeated image adds false detections, a lost one misses its objects.

    Args:
        evaluator: what measures.
        dataset: the test split.
    """

    def __init__(self, evaluator: DatasetEvaluator, dataset: Dataset) -> None:
        self.evaluator = evaluator
        self.expected = [record.image_id for record in dataset.records]
        self.seen: list[Any] = []

    def reset(self) -> None:
        """Forget all images."""
        self.seen = []
        self.evaluator.reset()

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Take one batch."""
        self.seen += [image["image_id"] for image in inputs]
        self.evaluator.process(inputs, outputs)

    def evaluate(self) -> Any:
        """The evaluator's answer.

        Raises:
            RuntimeError: on every rank, where the images are not the split's, each once.
        """
        # All ranks hear of it, so that none waits for one that has left.
        check([image for rank in comm.all_gather(self.seen) for image in rank], self.expected)
        return self.evaluator.evaluate()


def check(seen: Iterable[Any], expected: Iterable[Any]) -> None:
    """Hold the images that were measured against those of the split.

    Raises:
        RuntimeError: names the first image that is wrong.
    """
    counts, wanted = Counter(seen), set(expected)
    for image, times in counts.items():
        if image not in wanted:
            raise RuntimeError(f"image {image!r} was measured, but the test split does not list it")
        if times > 1:
            raise RuntimeError(f"image {image!r} was measured {times} times; each test image must come exactly once")
    missing = wanted - counts.keys()
    if missing:
        raise RuntimeError(f"{len(missing)} test images were not measured, {min(missing)!r} among them")
