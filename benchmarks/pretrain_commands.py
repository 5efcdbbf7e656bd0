"""Benchmarks of pre-training: listing a large folder, a loader process, the start of its command lines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks.isolated import CALL, Benchmark, Work

FOLDERS = 100
"""Class folders of the generated tree."""


def benchmarks() -> Iterator[Benchmark]:
    """All of them. The functions named here prepare their inputs in the process that is measured."""
    for tool in ("pretrain", "evaluate"):
        yield Benchmark(f"{tool}.py --help, cold", (f"tools/{tool}.py", "--help"), 1, "starts", "usage:")
    for count in (1_000, 10_000, 100_000):
        yield _call("list of a folder, first time", "listed", count, "images", "{folder}")
    yield _call("list of a folder, cached", "listed_again", 100_000, "images", "{folder}")
    for count in (32, 64, 128):
        yield _call("a loader process: two 224² views by pil", "loaded", count, "images", "{folder}", "pil")
    yield _call("a loader process: two 224² views by opencv", "loaded", 128, "images", "{folder}", "opencv")


def _call(name: str, function: str, count: int, unit: str, *more: str) -> Benchmark:
    return Benchmark(
        name, (CALL, f"benchmarks.pretrain_commands:{function}", str(count), *more), count, unit, f"{count} {unit}"
    )


def make_tree(count: int, folder: str) -> Path:
    """Create a tree of empty files with images' names, in class folders."""
    top = Path(folder) / f"tree{count}"
    if not top.exists():
        for number in range(FOLDERS):
            (top / f"n{number:08d}").mkdir(parents=True)
        for number in range(count):
            (top / f"n{number % FOLDERS:08d}" / f"image_{number:08d}.JPEG").touch()
    return top


def listed(count: str, folder: str) -> Work:
    """List a tree that is not cached."""
    from pretrain.data.index import find_images

    top = make_tree(int(count), folder)
    return lambda: f"{len(find_images(str(top)))} images"


def listed_again(count: str, folder: str) -> Work:
    """Read a tree's list from the cache."""
    import time

    from pretrain.data.index import find_images
    from pretrain.data.index_cache import SETTLE_NS

    top, cache = make_tree(int(count), folder), str(Path(folder) / "cache")
    time.sleep(SETTLE_NS / 1e9)  # a folder that has just changed is not cached
    find_images(str(top), cache)
    return lambda: f"{len(find_images(str(top), cache))} images"


def loaded(count: str, folder: str, way: str) -> Work:
    """Read and decode a batch of `count` images and compute two views, as one loader process does."""
    import torch

    from benchmarks.input_pipelines import SIZE, draw_photos
    from pretrain.data.augment import AugmentationConfig
    from pretrain.data.dataset import Batch, MultiViewDataset
    from pretrain.data.index import find_images

    torch.set_num_threads(1)
    draw_photos(Path(folder) / "photos")
    index = find_images(str(Path(folder) / "photos"))
    views = MultiViewDataset(index, AugmentationConfig(SIZE), seed=0, pipeline=way)

    def work() -> str:
        batch = views.__getitems__([(0, place % len(index)) for place in range(int(count))])
        assert isinstance(batch, Batch)
        return f"{len(batch.views[0])} images"

    return work
