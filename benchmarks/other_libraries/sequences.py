"""Networks of transformers, and of other libraries for sequences, graphs and fields."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.other_libraries.network import add

_SPEECH = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


def _ring(nodes: int) -> Tensor:
    """Edges (2, 2 nodes) of a ring, both ways."""
    here = torch.arange(nodes)
    there = here.roll(1)
    return torch.stack((torch.cat((here, there)), torch.cat((there, here))))


def _with_edges(x: Tensor) -> tuple[Any, ...]:
    return x, _ring(len(x))


def _with_times(x: Tensor) -> tuple[Any, ...]:
    return x, torch.tensor([3, 500])


def _with_times_and_text(x: Tensor, text: Tensor) -> tuple[Any, ...]:
    return x, torch.tensor([3, 500]), text


def _with_lengths(x: Tensor) -> tuple[Any, ...]:
    return x, torch.full((len(x),), x.shape[1])


def transformers() -> None:
    def hf(name: str, config: str, **more: Any) -> None:
        add("transformers", f"transformers:{name}", config=f"transformers:{config}Config", **more)

    small = {"embedding_size": 16, "hidden_sizes": [16, 32, 32, 48], "depths": [1, 1, 1, 1]}
    hf("ResNetForImageClassification", "ResNet", **small)
    hf("RegNetForImageClassification", "RegNet", groups_width=8, **small)
    hf("BitForImageClassification", "Bit", **small, num_groups=8)
    hf("MobileNetV1ForImageClassification", "MobileNetV1", depth_multiplier=0.25)
    hf("MobileNetV2ForImageClassification", "MobileNetV2", depth_multiplier=0.35)
    hf("MobileNetV2ForSemanticSegmentation", "MobileNetV2", depth_multiplier=0.35)
    for name in ("MobileViT", "MobileViTV2"):
        hf(f"{name}ForImageClassification", name, image_size=64)
        hf(f"{name}ForSemanticSegmentation", name, image_size=64)
    hf(
        "EfficientNetForImageClassification", "EfficientNet", image_size=64, width_coefficient=0.25,
        depth_coefficient=0.2, hidden_dim=320,
    )  # fmt: skip
    hf("LevitForImageClassification", "Levit", shapes=((2, 3, 224, 224),))
    hf("PoolFormerForImageClassification", "PoolFormer")
    hf("CvtForImageClassification", "Cvt")
    hf("SegformerForSemanticSegmentation", "Segformer")
    hf("SwiftFormerForImageClassification", "SwiftFormer", shapes=((2, 3, 224, 224),))
    hf("HGNetV2ForImageClassification", "HGNetV2")
    hf("TextNetForImageClassification", "TextNet")
    hf("Wav2Vec2Model", "Wav2Vec2", **_SPEECH, shapes=((2, 4000),))
    for name in ("Hubert", "WavLM", "UniSpeech", "SEW"):
        hf(f"{name}Model", name, **_SPEECH, shapes=((2, 4000),))
    hf("Wav2Vec2ConformerModel", "Wav2Vec2Conformer", **_SPEECH, shapes=((2, 4000),))
    hf("PatchTSTModel", "PatchTST", num_input_channels=3, context_length=32, d_model=16, shapes=((2, 32, 3),))
    hf(
        "PatchTSMixerModel", "PatchTSMixer", num_input_channels=3, context_length=32, d_model=16, norm_mlp="BatchNorm",
        shapes=((2, 32, 3),),
    )  # fmt: skip


def detection_transformers() -> None:
    """Detectors whose frozen BatchNorms, convolution blocks and encoders hold norms of three kinds."""

    def hf(name: str, config: str, backbone: dict[str, Any], **more: Any) -> None:
        config_of = f"transformers:{config}Config"
        add("transformers", f"transformers:{name}", config=config_of, backbone_config=backbone, **more)

    stages = {"embedding_size": 16, "hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1]}
    resnet = {"model_type": "rt_detr_resnet", **stages, "out_features": ["stage2", "stage3", "stage4"]}
    hgnet = {
        "model_type": "hgnet_v2", "stem_channels": [3, 16, 16], "hidden_sizes": [16, 32, 48, 64],
        "stage_in_channels": [16, 16, 32, 48], "stage_mid_channels": [16, 16, 16, 32],
        "stage_out_channels": [16, 32, 48, 64], "stage_num_blocks": [1, 1, 1, 1], "stage_numb_of_layers": [2, 2, 2, 2],
        "out_features": ["stage2", "stage3", "stage4"],
    }  # fmt: skip
    hybrid = {
        "encoder_hidden_dim": 32, "encoder_in_channels": [32, 48, 64], "encoder_ffn_dim": 32, "d_model": 32,
        "encoder_attention_heads": 2, "decoder_attention_heads": 2, "decoder_in_channels": [32] * 3,
        "decoder_ffn_dim": 32, "decoder_layers": 2, "num_queries": 10, "num_denoising": 0,
    }  # fmt: skip
    for name, backbone in (("RTDetr", resnet), ("RTDetrV2", resnet), ("DFine", hgnet)):
        hf(f"{name}ForObjectDetection", name, backbone, **hybrid)
    plain = {"model_type": "resnet", **stages, "out_features": ["stage2", "stage3", "stage4"]}
    small = {
        "d_model": 32, "encoder_layers": 1, "encoder_ffn_dim": 32, "encoder_attention_heads": 2, "decoder_layers": 2,
        "decoder_ffn_dim": 32, "decoder_attention_heads": 2, "num_queries": 10, "disable_custom_kernels": True,
    }  # fmt: skip
    hf("DeformableDetrForObjectDetection", "DeformableDetr", plain, **small)


def audio() -> None:
    add("torchaudio", "torchaudio.models:Conformer", 16, 2, 32, 1, 3, wrap=_with_lengths, shapes=((2, 20, 16),))
    tas = {
        "enc_num_feats": 32,
        "msk_num_feats": 16,
        "msk_num_hidden_feats": 32,
        "msk_num_layers": 2,
        "msk_num_stacks": 1,
    }
    add("torchaudio", "torchaudio.models:ConvTasNet", **tas, shapes=((2, 1, 1000),))
    add("torchaudio", "torchaudio.models:HDemucs", ["a"], channels=8, shapes=((1, 2, 16384),))
    add("torchaudio", "torchaudio.models:wav2vec2_base", shapes=((1, 4000),))
    add("demucs", "demucs.hdemucs:HDemucs", ["a"], channels=8, shapes=((1, 2, 16384),))
    add("demucs", "demucs.demucs:Demucs", ["a"], channels=8, shapes=((1, 2, 16384),))
    ecapa = "speechbrain.lobes.models.ECAPA_TDNN:ECAPA_TDNN"
    add("speechbrain", ecapa, 16, lin_neurons=16, channels=[16] * 4 + [48], attention_channels=8, shapes=((2, 40, 16),))
    add("speechbrain", "speechbrain.lobes.models.Xvector:Xvector", in_channels=16, shapes=((2, 60, 16),))
    add(
        "speechbrain",
        "speechbrain.lobes.models.ResNet:ResNet",
        input_size=16,
        channels=[8, 8, 16, 16],
        shapes=((2, 40, 16),),
    )
    add(
        "speechbrain",
        "speechbrain.lobes.models.CRDNN:CRDNN",
        input_shape=(None, None, 16),
        rnn_neurons=16,
        dnn_neurons=16,
        shapes=((2, 40, 16),),
    )
    add(
        "speechbrain",
        "speechbrain.lobes.models.ContextNet:ContextNet",
        input_shape=(None, None, 16),
        out_channels=16,
        conv_channels=[16] * 21,
        shapes=((2, 80, 16),),
    )
    for name in ("ConvTasNet", "DPRNNTasNet", "SuDORMRFNet"):
        add("asteroid", f"asteroid.models:{name}", 2, shapes=((2, 4000),))


def graphs_and_fields() -> None:
    for name in ("GCN", "GraphSAGE", "GIN", "GAT", "EdgeCNN"):
        shapes = ((12, 8),)
        add(
            "torch-geometric",
            f"torch_geometric.nn:{name}",
            8,
            16,
            3,
            4,
            norm="batch_norm",
            wrap=_with_edges,
            shapes=shapes,
        )
    add("torch-geometric", "torch_geometric.nn:MLP", [8, 16, 16, 4], shapes=((12, 8),))
    for norm in ("batch_norm", "group_norm"):
        add(
            "neuraloperator",
            "neuralop.models:FNO",
            (8, 8),
            1,
            1,
            8,
            called=f"FNO, {norm}",
            norm=norm,
            shapes=((2, 1, 32, 32),),
        )
    tab = {
        "input_dim": 8,
        "output_dim": 3,
        "cat_idxs": [],
        "cat_dims": [],
        "group_attention_matrix": lambda: torch.eye(8),
    }
    add("pytorch-tabnet", "pytorch_tabnet.tab_network:TabNet", **tab, shapes=((64, 8),))
    blocks = {"block_out_channels": (8, 16), "norm_num_groups": 4}
    down, up = ("DownBlock2D", "AttnDownBlock2D"), ("AttnUpBlock2D", "UpBlock2D")
    add(
        "diffusers",
        "diffusers:UNet2DModel",
        sample_size=32,
        **blocks,
        down_block_types=down,
        up_block_types=up,
        attention_head_dim=4,
        wrap=_with_times,
        shapes=((2, 3, 32, 32),),
    )
    add(
        "diffusers", "diffusers:UNet2DConditionModel", sample_size=32, **blocks, cross_attention_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=4, wrap=_with_times_and_text, shapes=((2, 4, 32, 32), (2, 5, 8)),
    )  # fmt: skip
    kl = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    add("diffusers", "diffusers:AutoencoderKL", **blocks, **kl, shapes=((2, 3, 32, 32),))
