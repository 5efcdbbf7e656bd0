"""Checkpoints of the Hugging Face Hub by name (`hf-hub:ORG/NAME[@REVISION][:FILE]`): found in a cache, or downloaded.

The file that a name stands for is recorded at first use with its commit and digest: the Hub's branches move. Plain
HTTPS and the cache's layout are the Hub's own (huggingface.co/docs/hub/api, huggingface_hub's guide "manage cache");
huggingface_hub itself is not used, because it deletes the part of an interrupted download.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from urllib.parse import quote

from ssl_transfer.errors import UserError, abbreviate, nearest, redact_urls
from ssl_transfer.files import describe_unreadable, read_json_object, sha256_of
from ssl_transfer.formats.zoo import HubRecord
from transfer.weights.checkpoint_zoo import check_is_checkpoint, zoo_folder
from transfer.weights.download import ProgressCallback, download

PREFIX = "hf-hub:"
FORM = "hf-hub:ORG/NAME[@REVISION][:FILE]"
FILES = ("model.safetensors", "pytorch_model.bin")
"""Files that a name without one stands for; the first that the repository has."""
CONFIGS = ("config.json", "preprocessor_config.json")
"""Files that may state the weights' preprocessing; they are stored beside the weights."""
_NAME = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?(?::([^\s:@\\]+))?")
_SNAPSHOT = re.compile(r"models--([\w.-]+?)--([\w.-]+)/snapshots/([0-9a-f]{40})/(.+)$")
_COMMIT, _SHA256 = re.compile(r"[0-9a-f]{40}"), re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class HubCheckpoint:
    """A checkpoint of the Hub.

    Attributes:
        repository: `ORG/NAME`.
        revision: a branch, a tag or a commit.
        wanted: the file in the repository; empty for the first of `FILES`.
        layout, branch: None, because the file's content decides.
    """

    repository: str
    revision: str = "main"
    wanted: str = ""
    layout: str | None = None
    branch: None = None

    def __str__(self) -> str:
        revision = "" if self.revision == "main" else f"@{self.revision}"
        return f"{PREFIX}{self.repository}{revision}" + (f":{self.wanted}" if self.wanted else "")

    @property
    def record(self) -> Path:
        """The path of the commit and the digest that were recorded at first use. It outlives the file."""
        name = f"{self.repository}@{self.revision}" + (f"@{self.wanted}" if self.wanted else "")
        return _folder() / f"{name.replace('/', '--')}.json"

    @property
    def file(self) -> Path:
        """The recorded file, else one in the Hub's own cache; the path that it would have if there is none."""
        if self.record.exists():
            recorded = HubRecord.read(self.record)
            return _find_file(self.repository, recorded.commit, recorded.file)
        return next(self._cached(), self.snapshot(self.revision) / (self.wanted or FILES[0]))

    def snapshot(self, commit: str) -> Path:
        """The folder of a commit's downloaded files."""
        return _snapshots(self.repository)[0] / commit

    def _cached(self) -> Iterator[Path]:
        """The wanted file in a cache, at the commit that the revision was when the Hub's library stored it there."""
        own, cached = _snapshots(self.repository)
        reference = cached.parent / "refs" / self.revision
        commit = reference.read_text(errors="replace").strip() if reference.is_file() else self.revision
        has_config = _is_offline() or (cached / commit / CONFIGS[0]).exists()
        for name in ((self.wanted,) if self.wanted else FILES) if _COMMIT.fullmatch(commit) else ():
            places = (own / commit / name, *([cached / commit / name] if has_config else []))
            yield from (place for place in places if place.is_file())


def parse_name(weights: str) -> HubCheckpoint | None:
    """The checkpoint that a weights argument names; None if it is not of the Hub.

    Raises:
        UserError: it is not of the form `hf-hub:ORG/NAME[@REVISION][:FILE]`.
    """
    if not weights.startswith(PREFIX):
        return None
    found = _NAME.fullmatch(weights.removeprefix(PREFIX))
    if found is None or any(part in ("", ".", "..") for text in found.groups("x") for part in text.split("/")):
        raise UserError(f"{weights}: is not of the form {FORM}")
    return HubCheckpoint(found[1], found[2] or "main", found[3] or "")


