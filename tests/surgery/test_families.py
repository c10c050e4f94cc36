"""One small model for every trap that the families of timm and torchvision hold: shapes, layouts, heads, helpers."""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from timm.models._features_fx import create_feature_extractor as timm_feature_extractor
from timm.utils import reparameterize_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models.detection import fcos_resnet50_fpn
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.ops import FrozenBatchNorm2d

import ilmconvert
from ilmconvert import ILMNorm
from ilmconvert.data.example_inputs import example_inputs
from ilmconvert.evaluation import output_error
from ilmconvert.models.create import ModelSpec, parse_name
from ilmconvert.models.norm_counts import stored_counts
from ilmconvert.models.torchvision_zoo import FROZEN_EPS
from ilmconvert.surgery.outputs import outputs
from ilmconvert.testing import outcome, run_model, wake_parameters
from ilmconvert.testing.build_models import build_on_meta, family, for_sweep, keep_boxes
from tests.helpers import TOLERANCE, randomize_norms, relative_error

EXACT = TOLERANCE[torch.float32]
TARGETS = ("ilm_gn", "ilm_ln", "ilm_in")


# The smallest model of every source file of timm and torchvision that holds a norm.
SMALL_MODELS = (
    "test_efficientnet",
    "test_byobnet",
    "test_resnet",
    "starnet_s050",
    "test_coatnet",
    "torchvision/raft_small",
    "dla46x_c",
    "mobilevit_xxs",
    "torchvision/shufflenet_v2_x0_5",
    "mobilenetv3_small_050",
    "ese_vovnet19b_slim_dw",
    "torchvision/mnasnet0_5",
    "repghostnet_050",
    "efficientvit_m0",
    "torchvision/mobilenet_v3_small",
    "ghostnet_050",
    "regnetx_002",
    "cspnext_tiny",
    "iformer_t",
    "xcit_nano_12_p8_224",
    "torchvision/lraspp_mobilenet_v3_large",
    "cs3darknet_focus_s",
    "efficientvit_b0",
    "swiftformer_xs",
    "torchvision/mobilenet_v2",
    "efficientformerv2_s0",
    "fasternet_t0",
    "fastvit_t8",
    "lcnetv2_small",
    "inception_next_atto",
    "torchvision/regnet_y_400mf",
    "rexnet_100",
    "hardcorenas_b",
    "torchvision/efficientnet_b0",
    "repvit_m1",
    "hgnetv2_b0",
    "shvit_s1",
    "vit_tiny_r_s16_p8_384",
    "cpubone_nano",
    "efficientvim_m1",
    "levit_128s",
    "densenet121",
    "torchvision/densenet121",
    "dpn48b",
    "visformer_tiny",
    "resnest14d",
    "torchvision/deeplabv3_mobilenet_v3_large",
    "resnetv2_18",
    "torchvision/resnet18",
    "torchvision/mc3_18",
    "legacy_seresnet18",
    "poolformerv2_s12",
    "skresnet18",
    "tiny_vit_5m_224",
    "efficientformer_l1",
    "torchvision/googlenet",
    "hrnet_w18_small",
    "lowformer_b0",
    "convmixer_768_32",
)
LARGE_MODELS = (
    "torchvision/ssdlite320_mobilenet_v3_large",
    "torchvision/fasterrcnn_mobilenet_v3_large_320_fpn",
    "halonet_h1",
    "torchvision/s3d",
    "legacy_xception",
    "inception_v3",
    "res2next50",
    "volo_d1_384",
    "xception41p",
    "torchvision/inception_v3",
    "selecsls42",
    "torchvision/maxvit_t",
    "tresnet_m",
    "nextvit_small",
    "torchvision/fcos_resnet50_fpn",
    "torchvision/fcn_resnet50",
    "torchvision/retinanet_resnet50_fpn",
    "inception_v4",
    "torchvision/maskrcnn_resnet50_fpn",
    "inception_resnet_v2",
    "torchvision/keypointrcnn_resnet50_fpn",
    "pnasnet5large",
    "nasnetalarge",
    "vgg11_bn",
    "torchvision/vgg11_bn",
)
# Their groups fit "ilm_gn" alone.
GROUP_NORMS_ONLY = ("torchvision/raft_small", "poolformerv2_s12", "vit_tiny_r_s16_p8_384")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Maps this small gain nothing from threads, which wait for each other where other work runs beside them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pair(model: nn.Module, to: str = "ilm_gn") -> tuple[nn.Module, nn.Module]:
    """A source with telling values, in evaluation mode, and its conversion."""
    source = wake_parameters(randomize_norms(model.eval()))
    return source, ilmconvert.convert(source, to)


