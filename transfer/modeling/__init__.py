"""The detector of Table 5 through Detectron2's public API; `register()` adds its head to Detectron2's registry."""

from transfer.modeling.roi_heads import register

__all__ = ["register"]
