"""A run's folder: whose it is, whether it is finished, what is in it (docs/reference/formats.md). Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode

from common.config import load_yaml
from common.errors import UserError
from common.files import read_json, write_json, write_text
from pretrain.config import differences

RESULT_FORMAT = "pretrain-result/1"
DIVERGENCE_FORMAT = "pretrain-divergence/1"


class RunFolder:
    """The files of one pre-training run.

    Args:
        path: the folder; created when the run is claimed.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.log = self.path / "log.txt"
        self.backbone = self.path / "backbone.safetensors"
        self.target_backbone = self.path / "backbone_target.safetensors"
        self.classifier = self.path / "classifier.safetensors"
        self.result = self.path / "result.json"
        self.divergence = self.path / "divergence.json"

    def finished(self, cfg: CfgNode) -> dict[str, Any] | None:
        """The result where this very run is finished, else None.

        Raises:
            UserError: the folder holds a run with another config.
        """
        if not self.config.exists():
            return None
        self._compare(cfg)
        if not self.result.exists() or not self.backbone.exists():
            return None
        result: dict[str, Any] = read_json(self.result)
        return result

    def claim(self, cfg: CfgNode, resume: bool) -> None:
        """Make the folder this run's, or find that it is and may be gone on with. The main process's business.

        Raises:
            UserError: it holds a run with another config, an unfinished one and `resume` is False, or checkpoints of
                who knows which.
        """
        if self.config.exists():
            self._compare(cfg)
            if not resume:
                raise UserError(
                    f"{self.path} holds an unfinished run; add --resume to continue it, or name another --output"
                )
        else:
            self._refuse_strangers()
            write_text(self.config, cfg.dump())
        self._remove_leftovers()

    def _refuse_strangers(self) -> None:
        """Checkpoints without the config they were made with are not this run's to go on from."""
        found = sorted(path.name for path in self.path.glob("checkpoint_*.pth"))
        if found:
            raise UserError(
                f"{self.path} holds {found[-1]} but no config.yaml, so it cannot be told which run it belongs to; "
                "name another --output, or put the run's config.yaml back"
            )

    def _compare(self, cfg: CfgNode) -> None:
        changed = differences(load_yaml(self.config), cfg)
        if changed:
            raise UserError(
                f"{self.path} holds a run with another config: {'; '.join(changed[:3])}"
                f"{f' and {len(changed) - 3} more' if len(changed) > 3 else ''}; name another --output, "
                "or give the config it was started with"
            )

    def _remove_leftovers(self) -> None:
        """Remove what a killed process left half written (`atomic_write`'s temporary names) and an old divergence."""
        written = (self.backbone.name, self.target_backbone.name, self.classifier.name, self.result.name)
        for name in ("checkpoint_*.pth", "last_checkpoint", "metrics.json", *written):
            for file in self.path.glob(f".{name}.*.tmp"):
                file.unlink(missing_ok=True)
        self.divergence.unlink(missing_ok=True)

    def record_divergence(self, what: str) -> None:
        """Write down that the run diverged; it is not finished and may be resumed."""
        write_json(self.divergence, {"format": DIVERGENCE_FORMAT, "what": what})

    def diverged(self) -> str | None:
        """What went wrong where the run diverged, else None."""
        return str(read_json(self.divergence)["what"]) if self.divergence.exists() else None
