"""torchvision's ResNet under DistributedDataParallel: linear evaluation of SimSiam and MoCo, ImageNet training."""

from transfer.weights.match import PrefixLayout

LAYOUT = PrefixLayout(
    name="lincls",
    title="SimSiam, MoCo linear evaluation; torchvision under DistributedDataParallel",
    containers=(("state_dict",), (), ("model",)),
    online=("module.",),
    lacks=("module.prototypes.", "module.projection_head."),
    heads={"module.fc.": "classifier"},
)
