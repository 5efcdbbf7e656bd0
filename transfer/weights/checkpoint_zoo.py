"""Public checkpoints by name (`zoo:NAME`): download, published digests, and the digest recorded at first use."""

from __future__ import annotations

import os
from datetime import datetime, timezone
from pathlib import Path

from ssl_transfer.environment import DISTRIBUTION, IS_WHEEL, ROOT
from ssl_transfer.errors import UserError, nearest, redact_urls
from ssl_transfer.files import md5_of, sha256_of
from ssl_transfer.formats.zoo import UNKNOWN, Zoo, ZooEntry, ZooRecord
from transfer.weights.download import ProgressCallback, download

PREFIX = "zoo:"
FOLDER_VARIABLE = "SSL_TRANSFER_ZOO"


class ZooCheckpoint(ZooEntry):
    """An entry with its name and its place on this machine."""

    name: str

    @property
    def file(self) -> Path:
        """The path of the downloaded file."""
        return zoo_folder() / f"{self.name}-{self.url.rsplit('/', 1)[-1]}"

    @property
    def record(self) -> Path:
        """The path of the digest that was recorded at first use. It outlives the file."""
        return zoo_folder() / f"{self.name}.json"


def zoo_folder() -> Path:
    """The folder of downloads: $SSL_TRANSFER_ZOO, else .cache/zoo in the checkout, or the user's cache for a wheel."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / DISTRIBUTION
    return Path(os.environ.get(FOLDER_VARIABLE) or (home if IS_WHEEL else ROOT / ".cache") / "zoo")


def read_zoo(path: str | Path | None = None) -> dict[str, ZooCheckpoint]:
    """Every checkpoint of configs/zoo.yaml (or another such file) by name.

    Raises:
        UserError: an entry has an unknown key, or a required one is missing.
    """
    zoo = Zoo.read(path or ROOT / "configs" / "zoo.yaml")
    return {name: ZooCheckpoint(name=name, **dict(entry)) for name, entry in zoo.entries.items()}


def find_entry(weights: str, path: str | Path | None = None) -> ZooCheckpoint | None:
    """The entry of `zoo:NAME`; None if `weights` is a path.

    Raises:
        UserError: no entry has that name.
    """
    if not weights.startswith(PREFIX):
        return None
    name, known = weights.removeprefix(PREFIX), read_zoo(path)
    if name not in known:
        raise UserError(f"{weights}: no such checkpoint in configs/zoo.yaml; {nearest(name, known)}")
    return known[name]


def downloaded_file(entry: ZooCheckpoint) -> Path:
    """The downloaded file, checked; without network, so that compute nodes can call it.

    Raises:
        UserError: it is not downloaded, or its digest is no longer that of the first use.
    """
    if not entry.file.exists():
        raise UserError(
            f"{PREFIX}{entry.name} is not downloaded to {zoo_folder()}; on a machine with a network, run: "
            f"python tools/convert.py --inspect {PREFIX}{entry.name}"
        )
    _check_digests(entry, entry.file)
    return entry.file


def fetch(entry: ZooCheckpoint, progress: ProgressCallback | None = None) -> Path:
    """The file, downloaded if necessary, compared with the published digests and with that of the first use.

    Raises:
        UserError: the URL is unknown, the download fails, or a digest differs (the download is then deleted).
    """
    if entry.file.exists():
        return downloaded_file(entry)
    if entry.url == UNKNOWN:
        raise UserError(f"{PREFIX}{entry.name}: its URL is unknown; put the file at {entry.file}")
    unchecked = entry.file.with_name(f"{entry.file.name}.unchecked")
    download(entry.url, unchecked, progress)
    try:
        check_is_checkpoint(entry.url, unchecked)
        _check_digests(entry, unchecked)
    except UserError:
        unchecked.unlink(missing_ok=True)
        raise
    unchecked.replace(entry.file)
    return entry.file


def check_is_checkpoint(source: str, file: Path) -> None:
    """A server that announces too short a length sends a truncated file as if complete: do not record its digest."""
    from transfer.weights.containers import read_checkpoint

    try:
        read_checkpoint(file)
    except UserError as error:
        raise UserError(f"the file from {source} is not a complete checkpoint: {error}") from error


def _check_digests(entry: ZooCheckpoint, file: Path) -> None:
    """Compare with the published digests, then with the record of the first use, which is written if it is missing."""
    digest = sha256_of(file)
    expected = None if entry.sha256 == UNKNOWN else entry.sha256
    if (expected and digest != expected) or not digest.startswith(entry.sha256_prefix):
        published = expected or f"{entry.sha256_prefix}…"
        raise UserError(f"{file} has sha256 {digest}, published is {published}; download it again")
    if entry.md5_prefix and not (md5 := md5_of(file)).startswith(entry.md5_prefix):
        raise UserError(f"{file} has MD5 {md5}, published is {entry.md5_prefix}…; download it again")
    if not entry.record.exists():
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        size = file.stat().st_size
        ZooRecord(name=entry.name, url=redact_urls(entry.url), sha256=digest, bytes=size, first_used=now).write(
            entry.record
        )
    elif ZooRecord.read(entry.record).sha256 != digest:
        raise UserError(
            f"{file} has sha256 {digest}, not the one recorded at first use in {entry.record}: the file was "
            "replaced, so earlier results do not compare. Remove the record to accept the new file"
        )
