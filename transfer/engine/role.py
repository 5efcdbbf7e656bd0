"""What a trial is for: to be reported, perhaps at an lr that was searched, or to be a point of such a search."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from common.errors import UserError, nearest
from transfer.engine.config import LR_SEARCH, ROLES, SELECT_ON, TRIAL, Loaded
from transfer.search.record import Recorded, read_recorded

LR = "SOLVER.BASE_LR"


def settle_role(loaded: Loaded, role: str, select_on: str | None, lr_from: Path | None) -> Recorded | None:
    """Write role and selection into the config; read the recorded choice where one is asked for.

    Args:
        loaded: the config, changed in place.
        role: `trial` or `lr_search`.
        select_on: `test` or `heldout` for a point of a search; None for a trial.
        lr_from: the record whose lr a trial takes.

    Raises:
        UserError: the options contradict one another or the config, or the record cannot be used.
    """
    for key, option in (("TRANSFER.ROLE", "--role"), ("TRANSFER.SELECT_ON", "--select-on")):
        if key in loaded.set_keys:
            raise UserError(f"{loaded.set_keys[key]}: {key}: say {option} on the command line instead")
    if role not in ROLES:
        raise UserError(f"--role {role}: {nearest(role, ROLES)}")
    if role == TRIAL and select_on is not None:
        raise UserError(
            f"--select-on {select_on}: a reported trial is measured on its test split; add --role lr_search"
        )
    if role == LR_SEARCH and select_on not in SELECT_ON:
        asked = "is missing" if select_on is None else f"{select_on}: {nearest(select_on, SELECT_ON)}"
        raise UserError(f"--select-on {asked}; say what the lr is chosen on: test, as the paper did, or heldout")
    loaded.cfg.TRANSFER.ROLE, loaded.cfg.TRANSFER.SELECT_ON = role, select_on or ""
    if lr_from is None:
        return None
    if role == LR_SEARCH:
        raise UserError("--lr-from: a point of a search has the lr of its grid; leave it out, or --role lr_search")
    if loaded.set_keys.get(LR) == "command line":
        raise UserError(f"--lr-from and {LR} on the command line both give the lr; leave one out")
    return read_recorded(lr_from)


def settle_lr(cfg: CfgNode, recorded: Recorded | None, weights_sha256: str | None) -> dict[str, Any]:
    """Take the recorded lr over, after batch and schedule are settled, and tell the result of all this.

    Returns:
        `{"role": …, "select_on": …}` for a point, `{"lr_search": …}` for a trial at a searched lr, else nothing.

    Raises:
        UserError: the search was made for another kind of trial.
    """
    own = cfg.TRANSFER
    if own.ROLE == LR_SEARCH:
        return {"role": LR_SEARCH, "select_on": own.SELECT_ON}
    if recorded is None:
        return {}
    recorded.check(own.TASK, cfg.SEED, cfg.SOLVER.IMS_PER_BATCH, weights_sha256, bool(own.TOY))
    cfg.SOLVER.BASE_LR = recorded.lr
    return {"lr_search": recorded.as_dict()}
