"""Public checkpoints by name (`zoo:NAME`): where they lie, what they are, and the same bytes ever after."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from common.config import load_yaml
from common.environment import ROOT
from common.errors import UserError, nearest
from common.files import md5_of, read_json, sha256_of, write_json
from transfer.weights.download import Report, download

PREFIX = "zoo:"
FOLDER_VARIABLE = "SSL_TRANSFER_ZOO"
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Entry:
    """A public checkpoint.

    Attributes:
        name: what stands after `zoo:`.
        title: method, epochs, batch.
        url: where its authors published it, or `unknown`.
        layout: the reader that takes it.
        branch: the encoder to take.
        licence: of the weights, as their repository states it.
        source: where URL and numbers are published.
        published: metric → number, as published.
        sha256: of the file where published, else `unknown`.
        sha256_prefix: its first digits, where only those are published.
        md5_prefix: the same of its MD5.
    """

    name: str
    title: str
    url: str
    layout: str
    branch: str
    licence: str
    source: str
    published: Mapping[str, Any] = field(default_factory=dict)
    sha256: str = UNKNOWN
    sha256_prefix: str = ""
    md5_prefix: str = ""

    @property
    def file(self) -> Path:
        """Where the downloaded file lies."""
        return folder() / f"{self.name}-{self.url.rsplit('/', 1)[-1]}"

    @property
    def record(self) -> Path:
        """Where its digest was written down at first use. It outlives the file."""
        return folder() / f"{self.name}.json"


def folder() -> Path:
    """Where downloads lie: $SSL_TRANSFER_ZOO, else .cache/zoo in the checkout."""
    return Path(os.environ.get(FOLDER_VARIABLE) or ROOT / ".cache" / "zoo")


def entries(path: str | Path | None = None) -> dict[str, Entry]:
    """Every checkpoint of configs/zoo.yaml (or another such file) by name.

    Raises:
        UserError: an entry has a key that is unknown or lacks one it needs.
    """
    where = Path(path) if path else ROOT / "configs" / "zoo.yaml"
    return {name: _entry(name, values, where) for name, values in load_yaml(where).items()}


def _entry(name: str, values: Any, where: Path) -> Entry:
    known = [item.name for item in fields(Entry) if item.name != "name"]
    needed = ("title", "url", "layout", "branch", "licence", "source")
    if not isinstance(values, dict):
        raise UserError(f"{where}: {name} must hold keys and values")
    for key in values:
        if key not in known:
            raise UserError(f"{where}: {name} has an unknown key {key!r}; {nearest(str(key), known)}")
    missing = [key for key in needed if key not in values]
    if missing:
        raise UserError(f"{where}: {name} lacks {', '.join(missing)}")
    return Entry(name=name, **values)


def find(weights: str, path: str | Path | None = None) -> Entry | None:
    """The entry that `zoo:NAME` means; None when the text is a path.

    Raises:
        UserError: no entry has that name.
    """
    if not weights.startswith(PREFIX):
        return None
    name, known = weights.removeprefix(PREFIX), entries(path)
    if name not in known:
        raise UserError(f"{weights}: no such checkpoint in configs/zoo.yaml; {nearest(name, known)}")
    return known[name]


def fetched(entry: Entry) -> Path:
    """The downloaded file, checked; never touches the network, so that compute nodes can call it.

    Raises:
        UserError: it has not been downloaded, or is no longer what was first used.
    """
    if not entry.file.exists():
        raise UserError(
            f"{PREFIX}{entry.name} is not downloaded to {folder()}; where there is a network, run: "
            f"python tools/convert.py --inspect {PREFIX}{entry.name}"
        )
    _check(entry, entry.file)
    return entry.file


def fetch(entry: Entry, report: Report | None = None) -> Path:
    """The file, downloaded if need be, and checked against what is published and what was first used.

    Raises:
        UserError: the URL is unknown, the download fails, or the bytes are not the right ones (nothing is kept then).
    """
    if not entry.file.exists():
        if entry.url == UNKNOWN:
            raise UserError(f"{PREFIX}{entry.name}: its URL is unknown; put the file at {entry.file}")
        aside = entry.file.with_name(f"{entry.file.name}.unchecked")
        download(entry.url, aside, report)
        try:
            _must_be_a_checkpoint(entry, aside)
            _check(entry, aside)
        except UserError:
            aside.unlink(missing_ok=True)
            raise
        aside.replace(entry.file)
        return entry.file
    return fetched(entry)


def resolve(weights: str, report: Report | None = None, download_allowed: bool = True) -> tuple[str, Entry | None]:
    """A weights argument as a path, and the zoo's entry if it named one.

    Args:
        weights: `zoo:NAME` or a path.
        report: progress of a download.
        download_allowed: False on compute nodes.
    """
    entry = find(weights)
    if entry is None:
        return weights, None
    return str(fetch(entry, report) if download_allowed else fetched(entry)), entry


def _must_be_a_checkpoint(entry: Entry, file: Path) -> None:
    """A server that announces too short a length sends a part that looks whole: nothing of it may be written down."""
    from transfer.weights import containers

    try:
        containers.load(file)
    except UserError as error:
        raise UserError(f"what {entry.url} sent is no whole checkpoint: {error}") from error


def _check(entry: Entry, file: Path) -> None:
    """Published digests first, then the one written down at first use; at first use it is written down."""
    digest = sha256_of(file)
    wanted = None if entry.sha256 == UNKNOWN else entry.sha256
    if (wanted and digest != wanted) or not digest.startswith(entry.sha256_prefix):
        published = wanted or f"{entry.sha256_prefix}…"
        raise UserError(f"{file} has sha256 {digest}, published is {published}; fetch it again")
    if entry.md5_prefix and not (md5 := md5_of(file)).startswith(entry.md5_prefix):
        raise UserError(f"{file} has MD5 {md5}, published is {entry.md5_prefix}…; fetch it again")
    if entry.record.exists():
        first = read_json(entry.record)
        if not isinstance(first, dict) or first.get("sha256") != digest:
            raise UserError(
                f"{file} has sha256 {digest}, not the one written down at first use in {entry.record}: the file was "
                "replaced; results made with it are not comparable. Remove the record to accept the new file"
            )
        return
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    size = file.stat().st_size
    write_json(entry.record, {"name": entry.name, "url": entry.url, "sha256": digest, "bytes": size, "first_used": now})
