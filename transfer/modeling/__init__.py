"""The detector of Table 5, by Detectron2's public API: `register()` makes its head known to Detectron2's registries."""

from transfer.modeling.roi_heads import register

__all__ = ["register"]
