"""What decides a job's result, as a fingerprint: resolved settings of its config files, and digests of weights."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ssl_transfer.config import (
    flatten,
    is_within,
    load_with_sources,
    load_yaml,
    merge_dict,
    overlay_section,
    transfer_sections,
)
from ssl_transfer.errors import UserError
from ssl_transfer.files import expect_shape, read_json_object, sha256_of, write_json
from ssl_transfer.formats.defaults import SCHEMA, check_keys, decisive_settings, first_name
from ssl_transfer.formats.graph import GRAPH_FILE, GraphFile, GraphJob
from ssl_transfer.formats.run_only import is_run_only, was_run_only
from ssl_transfer.formats.shards import INDEX_SUFFIX, index_digest

VERSION = 1
"""Increased only if the fingerprint's ingredients change; then everything runs again."""

RECORDS = {"pretrain": "config.yaml", "evaluate": "evaluation.json", "transfer": "trial.json"}
"""The file in a stage's folder that records every setting."""
DERIVED_KEYS = (
    *("INPUT.FORMAT", "MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD", "MODEL.RESNETS.STRIDE_IN_1X1"),
    "MODEL.ROI_HEADS.NUM_CLASSES",
)
"""Keys of a recorded trial that follow from its weights and its classes; another value is refused."""
DIGESTS_FILE = "digests.json"
NORM, LR = "MODEL.RESNETS.NORM", "SOLVER.BASE_LR"


