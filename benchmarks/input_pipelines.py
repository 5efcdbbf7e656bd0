"""Benchmarks of the input pipelines, each against Pillow as the released code uses it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter
from torchvision import transforms
from torchvision.transforms import functional as F

from benchmarks.paired import PairedBenchmark
from pretrain.data.augment import ADJUSTMENTS, MEAN, STD, AugmentationConfig, ViewParams, sample_params
from pretrain.data.dataset import Batch, MultiViewDataset
from pretrain.data.decode import decode
from pretrain.data.index import ImageIndex, find_images
from pretrain.data.loader import BatchLoader
from pretrain.data.pipelines import build_pipeline
from pretrain.data.pipelines.base import CollatedBatch
from pretrain.data.sampler import VIEWS, ResumableBatchSampler, philox_generator
from ssl_transfer.training.distributed import one_thread

SIZE = 224
COUNT = 32
LIMITS = {"pil": 1e-6, "opencv": 2.0, "crops": 2.0}
"""Largest mean difference of a view from torchvision's with the same random parameters, in levels of 255."""


def benchmarks(folder: Path) -> Iterator[PairedBenchmark]:
    """All of them; `folder` is a scratch folder for images."""
    draw_photos(folder)
    index = find_images(str(folder))
    for way in LIMITS:
        yield two_views(index, way)
    yield decoding(index)
    yield loader_processes(index)


def two_views(index: ImageIndex, way: str) -> PairedBenchmark:
    """Decode and compute two views on one core, as a loader process does; `pil` normalizes too, as the peer does.

    The fast pipelines leave normalization, and `crops` all but the crop, to the training device.
    """
    ours = MultiViewDataset(index, AugmentationConfig(SIZE), seed=0, pipeline=way)
    reference = _torchvision_views()
    paths = [index.path(i) for i in range(len(index))]

    def run_ours() -> object:
        batch = ours.__getitems__([(0, i) for i in range(len(index))])
        assert isinstance(batch, Batch)
        return ours.pipeline.finish(CollatedBatch(batch.views), torch.device("cpu")) if way == "pil" else batch

    def run_theirs() -> object:
        images = [Image.open(path).convert("RGB") for path in paths]
        return [torch.stack([reference(image) for image in images]) for _ in VIEWS]

    def equal() -> str:
        gap = max(_gap(ours, number) for number in range(16))
        assert gap <= LIMITS[way], f"a view differs by {gap} of 255 in the mean"
        return f"same draws: mean |Δ| at most {gap:.2g}/255"

    what = {"crops": "the crops of two {}² views, crops"}.get(way, "two {}² views, {}").format(SIZE, way)
    peer = "torchvision transforms on PIL, as the released code composes them"
    return PairedBenchmark(
        f"{what}, 1 core", peer, one_thread()(run_ours), one_thread()(run_theirs), equal, len(index), "images"
    )


def decoding(index: ImageIndex) -> PairedBenchmark:
    """Decode JPEG files to RGB pixels, with the checks of the header."""
    fast = build_pipeline("opencv")

    def run(pixels_of: Callable[[Image.Image, bytes], object]) -> list[object]:
        return [decode(index.path(i), pixels_of)[0] for i in range(len(index))]

    def run_theirs() -> list[object]:
        return [Image.open(index.path(i)).convert("RGB") for i in range(len(index))]

    def equal() -> str:
        pairs = zip(run(fast.decode), run_theirs(), strict=True)
        assert all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in pairs), "the pixels differ"
        return "same pixels"

    return PairedBenchmark(
        "decoding, opencv, 1 core", "Pillow", lambda: run(fast.decode), run_theirs, equal, COUNT, "images"
    )


def loader_processes(index: ImageIndex, steps: int = 96) -> PairedBenchmark:
    """Time two loader processes against one, their start included, without the work of the training device."""
    dataset = MultiViewDataset(index, AugmentationConfig(SIZE), seed=0, pipeline="opencv")

    def load(workers: int) -> int:
        sampler = ResumableBatchSampler(len(index), len(index), 0, start=0, stop=steps)
        return sum(1 for _ in BatchLoader(dataset, sampler, workers, torch.device("cpu")).loader)

    def equal() -> str:
        sampler = ResumableBatchSampler(len(index), len(index), 0, start=0, stop=2)
        runs = [BatchLoader(dataset, sampler, workers, torch.device("cpu")) for workers in (1, 2)]
        same = all(torch.equal(a, b) for x, y in zip(*runs, strict=True) for a, b in zip(x.views, y.views, strict=True))
        assert same, "the views differ"
        return "same views"

    count = steps * len(index)
    what = f"two {SIZE}² views, opencv, 2 loader processes"
    return PairedBenchmark(what, "the same with 1", lambda: load(2), lambda: load(1), equal, count, "images")


def draw_photos(folder: Path, count: int = COUNT) -> None:
    """Write JPEGs of ImageNet's usual size (500×375, about 90 kB) with structure at all scales."""
    (folder / "train" / "any").mkdir(parents=True, exist_ok=True)
    for number in range(count):
        rng = np.random.default_rng(number)
        pixels = np.full((375, 500, 3), 128.0)
        for cells, strength in ((4, 60), (16, 30), (64, 15), (250, 12)):
            coarse = rng.normal(0, strength, (cells * 3 // 4, cells, 3))
            layer = [Image.fromarray(coarse[..., i].astype(np.float32)).resize((500, 375), 3) for i in range(3)]
            pixels += np.stack([np.asarray(channel) for channel in layer], 2)
        image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
        image.save(folder / "train" / "any" / f"{number:04d}.jpg", quality=95)


def _torchvision_views() -> transforms.Compose:
    """The peer: the same augmentation by torchvision's random transforms, normalized on the CPU."""
    blur = transforms.RandomApply([transforms.Lambda(_pil_blur)], p=0.5)
    jitter = transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8)
    crop = transforms.RandomResizedCrop(SIZE, scale=(0.2, 1.0))
    rest = [transforms.RandomGrayscale(p=0.2), blur, transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    return transforms.Compose([crop, jitter, *rest, transforms.Normalize(MEAN, STD)])


def _pil_blur(image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(float(torch.empty(()).uniform_(0.1, 2.0))))


def _gap(ours: MultiViewDataset, number: int) -> float:
    """The mean difference between our first view and the same draw applied by torchvision's functions in floats."""
    batch = ours[0, number]
    assert isinstance(batch, Batch)
    finished = ours.pipeline.finish(CollatedBatch(batch.views, batch.view_params), torch.device("cpu"))[0][0]
    image = Image.open(ours.index.path(number)).convert("RGB")
    view = sample_params(ours.augmentations[0], *image.size, philox_generator(0, 0, number, 0))
    scale = 255 * torch.tensor(STD).view(3, 1, 1)
    return float(((finished - _by_torchvision(image, view)) * scale).abs().mean())


def _by_torchvision(image: Image.Image, view: ViewParams) -> torch.Tensor:
    image = F.resized_crop(image, *view.box, [SIZE, SIZE])
    for name, factor in view.jitter:
        image = ADJUSTMENTS[name](image, factor)
    image = F.to_grayscale(image, 3) if view.gray else image
    image = image.filter(ImageFilter.GaussianBlur(view.blur)) if view.blur is not None else image
    image = F.hflip(image) if view.flip else image
    return F.normalize(F.to_tensor(image), MEAN, STD)
