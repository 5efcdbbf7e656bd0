"""One layout for each family of checkpoints: those that differ in names only are in `prefixes`, others have a file."""

from __future__ import annotations

from transfer.weights.match import Layout
from transfer.weights.readers import any, byol_ports, caffe2, detectron2, dino, openmmlab, own, pycontrast, same_padding
from transfer.weights.readers.prefixes import PREFIX_LAYOUTS

_AUTOMATIC: tuple[Layout, ...] = (
    own.LAYOUT,
    *PREFIX_LAYOUTS,
    byol_ports.LAYOUT,
    dino.LAYOUT,
    pycontrast.LAYOUT,
    openmmlab.LAYOUT,
    caffe2.LAYOUT,
    detectron2.LAYOUT,
    same_padding.LAYOUT,
)

LAYOUTS: dict[str, Layout] = {layout.name: layout for layout in _AUTOMATIC}
"""The layouts that are recognised by a file's content, by their `--source` name."""

LAYOUTS_BY_NAME: dict[str, Layout] = {**LAYOUTS, any.LAYOUT.name: any.LAYOUT}
"""All layouts that `--source` can name."""
