"""What `make bench` measures of pre-training, each beside its peer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter
from torchvision import transforms
from torchvision.transforms import functional as F

from common.measure import Comparison
from pretrain.config import defaults
from pretrain.data.augment import ADJUST, Recipe, View, draw, render
from pretrain.data.dataset import TwoViews
from pretrain.data.decode import decode_rgb
from pretrain.data.index import find_images
from pretrain.data.preprocessing import normalise
from pretrain.data.randomness import VIEWS, stream
from pretrain.methods import build_method
from pretrain.methods.base import Method
from pretrain.optim.sgd import build_sgd

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def comparisons(folder: Path) -> Iterator[Comparison]:
    """All of them; `folder` is a scratch folder for images."""
    yield two_views(folder)
    yield simsiam_step()


def two_views(folder: Path, count: int = 32, size: int = 224) -> Comparison:
    """Decoding and two augmented views as normalised floats, in one process."""
    _draw_photos(folder, count)
    index = find_images(str(folder))
    how = Recipe(size)
    ours = TwoViews(index, how, seed=0)
    reference = _torchvision_views(size)
    paths = [index.path(i) for i in range(len(index))]

    def run_ours() -> object:
        batch = ours.__getitems__([(0, i) for i in range(len(index))])
        assert not isinstance(batch, str)
        return [normalise(views) for views in batch.views]

    def run_theirs() -> object:
        images = [Image.open(path).convert("RGB") for path in paths]
        return [torch.stack([reference(image) for image in images]) for _ in VIEWS]

    def equal() -> str:
        gap = max(_gap(path, how, number) for number, path in enumerate(paths[:16]))
        assert gap <= 1e-6, f"the pixels differ by {gap}"
        return f"same draws: max |Δ| {gap:.0e}"

    peer = "torchvision transforms on PIL, as the released code composes them"
    return Comparison(f"two {size}² views, PIL, 1 process", peer, run_ours, run_theirs, equal, count, "images")


def _draw_photos(folder: Path, count: int) -> None:
    """JPEGs of ImageNet's usual size with some structure in them."""
    for number in range(count):
        rng = np.random.default_rng(number)
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        image = coarse.resize((500, 375), Image.Resampling.BICUBIC)
        (folder / "train" / "any").mkdir(parents=True, exist_ok=True)
        image.save(folder / "train" / "any" / f"{number:04d}.jpg", quality=90)


def _torchvision_views(size: int) -> transforms.Compose:
    """The peer: the same recipe by torchvision's own random transforms, normalised on the CPU."""
    blur = transforms.RandomApply([transforms.Lambda(_pil_blur)], p=0.5)
    jitter = transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8)
    crop = transforms.RandomResizedCrop(size, scale=(0.2, 1.0))
    rest = [transforms.RandomGrayscale(p=0.2), blur, transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    return transforms.Compose([crop, jitter, *rest, transforms.Normalize(MEAN, STD)])


def _pil_blur(image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(float(torch.empty(()).uniform_(0.1, 2.0))))


def _gap(path: Path, how: Recipe, number: int) -> float:
    """The largest difference between our view and the same draw applied by torchvision's functions in floats."""
    image = decode_rgb(path)
    view = draw(how, *image.size, stream(0, 0, number, 0))
    ours = normalise(render(image, view, how.size)[None])[0]
    return float((ours - _by_torchvision(image, view, how.size)).abs().max())


def _by_torchvision(image: Image.Image, view: View, size: int) -> torch.Tensor:
    image = F.resized_crop(image, *view.box, [size, size])
    for name, factor in view.jitter:
        image = ADJUST[name](image, factor)
    image = F.to_grayscale(image, 3) if view.gray else image
    image = image.filter(ImageFilter.GaussianBlur(view.blur)) if view.blur is not None else image
    image = F.hflip(image) if view.flip else image
    return F.normalize(F.to_tensor(image), MEAN, STD)


def simsiam_step(batch: int = 16, size: int = 64) -> Comparison:
    """Forward, backward and SGD of SimSiam on a ResNet-50: channels-last beside PyTorch's default memory format."""
    cfg = defaults()
    cfg.SOLVER.BATCH_SIZE = batch
    torch.manual_seed(0)
    method = build_method(cfg)
    views = [torch.randn(batch, 3, size, size) for _ in VIEWS]

    def stepper(last: bool) -> Callable[[], float]:
        form = torch.channels_last if last else torch.contiguous_format
        own: Method = copy.deepcopy(method).to(memory_format=form).train()
        optimizer = build_sgd(own, cfg)
        x1, x2 = (view.to(memory_format=form) for view in views)

        def step() -> float:
            optimizer.zero_grad()
            loss = own(x1, x2).loss
            loss.backward()
            optimizer.step()
            return float(loss.detach())

        return step

    def equal() -> str:
        ours, theirs = stepper(True), stepper(False)
        pairs = [(ours(), theirs()) for _ in range(3)]
        gap = max(abs(a - b) for a, b in pairs)  # a cosine: of order 1, and near 0 at first
        assert gap <= 1e-4, f"the losses of three steps differ by {gap}"
        return f"3 losses: max |Δ| {gap:.0e}"

    what = f"SimSiam R50 step, batch {batch} at {size}²"
    return Comparison(what, "the same step, contiguous", stepper(True), stepper(False), equal, 1, "steps")
