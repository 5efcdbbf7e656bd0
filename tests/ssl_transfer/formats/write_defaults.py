"""Write ssl_transfer/formats/defaults.json from the code: `python tests/ssl_transfer/formats/write_defaults.py`.

A default that changed, a renamed and a removed key are recorded beside today's, so that earlier fingerprints hold.
Of a removed key edit its value in `removed` where today's code does not act as its last default did.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from ssl_transfer.config import NO_CHANGES, KeyChanges, dotted_keys, value_of
from ssl_transfer.formats.defaults import DEFAULTS_FILE, plain_value

Table = dict[str, dict[str, Any]]


def code() -> dict[str, tuple[dict[str, Any], KeyChanges]]:
    """Each stage's defaults and changed keys, as the code has them now."""
    import pretrain.evaluation.config
    import pretrain.keys
    import transfer.engine.config

    stages = {
        "pretrain": (pretrain.keys.defaults(), pretrain.keys.KEY_CHANGES),
        "evaluate": (pretrain.evaluation.config.defaults(), NO_CHANGES),
        "transfer": (transfer.engine.config.defaults(), transfer.engine.config.KEY_CHANGES),
    }
    return {
        stage: ({key: json_value(value_of(cfg, key)) for key in dotted_keys(cfg)}, changes)
        for stage, (cfg, changes) in stages.items()
    }


def json_value(value: Any) -> Any:
    """Floats stay floats: a default's type says how text is read."""
    return value if isinstance(value, float) else plain_value(value)


def updated(table: Table, defaults: dict[str, Any], changes: KeyChanges) -> Table:
    """The table after the code's defaults and names have changed."""
    old = {**table["defaults"], **table["removed"]}
    former = {new: name for name, new in changes.renamed.items()}
    first, names = {}, {}
    for key, value in defaults.items():
        was = key if key in old else former.get(key, key)
        if was in table["names"] or was != key:
            names[key] = [*table["names"].get(was, []), *([was] if was != key else [])]
        began = table["first"].get(was, old.get(was, value))
        if plain_value(began) != plain_value(value):
            first[key] = began
    kept = {*defaults, *(name for all_names in names.values() for name in all_names)}
    removed = {key: value for key, value in old.items() if key not in kept}
    return {"defaults": defaults, "first": first, "names": names, "removed": removed}


def tables() -> dict[str, Table]:
    """The file as it should be."""
    blank: Table = {"defaults": {}, "first": {}, "names": {}, "removed": {}}
    now = json.loads(DEFAULTS_FILE.read_text()) if DEFAULTS_FILE.exists() else {}
    return {stage: updated(now.get(stage, blank), *found) for stage, found in code().items()}


if __name__ == "__main__":
    DEFAULTS_FILE.write_text(json.dumps(tables(), indent=1, sort_keys=True) + "\n")
