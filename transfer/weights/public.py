"""What a weights argument names: a path, `zoo:NAME` or `hf-hub:ORG/NAME`; downloads where that is allowed."""

from __future__ import annotations

from pathlib import Path

from ssl_transfer.formats.results import FINAL_CHECKPOINT
from transfer.weights import checkpoint_zoo, hugging_face
from transfer.weights.checkpoint_zoo import ZooCheckpoint
from transfer.weights.download import ProgressCallback
from transfer.weights.hugging_face import HubCheckpoint

PublicCheckpoint = ZooCheckpoint | HubCheckpoint


def is_public(weights: str) -> bool:
    """Whether a weights argument names a public checkpoint, rather than a path."""
    return weights.startswith((checkpoint_zoo.PREFIX, hugging_face.PREFIX))


def find_entry(weights: str) -> PublicCheckpoint | None:
    """The public checkpoint of `zoo:NAME` or `hf-hub:ORG/NAME`; None if `weights` is a path.

    Raises:
        UserError: the zoo has no such name, or the Hub's is not of the form it must have.
    """
    return hugging_face.parse_name(weights) or checkpoint_zoo.find_entry(weights)


def fetch(entry: PublicCheckpoint, progress: ProgressCallback | None = None) -> Path:
    """The file, downloaded if necessary and checked.

    Raises:
        UserError: the download fails, or a digest differs.
    """
    if isinstance(entry, HubCheckpoint):
        return hugging_face.fetch(entry, progress)
    return checkpoint_zoo.fetch(entry, progress)


def checkpoint_file(path: Path) -> Path:
    """The file that a path names; of a folder of a training, the checkpoint at its end."""
    return path / FINAL_CHECKPOINT if path.is_dir() else path


def resolve(
    weights: str, progress: ProgressCallback | None = None, download_allowed: bool = True
) -> tuple[str, PublicCheckpoint | None]:
    """A weights argument as a path, and the public checkpoint if it named one.

    Args:
        weights: `zoo:NAME`, `hf-hub:ORG/NAME`, a path, or the folder of a training that ended.
        progress: called during a download.
        download_allowed: False on compute nodes.
    """
    entry = find_entry(weights)
    if entry is None:
        return str(checkpoint_file(Path(weights))) if Path(weights).is_dir() else weights, None
    if download_allowed:
        return str(fetch(entry, progress)), entry
    if isinstance(entry, HubCheckpoint):
        return str(hugging_face.downloaded_file(entry)), entry
    return str(checkpoint_zoo.downloaded_file(entry)), entry


def resolve_source(
    weights: str,
    source: str = "auto",
    branch: str | None = None,
    prefix: str | None = None,
    progress: ProgressCallback | None = None,
) -> tuple[str, str, str | None]:
    """Path, layout and branch to convert; those of a `zoo:NAME` are the defaults.

    Args:
        weights, progress: see `resolve`.
        source, branch, prefix: see `transfer.convert`.
    """
    path, entry = resolve(weights, progress)
    if entry is None:
        return path, source, branch
    return path, (entry.layout or source) if source == "auto" and prefix is None else source, branch or entry.branch
