"""Images to train on: where they come from, what is refused, and that random choices depend on the item alone."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from accelerate import Accelerator, DataLoaderConfiguration
from PIL import Image
from torch.utils.data import DataLoader

from ilmconvert.data.dataset import Augmented, ImageDataset
from ilmconvert.data.open_data import Data, check_head, open_data
from ilmconvert.data.transforms import transform_config
from ilmconvert.errors import DataError
from ilmconvert.finetune.engine import check_recipe
from ilmconvert.finetune.loaders import loaders, with_transforms
from ilmconvert.finetune.recipe import Recipe, RecipeError, get_recipe

CLASSES = ("ant", "bee", "cat")


def draw(folder: Path, count: int, seed: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        Image.fromarray(rng.integers(0, 255, (40, 48, 3), dtype=np.uint8)).save(folder / f"{i}.png")


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """One folder of three class folders, of 8 images each."""
    for i, name in enumerate(CLASSES):
        draw(tmp_path / "images" / name, 8, seed=i)
    return tmp_path / "images"


@pytest.fixture
def splits(tmp_path: Path) -> Path:
    """train/ and val/ of three classes."""
    for i, name in enumerate(CLASSES):
        draw(tmp_path / "data" / "train" / name, 5, seed=i)
        draw(tmp_path / "data" / "val" / name, 2, seed=10 + i)
    return tmp_path / "data"


def labels(dataset: Any) -> list[int]:
    return [dataset[i][1] for i in range(len(dataset))]


def files(dataset: Any) -> list[str]:
    return [dataset.name(i) for i in range(len(dataset))]


def test_train_and_val_folders(splits: Path) -> None:
    data = open_data(splits)
    assert data.class_names == CLASSES
    assert (data.num_classes, data.labelled) == (3, True)
    assert labels(data.train) == [0] * 5 + [1] * 5 + [2] * 5
    assert labels(data.val) == [0, 0, 1, 1, 2, 2]
    assert data.description["source"] == str(splits)
    assert (data.description["train"], data.description["val"]) == (15, 6)
    image, _ = data.train[0]
    expected = Image.open(splits / "train" / "ant" / "0.png")
    assert np.array_equal(np.asarray(image), np.asarray(expected))


def test_names_of_splits(splits: Path) -> None:
    (splits / "train").rename(splits / "Training")
    (splits / "val").rename(splits / "test")
    assert len(open_data(splits).val) == 6  # type: ignore[arg-type]
    (splits / "test").rename(splits / "held-out")
    assert open_data(splits).val is None
    assert len(open_data(splits, val_split="held-out").val) == 6  # type: ignore[arg-type]
    assert len(open_data(splits, train_split="held-out").train) == 6  # type: ignore[arg-type]
    with pytest.raises(DataError, match="has no folder nowhere"):
        open_data(splits, val_split="nowhere")
    with pytest.raises(DataError, match="has no folder nowhere"):
        open_data(splits, train_split="nowhere")


def test_a_fraction_is_split_off_from_every_class(classes: Path) -> None:
    data = open_data(classes, val_split=0.25)
    assert labels(data.train) == [0] * 6 + [1] * 6 + [2] * 6
    assert labels(data.val) == [0, 0, 1, 1, 2, 2]
    assert not set(files(data.train)) & set(files(data.val))
    again, other = open_data(classes, val_split=0.25), open_data(classes, val_split=0.25, seed=1)
    assert files(again.val) == files(data.val)
    assert files(other.val) != files(data.val)
    assert open_data(classes).val is None


def test_fractions_that_cant_be(classes: Path, splits: Path) -> None:
    with pytest.raises(DataError, match="between 0 and 1"):
        open_data(classes, val_split=1.0)
    with pytest.raises(DataError, match="has its own validation images"):
        open_data(splits, val_split=0.5)
    draw(classes / "dog", 1)
    with pytest.raises(DataError, match="the class dog has one image"):
        open_data(classes, val_split=0.25)


def test_unlabelled(classes: Path, tmp_path: Path) -> None:
    draw(tmp_path / "flat", 6)
    flat = open_data(tmp_path / "flat", val_split=0.5)
    assert (flat.num_classes, flat.class_names, flat.labelled) == (None, None, False)
    assert labels(flat.train) == labels(flat.val) == [-1, -1, -1]
    ignored = open_data(classes, unlabelled=True)
    assert (len(ignored.train), ignored.num_classes) == (24, None)  # type: ignore[arg-type]
    assert set(labels(ignored.train)) == {-1}


def test_unlabelled_training_and_labelled_validation_images(splits: Path) -> None:
    for name in CLASSES:
        for path in (splits / "train" / name).iterdir():
            path.rename(splits / "train" / f"{name}-{path.name}")
        (splits / "train" / name).rmdir()
    data = open_data(splits)
    assert (data.labelled, data.num_classes) == (False, 3)
    assert set(labels(data.train)) == {-1}
    assert labels(data.val) == [0, 0, 1, 1, 2, 2]


def empty_class(folder: Path) -> None:
    (folder / "dog").mkdir()
    (folder / "dog" / "notes.txt").write_text("later")


def one_class(folder: Path) -> None:
    for name in CLASSES[1:]:
        for path in (folder / name).iterdir():
            path.unlink()
        (folder / name).rmdir()


def loose_image(folder: Path) -> None:
    draw(folder, 1)


def no_images(folder: Path) -> None:
    one_class(folder)
    for path in (folder / CLASSES[0]).iterdir():
        path.unlink()
    (folder / CLASSES[0]).rmdir()


def truncated(folder: Path) -> None:
    path = folder / "bee" / "0.png"
    path.write_bytes(path.read_bytes()[:200])


def not_a_image(folder: Path) -> None:
    (folder / "bee" / "7.png").write_text("<html>not found</html>")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (empty_class, "no image in the class folder dog of .*images; fill or remove it"),
        (one_class, "holds one class, ant"),
        (loose_image, r"holds images \(0.png\) beside class folders"),
        (no_images, "no images in .*images; their names end in .png"),
        (truncated, r"can't read the image .*bee.0\.png \(.*\); remove or replace it"),
        (not_a_image, r"can't read the image .*bee.7\.png"),
    ],
)
def test_folders_that_are_refused(spoil: Callable[[Path], None], message: str, classes: Path) -> None:
    spoil(classes)
    with pytest.raises(DataError, match=message) as found:
        open_data(classes)
    assert "\n" not in str(found.value)


def test_hidden_folders_are_no_classes(classes: Path) -> None:
    draw(classes / ".ipynb_checkpoints", 2)
    data = open_data(classes)
    assert data.class_names == CLASSES
    assert len(data.train) == 24  # type: ignore[arg-type]


def test_validation_of_other_classes(splits: Path) -> None:
    (splits / "val" / "cat").rename(splits / "val" / "yak")
    with pytest.raises(DataError, match=r"the class yak of .*val isn't among the classes to train"):
        open_data(splits)


def test_labels_stay_where_validation_lacks_a_class(splits: Path) -> None:
    for path in (splits / "val" / "ant").iterdir():
        path.unlink()
    (splits / "val" / "ant").rmdir()
    with pytest.warns(UserWarning, match="has no images of ant"):
        data = open_data(splits)
    assert labels(data.val) == [1, 1, 2, 2]


def test_flat_validation_of_labelled_images(splits: Path) -> None:
    (splits / "val").rename(splits / "sorted")
    draw(splits / "val", 2)
    with pytest.raises(DataError, match="val has no class folders"):
        open_data(splits)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere", "nowhere isn't a folder; give a folder of images"),
        ("other/cifar10", "isn't a folder"),
        ("wds/images", "is a stream"),
        ("torch/nothing", "can't open torch/nothing, split train: .*nothing"),
        ("torch/cifar10:nowhere", "can't open torch/cifar10, split train: .*--data-dir"),
    ],
)
def test_sources_that_arent_there(source: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=message) as found:
        open_data(source)
    assert "\n" not in str(found.value)


def test_a_file_isnt_a_folder(tmp_path: Path) -> None:
    (tmp_path / "images.tar").write_bytes(b"")
    with pytest.raises(DataError, match="is a file; unpack it"):
        open_data(tmp_path / "images.tar")


def write_mnist(folder: Path, count: int = 12) -> None:
    """MNIST's own files, of random images with labels 0 to 9."""
    import gzip

    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for name in ("train", "t10k"):
        images, numbers = rng.integers(0, 255, (count, 28, 28), dtype=np.uint8), np.arange(count) % 10
        heads = [(3, (count, 28, 28), images), (1, (count,), numbers.astype(np.uint8))]
        for suffix, (dims, shape, values) in zip(("images-idx3-ubyte", "labels-idx1-ubyte"), heads, strict=True):
            content = bytes([0, 0, 8, dims]) + b"".join(n.to_bytes(4, "big") for n in shape) + values.tobytes()
            (folder / f"{name}-{suffix}").write_bytes(content)
            (folder / f"{name}-{suffix}.gz").write_bytes(gzip.compress(content))


