"""Networks: ResNet encoders, projection and prediction heads, and batch normalisation over all processes."""

ARCHITECTURES = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnet18_cifar")
"""Values of MODEL.ARCH: torchvision's ResNets of basic and bottleneck blocks, and the CIFAR form of ResNet-18."""
