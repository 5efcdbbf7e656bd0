"""The folder of an evaluation and its result, and whether that compares with published numbers."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.utils import comm
from fvcore.common.config import CfgNode

from pretrain.evaluation.backbone_features import LoadedBackbone
from pretrain.evaluation.config import flat_settings
from pretrain.evaluation.labelled_images import LabelledSet
from ssl_transfer import environment
from ssl_transfer.config import list_changes
from ssl_transfer.errors import UserError, abbreviate
from ssl_transfer.files import read_json_object, remove_partial_files, write_json, write_text
from ssl_transfer.formats.results import EvaluationResult
from ssl_transfer.formats.run_only import may_change_on_resume
from ssl_transfer.training.logs import METRICS
from ssl_transfer.writer_lock import remove_dead_lock

SETTINGS_FORMAT = "evaluation-settings/1"
IMAGENET = {"classes": 1000, "training images": 1281167, "test images": 50000}
"""ILSVRC 2012's classes and images, on which the published numbers were measured."""


@dataclass(frozen=True)
class EvaluationRequest:
    """The user's request; picklable, so that every process gets it.

    Attributes:
        kind: knn or linear.
        recipe: the config file's stem, for the record.
        weights: the backbone file.
        data: the labelled set's folder.
        output: the evaluation's folder; None (kNN only): nothing is written.
        resume: continue the evaluation in the folder, if there is one.
        name, epochs: the weights' name and epochs of pre-training, if the file does not record them.
    """

    kind: str
    recipe: str
    weights: str
    data: str
    output: str | None
    resume: bool = False
    name: str | None = None
    epochs: int | None = None


