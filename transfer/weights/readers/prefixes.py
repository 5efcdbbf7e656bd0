"""Layouts that differ in their containers and prefixes only. A new one is an entry here."""

from transfer.weights.match import PrefixLayout
from transfer.weights.tensor_names import from_children, from_transformers

PREFIX_LAYOUTS = (
    # facebookresearch/simsiam: the encoder's `fc` is the projector
    PrefixLayout(
        name="simsiam",
        title="SimSiam (released)",
        online=("module.encoder.",),
        needs=("module.predictor.",),
        heads={"module.encoder.fc.": "projector", "module.predictor.": "predictor"},
    ),
    PrefixLayout(
        name="lincls",
        title="SimSiam, MoCo linear evaluation; torchvision under DistributedDataParallel",
        containers=(("state_dict",), (), ("model",), ("student",)),
        online=("module.",),
        lacks=("module.prototypes.", "module.projection_head."),
        heads={"module.fc.": "classifier"},
    ),
    # facebookresearch/moco
    PrefixLayout(
        name="moco",
        title="MoCo v1, v2",
        online=("module.encoder_q.",),
        target=("module.encoder_k.",),
        heads={
            "module.encoder_q.fc.": "projector",
            "module.encoder_k.fc.": "projector of the momentum branch",
            "module.queue_ptr": "queue",
            "module.queue": "queue",
        },
    ),
    # zdaxie/PixPro, microsoft/SoCo
    PrefixLayout(
        name="pixpro",
        title="PixPro, SoCo",
        containers=(("model",),),
        online=("module.encoder.",),
        target=("module.encoder_k.",),
        needs=("module.encoder_k.",),
        heads={
            "module.projector_k.": "projector of the momentum branch",
            "module.projector.": "projector",
            "module.predictor.": "predictor",
        },
    ),
    # a student and its moving average in one state dict: lucidrains/ema-pytorch, mmdetection's semi-supervised methods
    PrefixLayout(
        name="teacher",
        title="a student and its teacher",
        containers=(("state_dict",), ("model",), ()),
        online=("student.backbone.", "student.encoder.", "student.", "online_model.backbone.", "online_model."),
        target=("teacher.backbone.", "teacher.encoder.", "teacher.", "ema_model.backbone.", "ema_model."),
        needs=("teacher.", "ema_model."),
    ),
    # pytorch/vision: detection models
    PrefixLayout(
        name="torchvision_detector",
        title="torchvision's detectors",
        containers=(("model",), (), ("state_dict",)),
        online=("backbone.body.",),
        heads=dict.fromkeys(("backbone.fpn.", "rpn.", "roi_heads.", "head."), "not of the backbone"),
        is_detector=True,
    ),
    # facebookresearch/detr and its descendants; transformers' DetrForObjectDetection with timm's backbone
    PrefixLayout(
        name="detr",
        title="DETR",
        containers=(("model",), (), ("state_dict",)),
        online=("backbone.0.body.", "detr.backbone.0.body.", "model.backbone.conv_encoder.model."),
        is_detector=True,
    ),
    # huggingface/transformers: ResNetModel, ResNetForImageClassification
    PrefixLayout(
        name="transformers",
        title="transformers' ResNet",
        containers=((), ("state_dict",), ("model",)),
        online=("resnet.", ""),
        heads={"classifier.": "classifier"},
        rename=from_transformers,
    ),
    # facebookresearch/moco-v3
    PrefixLayout(
        name="mocov3",
        title="MoCo v3",
        online=("module.base_encoder.",),
        target=("module.momentum_encoder.",),
        heads={
            "module.base_encoder.fc.": "projector",
            "module.momentum_encoder.fc.": "projector of the momentum branch",
            "module.predictor.": "predictor",
        },
    ),
    # facebookresearch/swav: released checkpoints are flat, training's have `state_dict`
    PrefixLayout(
        name="swav",
        title="SwAV, DeepCluster v2, SeLa v2",
        containers=((), ("state_dict",)),
        online=("module.",),
        needs=("module.prototypes.", "module.projection_head."),
        heads={"module.projection_head.": "projector", "module.prototypes.": "prototypes"},
    ),
    # their backbone files have torchvision's names without a prefix
    PrefixLayout(
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
    ),
    # the trunk of a training checkpoint, or a converted state dict
    PrefixLayout(
        name="vissl",
        title="VISSL",
        containers=(("classy_state_dict", "base_model", "model", "trunk"), ("model_state_dict",), ()),
        online=("_feature_blocks.", "trunk._feature_blocks."),
        heads={"heads.": "projector", "_feature_blocks.fc": "classifier"},
    ),
    # Lightning checkpoints; old versions have `encoder.`
    PrefixLayout(
        name="solo",
        title="solo-learn",
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
    ),
    # Lightning checkpoints; the backbone's children have names or numbers
    PrefixLayout(
        name="lightly",
        title="lightly",
        online=("backbone.", "student_backbone."),
        target=("teacher_backbone.", "backbone_momentum.", "key_backbone."),
        needs=(
            "projection_head.",
            "student_projection_head.",
            "student_head.",
            "online_classifier.",
            "prediction_head.",
        ),
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
    ),
    PrefixLayout(
        name="torchvision",
        title="torchvision, timm resnet50; extracted backbones of DINO, Barlow Twins, VICReg, MMSelfSup",
        containers=((), ("state_dict",), ("model",), ("student",)),
        online=("",),
        heads={"fc.": "classifier", "head.fc.": "classifier"},
    ),
)
