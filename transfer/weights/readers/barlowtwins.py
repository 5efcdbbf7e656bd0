"""Barlow Twins and VICReg, full checkpoints; their backbone files have torchvision's bare names."""

from transfer.weights.match import PrefixLayout

LAYOUT = PrefixLayout(
    name="barlowtwins",
    title="Barlow Twins, VICReg (full checkpoint)",
    containers=(("model",),),
    online=("module.backbone.", "backbone."),
    needs=("module.projector.", "projector."),
    heads={
        "module.projector.": "projector",
        "projector.": "projector",
        "module.bn.": "norm of the loss",
        "bn.": "norm of the loss",
    },
)
