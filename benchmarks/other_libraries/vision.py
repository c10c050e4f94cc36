"""Networks for images and video."""

from __future__ import annotations

from benchmarks.other_libraries.network import add


def segmentation() -> None:
    smp = "segmentation-models-pytorch"
    kind = "segmentation_models_pytorch:"
    for decoder in ("Unet", "UnetPlusPlus", "MAnet", "Linknet", "FPN", "PSPNet", "DeepLabV3", "DeepLabV3Plus"):
        add(smp, kind + decoder, "resnet18", encoder_weights=None, classes=3)
    add(smp, kind + "PAN", "resnet18", encoder_weights=None, classes=3, shapes=((2, 3, 128, 128),))
    add(smp, kind + "UPerNet", "resnet18", encoder_weights=None, classes=3)
    add(smp, kind + "Segformer", "resnet18", encoder_weights=None, classes=3)
    for encoder in (
        "mobilenet_v2", "efficientnet-b0", "densenet121", "vgg11_bn", "dpn68", "xception", "mobileone_s0",
        "se_resnet50", "timm-regnetx_002", "timm-res2net50_26w_4s", "mit_b0", "resnext50_32x4d", "timm-skresnet18",
    ):  # fmt: skip
        add(smp, kind + "Unet", encoder, called=f"Unet, {encoder}", encoder_weights=None, classes=3)


def detection_and_video() -> None:
    for name in ("yolov5n", "yolov8n", "yolov9t", "yolov10n", "yolo11n", "yolo12n"):
        add(
            "ultralytics",
            "ultralytics.nn.tasks:DetectionModel",
            f"{name}.yaml",
            verbose=False,
            called=name,
            shapes=((1, 3, 64, 64),),
        )
    for name, kind in (("seg", "Segmentation"), ("cls", "Classification"), ("pose", "Pose")):
        add(
            "ultralytics",
            f"ultralytics.nn.tasks:{kind}Model",
            f"yolov8n-{name}.yaml",
            verbose=False,
            called=f"yolov8n-{name}",
            shapes=((1, 3, 64, 64),),
        )
    clip = ((1, 3, 8, 64, 64),)
    video = {"model_num_class": 4, "dropout_rate": 0.0, "head_activation": None}
    add(
        "pytorchvideo",
        "pytorchvideo.models.resnet:create_resnet",
        model_depth=50,
        stem_dim_out=8,
        **video,
        head_pool_kernel_size=(8, 2, 2),
        shapes=clip,
    )
    add(
        "pytorchvideo",
        "pytorchvideo.models.csn:create_csn",
        stem_dim_out=8,
        **video,
        head_pool_kernel_size=(1, 2, 2),
        shapes=clip,
    )
    add(
        "pytorchvideo",
        "pytorchvideo.models.x3d:create_x3d",
        input_clip_length=4,
        input_crop_size=64,
        **video,
        shapes=((1, 3, 4, 64, 64),),
    )
    add(
        "pytorchvideo",
        "pytorchvideo.models.r2plus1d:create_r2plus1d",
        stem_dim_out=8,
        **video,
        head_pool_kernel_size=(2, 2, 2),
        shapes=clip,
    )


def images() -> None:
    for name in (
        "resnet10", "bn_vgg11", "preresnet10", "seresnet10", "sepreresnet10", "shufflenetv2_wd2", "mobilenet_w1",
        "igcv3_w1", "ghostnet", "hardnet39ds", "regnetx002", "efficientnet_b0", "vovnet27s", "dla34", "espnetv2_w1",
        "peleenet", "resneta10", "bagnet9", "mobilenetv3_small_w7d20", "menet108_8x1_g3", "condensenet74_c4_g4",
        "hrnet_w18_small_v1", "mixnet_s", "spnasnet", "fdmobilenet_w1", "darknet53", "sqnxt23_w1",
        "cbam_resnet18",
    ):  # fmt: skip
        add("pytorchcv", "pytorchcv.model_provider:get_model", name, called=name, shapes=((1, 3, 224, 224),))
    for name in ("bninception", "dpn68", "nasnetamobile", "se_resnet50", "xception", "inceptionv4"):
        side = 299 if name == "inceptionv4" else 224
        add(
            "pretrainedmodels",
            f"pretrainedmodels:{name}",
            num_classes=1000,
            pretrained=None,
            shapes=((1, 3, side, side),),
        )
    for name in ("osnet_x0_25", "osnet_ibn_x1_0", "mlfn", "hacnn", "shufflenet", "resnet50_fc512", "mobilenetv2_x1_0"):
        size = (160, 64) if name == "hacnn" else (128, 64)
        add(
            "torchreid",
            "torchreid.reid.models:build_model",
            name,
            5,
            pretrained=False,
            called=name,
            shapes=((2, 3, *size),),
        )
    for name in ("efficientnet-b0", "efficientnet-b1"):
        add("efficientnet_pytorch", "efficientnet_pytorch:EfficientNet.from_name", name, called=name)
    add("facenet-pytorch", "facenet_pytorch:InceptionResnetV1", shapes=((2, 3, 160, 160),))
    add("resnest", "resnest.torch:resnest50", pretrained=False)
    add("open_clip_torch", "open_clip.modified_resnet:ModifiedResNet", (1, 1, 1, 1), 32, 8, image_size=64, width=16)
    add(
        "torchxrayvision",
        "torchxrayvision.models:DenseNet",
        weights=None,
        num_classes=3,
        in_channels=1,
        shapes=((2, 1, 64, 64),),
    )
    for name in ("HardNet", "SOSNet", "TFeat", "HyNet"):
        add("kornia", f"kornia.feature:{name}", False, shapes=((4, 1, 32, 32),))
    add("kornia", "kornia.feature:KeyNet", False, shapes=((1, 1, 64, 64),))
    add("kornia", "kornia.feature:DISK", shapes=((1, 3, 64, 64),))
    add(
        "vit-pytorch",
        "vit_pytorch.mobile_vit:MobileViT",
        (64, 64),
        [16, 24, 32],
        [8, 8, 16, 16, 16, 16, 24, 24, 32, 32, 32],
        4,
    )
    add(
        "vit-pytorch",
        "vit_pytorch.levit:LeViT",
        image_size=64,
        num_classes=4,
        stages=2,
        dim=(16, 32),
        depth=1,
        heads=(2, 4),
        mlp_mult=2,
    )
    add("lightly", "lightly.models.modules.heads:SimCLRProjectionHead", 16, 16, 8, shapes=((4, 16),))
    add("lightly", "lightly.models.modules.heads:BarlowTwinsProjectionHead", 16, 16, 8, shapes=((4, 16),))


def quick() -> None:
    """Of libraries that are always there: for trying the program itself, not for the table."""
    add("torchvision", "torchvision.models:mobilenet_v2")
    add("timm", "timm:create_model", "test_resnet", called="test_resnet")
