"""BYOL's PyTorch ports: lucidrains/byol-pytorch, sthalles/PyTorch-BYOL and others with an `online_network`."""

from __future__ import annotations

from dataclasses import replace

from transfer.weights.containers import CheckpointFile
from transfer.weights.match import Match, PrefixLayout
from transfer.weights.tensor_names import from_children

NAME, TITLE = "byol", "BYOL (PyTorch ports)"
_ONLINE = ("online_network.encoder.", "online_encoder.net.", "net.")
_TARGET = ("target_network.encoder.", "target_encoder.net.")
_HEADS = {
    "online_encoder.projector": "projector",
    "target_encoder.projector": "projector of the momentum branch",
    "online_network.proje": "projector",
    "target_network.proje": "projector of the momentum branch",
    "online_predictor": "predictor",
    "predictor": "predictor",
}
_WRAPPERS = ("", "module.", "learner.")


def _wrapped(prefixes: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(wrapper + prefix for wrapper in _WRAPPERS for prefix in prefixes)


ONE_DICT = PrefixLayout(
    name=NAME,
    title=TITLE,
    containers=((), ("state_dict",), ("model",)),
    online=_wrapped(_ONLINE),
    target=_wrapped(_TARGET),
    needs=_wrapped(("online_",)),
    heads={wrapper + prefix: why for wrapper in _WRAPPERS for prefix, why in _HEADS.items()},
    rename=from_children,
)
TWO_DICTS = {
    branch: PrefixLayout(
        name=NAME,
        title=TITLE,
        containers=((f"{branch}_network_state_dict",),),
        online=("encoder.",),
        heads={"proje": "projector"},
        rename=from_children,
    )
    for branch in ("online", "target")
}


class Byol:
    """Two networks in one state dict (where `net.` and `online_encoder.net.` are the same tensors), or in two."""

    name = NAME
    title = TITLE

    def match(self, checkpoint: CheckpointFile) -> Match | None:
        online, target = (TWO_DICTS[branch].match(checkpoint) for branch in ("online", "target"))
        if online is None:
            return ONE_DICT.match(checkpoint)
        if target is None:
            return online
        branches = {**online.branches, "target": target.branches["online"]}
        return replace(online, branches=branches, rule=f"{online.rule}; {target.rule}")

    def describe(self) -> str:
        return f"{', '.join(f'{p}*' for p in _ONLINE)} or online_network_state_dict"


LAYOUT = Byol()
