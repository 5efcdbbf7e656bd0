"""SwAV, DeepCluster v2 and SeLa v2 (facebookresearch/swav): released flat, under `state_dict` while training."""

from transfer.weights.match import PrefixLayout

LAYOUT = PrefixLayout(
    name="swav",
    title="SwAV, DeepCluster v2, SeLa v2",
    containers=((), ("state_dict",)),
    online=("module.",),
    needs=("module.prototypes.", "module.projection_head."),
    heads={"module.projection_head.": "projector", "module.prototypes.": "prototypes"},
)
