"""The index of a checkpoint in shards, as transformers writes it: `model.safetensors.index.json`."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ssl_transfer.errors import UserError, abbreviate

INDEX_SUFFIX = ".index.json"


def read_shard_index(path: Path) -> tuple[dict[str, str], list[Path]]:
    """The file name of each tensor's shard, and the shards' paths.

    Raises:
        UserError: the file is no such index, names something twice, or a shard is not beside it.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        doubled = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
        if doubled:
            raise UserError(f"{path} names {abbreviate(doubled)} twice; download it again")
        return dict(pairs)

    try:
        places = json.loads(path.read_text(), object_pairs_hook=once)["weight_map"]
        shards = [path.with_name(name) for name in sorted(set(places.values())) if Path(name).name == name]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is not an index of shards (no weight_map of file names); download it again") from error
    for shard in shards:
        if not shard.is_file():
            raise UserError(f"{path} names the shard {shard.name}, which is not beside it; download it as well")
    return places, shards


def index_digest(path: Path, digest_of: Callable[[Path], str]) -> str:
    """SHA-256 of the digests (hex, one after another) of the index and its shards, in the order of their names."""
    files = [path, *read_shard_index(path)[1]]
    return hashlib.sha256("".join(digest_of(file) for file in files).encode()).hexdigest()