def _snapshots(repository: str) -> tuple[Path, Path]:
    """The folders with a repository's commits: this project's downloads, and the Hub's own cache."""
    place = f"models--{repository.replace('/', '--')}/snapshots"
    return _folder() / place, _hub_cache() / place


def _find_file(repository: str, commit: str, name: str) -> Path:
    places = [folder / commit / name for folder in _snapshots(repository)]
    return next((place for place in places if place.is_file()), places[0])


def hub_address(path: str | Path) -> str | None:
    """`hf-hub:ORG/NAME@COMMIT:FILE` of a file in the layout of the Hub's cache; None for any other file."""
    found = _SNAPSHOT.search(Path(path).as_posix())
    return f"{PREFIX}{found[1]}/{found[2]}@{found[3]}:{found[4]}" if found else None


def downloaded_file(entry: HubCheckpoint) -> Path:
    """The file, checked; without network, so that compute nodes can call it.

    Raises:
        UserError: it is in no cache, or its digest is not that of the first use.
    """
    file = entry.file
    if not file.exists():
        where = f"it is neither in {_folder()} nor in {_hub_cache()}"
        raise UserError(
            f"{entry} is not downloaded: {where}; on a machine with a network, run: "
            f"python tools/convert.py --inspect {entry}"
        )
    digest, blob = sha256_of(file), file.resolve().name
    if _SHA256.fullmatch(blob) and digest != blob:  # the cache names large files by their digest
        raise UserError(
            f"{file} has sha256 {digest}, its cache names it {blob}: it is damaged; delete {file.resolve()}"
        )
    _check_record(entry, file, digest)
    return file


def fetch(entry: HubCheckpoint, progress: ProgressCallback | None = None) -> Path:
    """The file, from a cache or downloaded, compared with the Hub's digest and with that of the first use.

    Raises:
        UserError: the Hub has no such file or refuses, the download fails, or a digest differs (the download is then
            deleted).
    """
    if entry.file.exists():
        return downloaded_file(entry)
    if _is_offline():
        raise UserError(f"{entry} is neither in {_folder()} nor in {_hub_cache()}, and HF_HUB_OFFLINE is set; unset it")
    commit, files = _query_files(entry)
    name = _choose_file(entry, files)
    folder = entry.snapshot(commit)
    for config in CONFIGS:
        if config in files and not (folder / config).exists():
            _download(entry, commit, config, folder / config)
    if (folder / name).is_file():  # under another name, such as its commit's
        _check_record(entry, folder / name, sha256_of(folder / name))
        return folder / name
    unchecked = folder / f"{name}.unchecked"
    _download(entry, commit, name, unchecked, progress)
    try:
        digest = sha256_of(unchecked)
        if files[name] not in ("", digest):
            raise UserError(f"{entry}: {name} has sha256 {digest}, the Hub states {files[name]}; download it again")
        check_is_checkpoint(str(entry), unchecked)
        _check_record(entry, folder / name, digest, unchecked.stat().st_size)
    except UserError:
        unchecked.unlink(missing_ok=True)
        raise
    unchecked.replace(folder / name)
    return folder / name


def _check_record(entry: HubCheckpoint, file: Path, digest: str, size: int | None = None) -> None:
    """Compare commit and digest with the record of the first use, which is written if it is missing."""
    address = hub_address(file)
    commit, _, name = str(address).rpartition("@")[2].partition(":")
    if not entry.record.exists():
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        size = file.stat().st_size if size is None else size
        url = redact_urls(_url(entry, commit, name))
        record = {"commit": commit, "file": name, "sha256": digest, "bytes": size, "first_used": now}
        HubRecord.parse({"name": str(entry), "url": url, **record}, entry.record).write(entry.record)
    elif HubRecord.read(entry.record).sha256 != digest:
        raise UserError(
            f"{address} has sha256 {digest}, not the one recorded at first use in {entry.record}: the file was "
            "replaced, so earlier results do not compare. Remove the record to accept the new file"
        )


