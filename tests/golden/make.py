"""Write the golden checkpoints: ``python -m tests.golden.make``, once a format version or kind.

Each kind of model is a file in the folder of its format, ``tests/golden/v1`` or ``v2``; ``outputs.safetensors`` there
holds one input and the output of each. What is there already stays as it is, for good: these files show that old
checkpoints load.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ilmconvert import convert, save, standardize_input
from ilmconvert.calibration.bound import bound
from ilmconvert.finetune.anneal import restoring_parameters, without_restoring
from ilmconvert.models.create import create_model
from ilmconvert.nn import ILMNorm
from tests.helpers import randomize_norms

HERE = Path(__file__).parent
OUTPUTS = "outputs.safetensors"
SLIM = {"num_classes": 4, "channels": [8, 8, 8, 16], "stem_width": 4}


class Custom(nn.Module):
    """A custom model, with a tied weight and a shared norm: loaded by ``load(path, into=Custom())``."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3)
        self.first, self.second = nn.Conv2d(12, 12, 1), nn.Conv2d(12, 12, 1)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm2d(12)
        self.again = self.norm

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        return self.again(self.second(self.first(x))).mean((2, 3))


def zoo(to: str, architecture: str = "test_resnet", **settings: object) -> nn.Module:
    """A slim network of timm's, converted, with decoders that are no longer zero."""
    args = SLIM if architecture == "test_resnet" else {"num_classes": 4}
    source = randomize_norms(create_model(architecture, weights="none", **args))
    return learnt(convert(source, to, **settings))  # type: ignore[arg-type]


@torch.no_grad()
def learnt(model: nn.Module) -> nn.Module:
    """Give the auto-encoders something to say."""
    for layer in model.modules():
        if isinstance(layer, ILMNorm):
            layer.weight_decoder.normal_(std=0.1)
            layer.bias_decoder.normal_(std=0.1)
    return model


def robust() -> nn.Module:
    model = zoo("ilm_ln")
    bound(model)
    return model


@torch.no_grad()
def annealed() -> nn.Module:
    model = zoo("ilm_gn")
    for parameter in restoring_parameters(model):
        parameter.zero_()
    return without_restoring(model)


def standardized() -> nn.Module:
    model = zoo("ilm_gn")
    standardize_input(model, [torch.ones(1, 3, 32, 32)], std=0.6)
    return model


#: The kinds, by file name, of each format: a file says the oldest that holds it.
KINDS: dict[int, dict[str, Callable[[], nn.Module]]] = {
    1: {
        "ilm_gn": lambda: zoo("ilm_gn"),
        "ilm_ln": lambda: zoo("ilm_ln"),
        "ilm_in": lambda: zoo("ilm_in"),
        "moments": lambda: zoo("ilm_gn", init="moments"),
        "bounded": lambda: zoo("ilm_ln", restore_bound=4.0),
        "robust": robust,
        "gn": lambda: zoo("gn"),
        "annealed": annealed,
        "half": lambda: zoo("ilm_gn").half(),
        "custom": lambda: learnt(convert(randomize_norms(Custom()))),
    },
    2: {"standardized": standardized},
}


def write(folder: Path, kinds: dict[str, Callable[[], nn.Module]]) -> None:
    """One format's files."""
    folder.mkdir(exist_ok=True)
    outputs = load_file(folder / OUTPUTS) if (folder / OUTPUTS).exists() else {}
    # The second instance has four times the contrast: a bound and a range show.
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    outputs.setdefault("input", x * torch.tensor([1.0, 4.0]).view(2, 1, 1, 1))
    for kind, make in kinds.items():
        path = folder / f"{kind}.safetensors"
        if path.exists():
            print(f"{path.name} stays")
            continue
        torch.manual_seed(0)
        model = make().eval()
        save(model, path)
        with torch.no_grad():
            outputs[kind] = model(outputs["input"].to(next(model.parameters()).dtype))
        print(f"{path.name}: {path.stat().st_size} bytes")
    save_file(outputs, folder / OUTPUTS)


if __name__ == "__main__":
    for version, kinds in KINDS.items():
        write(HERE / f"v{version}", kinds)