def image(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@contextmanager
def shapes(model: nn.Module) -> Iterator[dict[str, list[torch.Size]]]:
    """The input shapes that each ILM Norm of ``model`` sees, by name."""
    seen: dict[str, list[torch.Size]] = {}
    handles = [
        m.register_forward_pre_hook(lambda m, args, name=name: seen.setdefault(name, []).append(args[0].shape))
        for name, m in model.named_modules()
        if isinstance(m, ILMNorm)
    ]
    yield seen
    for handle in handles:
        handle.remove()


def assert_exact(source: nn.Module, converted: nn.Module, *inputs: Any) -> dict[str, list[torch.Size]]:
    """The same outputs; gives the shapes that the ILM Norms saw."""
    with shapes(converted) as seen:
        if hasattr(source, "roi_heads") or hasattr(source, "anchor_generator"):
            # Detectors select and sort: the networks in them are compared.
            assert output_error(source, converted, inputs).relative_error <= EXACT
        else:
            with torch.no_grad():
                assert relative_error(outputs(converted(*inputs)), outputs(source(*inputs))) <= EXACT
    assert seen.keys() == {name for name, m in converted.named_modules() if isinstance(m, ILMNorm)}
    return seen


def assert_trains(model: nn.Module, *inputs: Any) -> None:
    result = outputs(model.train()(*inputs))
    sum((t / t.detach().abs().max()).square().mean() for t in result if t.requires_grad).backward()
    grads = [p.grad for m in model.modules() if isinstance(m, ILMNorm) for p in m.parameters(recurse=False)]
    found = [grad for grad in grads if grad is not None]
    assert found
    assert all(grad.isfinite().all() for grad in found)
    model.zero_grad()
    model.eval()


def test_every_family_has_its_model() -> None:
    names = [name for name, count in stored_counts().items() if count]
    assert {_family(name) for name in names} == {_family(name) for name in SMALL_MODELS + LARGE_MODELS}


def _family(name: str) -> tuple[str, str]:
    spec = parse_name(name)
    return spec.library, family(spec)


@pytest.mark.parametrize(
    ("name", "to"),
    [
        pytest.param(name, to, marks=pytest.mark.slow if name in LARGE_MODELS else ())
        for name, to in zip(SMALL_MODELS + LARGE_MODELS, itertools.cycle(TARGETS), strict=False)
    ],
)
def test_one_model_of_every_family_passes_all_checks(name: str, to: str) -> None:
    line = run_model(name, "ilm_gn" if name in GROUP_NORMS_ONLY else to)
    assert line["error"] is None
    assert outcome(line) in ("exact", "exact but for refused layers")


# Several branches begin it, each with a norm.
BRANCHES = ("fastvit_t8",)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL_MODELS + LARGE_MODELS)
def test_the_first_norm_is_the_one_that_runs_first(name: str) -> None:
    model = build_on_meta(for_sweep(name)).eval()
    (first,) = ilmconvert.plan(model, first_only=True).converted
    ran: list[str] = []
    for entry in ilmconvert.plan(model).converted:
        norm = model.get_submodule(entry.name)
        norm.register_forward_pre_hook(lambda module, args, name=entry.name: ran.append(name))
    with contextlib.suppress(Exception):  # what a detector does with boxes needs values
        model(*example_inputs(model, batch_size=2))
    assert first.name in ran[: 2 if name in BRANCHES else 1]


@pytest.mark.parametrize("to", TARGETS)
def test_tokens_of_levit_flattened_over_the_batch(to: str) -> None:
    source, converted = pair(timm.create_model("levit_128s"), to)
    seen = assert_exact(source, converted, image(2, 3, 224, 224))
    assert torch.Size((2 * 196, 256)) in {shape for found in seen.values() for shape in found}
    assert_trains(converted, image(1, 3, 224, 224))


