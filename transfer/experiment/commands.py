"""The command lines of the jobs: the stable ones of tools/, run as subprocesses.

`Tools` says which interpreter and which folder of tools: production takes the checkout's, tests put trivial scripts of
the same names into another folder.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

from common import environment

Command = tuple[str, ...]


@dataclass(frozen=True)
class Tools:
    """Builds command lines.

    Attributes:
        folder: holds pretrain.py, convert.py, evaluate.py, transfer.py, lr_search.py and table.py.
        python: the interpreter that runs them.
    """

    folder: Path = field(default_factory=lambda: environment.ROOT / "tools")
    python: str = sys.executable

    def pretrain(self, config: Path, overlay: Path | None, out: Path, images: Path, overrides: list[str]) -> Command:
        """Pre-train into `out`; what is there already is continued."""
        return (
            *self._tool("pretrain", config, overlay),
            *("--resume", "--output", str(out)),
            *("DATA.ROOT", str(images)),
            *overrides,
        )

    def convert(
        self,
        source: Path,
        out: Path,
        layout: str | None = None,
        branch: str | None = None,
        trust: bool = False,
        to: str | None = None,
    ) -> Command:
        """Convert a checkpoint or a backbone file, to Detectron2's pickle unless told, with its manifest."""
        words = [self.python, str(self.folder / "convert.py"), str(source), str(out)]
        words += ["--source", layout] if layout else []
        words += ["--branch", branch] if branch else []
        words += ["--trust-checkpoint"] if trust else []
        words += ["--to", to] if to else []
        return tuple(words)

    def evaluate(
        self,
        kind: str,
        config: Path,
        overlay: Path | None,
        weights: Path,
        name: str,
        epochs: int | None,
        out: Path,
        images: Path,
        overrides: list[str],
    ) -> Command:
        """Evaluate a backbone (`linear` or `knn`) into `out`; what is there already is continued."""
        python, script, *rest = self._tool("evaluate", config, overlay)
        return (
            *(python, script, kind, *rest),
            *("--weights", str(weights), "--name", name),
            *(("--pretrain-epochs", str(epochs)) if epochs else ()),
            *("--data", str(images)),
            *("--resume", "--output", str(out)),
            *overrides,
        )

    def transfer(
        self,
        config: Path,
        overlay: Path | None,
        weights: str,
        seed: int,
        out: Path,
        detection: Path,
        overrides: list[str],
        lr: tuple[str, ...] = (),
    ) -> Command:
        """Fine-tune and evaluate one trial into `out`; what is there already is continued.

        Args:
            lr: words about the learning rate's search: a point of it, or a trial at what it chose.
        """
        return (
            *self._tool("transfer", config, overlay),
            *("--weights", weights, "--seed", str(seed), *lr),
            *("--resume", "--output", str(out)),
            *("TRANSFER.DATA_ROOT", str(detection)),
            *overrides,
        )

    def choose(self, points: list[Path], row: str, task: str, metric: str, grid: list[float], out: Path) -> Command:
        """Choose the learning rate among a search's points and record it in `out`."""
        return (
            *(self.python, str(self.folder / "lr_search.py"), "choose"),
            *(str(point) for point in points),
            *("--row", row, "--task", task, "--metric", metric),
            *("--grid", *(repr(lr) for lr in grid)),
            *("--output", str(out)),
        )

    def table(self, run_dir: Path, form: str, out: Path) -> Command:
        """Write the table of a run folder in one format."""
        return (self.python, str(self.folder / "table.py"), str(run_dir), "--format", form, "--output", str(out))

    def _tool(self, name: str, config: Path, overlay: Path | None) -> Command:
        overlaid = ("--overlay", str(overlay)) if overlay else ()
        return (self.python, str(self.folder / f"{name}.py"), "--config-file", str(config), *overlaid)
