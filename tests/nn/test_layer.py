"""The layer against the paper, against GroupNorm, and in every place where torch uses a module."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.version import Version
from torch import nn
from torch.func import functional_call, grad, hessian, vmap

from ilmconvert import ConversionError, ILMNorm
from ilmconvert.nn import ILMNormAct, ilm_norm
from ilmconvert.nn.group_sizes import best_key_group_size, best_num_groups, divisors
from tests.helpers import TOLERANCE
from tests.nn.reference_layer import AuthorsLayer, paper_ilm_norm

SHAPES = [(3, 32), (3, 32, 5), (2, 32, 4, 3), (2, 32, 2, 3, 2), (1, 32, 1, 1)]


def trained_layer(channels: int = 32, groups: int = 8, **settings: object) -> ILMNorm:
    """A layer whose every parameter does something."""
    layer = ILMNorm(channels, groups, key_group_size=best_key_group_size(channels), dtype=torch.float64, **settings)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype))
        layer.encoder.abs_()
        if layer.ref_std is not None:
            layer.ref_mean.normal_(generator=generator)
            layer.ref_std.uniform_(0.5, 2, generator=generator)
    return layer


def restoring_formula(layer: ILMNorm, x: torch.Tensor) -> torch.Tensor:
    """The restoring path written out on top of the paper's formula."""
    groups, size = layer.num_groups, layer.num_channels // layer.num_groups
    flat = x.reshape(len(x), groups, -1)
    sigma, mu = (flat.var(2, correction=0) + layer.eps).sqrt(), flat.mean(2)
    z_std, z_mean = (sigma - layer.ref_std) / layer.ref_std, (mu - layer.ref_mean) / layer.ref_std
    if layer.restore_bound is not None:
        z_std, z_mean = (layer.restore_bound * torch.tanh(z / layer.restore_bound) for z in (z_std, z_mean))
    zeros = torch.zeros_like(layer.weight)
    no_meta = (layer.encoder, 0 * layer.weight_decoder, 0 * layer.bias_decoder)
    xhat = paper_ilm_norm(x, zeros + 0.5, zeros, *no_meta, groups, layer.eps, 0)
    shape = (len(x), -1) + (1,) * (x.dim() - 2)
    omega = (layer.restore_weight * z_std.repeat_interleave(size, 1)).view(shape)
    beta = (layer.restore_bias * z_mean.repeat_interleave(size, 1)).view(shape)
    paper = (layer.weight - 0.5, layer.bias, layer.encoder, layer.weight_decoder, layer.bias_decoder)
    return paper_ilm_norm(x, *paper, groups, layer.eps, layer.correction) + omega * xhat + beta


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("groups", [1, 2, 8, 32])
@pytest.mark.parametrize("correction", [0, 1])
def test_equals_the_papers_formula(shape: tuple[int, ...], groups: int, correction: int) -> None:
    layer = trained_layer(groups=groups, correction=correction)
    x = torch.randn(shape, dtype=torch.float64) * 3 + 1
    paper = (layer.weight - 0.5, layer.bias, layer.encoder, layer.weight_decoder, layer.bias_decoder)
    expected = paper_ilm_norm(x, *paper, groups, layer.eps, correction)
    torch.testing.assert_close(layer(x), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("bound", [None, 0.7])
def test_restoring_path_equals_its_formula(bound: float | None) -> None:
    layer = trained_layer(restore=True, restore_bound=bound)
    x = torch.randn(3, 32, 5, 4, dtype=torch.float64) * 2 - 1
    torch.testing.assert_close(layer(x), restoring_formula(layer, x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("width", [1, 2, 3])
@pytest.mark.parametrize(("channels", "groups"), [(256, 32), (64, 1), (64, 64)])
def test_loads_the_authors_layer(channels: int, groups: int, width: int) -> None:
    torch.manual_seed(0)
    theirs = AuthorsLayer(channels, groups, width=width)
    with torch.no_grad():
        for p in theirs.parameters():
            p.normal_()
    ours = ILMNorm.from_reference(theirs.state_dict(), num_groups=groups)
    x = torch.randn(2, channels, 5, 6)
    inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    outputs = [theirs(inputs[0]), ours(inputs[1])]
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-5, atol=1e-5)
    weight = torch.randn_like(x)
    for y in outputs:
        (y * weight).sum().backward()
    scale = inputs[0].grad.abs().max()
    torch.testing.assert_close(inputs[1].grad / scale, inputs[0].grad / scale, rtol=1e-5, atol=1e-5)
    pairs = [
        (ours.weight.grad, theirs.weight_bias.grad.flatten()),
        (ours.bias.grad, theirs.bias_bias.grad.flatten()),
        (ours.encoder.grad[:width], theirs.fc_embed[0].weight.grad),
        (ours.weight_decoder.grad[:, :width], theirs.fc_weight[1].weight.grad),
        (ours.bias_decoder.grad[:, :width], theirs.fc_bias[1].weight.grad),
    ]
    for mine, reference in pairs:
        scale = reference.abs().max().clamp(min=1)
        torch.testing.assert_close(mine / scale, reference / scale, rtol=1e-5, atol=1e-5)


def test_refuses_what_is_not_the_authors_layer() -> None:
    state = AuthorsLayer(64, 32).state_dict()
    with pytest.raises(ValueError, match="missing \\['bias_bias'\\]"):
        ILMNorm.from_reference({k: v for k, v in state.items() if k != "bias_bias"}, num_groups=32)
    with pytest.raises(ValueError, match="unknown \\['gamma'\\]"):
        ILMNorm.from_reference({**state, "gamma": torch.ones(1)}, num_groups=32)
    with pytest.raises(ValueError, match="one shared encoder"):
        ILMNorm.from_reference({**state, "fc_bias.0.0.weight": torch.ones(2, 4)}, num_groups=32)
    with pytest.raises(ValueError, match=r"fc_weight\.1\.weight is"):
        ILMNorm.from_reference({**state, "fc_weight.1.weight": torch.ones(2, 4)}, num_groups=32)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", [(3, 3), (40, 33)], ids=str)
def test_a_new_layer_is_a_group_norm(
    dtype: torch.dtype, memory_format: torch.memory_format, size: tuple[int, int]
) -> None:
    x = (torch.randn(2, 64, *size) * 2 + 3).to(dtype).to(memory_format=memory_format)
    layer = ILMNorm(64, 32, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    with torch.no_grad():
        layer.weight.normal_()
        layer.bias.normal_()
    y = layer(x)
    expected = F.group_norm(x.double(), 32, layer.weight.double(), layer.bias.double(), layer.eps)
    assert y.dtype == dtype
    assert y.stride() == x.stride()
    torch.testing.assert_close(y.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(0, 3),
    channels=st.sampled_from([1, 2, 3, 7, 12, 19, 32, 58]),
    positions=st.lists(st.integers(0, 4), max_size=3),
    data=st.data(),
)
def test_any_shape_is_finite_and_exact(batch: int, channels: int, positions: list[int], data: st.DataObject) -> None:
    groups = data.draw(st.sampled_from(divisors(channels)))
    layer = trained_layer(channels, groups, restore=True)
    x = torch.randn(batch, channels, *positions, dtype=torch.float64, requires_grad=True)
    y = layer(x)
    y.square().sum().backward()
    assert y.shape == x.shape
    assert y.isfinite().all()
    assert all(t.grad.isfinite().all() for t in (x, *layer.parameters()) if t.requires_grad)
    if x.numel():
        torch.testing.assert_close(y, restoring_formula(layer, x), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("shape", "groups"), [((2, 4), 2), ((2, 4, 3), 4), ((1, 4, 2, 2), 2), ((1, 4, 1, 1, 1), 4)])
def test_gradcheck(shape: tuple[int, ...], groups: int) -> None:
    layer = trained_layer(4, groups, restore=True, restore_bound=1.5)
    trained = {name: p for name, p in layer.named_parameters() if p.requires_grad}

    def call(x: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        return functional_call(layer, dict(zip(trained, values, strict=True)), (x,))

    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    values = [p.detach().clone().requires_grad_() for p in trained.values()]
    assert torch.autograd.gradcheck(call, (x, *values), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(layer, (x,))


@pytest.mark.parametrize("value", [0.0, 5.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_constant_and_large_input_stays_finite(
    value: float, dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    layer = ILMNorm(32, 32, restore=True)
    alternating = torch.tensor([1.0, -1.0]).repeat(512).view(1, 1, 32, 32)
    for x in (torch.full((2, 32, 32, 32), value), value * alternating.expand(2, 32, 32, 32)):
        x = x.to(dtype).contiguous(memory_format=memory_format).requires_grad_()
        y = layer(x)
        y.sum().backward()
        assert y.isfinite().all()
        assert x.grad.isfinite().all()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [8, 48, 144])
@pytest.mark.parametrize(("offset", "bound"), [(0, 1e-5), (1, 1e-5), (2, 1e-5), (10, 2e-5), (1e3, 5e-4)])
def test_no_cancellation_far_from_zero(
    offset: float, bound: float, size: int, memory_format: torch.memory_format
) -> None:
    """Each size and offset takes another route through the kernels; E[x^2] - E[x]^2 would leave 0.1 at 1e3."""
    torch.manual_seed(0)
    x = (torch.randn(1, 64, size, size) + offset).to(memory_format=memory_format)
    exact = F.group_norm(x.double(), 8)
    assert (ILMNorm(64, 8)(x) - exact).abs().max() < bound


def test_non_contiguous_input_and_gradient() -> None:
    layer = trained_layer(restore=True)
    base = torch.randn(4, 6, 32, 5, dtype=torch.float64)
    views = [base.permute(0, 2, 1, 3), base.permute(1, 2, 0, 3)[:, :, ::2], base.transpose(1, 2).expand(4, 32, 6, 5)]
    for view in views:
        x = view.detach().requires_grad_()
        same = view.contiguous().detach().requires_grad_()
        torch.testing.assert_close(layer(x), layer(same))
        gradients = [torch.autograd.grad(layer(t).square().sum(), t)[0] for t in (x, same)]
        torch.testing.assert_close(*gradients)
    x = torch.randn(2, 32, 8, 8, dtype=torch.float64, requires_grad=True)
    layer(x).sum().backward()  # a gradient of stride 0
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_kernels_and_formula_have_the_same_gradients(memory_format: torch.memory_format) -> None:
    layer = trained_layer(64, 32, restore=True)
    x = torch.randn(2, 64, 24, 24, dtype=torch.float64).to(memory_format=memory_format).requires_grad_()
    weight = torch.randn_like(x)
    trained = [x, *(p for p in layer.parameters() if p.requires_grad)]
    fast = torch.autograd.grad((layer(x) * weight).sum(), trained)
    slow = torch.autograd.grad((restoring_formula(layer, x) * weight).sum(), trained)
    for a, b in zip(fast, slow, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


def test_reference_values_as_arguments_get_their_gradient() -> None:
    """The layer's are constants, but the function is one of all its tensors."""
    layer = trained_layer(restore=True, restore_bound=2.0)
    x = torch.randn(2, 32, 4, 4, dtype=torch.float64)
    refs = (layer.ref_mean.requires_grad_(), layer.ref_std.requires_grad_())
    got = torch.autograd.grad(layer(x).square().sum(), refs)
    for a, b in zip(got, torch.autograd.grad(restoring_formula(layer, x).square().sum(), refs), strict=True):
        torch.testing.assert_close(a, b)


def test_output_may_be_modified_in_place() -> None:
    layer = trained_layer()
    for shape in SHAPES:
        x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        y = layer(x).relu_()
        y.square().sum().backward()
        expected = torch.autograd.grad(layer(x).relu().square().sum(), x)[0]
        torch.testing.assert_close(x.grad, expected)


def test_saves_the_input_and_small_tensors_only() -> None:
    layer = ILMNorm(64, 32, restore=True)
    x = torch.randn(4, 64, 32, 32, requires_grad=True)
    saved: dict[int, int] = {}

    def pack(t: torch.Tensor) -> torch.Tensor:
        saved[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        layer(x)
    assert sum(saved.values()) < 1.05 * x.untyped_storage().nbytes()


def test_func_transforms() -> None:
    layer = trained_layer(8, 4, restore=True)
    x = torch.randn(5, 2, 8, 3, 3, dtype=torch.float64)
    torch.testing.assert_close(vmap(layer)(x), torch.stack([layer(a) for a in x]))

    def loss(parameters: dict[str, torch.Tensor], sample: torch.Tensor) -> torch.Tensor:
        return functional_call(layer, parameters, (sample[None],)).pow(3).sum()

    parameters = {name: p for name, p in layer.named_parameters() if p.requires_grad}
    per_sample = vmap(grad(loss), in_dims=(None, 0))(parameters, x[:, 0])
    for i, sample in enumerate(x[:, 0]):
        expected = torch.autograd.grad(loss(parameters, sample), tuple(parameters.values()))
        for got, one in zip(per_sample.values(), expected, strict=True):
            torch.testing.assert_close(got[i], one)
    small = x[0, :1, :, :1, :1]
    assert hessian(lambda a: layer(a).pow(3).sum())(small).isfinite().all()
    jacobian = torch.autograd.functional.jacobian(layer, small, vectorize=True)
    torch.testing.assert_close(jacobian, torch.autograd.functional.jacobian(layer, small))


# What torch 2.6 says of its own settings, and newer ones of Python 3.13.0.
@pytest.mark.filterwarnings("ignore:Skipping serialization:UserWarning", "ignore:Guards may run slower:RuntimeWarning")
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compile_without_graph_breaks(backend: str) -> None:
    layer = trained_layer(restore=True)
    # before torch 2.8 dynamic=True makes symbols of the numbers of groups, too, which math.lcm doesn't take
    dynamic = True if Version(torch.__version__) >= Version("2.8") else None
    compiled = torch.compile(layer, backend=backend, fullgraph=True, dynamic=dynamic)
    for size in (4, 6):
        x = torch.randn(2, 32, size, size, dtype=torch.float64, requires_grad=True)
        y = compiled(x)
        torch.testing.assert_close(y, layer(x))
        got = torch.autograd.grad(y.square().sum(), x)[0]
        torch.testing.assert_close(got, torch.autograd.grad(layer(x).square().sum(), x)[0])


def test_export_with_dynamic_shapes() -> None:
    layer = trained_layer(restore=True).eval()
    dims = {0: torch.export.Dim("N"), 2: torch.export.Dim("H"), 3: torch.export.Dim("W")}
    x = torch.randn(2, 32, 5, 4, dtype=torch.float64)
    program = torch.export.export(layer, (x,), dynamic_shapes={"x": dims}).module()
    for shape in [(2, 32, 5, 4), (3, 32, 7, 2)]:
        x = torch.randn(shape, dtype=torch.float64)
        torch.testing.assert_close(program(x), layer(x))


def test_symbolic_tracing_keeps_it_whole() -> None:
    model = nn.Sequential(trained_layer(), nn.ReLU())
    traced = torch.fx.symbolic_trace(model)
    x = torch.randn(2, 32, 3, 3, dtype=torch.float64)
    assert torch.equal(traced(x), model(x))
    assert [n.target for n in traced.graph.nodes if n.op == "call_function"] == [ilm_norm]


@pytest.mark.filterwarnings("ignore:.*jit.script:DeprecationWarning")
def test_jit_script_is_refused_in_one_line() -> None:
    with pytest.raises(ConversionError, match=r"^torch\.jit\.script can't compile an ILM Norm: [^\n]*$"):
        torch.jit.script(nn.Sequential(nn.Conv2d(3, 32, 1), trained_layer()))


def test_jit_trace() -> None:
    layer = trained_layer(restore=True).eval()
    x = torch.randn(2, 32, 6, 6, dtype=torch.float64)
    with pytest.warns():  # deprecations and shape constants, both torch's
        traced = torch.jit.trace(layer, x, check_trace=False)
    torch.testing.assert_close(traced(x), layer(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_keeps_the_meta_network_in_float32(dtype: torch.dtype) -> None:
    layer = trained_layer(restore=True).float()
    x = torch.randn(2, 32, 6, 6)
    with torch.autocast("cpu", dtype=dtype):
        inside = layer(x)
    assert torch.equal(inside, layer(x))
    model = nn.Sequential(nn.Conv2d(32, 32, 1), layer)
    with torch.autocast("cpu", dtype=dtype):
        y = model(x)
    assert y.dtype == dtype
    y.float().sum().backward()
    assert layer.encoder.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_parameters(dtype: torch.dtype) -> None:
    layer = trained_layer(restore=True)
    x = torch.randn(2, 32, 6, 6, dtype=torch.float64)
    low = copy.deepcopy(layer).to(dtype)
    y = low(x.to(dtype))
    assert y.dtype == dtype
    exact = copy.deepcopy(low).double()(x.to(dtype).double())
    scale = exact.abs().max()
    assert ((y.double() - exact).abs().max() / scale) < 2 * TOLERANCE[dtype]


def test_copies_and_pickles() -> None:
    layer = trained_layer(restore=True)
    x = torch.randn(2, 32, 3, 3, dtype=torch.float64)
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), loaded):
        assert other is not layer
        assert torch.equal(other(x), layer(x))
    rebuilt = ILMNorm(**layer.config(), dtype=torch.float64)
    rebuilt.load_state_dict(layer.state_dict())
    assert torch.equal(rebuilt(x), layer(x))


def test_meta_device() -> None:
    layer = ILMNorm(32, 8, restore=True, device="meta")
    assert layer(torch.empty(2, 32, 4, 4, device="meta")).shape == (2, 32, 4, 4)


def test_act_layer_applies_drop_then_act() -> None:
    layer = ILMNormAct(32, 8, act=nn.ReLU(), drop=nn.Dropout(0.5)).train()
    plain = ILMNorm(32, 8)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(2, 32, 4, 4)
    assert torch.equal(layer.eval()(x), plain(x).relu())
    assert (layer.train()(x) == 0).float().mean() > 0.6


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match=r"num_groups=32 doesn't divide num_channels=72; use one of 1, 2, 3, 4"):
        ILMNorm(72)
    with pytest.raises(ValueError, match="key_group_size=16 doesn't divide num_channels=24"):
        ILMNorm(24, 8)
    for bad, match in [
        ({"correction": 2}, "correction=2"),
        ({"eps": -1.0}, "eps=-1.0"),
        ({"eps": float("nan")}, "eps=nan"),
        ({"reduction": 0}, "reduction=0"),
        ({"restore_bound": 1.0}, "restore=True"),
        ({"restore": True, "restore_bound": -1.0}, "restore_bound=-1.0"),
        ({"num_channels": 0}, "num_channels=0"),
        ({"num_groups": 0}, "num_groups=0"),
    ]:
        with pytest.raises(ValueError, match=match):
            ILMNorm(**{"num_channels": 32, "num_groups": 8, **bad})


def test_input_is_checked() -> None:
    for shape in [(2, 31, 4, 4), (32,), (2,)]:
        with pytest.raises(ValueError, match=r"\(N, C, \*\) with C = 32, got"):
            ILMNorm(32, 8)(torch.zeros(shape))
    with pytest.raises(ValueError, match="with C a multiple of 8, got"):
        ILMNorm(32, 8, affine=False)(torch.zeros(2, 31))


def test_without_affine() -> None:
    layer = ILMNorm(32, 8, affine=False)
    assert layer.weight is None
    x = torch.randn(2, 32, 4, 4)
    torch.testing.assert_close(layer(x), F.group_norm(x, 8), rtol=1e-5, atol=1e-5)


def test_no_unit_starts_dead() -> None:
    torch.manual_seed(0)
    for channels in (16, 64, 512, 2048):
        assert (ILMNorm(channels, 1).encoder.sum(1) > 0).all()


def test_automatic_groups() -> None:
    assert [best_num_groups(c) for c in (32, 24, 72, 2022, 2, 10444)] == [16, 12, 24, 6, 1, 28]
    assert [best_key_group_size(c) for c in (24, 72, 2022, 10444)] == [12, 12, 6, 14]
    for channels in range(1, 400):
        groups = best_num_groups(channels)
        assert channels % groups == 0
        assert channels == groups == 1 or channels // groups >= 2
        assert channels % best_key_group_size(channels) == 0
