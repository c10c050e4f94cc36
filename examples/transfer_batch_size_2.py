"""Transfer at batch size 2, as on a small device: ImageNet's EfficientNet-Lite0 learns handwritten digits.

At two images a step BatchNorm's statistics are noise, and a GroupNorm put in its place throws the pretrained network
away; freezing the statistics is the usual way out. The converted network starts where the source is, has no statistics,
and learns with the same recipe and the same 400 steps (200 images, four epochs):

    $ python examples/transfer_batch_size_2.py
                                           top-1   loss
    converted to ILM-GN                    89.5%   0.30
    BatchNorm, training                    14.2%   2.25
    BatchNorm, statistics frozen           83.0%   0.49
    GroupNorm(32), gamma and beta copied   16.8%   2.31
    the checkpoint loads by itself: EfficientNet

About 3 minutes on one CPU core; needs ``pip install '.[demo,finetune]'``. Accuracy on 400 other digits, one
seed: differences below four points can be chance. The same from the command line: ``ilmconvert finetune MODEL --data
FOLDER --num-classes 10 --batch-size 2 -o run``.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from ilmconvert import load
from ilmconvert.data.sample_photographs import load_lite0
from ilmconvert.finetune import finetune
from ilmconvert.surgery.group_norm_baseline import BASELINES


def write_images(folder: Path, train: int, val: int) -> Path:
    """scikit-learn's digits, enlarged from 8 to 64 pixels, as folders train/DIGIT and val/DIGIT."""
    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))[: train + val]
    for position, index in enumerate(order):
        place = folder / ("train" if position < train else "val") / str(labels[index])
        place.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray((pixels[index].reshape(8, 8) * 255 / 16).astype(np.uint8))
        small.resize((64, 64), Image.Resampling.BICUBIC).save(place / f"{index}.png")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few images, to see that it runs")
    parser.add_argument("--output", type=Path, help="keep the run folder here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        output = options.output or Path(temporary, "run")
        images = write_images(Path(temporary, "digits"), *((40, 20) if options.quick else (200, 400)))
        result = finetune(
            load_lite0(),
            images,
            "full",
            output=output,
            num_classes=10,
            baselines=("train-bn", "frozen-bn", "group-norm"),
            epochs=1 if options.quick else 4,
            batch_size=2,
            lr=0.002,
            clip_grad=5.0,
            input_size=64,
            hflip=0.0,
            scale=(0.7, 1.0),
            workers=0,
        )
        rows = {"converted to ILM-GN": result.metrics}
        rows |= {BASELINES[name]: row for name, row in result.summary["baselines"].items()}
        print(f"{'':<38} top-1   loss")
        for name, row in rows.items():
            print(f"{name:<38} {row['val_top1']:>5.1%}   {row['val_loss']:.2f}")
        print(f"the checkpoint loads by itself: {type(load(result.best)).__name__}")


if __name__ == "__main__":
    main()