@dataclass
class ConfigReader:
    """Reads the config files of one experiment, each once.

    Attributes:
        overlay: the experiment's overlay file.
        run_dir: the run folder, where folders of earlier fingerprints may be; None: there is none.
    """

    overlay: Path | None = None
    run_dir: Path | None = None
    _merged: dict[tuple[Path, str], dict[str, Any]] = field(default_factory=dict)
    _folders: dict[str, set[str]] | None = None

    def resolved(self, config: Path, section: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
        """All settings of config file, `_BASE_` chain, overlay and overrides, as `{A.B.C: value}`.

        Comments, the order of keys, and which file sets a key do not affect it.

        Raises:
            UserError: a file is missing or is not YAML, or a key is unknown or has a value of another type.
        """
        if (config, section) not in self._merged:
            merged, sources = load_with_sources(config)
            if self.overlay is not None:
                for part in transfer_sections(merged, section):
                    merge_dict(merged, overlay_section(self.overlay, part, sources))
            self._merged[config, section] = flatten(merged)
            check_keys(section, self._merged[config, section], sources)
        found = dict(self._merged[config, section])
        for key, value in overrides.items():
            found = {name: old for name, old in found.items() if not is_within(name, (key,))}
            found.update(flatten({key: value}))
        check_keys(section, overrides, f"overrides of {config.name}")
        return found

    def fingerprint(
        self, name: str, section: str, written: Mapping[str, Any], data: Path, needs: Sequence[str], **parts: Any
    ) -> str:
        """The fingerprint of a job with settings: of the folder that holds such a job, else the one of a new folder.

        A folder of an earlier release is adopted if its decisive settings are equal; its fingerprint stays.

        Args:
            name: the job's name.
            section: `pretrain`, `evaluate` or `transfer`.
            written: as `resolved` gives it.
            data: the data root.
            needs: fingerprints of the jobs that it reads.
            parts: what else decides its result.
        """
        decisive = decisive_settings(section, written)
        current = fingerprint(schema=SCHEMA, settings=decisive, **parts)
        folders = self._folder_fingerprints(name)
        if not folders or current[:8] in folders:
            return current
        if decisive == decisive_settings(section, written, recorded=True):  # today's defaults are the former ones
            for settings in former_settings(section, written):
                former = fingerprint(settings=settings, **parts)
                if former[:8] in folders:
                    return former
        return self._same_record(name, section, written, str(data), list(needs), parts) or current

    def _folder_fingerprints(self, name: str) -> set[str]:
        """The first 8 digits of the fingerprints of a job's folders."""
        if self._folders is None:
            self._folders = {}
            jobs = self.run_dir / "jobs" if self.run_dir else None
            for entry in os.scandir(jobs) if jobs and jobs.is_dir() else ():
                self._folders.setdefault(entry.name[:-9], set()).add(entry.name[-8:])
        return self._folders.get(name, set())

    def _same_record(
        self, name: str, section: str, written: Mapping[str, Any], data: str, needs: list[str], parts: Mapping[str, Any]
    ) -> str | None:
        """The fingerprint of the last submit's job of that name, if everything that decided its result is equal."""
        job = self._submitted.get(name)
        if self.run_dir is None or job is None:
            return None
        file = self.run_dir / job.dir / RECORDS[section]
        inputs = [self._submitted[need].fingerprint for need in job.needs if need in self._submitted]
        if (job.data, inputs) != (data, needs) or not file.is_file():
            return None
        with contextlib.suppress(UserError), expect_shape(file, "remove it"):  # a damaged record: run it again
            content = read_json_object(file) if file.suffix == ".json" else load_yaml(file)  # maybe one of thousands
            record, mine = _comparable(section, content, written, parts)
            same = decisive_settings(section, record, recorded=True) == decisive_settings(section, mine)
            return job.fingerprint if same else None
        return None

    @cached_property
    def _submitted(self) -> dict[str, GraphJob]:
        """The jobs of the last submit, by name; none if its file is of another format."""
        file = self.run_dir / GRAPH_FILE if self.run_dir else None
        with contextlib.suppress(UserError):
            return {job.name: job for job in GraphFile.read(file).jobs} if file and file.is_file() else {}
        return {}


def _comparable(
    section: str, content: Mapping[str, Any], written: Mapping[str, Any], parts: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings that a stage's folder records, and those that a job would record there, to be compared.

    Args:
        section: `pretrain`, `evaluate` or `transfer`.
        content: of the record.
        written: the settings of the job's files.
        parts: of the job's fingerprint; of a trial its seed and the options of its lr search.
    """
    if section == "pretrain":
        record = flatten(content)
        if "DATA.ROOT" not in written:
            record.pop("DATA.ROOT", None)  # the command line's, compared as the job's data
        return record, dict(written)
    if section == "evaluate":
        read = {key.partition(".")[0] for key in content["config"]}  # the sections that its kind reads
        return dict(content["config"]), {key: value for key, value in written.items() if key.partition(".")[0] in read}
    mine = {**written, "SEED": parts["seed"], "TRANSFER.ROLE": parts.get("role", "trial")}
    mine["TRANSFER.SELECT_ON"] = parts.get("select_on", "")
    if content["processes"] == 1 and mine.get(NORM) == "naiveSyncBN":
        mine[NORM] = "BN"  # the same, and what the trial records
    left_out = (*DERIVED_KEYS, *((LR,) if "lr" in parts else ()))
    record, mine = ({k: v for k, v in values.items() if k not in left_out} for values in (content["settings"], mine))
    return record, mine


def former_settings(section: str, written: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the fingerprints of commit 54cff5b and earlier were made of, with and without run-only keys."""
    named = {first_name(section, key): value for key, value in written.items()}
    kept = {key: value for key, value in named.items() if not was_run_only(section, key)}
    return [kept, {key: value for key, value in kept.items() if not is_run_only(section, key)}]


def fingerprint(**parts: Any) -> str:
    """SHA-256 in hex over what decides a job's result, the same for equal parts."""
    text = json.dumps({"version": VERSION, **parts}, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


class WeightDigests:
    """SHA-256 of weights files, cached by size and modification time in `RUN_DIR/digests.json` once `save` was called.

    Args:
        run_dir: the run folder; it need not exist.
    """

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / DIGESTS_FILE
        self.known: dict[str, list[object]] = read_json_object(self.path) if self.path.exists() else {}

    def of(self, file: Path) -> str:
        """The file's SHA-256; of an index of shards, one over the digests of all its files.

        Raises:
            UserError: it does not exist or cannot be read.
        """
        return index_digest(file, self._of) if file.name.endswith(INDEX_SUFFIX) and file.exists() else self._of(file)

    def _of(self, file: Path) -> str:
        try:
            stat = file.stat()
            mark = [stat.st_size, stat.st_mtime_ns]
            known = self.known.get(str(file))
            if isinstance(known, list) and len(known) == 3 and known[:2] == mark:
                return str(known[2])
            digest = sha256_of(file)
        except OSError as error:
            raise UserError(f"weights {file}: {error.strerror}; give the path of a checkpoint file") from error
        self.known[str(file)] = [*mark, digest]
        return digest

    def save(self) -> None:
        """Write the cache."""
        if self.known:
            write_json(self.path, self.known)