@pytest.mark.parametrize("name", ["mobilenetv4_conv_small_050", "rexnetr_100", "resnest14d", "skresnet18"])
@pytest.mark.parametrize("to", ["ilm_gn", "ilm_in"])
def test_norms_behind_a_pooling_to_one_position(name: str, to: str) -> None:
    source, converted = pair(timm.create_model(name), to)
    seen = assert_exact(source, converted, image(2, 3, 96, 96))
    ones = [name for name, found in seen.items() if found[0][2:] == (1, 1)]
    assert 0 < len(ones) < len(seen)
    assert_trains(converted, image(1, 3, 96, 96))


def test_pooling_branch_of_deeplab_at_batch_size_one() -> None:
    source, converted = pair(torchvision.models.segmentation.deeplabv3_mobilenet_v3_large(weights_backbone=None))
    seen = assert_exact(source, converted, image(1, 3, 64, 64))
    assert seen["classifier.0.convs.4.2"] == [(1, 256, 1, 1)]
    # Its source can't do that: BatchNorm has one value a channel there.
    assert_trains(converted, image(1, 3, 64, 64))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        source.train()(image(1, 3, 64, 64))


@pytest.mark.parametrize("name", ["efficientvit_m0", "repvit_m1", "iformer_t", "shvit_s1"])
def test_norms_in_heads_on_one_vector_an_image(name: str) -> None:
    source, converted = pair(timm.create_model(name, num_classes=10))
    seen = assert_exact(source, converted, image(2, 3, 128, 128))
    assert any(len(shape) == 2 for found in seen.values() for shape in found)
    assert_trains(converted, image(1, 3, 128, 128))


def test_norms_over_sequences_of_nextvit() -> None:
    source, converted = pair(timm.create_model("nextvit_small"))
    seen = assert_exact(source, converted, image(2, 3, 64, 64))
    assert any(len(shape) == 3 for found in seen.values() for shape in found)


@pytest.mark.parametrize("to", TARGETS)
def test_video(to: str) -> None:
    source, converted = pair(torchvision.models.video.mc3_18(), to)
    seen = assert_exact(source, converted, image(2, 3, 4, 32, 32))
    assert {len(shape) for found in seen.values() for shape in found} == {5}
    assert_trains(converted, image(1, 3, 4, 32, 32))


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "poolformerv2_s12"])
@pytest.mark.parametrize("to", ["ilm_gn", "ilm_ln"])
def test_channels_last(name: str, to: str) -> None:
    source, converted = (m.to(memory_format=torch.channels_last) for m in pair(timm.create_model(name), to))
    x = image(2, 3, 96, 96).to(memory_format=torch.channels_last)
    formats = set()
    for m in converted.modules():
        if isinstance(m, ILMNorm):
            m.register_forward_hook(lambda m, args, y: formats.add((_is_channels_last(args[0]), _is_channels_last(y))))
    assert_exact(source, converted, x)
    assert formats == {(True, True)}
    assert_exact(source, converted, x.contiguous())


def _is_channels_last(t: Tensor) -> bool:
    return t.is_contiguous(memory_format=torch.channels_last)


def test_mask_head_without_a_single_box() -> None:
    source, converted = pair(MaskRCNNHeads(256, (256, 256), 1, norm_layer=nn.BatchNorm2d))
    assert_exact(source, converted, image(3, 256, 14, 14))
    nothing = image(0, 256, 14, 14).requires_grad_()
    found = converted.train()(nothing)
    assert found.shape == (0, 256, 14, 14)
    found.sum().backward()
    assert nothing.grad is not None
    assert all(p.grad is None or not p.grad.any() for p in converted.parameters())


SMALL = {"min_size": 64, "max_size": 64}


def test_mask_rcnn_with_and_without_detections() -> None:
    few = {**SMALL, "rpn_post_nms_top_n_test": 20, "box_detections_per_img": 3, "weights_backbone": None}
    model = torchvision.models.detection.maskrcnn_resnet50_fpn_v2(box_score_thresh=-1.0, **few)
    source, converted = map(keep_boxes, pair(model))
    images = [image(3, 64, 64).sigmoid()]
    seen = assert_exact(source, converted, images)
    assert seen["roi_heads.mask_head.0.1"] == [(3, 256, 14, 14)]
    for model in (source, converted):
        model.roi_heads.score_thresh = 1.0  # type: ignore[union-attr]
    seen = assert_exact(source, converted, images)
    assert seen["roi_heads.mask_head.0.1"] == [(0, 256, 14, 14)]


