"""MoCo v1 and v2 (facebookresearch/moco): a query encoder, its momentum copy and the queue."""

from transfer.weights.match import PrefixLayout

LAYOUT = PrefixLayout(
    name="moco",
    title="MoCo v1, v2",
    containers=(("state_dict",),),
    online=("module.encoder_q.",),
    target=("module.encoder_k.",),
    heads={
        "module.encoder_q.fc.": "projector",
        "module.encoder_k.fc.": "projector of the momentum branch",
        "module.queue_ptr": "queue",
        "module.queue": "queue",
    },
)
