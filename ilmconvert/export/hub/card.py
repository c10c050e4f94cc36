"""The model card, ``README.md`` of a published folder; it holds only what is known or measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import timm
from huggingface_hub import ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined

from ilmconvert._constants import TARGETS
from ilmconvert.checkpoint.metadata import Metadata
from ilmconvert.data.folders import some
from ilmconvert.surgery.ilm_norm_target import ILMNormConfig

if TYPE_CHECKING:
    from ilmconvert.evaluation.outputs import OutputDifference

#: What the hub's ``license`` may be; others are "other" with a name.
_LICENSES = frozenset(
    ["apache-2.0", "mit", "bsd-3-clause", "cc-by-nc-4.0", "apple-amlr", "apple-ascl", "gemma", "other", "unknown"]
)


@dataclass(frozen=True)
class Measured:
    """A comparison with the source, made while the folder was written.

    Attributes:
        error: of the outputs.
        inputs: how many, of which shape and kind, for people.
    """

    error: OutputDifference
    inputs: str


def card_of(config: Mapping[str, Any], metadata: Metadata, name: str, measured: Measured | None) -> str:
    """The text of the card.

    Args:
        config: the content of the ``config.json`` beside it.
        metadata: of the checkpoint in the same folder.
        name: what ``timm.create_model`` takes, ``hf-hub:ORG/NAME`` or ``local-dir:FOLDER``.
        measured: None where there was no source to compare with.
    """
    assert metadata.spec is not None
    base, cfg = metadata.spec["architecture"], config["pretrained_cfg"]
    registered = base_cfg(base)
    text: str = _template().render(
        front=_front_matter(cfg, registered).to_yaml(),
        name=name,
        base=base,
        kind=target.title if (target := TARGETS.get(str(metadata.settings.get("to")))) else "ILM Norm",
        standardized=metadata.standardized_input,
        settings=metadata.settings,
        provenance=metadata.provenance,
        version=metadata.ilmconvert,
        cfg=cfg,
        hub_id=registered.get("hf_hub_id"),
        plan=_plan(metadata),
        measured=measured,
        label_names=config.get("label_names", []),
        folder=name.removeprefix("local-dir:"),
        classes_text=f" ({some(config['label_names'])})" if config.get("label_names") else "",
    )
    return text


def base_cfg(architecture: str) -> dict[str, Any]:
    """timm's own settings of the base, {} where it has none under this name and tag."""
    if architecture not in timm.models.get_arch_pretrained_cfgs(architecture):
        return {}
    cfg = timm.models.get_pretrained_cfg(architecture)
    return {} if cfg is None else cfg.to_dict()


def _front_matter(cfg: Mapping[str, Any], registered: Mapping[str, Any]) -> ModelCardData:
    license = cfg.get("license")
    known = license is None or license in _LICENSES
    return ModelCardData(
        library_name="timm",
        pipeline_tag="image-classification" if cfg["num_classes"] else "image-feature-extraction",
        tags=["timm", "ilmconvert", "instance-level-meta-normalization"],
        license=license if known else "other",
        license_name=None if known else license,
        base_model=registered.get("hf_hub_id"),
    )


def _plan(metadata: Metadata) -> list[tuple[str, int, bool, int]]:
    """Kind of layer, groups, whether there is a restoring path, and how many of these."""
    configs = [layer.config for layer in metadata.layers]
    kinds = Counter((c.title, c.num_groups, isinstance(c, ILMNormConfig) and c.restore) for c in configs)
    return [(*kind, count) for kind, count in kinds.most_common()]


def _template() -> Any:
    made = Environment(
        loader=PackageLoader("ilmconvert.export.hub", "templates"),
        autoescape=False,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return made.get_template("card.md")