def test_a_dataset_of_torchvision(tmp_path: Path) -> None:
    write_mnist(tmp_path / "root" / "MNIST" / "raw")
    data = open_data(f"torch/mnist:{tmp_path / 'root'}")
    assert data.num_classes == 10
    assert labels(data.train) == labels(data.val) == [*range(10), 0, 1]
    assert data.train[0][0].mode == "RGB"
    assert len(open_data("torch/mnist", data_dir=tmp_path / "root", val_split="test").val) == 12  # type: ignore[arg-type]


@pytest.mark.parametrize(("classes_of_head", "word"), [(2, "more"), (1000, "fewer")])
def test_head_of_another_size(classes_of_head: int, word: str, classes: Path) -> None:
    with pytest.raises(DataError, match=f"3 classes, {word} than the {classes_of_head} outputs.*--num-classes 3"):
        open_data(classes, num_classes=classes_of_head)
    assert open_data(classes, num_classes=3).num_classes == 3
    check_head(open_data(classes, unlabelled=True), classes_of_head)


def test_recipes_that_need_labels(classes: Path) -> None:
    unlabelled = open_data(classes, unlabelled=True)
    check_recipe(unlabelled, get_recipe("distill"))
    check_recipe(open_data(classes), get_recipe("full"))
    with pytest.raises(RecipeError, match=r"distill is 0\.5 and the data have no labels"):
        check_recipe(unlabelled, get_recipe("anneal", distill=0.5))


