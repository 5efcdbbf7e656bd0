"""Networks: ResNet encoders, projection and prediction heads, and batch normalisation over all processes."""

ARCHITECTURES = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnet18_cifar")
"""Values of MODEL.ARCH: torchvision's ResNets of basic and bottleneck blocks, and the CIFAR form of ResNet-18."""

HEAD_BNS = ("none", "hidden", "default", "all")
"""Values of MODEL.HEAD_BN: which layers of the two heads have batch normalisation (Table 3 of arXiv 2011.10566)."""

PREDICTORS = ("mlp", "none", "fixed")
"""Values of MODEL.PREDICTOR: trained, absent (the identity), or left at its random initialisation (Table 1)."""