class EvaluationFolder:
    """The files of one evaluation (docs/reference/formats.md).

    Args:
        path: the folder; created when it is claimed.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.settings = self.path / "evaluation.json"
        self.checkpoint = self.path / "checkpoint.pth"
        self.metrics = self.path / METRICS
        self.features = self.path / "features_train.npy"
        self.digest = self.features.with_suffix(".sha256")
        self.result = self.path / "result.json"

    def finished(self, identity: dict[str, Any]) -> dict[str, Any] | None:
        """The result if this evaluation has ended (done or diverged), else None.

        Raises:
            UserError: the folder holds another evaluation.
        """
        if not self.settings.exists():
            return None
        self._check_identity(identity)
        if not self.result.exists():
            return None
        result = read_json_object(self.result)
        EvaluationResult.parse(result, self.result)
        remove_dead_lock(self.path)
        with contextlib.suppress(OSError):
            self._remove_features()
        return result

    def claim(self, identity: dict[str, Any], resume: bool) -> None:
        """Reserve the folder for this evaluation, or check that it may be resumed there. Main process only.

        Args:
            identity: `kind`, `config` (flat keys), `weights_sha256`, and `images`: the splits' fingerprints.
            resume: whether to continue an unfinished one.

        Raises:
            UserError: it holds another evaluation, or an unfinished one and `resume` is False.
        """
        if self.settings.exists():
            self._check_identity(identity)
            if not resume:
                raise UserError(
                    f"{self.path} holds an unfinished evaluation; add --resume to continue it, or name another --output"
                )
        else:
            for file in (self.checkpoint, self.metrics, self.features, self.result):
                if file.exists():
                    raise UserError(f"{file} belongs to no evaluation and would be overwritten; name another --output")
            write_json(self.settings, {"format": SETTINGS_FORMAT, **identity})
        files = (self.checkpoint, self.metrics, self.features, self.digest, self.result, self.settings)
        remove_partial_files(self.path, [file.name for file in files])

    def _check_identity(self, identity: dict[str, Any]) -> None:
        stored = read_json_object(self.settings)
        before, now = stored.get("config"), identity["config"]
        if not isinstance(before, dict):
            raise UserError(f"{self.settings}: config: must hold keys and values; name another --output")
        keys = [key for key in sorted(before.keys() | now.keys()) if not may_change_on_resume("evaluate", key)]
        changed = list_changes(stored, identity, [n for n in ("kind", "weights_sha256", "images") if n in identity])
        changed += list_changes(before, now, keys)
        if changed:
            raise UserError(
                f"{self.path} holds another evaluation: {abbreviate(changed, 2, '; ')}; name another --output, or give "
                "what it was started with"
            )

    def write_history(self, history: list[dict[str, float]]) -> None:
        write_text(self.metrics, "".join(json.dumps(entry, sort_keys=True) + "\n" for entry in history))

    def write_result(self, result: EvaluationResult) -> None:
        """Write the result, then remove the cached features."""
        result.write(self.result)
        self._remove_features()

    def _remove_features(self) -> None:
        self.features.unlink(missing_ok=True)
        self.digest.unlink(missing_ok=True)


def origin_of(backbone: LoadedBackbone, request: EvaluationRequest) -> dict[str, Any]:
    """The origin in the backbone file, or what the user declares if it has none.

    Raises:
        UserError: the file records other epochs of pre-training than the user gives.
    """
    origin = dict(backbone.origin)
    if request.epochs is None:
        return origin
    if origin.get("epochs") not in (None, request.epochs):
        known = origin["epochs"]
        raise UserError(f"--pretrain-epochs {request.epochs}: {backbone.path} records {known}; leave the option out")
    return {**origin, "epochs": request.epochs} if "epochs" in origin else {"epochs": request.epochs, "declared": True}


def build_result(
    request: EvaluationRequest,
    cfg: CfgNode,
    backbone: LoadedBackbone,
    sets: tuple[LabelledSet, LabelledSet],
    *,
    metrics: Mapping[str, float] | None,
    divergence: Mapping[str, Any] | None = None,
    timing: Mapping[str, float],
) -> EvaluationResult:
    """The content of `result.json`.

    Args:
        request, cfg, backbone, sets: what was evaluated, and how.
        metrics: in per cent; None if the run diverged.
        divergence: `Diverged.record()` if it diverged.
        timing: `seconds`.
    """
    origin = origin_of(backbone, request)
    train, test = sets
    sizes = {"classes": len(train.classes), "training images": len(train), "test images": len(test)}
    linear = request.kind == "linear"
    content = {
        "status": "diverged" if divergence else "done",
        "kind": request.kind,
        "seed": cfg.SEED,
        "toy": cfg.TOY or bool(origin.get("toy")),
        "metrics": None if metrics is None else dict(metrics),
        "divergence": dict(divergence) if divergence else None,
        **({"comparable": _compare_with_published(cfg, sizes)} if linear else {}),
        "settings": {
            **flat_settings(cfg, request.kind),
            **{name.replace(" ", "_"): value for name, value in sizes.items()},
            "augmentation": linear and not cfg.LINEAR.CACHE_FEATURES,
            "num_processes": comm.get_world_size(),
        },
        "weights": {
            "name": request.name or weights_name(backbone.path.resolve()),
            "path": str(backbone.path),
            "sha256": backbone.sha256,
            "arch": backbone.arch,
            "origin": origin,
        },
        "config": {"recipe": request.recipe, "data": str(Path(request.data))},
        "environment": {**environment.describe(), "timm": environment.version_of("timm")},
        "timing": dict(timing),
    }
    return EvaluationResult.parse(content, "result.json")


def _compare_with_published(cfg: CfgNode, sizes: Mapping[str, int]) -> dict[str, Any]:
    """Whether a linear evaluation compares with the published ones, and every reason why it does not."""
    reasons = [f"{sizes[name]} {name}, not {count}" for name, count in IMAGENET.items() if sizes[name] != count]
    wanted = {"DATA.SIZE": 224, "DATA.RESIZE": 256, "LINEAR.EPOCHS": 90}
    found = flat_settings(cfg, "linear")
    reasons += [f"{key} is {found[key]}, not {value}" for key, value in wanted.items() if found[key] != value]
    if cfg.LINEAR.CACHE_FEATURES:
        reasons.append("training features of fixed views: no augmentation")
    if cfg.LINEAR.OPTIMIZER != "lars":
        reasons.append("SGD, not LARS, which is about 1 point lower")
    return {"ok": not reasons, "reasons": reasons}


def weights_name(path: Path) -> str:
    """A name for weights: that of the run's folder if pre-training named the file, else the file's stem."""
    names = {"backbone": path.parent.name, "backbone_target": f"{path.parent.name} (target)"}
    return names.get(path.stem, path.stem)
