"""The fields of a recipe."""

from __future__ import annotations

from dataclasses import dataclass

from ilmconvert._constants import INITS
from ilmconvert.finetune.field_checks import setting

#: What ``ilmconvert finetune`` takes besides these fields, as names of Python.
RUN_OPTIONS = frozenset(
    (
        "model",
        "data",
        "output",
        "resume",
        "dry_run",
        "show_config",
        "find_batch_size",
        "log_with",
        "json",
        "num_classes",
        "weights",
        "model_arg",
        "teacher",
        "baseline",
        "val_split",
        "train_split",
        "unlabelled",
        "data_dir",
        "dataset_download",
        "input_key",
        "target_key",
        "skip_corrupt",
    )
)

_TRAINS, _SCHEDULE, _OPT = "What trains", "Length and learning rate", "Optimizer"
_CONVERT, _RESTORE = "Conversion of a source", "Restoring path"
_LOSS, _AUG = "Loss and distillation", "Images and augmentation"
_SPEED, _RUN = "Precision and speed", "The run"


@dataclass(frozen=True)
class Settings:
    """The fields that :class:`ilmconvert.finetune.Recipe` checks and documents."""

    name: str = "custom"

    train: str = setting(
        "full", _TRAINS, "norm: ILM parameters and a replaced head; full: everything.", choices=("norm", "full")
    )
    freeze_epochs: float = setting(
        0.0, _TRAINS, "Epochs at the start in which only ILM parameters and the head train.", least=0
    )
    freeze_batch_norm: bool = setting(True, _TRAINS, "Keep the running statistics of remaining BatchNorm layers.")
    norm_lr_scale: float = setting(
        1.0, _TRAINS, "Factor on the learning rate of ILM Norm's weight, bias and auto-encoder.", least=0
    )
    head_lr_scale: float = setting(1.0, _TRAINS, "Factor on the learning rate of the classifier.", least=0)
    restore_lr_scale: float = setting(
        1.0,
        _TRAINS,
        "Factor on the learning rate of the restoring path, the skip connection of exact conversions.",
        least=0,
    )
    layer_decay: float | None = setting(
        None, _TRAINS, "Factor on the learning rate from one layer to the one below.", above=0, most=1
    )

    epochs: int = setting(10, _SCHEDULE, "Passes over the training images.", least=1)
    batch_size: int = setting(32, _SCHEDULE, "Images of a forward pass, over all processes.", least=1, also=("-b",))
    grad_accum: int = setting(
        1, _SCHEDULE, "Forward passes of an optimizer step.", least=1, also=("--grad-accum-steps",)
    )
    lr: float | None = setting(
        None, _SCHEDULE, "Learning rate; overrides lr_base, and optimizers other than SGD need it.", above=0
    )
    lr_base: float = setting(
        0.1, _SCHEDULE, "Learning rate for 256 images a step: lr = lr_base * batch_size * grad_accum / 256.", above=0
    )
    sched: str = setting("cosine", _SCHEDULE, "Learning-rate schedule.", choices=("cosine", "constant"))
    warmup_epochs: float | None = setting(
        None, _SCHEDULE, "Epochs in which the learning rate rises from zero; none: a tenth of the steps.", least=0
    )
    min_lr: float = setting(0.0, _SCHEDULE, "Learning rate at the end.", least=0)

    opt: str = setting("sgd", _OPT, "Optimizer of timm; sgd has Nesterov momentum, momentum has the usual one.")
    momentum: float = setting(0.9, _OPT, "Momentum.", least=0, most=1)
    weight_decay: float = setting(1e-4, _OPT, "Weight decay of parameters of more than one dimension.", least=0)
    clip_grad: float | None = setting(None, _OPT, "Largest norm of the gradient; longer ones are clipped.", above=0)
    ema_decay: float | None = setting(
        None,
        _OPT,
        "Decay per step of an average of the weights, which is then evaluated and kept.",
        above=0,
        most=1,
        also=("--model-ema-decay",),
    )

    to: str = setting(
        "ilm_gn", _CONVERT, "Layer that the norms of a source are converted to.", choices=("ilm_gn", "ilm_ln", "ilm_in")
    )
    init: str = setting(
        "identity",
        _CONVERT,
        "Initial values. identity: what the source computes; moments: the paper's layer alone, close to it.",
        choices=INITS,
    )
    first_only: bool = setting(False, _CONVERT, "Convert only the first norm layer; the others stay.")
    restore_bound: float | None = setting(
        None,
        _CONVERT,
        "Soft bound of the restoring path, in standard deviations of its reference values.",
        above=0,
    )
    reference_images: int = setting(
        0,
        _RESTORE,
        "Number of training images to take the reference values of the restoring path from; 0: the source's.",
        least=0,
    )
    anneal: str = setting(
        "none",
        _RESTORE,
        "Anneal the restoring path: by a line or a cosine, or by the learning rate, as weight decay would.",
        choices=("none", "linear", "cosine", "rate"),
    )
    anneal_to: float = setting(
        0.0,
        _RESTORE,
        "Part of the restoring path that the end of annealing leaves; 0: the run ends in the paper's layer.",
        least=0,
        most=1,
    )
    anneal_end: float = setting(
        0.7,
        _RESTORE,
        "Fraction of the run after which annealing by a line or a cosine is at its end.",
        above=0,
        most=1,
    )

    distill: float = setting(
        0.0, _LOSS, "Weight of the distillation loss; the loss of the labels has the rest.", least=0, most=1
    )
    temperature: float = setting(
        2.0, _LOSS, "Softmax temperature for distillation.", above=0, also=("--kd-temperature",)
    )
    smoothing: float = setting(0.0, _LOSS, "Amount of label smoothing.", least=0, most=1)
    mixup: float = setting(0.0, _LOSS, "Alpha of mixup; 0 is off.", least=0)
    cutmix: float = setting(0.0, _LOSS, "Alpha of cutmix; 0 is off.", least=0)

    input_size: int | None = setting(None, _AUG, "Height and width of an image; none: the model's.", least=1)
    crop_pct: float | None = setting(
        None, _AUG, "Share of a validation image's side that its centre crop keeps; none: the model's.", above=0, most=1
    )
    standardize_input: bool = setting(
        False, _AUG, "Standardise each image before the first layer, which undoes changes of light and contrast."
    )
    input_std: float | None = setting(
        None,
        _AUG,
        "Standard deviation that a standardised image gets, in normalised units; none: the training images' mean.",
        above=0,
    )
    no_aug: bool = setting(False, _AUG, "Train on centre crops, without any augmentation.")
    scale: tuple[float, float] = setting((0.35, 1.0), _AUG, "Area of a random crop, as a share of the image.", above=0)
    ratio: tuple[float, float] = setting(
        (0.75, 4 / 3), _AUG, "Aspect ratio of a random crop (width over height).", above=0
    )
    hflip: float = setting(0.5, _AUG, "Probability of a horizontal flip.", least=0, most=1)
    vflip: float = setting(0.0, _AUG, "Probability of a vertical flip.", least=0, most=1)
    color_jitter: float = setting(0.0, _AUG, "Largest change of brightness, contrast and saturation.", least=0)
    auto_augment: str | None = setting(
        None, _AUG, "Augmentation policy of timm, as in rand-m9-mstd0.5 or augmix-m5-w4-d2.", also=("--aa",)
    )
    reprob: float = setting(0.0, _AUG, "Probability of random erasing.", least=0, most=1)

    amp: str = setting(
        "auto",
        _SPEED,
        "Mixed precision; auto: bf16 on a GPU that has it, else none.",
        choices=("auto", "no", "bf16", "fp16"),
    )
    channels_last: bool = setting(False, _SPEED, "Keep images with their channels last in memory.")
    compile: bool = setting(False, _SPEED, "Use torch.compile.", also=("--torchcompile",))
    cuda_graphs: bool = setting(
        False, _SPEED, "Use torch.compile with CUDA graphs, which spare a small batch the launches; CUDA only."
    )
    grad_checkpointing: bool = setting(False, _SPEED, "Recompute activations, to save memory.")
    workers: int = setting(4, _SPEED, "Processes that read images, at most one a core.", least=0, also=("-j",))
    validation_batch_size: int | None = setting(
        None, _SPEED, "Images of a validation batch; none: batch_size, at least 32.", least=1, also=("-vb",)
    )

    seed: int = setting(0, _RUN, "Random seed.", least=0)
    eval_every: int = setting(1, _RUN, "Epochs from one evaluation to the next.", least=1, also=("--val-interval",))
    patience: int | None = setting(None, _RUN, "Stop after so many epochs without a better result.", least=1)
    save_every: int | None = setting(
        None,
        _RUN,
        "Optimizer steps from one state for --resume to the next, besides each epoch's end.",
        least=1,
        also=("--recovery-interval",),
    )
