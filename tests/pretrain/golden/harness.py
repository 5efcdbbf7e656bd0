"""What the makers of golden values share: the command line, the originals' files and the JSON file.

A maker is run with clones of the originals' repositories, in the order of its `ORIGINALS`, each at the commit that is
recorded there: `python tests/pretrain/golden/make_X.py CLONE … [--output FILE]`.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).resolve().parent
Values = dict[str, Any]


def write_golden_values(
    name: str,
    description: str,
    originals: Mapping[str, str],
    files: Callable[[Sequence[Path]], Mapping[str, Path]],
    values: Callable[[Sequence[Path], Mapping[str, Path]], Values],
    record: Values | None = None,
) -> None:
    """Read the command line, run the originals and write `NAME.json`.

    Args:
        name: stem of the JSON file.
        description: the maker's docstring, for `--help`.
        originals: repository to commit, in the order of the command line's clones.
        files: the originals' files, by the name under which their SHA-256 is recorded, given the clones.
        values: the golden values, given clones and files.
        record: what to record of the originals besides the digests; by default `repositories`.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clones", type=Path, nargs=len(originals), help=f"clones of {', '.join(originals)}")
    parser.add_argument("--output", type=Path, default=HERE / f"{name}.json")
    args = parser.parse_args()
    used = files(args.clones)
    digests = {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in used.items()}
    original = {**(record or {"repositories": dict(originals)}), "sha256": digests}
    args.output.write_text(json.dumps({"original": original, **values(args.clones, used)}, indent=1) + "\n")


def load_module(file: Path) -> ModuleType:
    """A module from its file, without its package."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def recording_meter(meter: type, losses: list[float], is_loss: Callable[[Any, int], bool]) -> type:
    """The original's AverageMeter; it also appends the losses that the original's training loop passes to it.

    Args:
        meter: the original's class, or the result of an earlier call.
        losses: appended to.
        is_loss: whether an update of a meter, with a number of samples, is a loss.
    """
    base = getattr(meter, "original", meter)

    class RecordingMeter(base):  # type: ignore[misc, valid-type]
        original = base

        def update(self, value: float, n: int = 1) -> None:
            if is_loss(self, n):
                losses.append(value)
            super().update(value, n)

    return RecordingMeter