@pytest.mark.parametrize("to", TARGETS)
def test_head_that_is_called_once_a_feature_map(to: str) -> None:
    group_norm = partial(nn.GroupNorm, {"ilm_gn": 32, "ilm_ln": 1, "ilm_in": 64}[to])
    for norm in (nn.BatchNorm2d, group_norm):
        head = RetinaNetHead(64, 3, 5, norm_layer=norm)
        nn.init.normal_(head.classification_head.cls_logits.weight)
        source, converted = pair(head, to)
        maps = [image(2, 64, size, size) for size in (16, 8, 4, 2, 1)]
        if norm is group_norm and to == "ilm_in":
            maps = maps[:4]  # torch's GroupNorm refuses one value a group
        seen = assert_exact(source, converted, maps)
        assert {len(found) for found in seen.values()} == {len(maps)}
        assert_trains(converted, maps)


def test_fcos_with_its_group_norms() -> None:
    source, converted = pair(fcos_resnet50_fpn(weights_backbone=None, score_thresh=0.0, **SMALL))
    seen = assert_exact(source, converted, [image(3, 64, 64).sigmoid()])
    assert len(seen["head.classification_head.conv.1"]) == 5


@pytest.mark.parametrize("eps", [0.0, 1e-5])
def test_detector_with_a_frozen_backbone(eps: float, tmp_path: Path) -> None:
    spec = ModelSpec("torchvision", "fasterrcnn_mobilenet_v3_large_320_fpn", {FROZEN_EPS: eps, **SMALL})
    source, converted = pair(spec.build())
    frozen = [m for m in source.modules() if isinstance(m, FrozenBatchNorm2d)]
    assert {m.eps for m in frozen} == {eps}
    images = [image(3, 64, 64).sigmoid(), image(3, 64, 48).sigmoid()]
    assert len(assert_exact(source, converted, images)) >= len(frozen) > 40
    layers = [m for m in converted.modules() if isinstance(m, ILMNorm)]
    assert len(layers) == len(frozen)
    # What was frozen stays frozen.
    assert not any(p.requires_grad for layer in layers for p in layer.parameters())

    ilmconvert.save(converted, tmp_path / "detector.safetensors")
    loaded = ilmconvert.load(tmp_path / "detector.safetensors")
    with torch.no_grad():
        for mine, theirs in zip(outputs(converted(images)), outputs(loaded(images)), strict=True):
            assert torch.equal(mine, theirs)


@pytest.mark.parametrize(
    ("build", "size", "heads"),
    [
        (partial(torchvision.models.googlenet, init_weights=False, dropout=0.0, dropout_aux=0.0), 64, 3),
        pytest.param(
            partial(torchvision.models.inception_v3, init_weights=False, dropout=0.0), 299, 2, marks=pytest.mark.slow
        ),
    ],
)
def test_auxiliary_heads_in_evaluation_and_in_training(build: Callable[[], nn.Module], size: int, heads: int) -> None:
    source, converted = pair(build())
    x = image(2, 3, size, size)
    with torch.no_grad():
        assert relative_error(converted(x), source(x)) <= EXACT
    # Only the root trains, so that the source's norms evaluate; the conversion may train as a whole.
    source.training = True
    assert_exact(source, converted.train(), x)
    assert len(converted(x)) == heads
    assert_trains(converted, x[:1])


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "test_efficientnet_gn"])
def test_timm_features_only(name: str) -> None:
    source, converted = pair(timm.create_model(name, features_only=True))
    with torch.no_grad():
        expected, found = source(image(2, 3, 64, 64)), converted(image(2, 3, 64, 64))
    assert len(found) == len(expected) > 2
    assert relative_error(found, expected) <= EXACT
    assert converted.feature_info.channels() == source.feature_info.channels()


@pytest.mark.parametrize(
    ("extract", "build", "nodes"),
    [
        (create_feature_extractor, torchvision.models.resnet18, ["layer1.0.bn1", "layer2", "layer4.1.relu_1"]),
        (create_feature_extractor, torchvision.models.mobilenet_v3_small, ["features.1", "features.12"]),
        (timm_feature_extractor, partial(timm.create_model, "resnet18"), ["layer1.0.bn1", "layer4"]),
        (timm_feature_extractor, partial(timm.create_model, "test_efficientnet"), ["blocks.1.0.bn2", "conv_head"]),
    ],
)
def test_feature_extractors(
    extract: Callable[..., nn.Module], build: Callable[[], nn.Module], nodes: list[str]
) -> None:
    source, converted = pair(build())
    x = image(2, 3, 64, 64)
    with torch.no_grad():
        expected, found = (outputs(extract(m, return_nodes=nodes)(x)) for m in (source, converted))
        assert len(found) == len(nodes)
        assert relative_error(found, expected) <= EXACT
        # Traced once, right for every shape.
        extractor = extract(converted, return_nodes=nodes)
        for shape in ((1, 3, 96, 64), (3, 3, 33, 40)):
            expected = outputs(extract(source, return_nodes=nodes)(image(*shape)))
            assert relative_error(outputs(extractor(image(*shape))), expected) <= EXACT


