"""Any weights argument of fine-tuning (a path, `zoo:NAME`) as a proven Detectron2 file."""

from __future__ import annotations

from pathlib import Path

from transfer.weights import manifest as manifests
from transfer.weights import zoo
from transfer.weights.download import Report


def as_converted(
    weights: str, folder: str | Path, download_allowed: bool = False, report: Report | None = None
) -> Path:
    """A converted `.pkl` for `read_converted`: the given one, or one made now from a checkpoint of any known layout.

    Args:
        weights: `zoo:NAME`, a converted `.pkl`, or any checkpoint.
        folder: where `weights.pkl` goes if it must be made.
        download_allowed: whether the network may be touched; False on compute nodes.
        report: progress of a download.

    Raises:
        UserError: the zoo has no such name, the file is not there, or it cannot be converted.
    """
    path, entry = zoo.resolve(weights, report, download_allowed)
    if entry is None and Path(path).suffix == ".pkl" and manifests.is_ours(manifests.beside(path)):
        return Path(path)
    from transfer.weights.convert import convert

    out = Path(folder) / "weights.pkl"
    source, branch = (entry.layout, entry.branch) if entry else ("auto", None)
    return convert(path, out, source=source, branch=branch).out
