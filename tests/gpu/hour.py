"""The parts of `hour.sh` that are no command of their own: speed by images and compilation, losses to keep, reading.

python -m tests.gpu.hour speed 32 128 256      bf16 + channels_last SimSiam steps, eager and compiled
python -m tests.gpu.hour losses FILE.json      20 losses of the small trainings, in every precision of the device
python -m tests.gpu.hour pipelines             images/s of the pipelines crops and opencv, to views on the device

Each prints a line as soon as it knows it, so that a part that is stopped by its time limit leaves what it measured.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from ssl_transfer.console import Parser, ignore_torch_warnings, run_main
from ssl_transfer.errors import EXIT_OK
from ssl_transfer.files import write_json
from tests.gpu.numerics import STEPS, backend_precision, supported_precisions
from tests.gpu.workloads import DetectorWorkload, PrecisionConfig, SimSiamWorkload

BATCH = 256


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and measure."""
    parser = Parser(prog="python -m tests.gpu.hour", description=__doc__)
    parts = parser.add_subparsers(dest="part", required=True)
    speed = parts.add_parser("speed")
    speed.add_argument("images", nargs="+", type=int)
    losses = parts.add_parser("losses")
    losses.add_argument("file", type=Path)
    losses.add_argument("--steps", type=int, default=STEPS)
    reading = parts.add_parser("pipelines")
    reading.add_argument("--images", type=int, default=4096)
    args = parser.parse_args(argv)
    ignore_torch_warnings()
    if args.part == "speed":
        measure_speed(args.images)
    elif args.part == "losses":
        keep_losses(args.file, args.steps)
    else:
        measure_pipelines(args.images)
    return EXIT_OK


def device_name() -> str:
    """The GPU's name; `cpu` without one."""
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu"


def measure_speed(images: Sequence[int]) -> None:
    """Time a SimSiam step of the real size for each number of images, eager and compiled."""
    from tests.gpu.speed import GIB, time_steps

    for count in images:
        for compiled in (False, True):
            precision = PrecisionConfig("bf16", channels_last=True, compiled=compiled)
            start = time.perf_counter()
            speed = time_steps(SimSiamWorkload(), "cuda", precision, count)
            print(
                f"SimSiam {precision}, {count} images: {count / speed.seconds:.1f} images/s "
                f"({speed.seconds * 1e3:.1f} ms a step), peak {speed.peak / GIB:.1f} GiB, "
                f"measured in {time.perf_counter() - start:.0f} s",
                flush=True,
            )


def keep_losses(file: Path, steps: int) -> None:
    """Write the losses of the small trainings, each left to itself from the same weights, as a record to keep."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    kept: dict[str, dict[str, list[float]]] = {}
    for workload in (SimSiamWorkload(), DetectorWorkload()):
        kept[workload.name] = {}
        for precision in supported_precisions(workload, device):
            with backend_precision(precision.tf32, benchmark=False):
                step = workload.small(device, precision).step
                kept[workload.name][str(precision)] = [step() for _ in range(steps)]
            print(f"{workload.name} {precision}: last loss {kept[workload.name][str(precision)][-1]:.6f}", flush=True)
    about = {"device": device_name(), "torch": torch.__version__, "cuda": torch.version.cuda}
    write_json(file, {**about, "losses": kept})
    print(f"wrote {file}")


def measure_pipelines(images: int) -> None:
    """Time both fast pipelines on photographs of ImageNet's usual size, a loader process a core; no training."""
    import torch

    from benchmarks.input_pipelines import draw_photos
    from pretrain.data.augment import AugmentationConfig
    from pretrain.data.dataset import MultiViewDataset
    from pretrain.data.index import find_images
    from pretrain.data.loader import BatchLoader
    from pretrain.data.sampler import ResumableBatchSampler
    from transfer.doctor.machine import usable_cores

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    workers, batch = usable_cores(), min(BATCH, images)
    with tempfile.TemporaryDirectory() as folder:
        draw_photos(Path(folder), batch)
        index = find_images(folder)
        for name in ("opencv", "crops"):
            dataset = MultiViewDataset(index, AugmentationConfig(224), seed=0, pipeline=name)
            start = time.perf_counter()
            sampler = ResumableBatchSampler(len(index), batch, 0, start=0, stop=images // batch)
            for _ in BatchLoader(dataset, sampler, workers, device, channels_last=True):
                pass
            if device.type == "cuda":
                torch.cuda.synchronize()
            rate = images // batch * batch / (time.perf_counter() - start)
            print(f"{name}: {rate:.0f} images/s of two views, {workers} loader processes, to {device}", flush=True)


if __name__ == "__main__":
    run_main(main)
