"""BYOL's PyTorch ports: lucidrains/byol-pytorch, sthalles/PyTorch-BYOL and those that name an `online_network`."""

from __future__ import annotations

from dataclasses import replace

from transfer.weights.containers import Content
from transfer.weights.match import Match, PrefixLayout
from transfer.weights.names import from_children

NAME, TITLE = "byol", "BYOL (PyTorch ports)"
_ONLINE = ("online_network.encoder.", "online_encoder.net.", "net.")
_TARGET = ("target_network.encoder.", "target_encoder.net.")
_WRAPPERS = ("", "module.", "learner.")


def _wrapped(prefixes: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(wrapper + prefix for wrapper in _WRAPPERS for prefix in prefixes)


def _heads(kinds: dict[str, str]) -> dict[str, str]:
    return {wrapper + prefix: why for wrapper in _WRAPPERS for prefix, why in kinds.items()}


ONE_DICT = PrefixLayout(
    name=NAME,
    title=TITLE,
    containers=((), ("state_dict",), ("model",)),
    online=_wrapped(_ONLINE),
    target=_wrapped(_TARGET),
    needs=_wrapped(("online_",)),
    heads=_heads(
        {
            "online_encoder.projector": "projector",
            "target_encoder.projector": "projector of the momentum branch",
            "online_network.proje": "projector",
            "target_network.proje": "projector of the momentum branch",
            "online_predictor": "predictor",
            "predictor": "predictor",
        }
    ),
    rename=from_children,
)
TWO_DICTS = {
    branch: PrefixLayout(
        NAME,
        TITLE,
        ((f"{network}_network_state_dict",),),
        ("encoder.",),
        heads={"proje": "projector"},
        rename=from_children,
    )
    for branch, network in (("online", "online"), ("target", "target"))
}


class Byol:
    """Two networks in one state dict (where `net.` and `online_encoder.net.` are the same tensors), or in one each."""

    name = NAME
    title = TITLE

    def match(self, content: Content) -> Match | None:
        """See `match.Layout`."""
        two = {branch: layout.match(content) for branch, layout in TWO_DICTS.items()}
        online, target = two["online"], two["target"]
        if online is None:
            return ONE_DICT.match(content)
        if target is None:
            return online
        branches = {**online.branches, "target": target.branches["online"]}
        return replace(online, branches=branches, rule=f"{online.rule}; {target.rule}")

    def expects(self) -> str:
        """See `match.Layout`."""
        return f"{', '.join(f'{p}*' for p in _ONLINE)} or online_network_state_dict"


LAYOUT = Byol()
