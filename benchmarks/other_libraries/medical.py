"""Networks for medical images."""

from __future__ import annotations

from torch import nn

from benchmarks.other_libraries.network import add


def medical() -> None:
    nets, flat = "monai.networks.nets:", ((2, 1, 64, 64),)
    sizes = {"channels": (8, 16, 32), "strides": (2, 2)}
    for norm in ("batch", "instance", "group"):
        value = ("group", {"num_groups": 4}) if norm == "group" else norm
        add("monai", nets + "UNet", 2, 1, 2, called=f"UNet, {norm}", norm=value, shapes=flat, **sizes)
    add("monai", nets + "AttentionUnet", 2, 1, 2, shapes=flat, **sizes)
    add("monai", nets + "BasicUNet", 2, 1, 2, features=(8, 8, 16, 16, 32, 8), shapes=flat)
    add("monai", nets + "BasicUNetPlusPlus", 2, 1, 2, features=(8, 8, 16, 16, 32, 8), shapes=flat)
    for name in ("batch", "instance"):
        add(
            "monai", nets + "DynUNet", 2, 1, 2, [3, 3, 3], [1, 2, 2], [2, 2], called=f"DynUNet, {name}",
            filters=[8, 16, 32], norm_name=(name, {"affine": True}), shapes=flat,
        )  # fmt: skip
    add("monai", nets + "SegResNet", 2, init_filters=8, shapes=flat)
    add("monai", nets + "DenseNet121", 2, 1, 3, shapes=flat)
    add("monai", nets + "resnet10", spatial_dims=2, n_input_channels=1, num_classes=3, shapes=flat)
    add("monai", nets + "SEResNet50", spatial_dims=2, in_channels=1, num_classes=3, shapes=flat)
    add("monai", nets + "VNet", 2, 1, 2, shapes=flat)
    add("monai", nets + "HighResNet", 2, 1, 2, shapes=flat)
    add("monai", nets + "EfficientNetBN", "efficientnet-b0", False, spatial_dims=2, in_channels=1, shapes=flat)
    add(
        "monai",
        nets + "UNETR",
        1,
        2,
        64,
        spatial_dims=2,
        feature_size=8,
        hidden_size=48,
        mlp_dim=96,
        num_heads=4,
        shapes=flat,
    )
    add("monai", nets + "FlexibleUNet", 3, 2, "resnet18", pretrained=False, spatial_dims=2)
    add("monai", nets + "AutoEncoder", 2, 1, 1, (8, 16), (2, 2), norm="batch", shapes=flat)
    dyn, plan = "dynamic-network-architectures", {"n_conv_per_stage_decoder": 1, "conv_bias": True}
    unet = "dynamic_network_architectures.architectures.unet:"
    conv = {"conv_op": lambda: nn.Conv2d, "norm_op": lambda: nn.InstanceNorm2d, "nonlin": lambda: nn.LeakyReLU}
    stages = (1, 3, (8, 16, 32))
    for name, blocks in (("PlainConvUNet", "n_conv_per_stage"), ("ResidualEncoderUNet", "n_blocks_per_stage")):
        add(
            dyn, unet + name, *stages, kernel_sizes=3, strides=(1, 2, 2), num_classes=2,
            norm_op_kwargs={"affine": True, "eps": 1e-5}, nonlin_kwargs={"inplace": True}, shapes=flat,
            **{blocks: 1}, **conv, **plan,
        )  # fmt: skip
