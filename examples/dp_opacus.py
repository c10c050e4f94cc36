"""Training with differential privacy: a pretrained EfficientNet under Opacus, which refuses it with BatchNorm.

Opacus can't train BatchNorm (and its ModuleValidator looks past timm's subclass of it; GradSampleModule doesn't). It
accepts BatchNorm that is frozen and doesn't train. A GroupNorm put in its place can be trained and has forgotten
ImageNet. A converted network passes, and its norms can be trained. 1024 handwritten digits, three passes, epsilon 8;
accuracy on 400 others:

    $ python examples/dp_opacus.py
    Opacus refuses 49 layers of the source
    BatchNorm frozen, head alone       12810 trained, epsilon 8.0, top-1 77.2%
    converted, head alone              12810 trained, epsilon 8.0, top-1 77.2%
    converted, norms and head          54826 trained, epsilon 8.0, top-1 76.8%
    GroupNorm put in, norms and head   54826 trained, epsilon 8.0, top-1 11.0%

About 4 minutes on one CPU core; needs ``pip install '.[demo,dp,finetune]'``. With so few images the noise
on more parameters eats up what they learn: the head alone does as well. Convolutions train, too, if you let them; their
gradients by image take half a second each here.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable

import torch
from opacus import GradSampleModule, PrivacyEngine
from opacus.validators import ModuleValidator
from sklearn.datasets import load_digits
from timm.layers import freeze_batch_norm_2d
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ilmconvert import ILMNorm, convert
from ilmconvert.data.sample_photographs import load_lite0
from ilmconvert.evaluation.accuracy import evaluate
from ilmconvert.surgery.group_norm_baseline import group_norm_baseline

EPSILON, DELTA = 8.0, 5e-4  # delta: less than one over the number of images


def digits(count: int) -> tuple[TensorDataset, TensorDataset]:
    """scikit-learn's handwritten digits, enlarged from 8 to 64 pixels: images to train on, and 400 others."""
    pixels, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(pixels / 8 - 1, dtype=torch.float).view(-1, 1, 8, 8)[order].expand(-1, 3, -1, -1)
    large = nn.functional.interpolate(images, size=64, mode="bicubic")
    y = torch.tensor(labels)[order]
    return TensorDataset(large[400 : 400 + count], y[400 : 400 + count]), TensorDataset(large[:400], y[:400])


def trainable(model: nn.Module, norm: type[nn.Module] | None) -> nn.Module:
    """A new head for ten classes, which trains; of the rest only weight and bias of the norms of that type do."""
    torch.manual_seed(0)
    model.reset_classifier(10)
    model.requires_grad_(False)
    model.get_classifier().requires_grad_(True)
    for module in model.modules():
        if hasattr(module, "inplace"):
            module.inplace = False  # an activation in place, in a module of its own, breaks Opacus's hooks
        if norm is not None and isinstance(module, norm):
            module.weight.requires_grad_(True)
            module.bias.requires_grad_(True)
    return model.train()


def train_privately(model: nn.Module, train: TensorDataset, epochs: int) -> float:
    """DP-SGD with a small learning rate for the norms; returns the epsilon that was spent."""
    torch.manual_seed(1)
    head = list(model.get_classifier().parameters())
    norms = [p for p in model.parameters() if p.requires_grad and all(p is not other for other in head)]
    groups = [{"params": head, "lr": 0.2}, *([{"params": norms, "lr": 0.005}] if norms else [])]
    engine = PrivacyEngine(accountant="rdp")
    private, optimizer, loader = engine.make_private_with_epsilon(
        module=model,
        optimizer=torch.optim.SGD(groups, momentum=0.9),
        data_loader=DataLoader(train, batch_size=64),
        epochs=epochs,
        target_epsilon=EPSILON,
        target_delta=DELTA,
        max_grad_norm=1.0,
    )
    for _ in range(epochs):
        for x, y in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(private(x), y).backward()
            optimizer.step()
    return float(engine.get_epsilon(DELTA))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few images, to see that it runs")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # Opacus's, on hooks and on its random numbers
    train, test = digits(64 if options.quick else 1024)
    print(f"Opacus refuses {len(GradSampleModule.validate(load_lite0(), strict=False))} layers of the source")
    builds: dict[str, Callable[[], nn.Module]] = {
        "BatchNorm frozen, head alone": lambda: trainable(freeze_batch_norm_2d(load_lite0()), None),
        "converted, head alone": lambda: trainable(convert(load_lite0()), None),
        "converted, norms and head": lambda: trainable(convert(load_lite0()), ILMNorm),
        "GroupNorm put in, norms and head": lambda: trainable(
            group_norm_baseline(load_lite0(), copy_affine=True), nn.GroupNorm
        ),
    }
    for name, build in builds.items():
        model = build()
        assert not ModuleValidator.validate(model)
        spent = train_privately(model, train, 1 if options.quick else 3)
        result = evaluate(model, test, batch_size=100)
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        print(f"{name:<33} {trained:>6} trained, epsilon {spent:.1f}, top-1 {result.top1:.1%}", flush=True)


if __name__ == "__main__":
    main()
