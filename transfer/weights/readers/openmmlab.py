"""OpenSelfSup, MMSelfSup and MMPretrain: `backbone.`, with necks, heads and momentum copies of several names."""

from __future__ import annotations

from dataclasses import replace

import torch

from ssl_transfer.errors import UserError
from ssl_transfer.formats.backbone import TORCHVISION, Preprocessing
from transfer.weights.containers import CheckpointFile
from transfer.weights.match import Match, PrefixLayout, Tensors
from transfer.weights.readers.openmmlab_config import parse_config, read_preprocessing

_PREFIXES = PrefixLayout(
    name="openmmlab",
    title="OpenSelfSup, MMSelfSup, MMPretrain, MMDetection",
    online=("backbone.",),
    target=(
        "target_backbone.",
        "target_net.0.",
        "target_net.module.0.",
        "encoder_k.0.",
        "encoder_k.module.0.",
        "momentum_encoder.module.0.",
    ),
    heads={
        "online_net.0.": "the backbone once more",
        "encoder_q.0.": "the backbone once more",
        "online_net.": "projector",
        "encoder_q.": "projector",
        "neck.": "projector, or the neck of a detector",
        "target_net.1.": "projector of the momentum branch",
        "target_net.module.1.": "projector of the momentum branch",
        "target_neck.": "projector of the momentum branch",
        "encoder_k.1.": "projector of the momentum branch",
        "encoder_k.module.1.": "projector of the momentum branch",
        "momentum_encoder.module.1.": "projector of the momentum branch",
        "head.": "head",
        "queue": "queue",
        "data_preprocessor.": "preprocessing constants",
    },
)
_ALSO = ("neck.", "head.", "data_preprocessor.", "online_net.", "encoder_q.", "target_backbone.")
"""Recognises the family in a file without its `meta`."""

_DETECTOR = ("rpn_head.", "roi_head.", "bbox_head.", "mask_head.", "panoptic_head.")
"""Heads of MMDetection's models."""
ASSUMED = (
    "the file has no config in its meta: torchvision's preprocessing is assumed (RGB, stride on the 3×3). "
    "MMDetection's caffe style is another (BGR, std 1, stride on the 1×1)"
)


class OpenMMLab:
    """Recognised by `meta` or `author` beside the state dict, or by the family's names in it."""

    name = _PREFIXES.name
    title = _PREFIXES.title

    def match(self, checkpoint: CheckpointFile) -> Match | None:
        """Recognise the layout.

        Raises:
            UserError: the file's own preprocessing is of no kind that a block can state.
        """
        tensors = checkpoint.tensors("state_dict")
        top = checkpoint.at() or {}
        if not {"meta", "author"} & top.keys() and not any(name.startswith(_ALSO) for name in tensors):
            return None
        match = _PREFIXES.match(checkpoint)
        return None if match is None else apply_config(checkpoint, match)

    def describe(self) -> str:
        return f"{_PREFIXES.describe()}, with meta or author beside it or {', '.join(f'{a}*' for a in _ALSO[:3])} in it"


def apply_config(checkpoint: CheckpointFile, match: Match) -> Match:
    """The match with the preprocessing that the training's config, kept in `meta`, states.

    Raises:
        UserError: it is of no kind that a block can state, or the file's own constants are others.
    """
    meta = checkpoint.at("meta") or {}
    block = read_preprocessing(meta, checkpoint.path)
    _check_constants(checkpoint.tensors("state_dict"), block or TORCHVISION, checkpoint.path)
    texts = [text for text in (meta.get("cfg"), meta.get("config")) if isinstance(text, str) and "backbone" in text]
    if any(parse_config(text) is None for text in texts):
        unread = (
            "the config in meta is not Python, JSON or YAML that can be read: torchvision's preprocessing is assumed"
        )
        match = replace(match, warnings=(*match.warnings, unread))
    if block is None:
        state = checkpoint.tensors("state_dict")
        is_detector = any(name.startswith(_DETECTOR) for name in state)
        return replace(match, warnings=(*match.warnings, ASSUMED)) if is_detector and not texts else match
    return replace(match, preprocessing=block, rule=f"{match.rule}; preprocessing: the config in meta")


def _check_constants(tensors: Tensors, block: Preprocessing, path: str) -> None:
    for key, wanted in (("mean", block.mean), ("std", block.std)):
        stored = tensors.get(f"data_preprocessor.{key}")
        if stored is None:
            continue
        flat = stored.flatten().to(torch.float64) if stored.numel() == 3 else torch.zeros(0, dtype=torch.float64)
        if flat.numel() != 3 or not torch.allclose(flat, torch.tensor(wanted, dtype=torch.float64), atol=1e-2):
            known = "torchvision's" if block is TORCHVISION else "that of the config in its meta"
            raise UserError(
                f"{path}: data_preprocessor.{key} is {[round(v, 3) for v in flat.tolist()]}, not {known} "
                f"{list(wanted)}: the order of its channels is not known; no option converts it"
            )


LAYOUT = OpenMMLab()
