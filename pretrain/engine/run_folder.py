"""The folder of a pre-training run: its files, whether it is finished, which config it belongs to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode

from pretrain.config import differences
from ssl_transfer.config import load_yaml
from ssl_transfer.errors import UserError, abbreviate
from ssl_transfer.files import read_json_object, remove_partial_files, write_json, write_text
from ssl_transfer.formats.backbone import check_backbone_file
from ssl_transfer.formats.results import PretrainResult
from ssl_transfer.training.checkpoint import LAST
from ssl_transfer.training.logs import LOG, METRICS
from ssl_transfer.writer_lock import remove_dead_lock

DIVERGENCE_FORMAT = "pretrain-divergence/1"


class RunFolder:
    """The files of one pre-training run (docs/reference/formats.md).

    Args:
        path: the folder; created when the run is claimed.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.log = self.path / LOG
        self.backbone = self.path / "backbone.safetensors"
        self.target_backbone = self.path / "backbone_target.safetensors"
        self.classifier = self.path / "classifier.safetensors"
        self.result = self.path / "result.json"
        self.divergence = self.path / "divergence.json"

    def finished(self, cfg: CfgNode) -> dict[str, Any] | None:
        """The result if this run is finished, else None.

        Raises:
            UserError: the folder holds a run with another config, or its result or backbone file is damaged.
        """
        if not self.config.exists():
            return None
        self._check_config(cfg)
        if not self.result.exists() or not self.backbone.exists():
            return None
        result = read_json_object(self.result)
        PretrainResult.parse(result, self.result)
        check_backbone_file(self.backbone)
        remove_dead_lock(self.path)
        return result

    def claim(self, cfg: CfgNode, resume: bool) -> None:
        """Reserve the folder for this run, or check that it is this run's and may be resumed. Main process only.

        Raises:
            UserError: it holds a run with another config, an unfinished one and `resume` is False, or checkpoints
                without a config.
        """
        if self.config.exists():
            self._check_config(cfg)
            if not resume:
                raise UserError(
                    f"{self.path} holds an unfinished run; add --resume to continue it, or name another --output"
                )
        else:
            self._refuse_unknown_checkpoints()
            write_text(self.config, cfg.dump())
        self._remove_leftovers()

    def _refuse_unknown_checkpoints(self) -> None:
        found = sorted(path.name for path in self.path.glob("checkpoint_*.pth"))
        if found:
            raise UserError(
                f"{self.path} holds {found[-1]} but no config.yaml, so it is unknown which run it belongs to; "
                "name another --output, or restore the run's config.yaml"
            )

    def _check_config(self, cfg: CfgNode) -> None:
        changed = differences(load_yaml(self.config), cfg)
        if changed:
            raise UserError(
                f"{self.path} holds a run with another config: {abbreviate(changed, 3, '; ')}; name another --output, "
                "or give the config it was started with"
            )

    def _remove_leftovers(self) -> None:
        """Remove an old divergence record and the temporary files of a process that was killed while it wrote."""
        written = [
            file.name for file in (self.config, self.backbone, self.target_backbone, self.classifier, self.result)
        ]
        remove_partial_files(self.path, ["checkpoint_*.pth", LAST, METRICS, *written])
        self.divergence.unlink(missing_ok=True)

    def record_divergence(self, what: str) -> None:
        """Record that the run diverged; it is not finished and may be resumed."""
        write_json(self.divergence, {"format": DIVERGENCE_FORMAT, "what": what})

    def diverged(self) -> str | None:
        return str(read_json_object(self.divergence).get("what")) if self.divergence.exists() else None
