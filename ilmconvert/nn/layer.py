"""ILM Norm as a module."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ilmconvert.errors import NoRunningStatistics, NotScriptable
from ilmconvert.nn.authors_checkpoint import read_authors_layer
from ilmconvert.nn.functional import ilm_norm
from ilmconvert.nn.group_sizes import check_divides
from ilmconvert.nn.restore_range import RestoreRange, to_range

# Symbolic tracing (torch.fx, torchvision's and timm's feature extraction) keeps the call as one node: what is
# inside depends on shapes. It looks the name up in this module.
torch.fx.wrap("ilm_norm")

#: The tensors of a layer that never train.
CONSTANTS = ("ref_mean", "ref_std")
_IN_THE_KERNEL: dict[type[nn.Module], str] = {nn.ReLU: "relu", nn.SiLU: "silu", nn.Hardswish: "hardswish"}
_OF_BATCH_NORM = frozenset({"running_mean", "running_var", "num_batches_tracked", "track_running_stats"})


class ILMNorm(nn.Module):
    r"""Instance-Level Meta Normalization over a batch of (N, C, \*) inputs.

    Jia, Chen, Chen: *Instance-Level Meta Normalization*, CVPR 2019 (arXiv 1904.03516). Every sample is standardised
    in ``num_groups`` groups of channels, as :class:`torch.nn.GroupNorm` does, and then rescaled by parameters that a
    small auto-encoder predicts from the sample's own statistics. ``num_groups`` 32, 1 and ``num_channels`` are the
    paper's ILM-GN, ILM-LN and ILM-IN. No running statistics: a sample's output never depends on its batch, and
    training and evaluation compute the same. The formula is that of :func:`ilmconvert.nn.ilm_norm`.

    A new layer computes exactly what GroupNorm does (the decoders start at zero) and learns to deviate from it.

    Args:
        num_channels: C.
        num_groups: G, the normalisation groups. Divides C.
        key_group_size: channels of a key group, whose mean and variance the meta-network sees. Divides C.
        reduction: the auto-encoder's width is ``max(2, C / key_group_size // reduction)``.
        eps: added to the variance of the normalisation groups.
        correction: 0 (biased variances, as GroupNorm has) or 1 (unbiased, as the authors' code has).
        restore: add the restoring path, with which the layer can compute any per-channel affine function exactly.
        restore_bound: tau; deviations z on that path become ``tau * tanh(z / tau)``. None: no bound.
        restore_range: instances whose contrast or colour lies outside these limits (see
            :class:`ilmconvert.nn.restore_range.RestoreRange`) are normalised to the limit on that path; those
            inside pass as they are. None: all pass.
        affine: learn ``weight`` and ``bias`` per channel.
        input_dims: dimensions of the input; with one less it is a single instance, (C, \*), as torch's InstanceNorm
            takes it. None: any number from two, always a batch.
        device, dtype: of the parameters.

    Shape:
        - Input: (N, C), (N, C, L), (N, C, H, W), (N, C, D, H, W).
        - Output: the same shape, type and memory format.

    Attributes:
        weight, bias: (C,), start at 1 and 0; the paper's :math:`B_\omega + 1/2` and :math:`B_\beta`.
        encoder: (R, K), shared by both features; no biases.
        weight_decoder, bias_decoder: (K, R), start at 0.
        restore_weight, restore_bias: (C,), start at 0; None without ``restore``.
        ref_mean, ref_std: (G,), 0 and 1, None without ``restore``. Constants: buffers, which stand in the state dict
            and which no optimizer, weight decay or unfreezing moves.

    Raises:
        ValueError: ``num_groups`` or ``key_group_size`` doesn't divide ``num_channels`` (the message names the
            divisors), or another setting is out of its range.

    >>> layer = ILMNorm(64, num_groups=32)
    >>> layer(torch.randn(2, 64, 7, 7)).shape
    torch.Size([2, 64, 7, 7])
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    restore_weight: nn.Parameter | None
    restore_bias: nn.Parameter | None
    ref_mean: Tensor | None
    ref_std: Tensor | None
    _before_meta: tuple[Tensor | None, Tensor | None] | None = None

    def __init__(
        self,
        num_channels: int,
        num_groups: int = 32,
        *,
        key_group_size: int = 16,
        reduction: int = 16,
        eps: float = 1e-5,
        correction: int = 0,
        restore: bool = False,
        restore_bound: float | None = None,
        restore_range: Sequence[float] | None = None,
        affine: bool = True,
        input_dims: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check_settings(num_channels, num_groups, key_group_size, reduction, eps, correction)
        if restore_bound is not None and not (restore and restore_bound > 0):
            raise ValueError(f"restore_bound={restore_bound} must be positive and needs restore=True")
        self.num_channels = num_channels
        self.num_groups = num_groups
        self.key_group_size = key_group_size
        self.reduction = reduction
        self.eps = eps
        self.correction = correction
        self.restore = restore
        self.restore_bound = restore_bound
        self.restore_range: RestoreRange | None = _checked_range(restore_range, restore)
        self.affine = affine
        self.input_dims = input_dims

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

        key_groups = num_channels // key_group_size
        width = max(2, key_groups // reduction)
        self.register_parameter("weight", parameter(num_channels) if affine else None)
        self.register_parameter("bias", parameter(num_channels) if affine else None)
        self.encoder: nn.Parameter = parameter(width, key_groups)
        self.weight_decoder: nn.Parameter = parameter(key_groups, width)
        self.bias_decoder: nn.Parameter = parameter(key_groups, width)
        self.register_parameter("restore_weight", parameter(num_channels) if restore else None)
        self.register_parameter("restore_bias", parameter(num_channels) if restore else None)
        for name in CONSTANTS:
            self.register_buffer(name, torch.empty(num_groups, device=device, dtype=dtype) if restore else None)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start as a GroupNorm: random encoder, zero decoders, no restoring."""
        if self.encoder.is_meta:  # nothing to fill, and slow: torch goes through its Python references there
            return
        scale = 1 / math.sqrt(self.encoder.shape[1])
        nn.init.normal_(self.encoder, std=scale)
        # A row whose sum is negative would be dead for good: variances are positive.
        self.encoder.mul_(torch.where(self.encoder.sum(1, keepdim=True) < 0, -1.0, 1.0))
        ones = (self.weight, self.ref_std)
        zeros = (self.bias, self.weight_decoder, self.bias_decoder)
        for t in ones:
            if t is not None:
                t.fill_(1.0)
        for t in (*zeros, self.restore_weight, self.restore_bias, self.ref_mean):
            if t is not None:
                t.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self._norm(x, "none")

    def _norm(self, x: Tensor, activation: str) -> Tensor:
        ref_mean, ref_std = self._references()
        return ilm_norm(
            x,
            self.weight,
            self.bias,
            self.encoder,
            self.weight_decoder,
            self.bias_decoder,
            num_groups=self.num_groups,
            eps=self.eps,
            correction=self.correction,
            restore_weight=self.restore_weight,
            restore_bias=self.restore_bias,
            ref_mean=ref_mean,
            ref_std=ref_std,
            restore_bound=self.restore_bound,
            restore_range=self.restore_range,
            activation=activation,
            input_dims=self.input_dims,
        )

    def config(self) -> dict[str, Any]:
        """The constructor's arguments (less device and dtype), all of them JSON values.

        >>> ILMNorm(8, 2, key_group_size=4).config()["num_groups"]
        2
        """
        settings: dict[str, Any] = {
            "num_channels": self.num_channels,
            "num_groups": self.num_groups,
            "key_group_size": self.key_group_size,
            "reduction": self.reduction,
            "eps": self.eps,
            "correction": self.correction,
            "restore": self.restore,
            "restore_bound": self.restore_bound,
            "affine": self.affine,
        }
        # Left out where there is none, as in files that were written before there was one.
        if self.restore_range is not None:
            settings["restore_range"] = list(self.restore_range)
        return settings if self.input_dims is None else {**settings, "input_dims": self.input_dims}

    @classmethod
    def from_reference(cls, state_dict: Mapping[str, Tensor], num_groups: int, *, eps: float = 1e-5) -> ILMNorm:
        """The layer of the authors' code, from its state dict; see ``nn/authors_checkpoint.py``.

        Args:
            state_dict: ``fc_embed.0.weight`` and the rest of one layer of the authors' networks.
            num_groups: 32 for their ILM-GN, 1 for ILM-LN, C for ILM-IN; the file doesn't tell.

        Raises:
            ValueError: keys or shapes aren't those of one such layer.
        """
        arguments, tensors = read_authors_layer(state_dict)
        layer = cls(num_groups=num_groups, eps=eps, **arguments)
        for name, tensor in tensors.items():
            setattr(layer, name, nn.Parameter(tensor))
        return layer

    def buffers(self, recurse: bool = True) -> Iterator[Tensor]:
        """None of its own: Opacus asks this of a trained layer, and refuses those whose buffers change with the data.

        The reference values are constants. ``named_buffers()`` has them, here and from the model that holds the layer.

        >>> layer = ILMNorm(8, 2, key_group_size=4, restore=True)
        >>> list(layer.buffers()), [name for name, _ in layer.named_buffers()]
        ([], ['ref_mean', 'ref_std'])
        """
        yield from (buffer for name, buffer in self.named_buffers(recurse=recurse) if name not in CONSTANTS)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ILMNorm:
        before = self.ref_mean, self.ref_std
        super()._apply(fn, recurse)
        self._before_meta = before if self.ref_std is not None and self.ref_std.is_meta else None
        return self

    def _references(self) -> tuple[Tensor | None, Tensor | None]:
        """The constants. Opacus calls a copy on the meta device with real parameters; constants it knows nothing of."""
        if self.ref_std is not None and self.ref_std.is_meta and self._before_meta and not self.encoder.is_meta:
            return self._before_meta
        return self.ref_mean, self.ref_std

    def __prepare_scriptable__(self) -> None:
        """What torch.jit.script asks before it compiles: refuses, since its errors don't say what is wrong."""
        raise NotScriptable(
            "torch.jit.script can't compile an ILM Norm: use torch.jit.trace, torch.export or torch.compile, or script "
            "the result of ilmconvert.export.fold.fold where every layer folds to a plain one"
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for name in CONSTANTS:  # of whole modules that were pickled when these were parameters
            if name in self._parameters:
                old = self._parameters.pop(name)
                self._buffers[name] = None if old is None else old.detach()

    def __getattr__(self, name: str) -> Any:
        if name in _OF_BATCH_NORM:
            raise NoRunningStatistics(
                f"an ILM Norm has no {name} and can't be fused into a convolution: reparameterise the source instead "
                "of converting it, or use the converted model as it is"
            )
        return super().__getattr__(name)

    def extra_repr(self) -> str:
        text = f"{self.num_channels}, num_groups={self.num_groups}, key_group_size={self.key_group_size}"
        text += f", eps={self.eps}, restore={self.restore}, restore_bound={self.restore_bound}"
        text += "" if self.input_dims is None else f", input_dims={self.input_dims}"
        return text if self.restore_range is None else f"{text}, restore_range={tuple(self.restore_range)}"


class ILMNormAct(ILMNorm):
    """ILM Norm followed by the drop and activation that the replaced timm ``*NormAct`` layer held.

    Takes ``act`` and ``drop`` modules (default: identity) beside the settings of :class:`ILMNorm`.

    >>> ILMNormAct(8, 1, key_group_size=8, act=nn.ReLU())(torch.randn(2, 8)).min() >= 0
    tensor(True)
    """

    def __init__(
        self,
        num_channels: int,
        num_groups: int = 32,
        *,
        act: nn.Module | None = None,
        drop: nn.Module | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(num_channels, num_groups, **settings)
        self.drop: nn.Module = nn.Identity() if drop is None else drop
        self.act: nn.Module = nn.Identity() if act is None else act

    def forward(self, x: Tensor) -> Tensor:
        name = _IN_THE_KERNEL.get(type(self.act), "none")
        # Elsewhere the module itself, whose hooks and whose place in a traced graph others may look for.
        plain = name != "none" and type(self.drop) is nn.Identity and type(x) is Tensor and x.is_cuda
        if plain and self._is_free(self.act) and self._is_free(self.drop):
            return self._norm(x, name)
        result: Tensor = self.act(self.drop(self._norm(x, "none")))
        return result

    @staticmethod
    def _is_free(module: nn.Module) -> bool:
        """Whether nobody waits for a call of ``module``."""
        hooks = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
        return not any(hooks)


def _checked_range(limits: Sequence[float] | None, restore: bool) -> RestoreRange | None:
    if limits is None:
        return None
    if not restore:
        raise ValueError(f"restore_range={limits} needs restore=True")
    return to_range(limits)


def _check_settings(
    num_channels: int, num_groups: int, key_group_size: int, reduction: int, eps: float, correction: int
) -> None:
    if num_channels < 1:
        raise ValueError(f"num_channels={num_channels} must be positive")
    check_divides("num_groups", num_groups, num_channels)
    check_divides("key_group_size", key_group_size, num_channels)
    if reduction < 1:
        raise ValueError(f"reduction={reduction} must be positive")
    if not eps >= 0:
        raise ValueError(f"eps={eps} must not be negative")
    if correction not in (0, 1):
        raise ValueError(f"correction={correction} must be 0 (biased) or 1 (unbiased variances)")
