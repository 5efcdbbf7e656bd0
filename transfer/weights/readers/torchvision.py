"""torchvision's names without a prefix: torchvision, timm's plain resnet50, and backbones their authors extracted."""

from transfer.weights.match import PrefixLayout

LAYOUT = PrefixLayout(
    name="torchvision",
    title="torchvision, timm resnet50; extracted backbones of DINO, Barlow Twins, VICReg, MMSelfSup",
    containers=((), ("state_dict",), ("model",)),
    online=("",),
    heads={"fc.": "classifier", "head.fc.": "classifier"},
)