def ready(classes: Path, **settings: Any) -> Data:
    recipe = get_recipe("full", input_size=32, **settings)
    return with_transforms(open_data(classes, val_split=0.25), recipe, timm.create_model("test_resnet"))


AUGMENTATIONS = {
    "crop": {},
    "jitter": {"color_jitter": 0.4, "vflip": 0.5},
    "rand": {"auto_augment": "rand-m9-mstd0.5", "reprob": 0.5},
    "augmix": {"auto_augment": "augmix-m5-w4-d2"},
}


@pytest.mark.parametrize("settings", AUGMENTATIONS.values(), ids=AUGMENTATIONS)
def test_random_choices_depend_on_seed_epoch_and_item(settings: dict[str, Any], classes: Path) -> None:
    train = ready(classes, **settings).train
    assert isinstance(train, Augmented)
    first = [train[(2, i)][0] for i in range(len(train))]
    random.random(), np.random.rand(), torch.rand(3)
    backwards = [train[(2, i)][0] for i in reversed(range(len(train)))][::-1]
    assert all(map(torch.equal, first, backwards))
    train.set_epoch(2)
    assert all(torch.equal(train[i][0], x) for i, x in enumerate(first))
    assert not any(torch.equal(train[(3, i)][0], x) for i, x in enumerate(first[:4]))
    other = ready(classes, seed=1, **settings).train.items  # type: ignore[attr-defined]
    assert not torch.equal(
        Augmented(other, train.transform, 1)[(2, 0)][0], Augmented(other, train.transform, 0)[(2, 0)][0]
    )


def test_random_states_stay_as_they_were(classes: Path) -> None:
    train = ready(classes, auto_augment="rand-m9-mstd0.5").train
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    expected = random.random(), np.random.rand(), torch.rand(3)
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    train[0]
    found = random.random(), np.random.rand(), torch.rand(3)
    assert found[:2] == expected[:2]
    assert torch.equal(found[2], expected[2])


