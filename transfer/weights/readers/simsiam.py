"""SimSiam as released (facebookresearch/simsiam): the encoder's `fc` is the projector."""

from transfer.weights.match import PrefixLayout

LAYOUT = PrefixLayout(
    name="simsiam",
    title="SimSiam (released)",
    containers=(("state_dict",),),
    online=("module.encoder.",),
    needs=("module.predictor.",),
    heads={"module.encoder.fc.": "projector", "module.predictor.": "predictor"},
)
