"""One reader a source layout. Adding one is one file with a LAYOUT, and its name in this list."""

from __future__ import annotations

from importlib import import_module

from transfer.weights.match import Layout

NAMES = (
    "own",
    "simsiam",
    "lincls",
    "moco",
    "mocov3",
    "swav",
    "dino",
    "barlowtwins",
    "pycontrast",
    "byol",
    "same_padding",
    "vissl",
    "openmmlab",
    "solo",
    "lightly",
    "torchvision",
    "caffe2",
    "detectron2",
)
"""Modules of this package, in the order of PROTOCOL's table: those that find themselves."""

ASKED = ("any",)
"""Those that are taken only by `--source`."""


def layouts() -> dict[str, Layout]:
    """Every layout that can find itself, by its `--source` name."""
    return {name: _load(name) for name in NAMES}


def by_name() -> dict[str, Layout]:
    """Every layout that `--source` can name."""
    return {name: _load(name) for name in (*NAMES, *ASKED)}


def _load(name: str) -> Layout:
    layout: Layout = import_module(f"{__name__}.{name}").LAYOUT
    return layout
