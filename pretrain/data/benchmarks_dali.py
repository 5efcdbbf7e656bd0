"""What `make bench` measures of the input pipelines beside NVIDIA's DALI, on its CPU operators and one thread.

The peer is what DALI's users compose for such views: its file reader, one decoding for both views, its own random crop
and colours. Of the ways that docs/guides/data.md lists it is the fastest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from common.measure import Comparison
from common.threads import one_thread
from pretrain.data.augment import Recipe
from pretrain.data.dataset import Batch, TwoViews
from pretrain.data.decode import decode
from pretrain.data.index import ImageIndex
from pretrain.data.pipelines import pipeline
from pretrain.data.preprocessing import normalise

SIZE = 224
ROWS = (f"two {SIZE}² views beside DALI, opencv, 1 core", "decoding beside DALI, opencv, 1 core")
PEER = "DALI on the CPU, one thread, as its users compose it"
BATCHES = 8
"""How many batches of either side the statistics are taken from."""
MEAN_LIMIT, STD_LIMIT = 0.1, 0.05
"""How far the views' mean may be from the peer's (in normalised values), and their standard deviation (its share)."""
ALONE: dict[str, Any] = {
    "num_threads": 1,
    "device_id": None,
    "exec_pipelined": False,
    "exec_async": False,
    "prefetch_queue_depth": 1,
}
"""One thread, and nothing done ahead: while the other side is timed, DALI would fill its queue on another core."""


def comparisons(index: ImageIndex) -> Iterator[Comparison]:
    """Both; DALI must be there."""
    yield two_views(index)
    yield decoding(index)


def two_views(index: ImageIndex) -> Comparison:
    """Files to two augmented uint8 views on one core; normalisation is left to the training device on either side."""
    ours, theirs = TwoViews(index, Recipe(SIZE), seed=0, way="opencv"), peer_views(_paths(index), Recipe(SIZE))

    def run_ours(epoch: int = 0) -> list[torch.Tensor]:
        batch = ours.__getitems__([(epoch, i) for i in range(len(index))])
        assert isinstance(batch, Batch)
        return list(batch.views)

    def run_theirs() -> list[torch.Tensor]:
        return [torch.from_numpy(np.array(views.as_tensor())).permute(0, 3, 1, 2) for views in theirs()]

    def equal() -> str:
        one = _statistics([run_ours(epoch) for epoch in range(BATCHES)])
        other = _statistics([run_theirs() for _ in range(BATCHES)])
        apart, ratio = abs(one[0] - other[0]), abs(one[1] / other[1] - 1)
        assert apart <= MEAN_LIMIT and ratio <= STD_LIMIT, f"the means differ by {apart}, the deviations by {ratio:.1%}"
        return f"own draws: means {apart:.2g} apart (at most {MEAN_LIMIT}), deviations {ratio:.1%} ({STD_LIMIT:.0%})"

    return Comparison(ROWS[0], PEER, one_thread()(run_ours), theirs, equal, len(index), "images")


def decoding(index: ImageIndex) -> Comparison:
    """JPEG files to RGB pixels; ours with the header's checks."""
    fast, theirs = pipeline("opencv"), peer_decoding(_paths(index))

    def run_ours() -> list[np.ndarray]:
        return [decode(index.path(i), fast.pixels)[0] for i in range(len(index))]

    def equal() -> str:
        pairs = zip(run_ours(), theirs()[0], strict=True)
        assert all(np.array_equal(mine, np.array(other)) for mine, other in pairs), "the pixels differ"
        return "same pixels"

    return Comparison(ROWS[1], "DALI's decoder on the CPU, one thread", run_ours, theirs, equal, len(index), "images")


def peer_views(paths: Sequence[str], how: Recipe) -> Callable[[], Sequence[Any]]:
    """DALI's pipeline: each call gives all images' two views, uint8 (N, size, size, 3) on the CPU."""
    from nvidia.dali import fn, pipeline_def, types

    def chance(probability: float) -> Any:
        return fn.random.coin_flip(probability=probability, dtype=types.BOOL)

    def around(strength: float) -> Any:
        return fn.random.uniform(range=(-strength, strength))

    brightness, contrast, saturation, hue = how.jitter

    @pipeline_def(batch_size=len(paths), seed=0, enable_conditionals=True, **ALONE)
    def views() -> tuple[Any, ...]:
        files, _ = fn.readers.file(files=list(paths))
        images = fn.decoders.image(files)
        made = []
        for _ in range(2):
            view = fn.random_resized_crop(images, size=(how.size, how.size), random_area=how.crop_scale)
            jitter, gray = chance(how.jitter_prob), chance(how.gray_prob)
            if jitter or gray:
                view = fn.color_twist(
                    view,
                    brightness=1 + jitter * around(brightness),
                    contrast=1 + jitter * around(contrast),
                    saturation=(1 + jitter * around(saturation)) * (1 - gray),
                    hue=jitter * around(360 * hue),
                )
            if chance(how.blur_prob):
                view = fn.gaussian_blur(view, sigma=fn.random.uniform(range=how.blur_sigma))
            made.append(fn.flip(view, horizontal=fn.random.coin_flip(probability=how.flip_prob)))
        return tuple(made)

    return _runs(views())


def peer_decoding(paths: Sequence[str]) -> Callable[[], Sequence[Any]]:
    """DALI's pipeline: each call gives all images, uint8 (height, width, 3) on the CPU."""
    from nvidia.dali import fn, pipeline_def

    @pipeline_def(batch_size=len(paths), **ALONE)
    def images() -> Any:
        return fn.decoders.image(fn.readers.file(files=list(paths))[0], adjust_orientation=False)

    return _runs(images())


def _runs(built: Any) -> Callable[[], Sequence[Any]]:
    built.build()
    run: Callable[[], Sequence[Any]] = built.run
    return run


def _paths(index: ImageIndex) -> list[str]:
    return [str(index.path(i)) for i in range(len(index))]


def _statistics(batches: list[list[torch.Tensor]]) -> tuple[float, float]:
    """Mean and standard deviation of normalised views."""
    levels = normalise(torch.cat([view for batch in batches for view in batch]))
    return float(levels.mean()), float(levels.std())
