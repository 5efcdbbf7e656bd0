"""Detectron2's files: converted `.pkl` (with a manifest), Detectron2's and other converters', and trained detectors."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ssl_transfer.errors import UserError
from ssl_transfer.files import read_json
from ssl_transfer.formats.backbone import MSRA, TORCHVISION, Preprocessing
from ssl_transfer.formats.manifest import DroppedTensor
from ssl_transfer.formats.results import FINAL_CHECKPOINT, RESULT_FILE, TRANSFER, TransferResult
from ssl_transfer.yaml_file import read_yaml
from transfer.weights.containers import CheckpointFile
from transfer.weights.converted import check_manifest
from transfer.weights.match import Match, Tensors, describe_frozen_norms, select_detectron2

PREFIXES = ("", "backbone.bottom_up.", "backbone.")
"""Of a file of weights, of an FPN detector and of a C4 detector, whose res5 is among the RoI heads."""

_BGR = {"channel_order": "BGR", "mean": TORCHVISION.mean[::-1], "std": TORCHVISION.std[::-1]}
KNOWN_BLOCKS = (TORCHVISION, MSRA, TORCHVISION.model_copy(update=_BGR))


class Detectron2:
    """Recognised by `stem.conv1.weight`. Detectron2 itself would misread a file without `__author__`."""

    name = "detectron2"
    title = "Detectron2: .pkl, and model_final.pth of a training"

    def match(self, checkpoint: CheckpointFile) -> Match | None:
        """Recognise the layout.

        Raises:
            UserError: the file has a manifest and does not agree with it, or constants of an unknown preprocessing.
        """
        for container in (("model",), ()):
            tensors = checkpoint.tensors(*container)
            for prefix in PREFIXES:
                if f"{prefix}stem.conv1.weight" in tensors:
                    return self.match_at(checkpoint, tensors, container, prefix)
        return None

    def describe(self) -> str:
        return "stem.conv1.weight, backbone.stem.* or backbone.bottom_up.stem.* in model or at the top level"

    def match_at(self, checkpoint: CheckpointFile, tensors: Tensors, container: tuple[str, ...], prefix: str) -> Match:
        """The ResNet with these names under a prefix.

        Raises:
            UserError: as `match`.
        """
        top = checkpoint.at() or {}
        named = select_detectron2(tensors, prefix)
        rule = f"{container[0] if container else 'the file'} holds {prefix}stem.conv1.*"
        if prefix:
            block, source = _find_preprocessing(checkpoint, tensors)
            match = Match(
                layout=self.name,
                rule=rule + source,
                branches={"online": named},
                dropped=_list_dropped(tensors, prefix),
                preprocessing=block or TORCHVISION,
                origin=_read_trial(Path(checkpoint.path)),
                warnings=() if block else (ASSUMED,),
            )
            return describe_frozen_norms(match, checkpoint.path)
        rule += f", author {top['__author__']}" if "__author__" in top else ", no __author__"
        dropped = _list_dropped(tensors, prefix)
        if "manifest" in top:
            manifest = check_manifest(top["manifest"], tensors, checkpoint.path)
            return Match(
                layout=self.name,
                rule=rule + ", a manifest",
                branches={manifest.source.branch: named},
                default=manifest.source.branch,
                dropped=dropped,
                preprocessing=manifest.preprocessing,
                origin=manifest.origin,
            )
        # Every known converter to these names starts from torchvision's weights.
        warnings = ["the file does not say its preprocessing: torchvision's is assumed (RGB, stride on the 3×3)"]
        if "__author__" not in top:
            warnings.append("the file has no __author__: Detectron2 itself would read it as Caffe2's")
        return Match(
            layout=self.name,
            rule=rule,
            branches={"online": named},
            dropped=dropped,
            preprocessing=TORCHVISION,
            warnings=tuple(warnings),
        )


ASSUMED = (
    "the file does not say its preprocessing: torchvision's is assumed (RGB, stride on the 3×3). Detectron2's default "
    "is Caffe's (BGR, std 1, stride on the 1×1): if its training kept that, put its config.yaml beside the file"
)


def _find_preprocessing(checkpoint: CheckpointFile, tensors: Tensors) -> tuple[Preprocessing | None, str]:
    """A trained detector's block, and where it was found: config.yaml beside the file, or constants in it."""
    constants = [tensors[key].flatten() for key in ("pixel_mean", "pixel_std") if key in tensors]
    stored = [value.tolist() for value in constants if value.numel() == 3]
    beside = Path(checkpoint.path).with_name("config.yaml")
    block = _read_config(beside) if beside.is_file() else None
    if block is not None and (len(stored) < 2 or _is_near(stored, block)):
        return block, f"; preprocessing: {beside}"
    if len(stored) < 2:
        return None, ""
    known = [one for one in KNOWN_BLOCKS if _is_near(stored, one)]
    if not known:
        raise UserError(
            f"{checkpoint.path}: pixel_mean {stored[0]} and pixel_std {stored[1]} are of no known preprocessing; "
            "put the training's config.yaml beside the file"
        )
    return known[0], "; preprocessing: pixel_mean, pixel_std"


def _is_near(stored: Sequence[Sequence[float]], block: Preprocessing) -> bool:
    wanted = (*block.mean, *block.std)
    return all(abs(a - b) < 0.01 for a, b in zip((*stored[0], *stored[1]), wanted, strict=True))


def _read_config(path: Path) -> Preprocessing | None:
    """The block of a config.yaml that Detectron2 wrote; None if it is something else."""
    try:
        config = read_yaml(path)[0].value
        model = config["MODEL"]
        return Preprocessing(
            channel_order=config["INPUT"]["FORMAT"],
            mean=model["PIXEL_MEAN"],
            std=model["PIXEL_STD"],
            stride_in_1x1=model["RESNETS"]["STRIDE_IN_1X1"],
        )
    except (UserError, ValueError, KeyError, TypeError):
        return None


def _read_trial(path: Path) -> dict[str, Any] | None:
    """How this project trained the detector: from the result beside its `model_final.pth`; None if there is none.

    Raises:
        UserError: the result is damaged.
    """
    file = path.with_name(RESULT_FILE)
    if path.name != FINAL_CHECKPOINT or not file.is_file():
        return None
    content = read_json(file)
    if not isinstance(content, dict) or content.get("format") != TRANSFER:
        return None
    trial = TransferResult.read(file)
    toy = bool(trial.toy or (trial.weights.manifest or {}).get("toy"))
    method = f"{trial.weights.name}+{trial.task}"
    return {"method": method, "iteration": trial.settings.iterations, "seed": trial.seed, "toy": toy}


def _list_dropped(tensors: Tensors, prefix: str) -> tuple[DroppedTensor, ...]:
    def group(name: str) -> str:
        return ".".join(name.split(".")[:2]) if prefix else name.rsplit(".", 1)[0]

    body = re.compile(rf"({re.escape(prefix)}(stem\.conv1|res[2-5]\.\d+)|roi_heads\.res5\.\d+)\.")
    groups = {group(name): name for name in tensors if not body.match(name)}
    return tuple(
        DroppedTensor(
            name=key if key in tensors else f"{key}.*", why="projector" if ".fc." in name else "not of the backbone"
        )
        for key, name in groups.items()
    )


LAYOUT = Detectron2()
