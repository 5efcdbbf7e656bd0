"""VISSL: the trunk of a training checkpoint, or a state dict its authors converted."""

from transfer.weights.match import PrefixLayout

LAYOUT = PrefixLayout(
    name="vissl",
    title="VISSL",
    containers=(("classy_state_dict", "base_model", "model", "trunk"), ("model_state_dict",), ()),
    online=("_feature_blocks.", "trunk._feature_blocks."),
    heads={"heads.": "projector", "_feature_blocks.fc": "classifier"},
)