@pytest.mark.parametrize("name", ["test_resnet", "test_byobnet", "test_efficientnet"])
def test_what_timm_models_offer_beside_forward(name: str) -> None:
    source, converted = pair(timm.create_model(name))
    x = image(2, 3, 64, 64)
    with torch.no_grad():
        assert relative_error(converted.forward_features(x), source.forward_features(x)) <= EXACT
        head = [m.forward_head(source.forward_features(x), pre_logits=True) for m in (source, converted)]
        assert relative_error(head[1], head[0]) <= EXACT
    converted.set_grad_checkpointing(True)
    assert_exact(source, converted, x)
    assert_trains(converted, x[:1])
    converted.set_grad_checkpointing(False)

    converted.reset_classifier(7)
    assert converted(x).shape == (2, 7)
    assert_trains(converted, x[:1])


def test_a_new_classifier_may_bring_a_new_norm_which_converts_in_turn() -> None:
    _, converted = pair(timm.create_model("repvit_m1"))
    converted.reset_classifier(7)
    new = [name for name, m in converted.named_modules() if isinstance(m, nn.BatchNorm1d)]
    assert new == ["head.head.bn"]
    x = image(1, 3, 64, 64)
    with torch.no_grad():
        before = converted(x)
    with pytest.warns(UserWarning, match="never trained"):
        again = ilmconvert.convert(converted)
    with torch.no_grad():
        assert relative_error(again(x), before) <= EXACT
    assert_trains(again, x)


@pytest.mark.parametrize("inplace", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize(
    "name", ["levit_128s", "repvgg_a0", "mobileone_s0", "fastvit_t8", "repvit_m1", "repghostnet_050", "nextvit_small"]
)
def test_reparameterising_a_conversion_is_refused_with_the_cure(name: str, inplace: bool) -> None:
    _, converted = pair(timm.create_model(name))
    with pytest.raises(ilmconvert.ConversionError, match="reparameterise the source"):
        reparameterize_model(converted, inplace=inplace)


def test_reparameterising_first_leaves_what_can_be_converted() -> None:
    source = reparameterize_model(randomize_norms(timm.create_model("fastvit_t8")).eval())
    with pytest.raises(ilmconvert.ConversionError, match="nothing to convert"):
        ilmconvert.convert(reparameterize_model(timm.create_model("repvgg_a0").eval()))
    assert_exact(source, ilmconvert.convert(source), image(1, 3, 64, 64))


def test_reparameterising_where_nothing_is_fused_changes_nothing() -> None:
    _, converted = pair(timm.create_model("test_resnet"))
    again = reparameterize_model(copy.deepcopy(converted))
    x = image(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again(x), converted(x))


def test_ilm_norm_has_no_running_statistics_to_look_at() -> None:
    layer = ILMNorm(32)
    assert not hasattr(layer, "running_mean")
    assert getattr(layer, "track_running_stats", None) is None
    with pytest.raises(AttributeError, match="nonsense"):
        layer.nonsense  # noqa: B018


class _LargestTensor(TorchDispatchMode):
    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.numel = max([self.numel, *(t.numel() for t in outputs(result))])
        return result


def test_one_group_a_channel_needs_no_matrix_of_channels() -> None:
    channels = 10444
    source = randomize_norms(nn.BatchNorm2d(channels)).eval()
    x = image(2, channels, 2, 3).requires_grad_()
    with _LargestTensor() as largest:
        converted = ilmconvert.convert(source, "ilm_in")
        converted(x).square().mean().backward()
    assert relative_error(converted(x), source(x)) <= EXACT
    assert largest.numel <= 2 * x.numel()
    assert max(p.numel() for p in converted.parameters()) <= 8 * channels
