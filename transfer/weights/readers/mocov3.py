"""MoCo v3 (facebookresearch/moco-v3): a base encoder, its momentum copy and a predictor."""

from transfer.weights.match import PrefixLayout

LAYOUT = PrefixLayout(
    name="mocov3",
    title="MoCo v3",
    containers=(("state_dict",),),
    online=("module.base_encoder.",),
    target=("module.momentum_encoder.",),
    heads={
        "module.base_encoder.fc.": "projector",
        "module.momentum_encoder.fc.": "projector of the momentum branch",
        "module.predictor.": "predictor",
    },
)
