"""solo-learn's Lightning checkpoints: `backbone.` (in old versions `encoder.`) and its momentum copy."""

from transfer.weights.match import PrefixLayout

LAYOUT = PrefixLayout(
    name="solo",
    title="solo-learn",
    containers=(("state_dict",),),
    online=("backbone.", "encoder."),
    target=("momentum_backbone.", "momentum_encoder."),
    needs=("classifier.", "projector.", "momentum_classifier."),
    lacks=("neck.",),
    heads={
        "backbone.fc.": "projector",
        "momentum_projector.": "projector of the momentum branch",
        "projector.": "projector",
        "predictor.": "predictor",
        "momentum_classifier.": "classifier",
        "classifier.": "classifier",
        "prototypes.": "prototypes",
        "queue": "queue",
    },
)
