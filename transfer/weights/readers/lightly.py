"""lightly's Lightning checkpoints: `backbone.` by name or by number, and its momentum copy."""

from transfer.weights.match import PrefixLayout
from transfer.weights.names import from_children

LAYOUT = PrefixLayout(
    name="lightly",
    title="lightly",
    containers=(("state_dict",),),
    online=("backbone.", "student_backbone."),
    target=("teacher_backbone.", "backbone_momentum.", "key_backbone."),
    needs=("projection_head.", "student_projection_head.", "student_head.", "online_classifier.", "prediction_head."),
    heads={
        "teacher_projection_head.": "projector of the momentum branch",
        "projection_head_momentum.": "projector of the momentum branch",
        "teacher_head.": "projector of the momentum branch",
        "key_projection_head.": "projector of the momentum branch",
        "student_projection_head.": "projector",
        "student_head.": "projector",
        "projection_head.": "projector",
        "prediction_head.": "predictor",
        "online_classifier.": "classifier",
        "prototypes.": "prototypes",
        "criterion.": "state of the loss",
    },
    rename=from_children,
)
