"""What holds on one cluster, whatever the experiment: a small file of the user's."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import Field, ValidationError

from common.config import load_yaml
from common.errors import UserError
from transfer.experiment.costs import Entry
from transfer.experiment.load import explain
from transfer.experiment.resources import Stages, Strict


class Site(Strict):
    """The file.

    Attributes:
        resources: of all experiments on this cluster, under what the experiment itself says.
        seconds: what a step takes here, for `plan`, as in configs/seconds.yaml.
    """

    resources: Stages = Field(default_factory=Stages)
    seconds: list[Entry] = Field(default_factory=list)


def site_file() -> Path:
    """`$XDG_CONFIG_HOME/ssl-detection-transfer/site.yaml`, by default below `~/.config`."""
    home = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(home).expanduser() / "ssl-detection-transfer" / "site.yaml"


def read_site(path: Path | None = None) -> Site:
    """The user's site file; an empty site where there is none.

    Raises:
        UserError: it is not YAML, or holds an unknown key or a wrong value.
    """
    file = path or site_file()
    if not file.exists():
        return Site()
    content = load_yaml(file)
    try:
        return Site.model_validate(content)
    except ValidationError as error:
        raise UserError(explain(error, str(file), file.read_text(encoding="utf-8"), (), Site)) from error