def _query_files(entry: HubCheckpoint) -> tuple[str, dict[str, str]]:
    """The commit of the revision (or the recorded one), and its files' SHA-256 by name; empty where none is stated."""
    revision = HubRecord.read(entry.record).commit if entry.record.exists() else entry.revision
    url = f"{_endpoint()}/api/models/{entry.repository}/revision/{quote(revision, safe='')}?blobs=true"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model_info.json"
        download(url, file, headers=_authorization(), hint=_HINT.format(entry=entry))
        try:
            info = read_json_object(file)
        except UserError as error:
            raise UserError(f"{redact_urls(url)}: the answer is not JSON; is HF_ENDPOINT a Hub?") from error
    commit, siblings = str(info.get("sha")), info.get("siblings")
    if not _COMMIT.fullmatch(commit) or (_COMMIT.fullmatch(revision) and revision != commit):
        raise UserError(f"{redact_urls(url)}: states commit {commit!r} for {revision}; is HF_ENDPOINT a Hub?")
    files = {}
    for one in siblings if isinstance(siblings, list) else []:
        if isinstance(one, Mapping) and isinstance(one.get("rfilename"), str):
            stored = one.get("lfs")
            files[one["rfilename"]] = str(stored.get("sha256", "")) if isinstance(stored, Mapping) else ""
    return commit, files


def _choose_file(entry: HubCheckpoint, files: Mapping[str, str]) -> str:
    if entry.wanted:
        if entry.wanted in files:
            return entry.wanted
        raise UserError(f"{entry}: the repository has no such file; {nearest(entry.wanted, files)}")
    name = next((name for name in FILES if name in files), None)
    if name is None:
        weights = [name for name in files if re.search(r"\.(safetensors|bin|pth|pt|ckpt|pkl|npz|tar)$", name)]
        named = f"name one of its files, {entry}:FILE: {abbreviate(weights)}" if weights else "it has no weights"
        raise UserError(f"{entry}: the repository has neither {' nor '.join(FILES)}; {named}")
    return name


_HINT = "does {entry} exist? A private or gated repository needs access and HF_TOKEN"


def _download(
    entry: HubCheckpoint, commit: str, name: str, target: Path, progress: ProgressCallback | None = None
) -> None:
    url = _url(entry, commit, name)
    download(url, target, progress, headers=_authorization(), hint=_HINT.format(entry=entry))


def _url(entry: HubCheckpoint, commit: str, name: str) -> str:
    return f"{_endpoint()}/{entry.repository}/resolve/{commit}/{quote(name)}"


def _endpoint() -> str:
    endpoint = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    if not re.fullmatch(r"https?://[!-~]+", endpoint):
        raise UserError(f"HF_ENDPOINT is {redact_urls(endpoint)!r}: it must begin with https://; correct or unset it")
    return endpoint


def _home() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("HF_HOME") or f"{cache}/huggingface").expanduser()


def _hub_cache() -> Path:
    return Path(os.environ.get("HF_HUB_CACHE") or _home() / "hub").expanduser()


def _folder() -> Path:
    """The folder of downloads. The Hub's own cache is read, never written."""
    return zoo_folder() / "hf-hub"


def _is_offline() -> bool:
    return (os.environ.get("HF_HUB_OFFLINE") or "").upper() in ("1", "ON", "YES", "TRUE")


def _authorization() -> dict[str, str]:
    """The header with the user's token: $HF_TOKEN, or the file that `hf auth login` writes."""
    file = Path(os.environ.get("HF_TOKEN_PATH") or _home() / "token").expanduser()
    where, token = "HF_TOKEN", os.environ.get("HF_TOKEN", "").strip()
    if not token and file.is_file():
        try:
            where, token = str(file), file.read_text(errors="replace").strip()
        except OSError as error:
            raise UserError(f"{describe_unreadable(file, error)}; set HF_TOKEN") from error
    if not re.fullmatch(r"[!-~]*", token):
        raise UserError(f"{where} holds no token: a token is one word of ASCII characters; set HF_TOKEN")
    return {"Authorization": f"Bearer {token}"} if token else {}
