"""The report of a verification as a page."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from ilmconvert.data.transforms import transform_config
from ilmconvert.evaluation.layer_metrics import worst_layers
from ilmconvert.evaluation.verify.verification import Verification
from ilmconvert.report.figures import layers_figure, shows_rounding
from ilmconvert.report.pages import image_url, write_page
from ilmconvert.report.text import TIMES, decibels, duration, share, small

Card = tuple[str, str, str]


def write_verification(result: Verification, path: str | Path) -> Path:
    """Write what :func:`ilmconvert.evaluation.verify.verification.verify` found as one HTML file.

    Raises:
        CheckpointError: the file can't be written.
    """
    images = _images(result)
    return write_page(
        "verify.html.jinja",
        path,
        v=result,
        target=str(result.checkpoint.header["settings"].get("to", "ILM Norm")).upper().replace("_", "-"),
        cards=_cards(result),
        figures=[layers_figure(result.fidelity.layers, narrow=narrow) for narrow in (False, True)]
        if result.fidelity.layers
        else None,
        rounding=shows_rounding(result.fidelity.layers),
        images=images,
        thumbnails=any(image["url"] for image in images),
        groups=_groups(result),
        skipped=_skipped(result),
        facts=_facts(result),
    )


def _cards(result: Verification) -> list[Card]:
    found, cost = result.fidelity, result.fidelity.cost
    cards: list[Card] = []
    if found.top1_agreement is not None:
        interval = found.top1_interval or (0.0, 1.0)
        more = f"95 %: {100 * interval[0]:.1f} to {100 * interval[1]:.1f} %"
        if found.top5_agreement is not None:
            more += f"; among the first five {share(found.top5_agreement)}"
        cards.append(("Same first class as the source", share(found.top1_agreement) or "", more))
    error = f"largest {small(found.largest_error)}, mean {small(found.mean_error)}"
    error += f" of outputs up to {small(found.largest_output)}"
    cards.append(("Largest error over the largest output", small(found.relative_error), error))
    if found.kl is not None:
        cards.append(
            ("KL divergence, mean", f"{small(found.kl)} nats", f"largest of an image {small(found.largest_kl)}")
        )
    if found.converted_top1 is not None:
        more = f"source {share(found.source_top1)}, {found.labelled} labelled images"
        cards.append(("Accuracy of the converted network", share(found.converted_top1) or "", more))
    if found.layers:
        worst = worst_layers(found.layers, 1)[0]
        cards.append(("Lowest signal-to-error ratio", decibels(worst.snr), f"at {worst.name or 'the root'}"))
    if cost is not None:
        change = f"{cost.source_parameters:,} before, {cost.converted_parameters:,} after"
        cards.append(("Parameters", f"{100 * (cost.parameter_ratio - 1):+.1f} %", change))
        times = f"{duration(cost.source_seconds)} before, {duration(cost.converted_seconds)} after"
        times += f"; {cost.batch_size} at once, {cost.device}"
        cards.append(("Time of a forward pass", f"{cost.time_ratio:.2f} {TIMES}", times))
    return cards


def _images(result: Verification) -> list[dict[str, Any]]:
    mean, std = _normalisation(result)
    rows = []
    for image, thumbnail in zip(result.fidelity.images, result.fidelity.thumbnails, strict=True):
        names = result.names(vars(image))
        shown = thumbnail is not None and not result.sample.random
        rows.append(
            {
                **vars(image),
                "agrees": image.agrees,
                "name": names.get("name", f"number {image.index + 1}"),
                "label": f"labelled {names.get('label_name', image.label)}" if image.label is not None else None,
                "source": names.get("source_class_name", f"class {image.source_class}"),
                "converted": names.get("converted_class_name", f"class {image.converted_class}"),
                "url": image_url(thumbnail, mean, std) if shown and thumbnail is not None else None,
            }
        )
    return rows


def _normalisation(result: Verification) -> tuple[tuple[float, ...], tuple[float, ...]]:
    config = transform_config(result.checkpoint.model)
    return tuple(config["mean"]), tuple(config["std"])


def _groups(result: Verification) -> str:
    kinds = Counter(layer["config"]["num_groups"] for layer in result.checkpoint.header["layers"])
    return ", ".join(
        f"{count} with {groups} group{'' if groups == 1 else 's'}" for groups, count in kinds.most_common()
    )


def _skipped(result: Verification) -> list[tuple[str, list[str], str]]:
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for entry in result.skipped:
        found[entry.source, entry.reason].append(entry.name or "(root)")
    return [(kind, names, reason) for (kind, reason), names in found.items()]


def _facts(result: Verification) -> list[tuple[str, str]]:
    header = result.checkpoint.header
    spec, tensors = header["spec"], header["tensors"]
    rows = [
        ("checkpoint", f"{result.checkpoint.path}, {tensors['count']} tensors, {tensors['bytes'] / 2**20:.1f} MiB"),
        ("SHA-256", result.checkpoint.sha256),
        (
            "model",
            f"{spec['library']} {spec['architecture']}" if spec else "custom, not from timm or torchvision",
        ),
        *((f"conversion: {key}", str(value)) for key, value in header["settings"].items()),
        *((f"source: {key}", str(value)) for key, value in header["provenance"].items() if key != "finetuned"),
        ("compared with", f"{result.source.description} ({result.source.kind})"),
        ("compared on", result.sample.description),
    ]
    if result.changed is not None:
        text = f"{len(result.changed)} differ from the source's" if result.changed else "all the source's, bit for bit"
        rows.append(("weights outside the norms", text))
    written = f"ilmconvert {header['ilmconvert']}, format {header['format_version']}"
    versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    return [*rows, ("checkpoint written by", written), ("checked with", versions)]
