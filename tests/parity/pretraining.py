"""Comparisons of pre-training and of its evaluations with the originals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from tests.parity import compare_simsiam
from tests.parity.compare_table import close_values
from tests.parity.comparison import Check, Outcome, Sources
from tests.pretrain.golden import (
    make_byol,
    make_lars,
    make_linear,
    make_moco,
    make_simclr,
    make_swav,
    narrow,
    narrow_momentum,
    ours_momentum,
)
from tests.pretrain.golden import narrow_contrast as contrast
from tests.pretrain.golden.harness import load_module
from tests.pretrain.golden.ours_contrast import narrow_swav

EXACT = 1e-8
"""Of runs in float64."""


def simsiam(sources: Sources) -> Outcome:
    """Three steps over two epochs of ResNet-50, float32; losses, weights, buffers, momenta."""
    sizes = compare_simsiam.Sizes(steps=3, per_epoch=2, batch=8, size=64)
    photos = drawn_photos(sources.scratch / "photos", 24)
    start, batches = compare_simsiam.prepare(str(photos), sizes)
    theirs = compare_simsiam.run_original(sources.files[0], start, batches, sizes)
    ours = compare_simsiam.run_ours(start, batches, sizes)
    spoilt = compare_simsiam.run_ours(start, batches, sizes, bn_momentum=0.11)
    change = "BN momentum 0.11"
    return Outcome(compare_simsiam.compare(ours, theirs), compare_simsiam.compare(spoilt, theirs), change)


def drawn_photos(folder: Path, count: int) -> Path:
    """JPEGs of noise at a coarse scale."""
    import numpy as np
    from PIL import Image

    folder.mkdir()
    for number in range(count):
        pixels = np.random.RandomState(number).randint(0, 256, (6, 8, 3)).astype(np.uint8)
        Image.fromarray(pixels).resize((128, 96), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg")
    return folder


def linear_larc(sources: Sources) -> Outcome:
    """main_lincls.py's own steps with apex's LARC, narrow, float64."""
    return _linear(sources, load_module(sources.files[1] / "apex/parallel/LARC.py").LARC)


def linear_sgd(sources: Sources) -> Outcome:
    """The same without LARC."""
    return _linear(sources, None)


def _linear(sources: Sources, larc: Any) -> Outcome:
    from tests.pretrain.evaluation import test_larc as ours

    torch.Tensor.cuda = lambda tensor, *_args, **_kwargs: tensor  # type: ignore[assignment]  # of the labels
    theirs = make_linear.run(load_module(sources.files[0] / "main_lincls.py"), larc)
    name = "lars" if larc else "sgd"
    key, value = ("TRUST", 0.00101) if larc else ("MOMENTUM", 0.909)
    changed = ours.config(name)
    changed[key] = value
    checks = [
        [close_values("losses, rates, weights, buffers", _by_epoch(ours.run(config)), theirs, EXACT)]
        for config in (ours.config(name), changed)
    ]
    return Outcome(*checks, f"LINEAR.{key} {value:g}")


def _by_epoch(found: dict[str, Any]) -> dict[str, Any]:
    """Ours with a rate an epoch, as the original's."""
    per_epoch = len(found["rates"]) // narrow.EPOCHS
    return {**found, "rates": found["rates"][::per_epoch]}