def accelerator() -> Accelerator:
    return Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(split_batches=True))


def epoch_of(loader: Any, epoch: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    loader.set_epoch(epoch)
    return [(x, y) for x, y in loader]


def same(a: list[tuple[torch.Tensor, torch.Tensor]], b: list[tuple[torch.Tensor, torch.Tensor]]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(a, b, strict=True)
    )


def test_loaders_give_the_same_batches_with_and_without_workers(classes: Path) -> None:
    found = []
    for workers in (0, 2):
        recipe = get_recipe("full", input_size=32, batch_size=4, workers=workers, color_jitter=0.4)
        data = with_transforms(open_data(classes, val_split=0.25), recipe, timm.create_model("test_resnet"))
        train, _ = loaders(data, recipe, (runner := accelerator()))
        prepared = runner.prepare(train)
        epochs = [epoch_of(prepared, epoch) for epoch in (1, 0, 1)]
        assert same(epochs[0], epochs[2])
        assert not same(epochs[0], epochs[1])
        rest = runner.skip_first_batches(prepared, 2)
        assert same(epoch_of(rest, 1), epochs[0][2:])
        found.append(epochs)
    assert all(map(same, *found))


def test_global_random_state_is_not_touched_by_a_loader(classes: Path) -> None:
    recipe = get_recipe("full", input_size=32, batch_size=4, workers=0)
    train, val = loaders(ready(classes, batch_size=4, workers=0), recipe, accelerator())
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    assert isinstance(val, DataLoader)
    list(train), list(val)
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize(("batch_size", "batches"), [(4, 4), (5, 3), (18, 1), (32, 1)])
def test_an_incomplete_last_batch_is_left_out_unless_it_is_the_only_one(
    batch_size: int, batches: int, classes: Path
) -> None:
    recipe = get_recipe("full", input_size=32, batch_size=batch_size, workers=0)
    train, val = loaders(ready(classes), recipe, accelerator())
    sizes = [len(y) for _, y in train]
    assert sizes == [min(batch_size, 18)] * batches
    assert val is not None
    assert sum(len(y) for _, y in val) == 6


def test_an_epoch_sees_every_image_once(classes: Path) -> None:
    data = ready(classes)
    plain = Data(Augmented([(i, i) for i in range(18)], None, 0))  # type: ignore[arg-type]
    recipe = get_recipe("full", batch_size=6, workers=0)
    train, val = loaders(plain, recipe, accelerator())
    seen = torch.cat([y for _, y in train]).tolist()
    assert sorted(seen) == list(range(18)) != seen
    assert val is None
    assert len(data.train) == 18  # type: ignore[arg-type]


class TwoProcesses:
    num_processes = 2
    device = torch.device("cpu")


def test_batches_that_processes_cant_share(classes: Path) -> None:
    data, two = ready(classes), TwoProcesses()
    with pytest.raises(RecipeError, match="batch_size 5 is for all 2 processes"):
        loaders(data, get_recipe("full", batch_size=5), two)  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="even number of images in a process, not 3"):
        loaders(data, get_recipe("full", batch_size=6, mixup=0.2), two)  # type: ignore[arg-type]
    val = loaders(data, get_recipe("full", batch_size=4, validation_batch_size=7, workers=0), two)[1]  # type: ignore[arg-type]
    assert val is not None
    assert val.batch_size == 8


