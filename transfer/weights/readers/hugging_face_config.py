"""What the `config.json` beside a file says (timm's, transformers'): the preprocessing, and nets of another kind.

Some nets have the same tensors as a ResNet-50 and compute something else; only their config tells them apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ssl_transfer.errors import UserError
from ssl_transfer.files import read_json_object
from transfer.weights.containers import CheckpointFile
from transfer.weights.hugging_face import hub_address
from transfer.weights.match import Match
from transfer.weights.readers.openmmlab_config import is_triple, make_block

LAYOUTS = ("torchvision", "transformers", "detr")
_TIMM = re.compile(r"((tv|ssl|swsl|gluon)_)?resnet(18|34|50|101|152)(_v1b)?")
_OTHER_NETS = ("act_layer", "aa_layer", "output_stride", "avg_down", "replace_stem_pool")
"""timm's arguments that change what a ResNet computes and none of its tensors."""
ASSUMED = "{file} states no mean and std: torchvision's are assumed"
DILATED = "{file}: the detector's last stage was dilated (DC5); here it has a stride"


def apply_config(checkpoint: CheckpointFile, match: Match) -> Match:
    """The match with what the config beside the file states; unchanged where there is no such config.

    Raises:
        UserError: the config describes another net, or one that no block can state.
    """
    file = Path(checkpoint.path).with_name("config.json")
    config = _read(file) if match.layout in LAYOUTS else {}
    is_timm = isinstance(config.get("architecture"), str)
    if not is_timm and not isinstance(config.get("model_type"), str):
        return match
    for reason in _differences(config, is_timm):
        raise UserError(f"{checkpoint.path} is not a plain ResNet: {file} says {reason}; no option converts it")
    warnings = match.warnings + ((DILATED.format(file=file),) if config.get("dilation") is True else ())
    source = file if is_timm else file.with_name("preprocessor_config.json")
    stated = config.get("pretrained_cfg") or config if is_timm else _read(source)
    stated = stated if isinstance(stated, Mapping) else {}
    mean, std = (stated.get(key) for key in (("mean", "std") if is_timm else ("image_mean", "image_std")))
    if not is_timm and stated.get("do_normalize") is False:
        mean, std = [0.0] * 3, [1.0] * 3
    stride = config.get("downsample_in_bottleneck") is True
    if not is_triple(mean) or not is_triple(std):
        block = match.preprocessing.model_copy(update={"stride_in_1x1": stride})
        return replace(match, preprocessing=block, warnings=(*warnings, ASSUMED.format(file=source)))
    mean, std = [value * 255 for value in mean], [value * 255 for value in std]
    block = make_block(mean, std, True, stride_in_1x1=stride, where=str(source))
    return replace(match, preprocessing=block, rule=f"{match.rule}; preprocessing: {source}", warnings=warnings)


def _differences(config: Mapping[str, Any], is_timm: bool) -> Iterator[str]:
    """What makes the net another than the ResNet of its tensors."""
    if is_timm:
        if not _TIMM.fullmatch(config["architecture"]):
            yield f"architecture {config['architecture']}"
        given = config.get("model_args")
        yield from (f"model_args.{key}" for key in _OTHER_NETS if isinstance(given, Mapping) and given.get(key))
    elif config["model_type"] == "resnet":
        if config.get("downsample_in_first_stage") is True:
            yield "downsample_in_first_stage"
        if config.get("hidden_act", "relu") != "relu":
            yield f"hidden_act {config['hidden_act']}"


def _read(file: Path) -> Mapping[str, Any]:
    """A JSON file's content; empty if there is none. One that is not of the Hub may be anything else.

    Raises:
        UserError: one of the Hub cannot be read, so what it states is not known.
    """
    try:
        return read_json_object(file) if file.is_file() else {}
    except UserError as error:
        if hub_address(file):
            raise UserError(f"{error}; delete it and what lies beside it, and download again") from error
        return {}