def knn(sources: Sources) -> Outcome:
    """The order of all classes by votes, of 400 queries in float64; the notebook's `knn_predict` beside ours."""
    from pretrain.evaluation.knn import add_chunk, no_neighbors, vote

    space = {"torch": torch, "F": F}
    notebook = json.loads((sources.files[0] / "colab/moco_cifar10_demo.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    exec(next(cell for cell in cells if "def knn_predict" in cell), space)
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 10, (2000,), generator=generator)
    centres = torch.randn(10, 16, generator=generator).double()
    bank = F.normalize(centres[labels] + 2 * torch.randn(2000, 16, generator=generator).double(), dim=1)
    queries = F.normalize(torch.randn(400, 16, generator=generator).double(), dim=1)
    knn_predict: Any = space["knn_predict"]
    theirs = knn_predict(queries, bank.T.contiguous(), labels, 10, 200, 0.1)
    nearest = no_neighbors(queries, 200)
    for first in range(0, 2000, 300):
        nearest = add_chunk(nearest, queries, bank[first : first + 300], first)

    def check(temperature: float) -> list[Check]:
        ours = vote(nearest, labels, 10, temperature).argsort(dim=-1, descending=True)
        share = float((ours != theirs).double().mean())
        return [Check("order of classes", share == 0, f"{share:.3g} of the places", share)]

    return Outcome(check(0.1), check(0.101), "T 0.101")


def moco(sources: Sources) -> Outcome:
    """Eight steps of the released MoCo and of the notebook's, narrow, float64."""
    theirs = make_moco.values(sources.files, make_moco.files(sources.files))["runs"]
    names = {symmetry: symmetry for symmetry in theirs}

    def check(momentum: float) -> list[Check]:
        found = []
        for symmetry in names:
            method = ours_momentum.narrow_moco(symmetry, momentum=momentum)
            record = ours_momentum.trained(method)
            keys = {"of keys": method.queue.keys.sum(1).tolist(), "of channels": method.queue.keys.sum(0).tolist()}
            ours = {"losses": record.losses, "gradients": record.gradients, **ours_momentum.ends(method)}
            ours |= {"queue": keys, "pointer": int(method.queue.pointer)}
            found.append(close_values(f"{symmetry}: losses, gradients, weights, queue", ours, theirs[symmetry], 1e-7))
        return found

    return Outcome(check(narrow_momentum.KEY_MOMENTUM), check(narrow_momentum.KEY_MOMENTUM * 1.01), "momentum × 1.01")


def swav(sources: Sources) -> Outcome:
    """Twelve steps of main_swav.py's `train`, narrow, float64, with and without the queue."""
    from tests.pretrain.methods import test_swav as ours

    original = make_swav.load(sources.files[0])
    theirs = {"plain": make_swav.run(original, None), "queue": make_swav.run(original, contrast.QUEUE)}

    def check(**change: Any) -> list[Check]:
        found = []
        for name, run in theirs.items():
            method = narrow_swav(**{**ours.ARGUMENTS[name], **change})
            losses = ours._train(method).losses
            ends = {key: value for key, value in narrow.checksums(method).items() if not key.startswith("queues.")}
            mine = {"losses": losses, "end": ends}
            found.append(close_values(f"{name}: losses, weights, buffers", mine, run, EXACT))
        return found

    return Outcome(check(), check(temperature=0.101), "temperature 0.101")


def byol(sources: Sources) -> Outcome:
    """Eight steps with the released loss and solo-learn's update of the target, and the target's momentum."""
    from pretrain.optim.schedule import cosine_momentum

    theirs = make_byol.values(sources.files, make_byol.files(sources.files))

    def check(momentum: float) -> list[Check]:
        method = ours_momentum.narrow_byol(momentum)
        record = ours_momentum.trained(method)
        ours = {"losses": record.losses, "gradients": record.gradients, **ours_momentum.ends(method)}
        run = {key: theirs["run"][key] for key in ours}
        return [close_values("losses, gradients, both networks", ours, run, 1e-7)]

    momenta = {}
    for name in theirs["momentum"]:
        base, total = float(name.split()[0]), int(name.split()[1])
        momenta[name] = [cosine_momentum(base, int(step), total) for step in make_byol.steps(total)]
    first = check(narrow_momentum.TARGET_MOMENTUM)
    first.append(close_values("momentum of the target", momenta, theirs["momentum"], 1e-12))
    return Outcome(first, check(narrow_momentum.TARGET_MOMENTUM * 1.01), "momentum × 1.01")


def simclr(sources: Sources) -> Outcome:
    """NT-Xent of fixed outputs and its gradients, float64."""
    from tests.pretrain.methods import test_simclr as ours

    theirs = make_simclr.values(sources.files, make_simclr.files(sources.files))["nt_xent"]

    def check(temperature: float) -> list[Check]:
        z1, z2 = contrast.outputs()
        value = ours._bare(temperature=temperature)(z1, z2).loss
        value.backward()
        assert z1.grad is not None and z2.grad is not None
        found = {"loss": value.item(), "gradients": [z1.grad.tolist(), z2.grad.tolist()]}
        return [close_values(name, found, other, EXACT) for name, other in theirs.items()]

    return Outcome(check(contrast.TEMPERATURE), check(1.01 * contrast.TEMPERATURE), "temperature × 1.01")


def lars(sources: Sources) -> Outcome:
    """Six steps each of BYOL's LARS, SimCLR's LARS and apex's LARC, float64."""
    from tests.pretrain.optim import test_lars as ours

    theirs = make_lars.values(sources.files, make_lars.files(sources.files))

    def check(**change: Any) -> list[Check]:
        found = {
            "byol": ours.trained("lars", ours.narrow.falling, **change),
            "simclr": ours.trained("lars", ours.constant, **change),
            "larc": ours.trained("larc", ours.narrow.falling, **change),
        }
        runs = {name: {key: value.ravel().tolist() for key, value in run.items()} for name, run in found.items()}
        return [close_values(f"weights, {name}", run, theirs[name], 1e-12) for name, run in runs.items()]

    return Outcome(check(), check(eta=0.00101), "trust 0.00101")