def test_a_image_that_is_damaged_later_is_named(classes: Path) -> None:
    for workers in (0, 1):
        recipe = get_recipe("full", batch_size=4, workers=workers)
        train, _ = loaders(ready(classes), recipe, accelerator())
        for path in (classes / "bee").iterdir():
            path.write_bytes(b"")
        with pytest.raises(DataError, match=r"^can't read the image .*bee.*\.png") as found:
            list(train)
        assert "\n" not in str(found.value)
        draw(classes / "bee", 8)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def test_images_that_cant_be_read_are_left_out_counted_and_named(splits: Path) -> None:
    for place in ("train/ant/3.png", "train/cat/0.png", "val/bee/1.png"):
        truncate(splits / place)
    with pytest.raises(DataError, match=r"3.png .*with --skip-corrupt \(skip_corrupt=True\)"):
        open_data(splits)
    with pytest.warns(UserWarning, match=r"leaving out, of 21, 3 images that can't be read: .*3.png, .*, .*1.png$"):
        data = open_data(splits, skip_corrupt=True)
    assert data.unreadable == ["train/ant/3.png", "train/cat/0.png", "val/bee/1.png"]
    assert (data.description["train"], data.description["val"]) == (13, 5)
    assert [Path(name).name for name in files(data.train)][:4] == ["0.png", "1.png", "2.png", "4.png"]
    assert labels(data.train) == [0] * 4 + [1] * 5 + [2] * 4
    assert labels(data.val) == [0, 0, 1, 2, 2]


def test_where_all_can_be_read_nothing_changes(splits: Path) -> None:
    assert open_data(splits, skip_corrupt=True).description == open_data(splits).description


def test_what_is_left_out_is_in_no_part_of_a_split(classes: Path) -> None:
    (classes / "bee" / "5.png").write_text("no image")
    with pytest.warns(UserWarning, match="bee/5.png"):
        data = open_data(classes, val_split=0.25, skip_corrupt=True)
    assert len(data.train) + len(data.val) == 23
    assert not any(name.endswith("bee/5.png") for name in files(data.train) + files(data.val))
    assert sorted(set(labels(data.val))) == [0, 1, 2]


def test_a_class_without_an_image_that_can_be_read_is_refused(classes: Path) -> None:
    for path in (classes / "bee").iterdir():
        path.write_text("no image")
    with pytest.raises(DataError, match="no image of the class bee can be read; replace some, or remove the class"):
        open_data(classes, skip_corrupt=True)
    for path in classes.rglob("*.png"):
        path.write_text("no image")
    with pytest.raises(DataError, match=r"none of the 24 images can be read, first .*0.png; give others"):
        open_data(classes, unlabelled=True, skip_corrupt=True)


def test_transforms_are_those_of_the_model(classes: Path) -> None:
    model = timm.create_model("test_resnet")
    data = with_transforms(open_data(classes, val_split=0.25), Recipe(workers=0), model)
    config = timm.data.resolve_model_data_config(model)
    expected = timm.data.create_transform(**config, is_training=False)
    source = open_data(classes, val_split=0.25).val
    assert source is not None
    assert data.val is not None
    assert torch.equal(data.val[0][0], expected(source[0][0]))
    assert data.train[0][0].shape == (3, 160, 160)
    assert data.description["input_size"] == [3, 160, 160]
    small = transform_config(model, 64, 1.0)
    assert (small["input_size"], small["crop_pct"], small["mean"]) == ((3, 64, 64), 1.0, config["mean"])


def test_grey_images_for_a_model_of_one_channel(classes: Path) -> None:
    model = timm.create_model("test_resnet", in_chans=1)
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (1, 32, 32), "mean": (0.5,), "std": (0.5,)}
    data = with_transforms(open_data(classes), get_recipe("full"), model)
    assert data.train[0][0].shape == (1, 32, 32)


def test_no_augmentation(classes: Path) -> None:
    train = ready(classes, no_aug=True).train
    assert all(torch.equal(train[(0, i)][0], train[(7, i)][0]) for i in range(4))


def test_labels_that_arent_numbers() -> None:
    source = [(Image.new("RGB", (4, 4)), "cat")]
    with pytest.raises(DataError, match="the label of number 0 is 'cat'"):
        ImageDataset(source)[0]


def test_the_class_of_a_nested_image_is_the_first_folder(tmp_path: Path) -> None:
    for place in ("cat/a", "cat/b/deep", "dog/a", "dog", "cat/.hidden"):
        draw(tmp_path / place, 2)
    data = open_data(tmp_path)
    assert data.class_names == ("cat", "dog")
    assert labels(data.train) == [0] * 4 + [1] * 4
    assert not any(".hidden" in name for name in files(data.train))
