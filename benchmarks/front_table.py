"""The front page's table of when to convert: its numbers, from what was measured and committed.

python -m benchmarks.front_table            # prints it
python -m benchmarks.front_table --write    # puts it into README.md, from where docs/index.md takes it

After new results under benchmarks/evidence/results, write it again. A row whose runs aren't there says so.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from benchmarks.evidence import batch_sizes, federated
from benchmarks.evidence.arms import ADAMW, FIRST_NORM, FROZEN, PART_STANDARDISED, STANDARDISED, UNIT, WARM
from benchmarks.evidence.batch_size_tables import Found, Point, less_frozen
from benchmarks.evidence.cut import LAST_STAGE
from benchmarks.evidence.dp_sgd import Scale
from benchmarks.evidence.lines import Lines
from benchmarks.evidence.paired import CLEAN, COLUMNS, best_way, differences, finals, mean_of, of
from benchmarks.evidence.private import FINAL_SEEDS, Runs
from benchmarks.evidence.private_arms import HEAD
from benchmarks.evidence.runs import Run, read
from ilmconvert.evaluation.estimate import Estimate, estimate

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks/evidence/results"
START, END = "<!-- benchmarks.front_table writes from here -->\n", "<!-- to here -->\n"
NOT_YET = "not measured yet"
_DOMAINS = {
    "negatives of CIFAR-10": "cifar-10-negatives",
    "CIFAR-10 in a tenth of its light": "cifar-10-low-light",
    "X-rays, CT and MRI (MedNIST)": "mednist",
}
_SETS = {"Fashion-MNIST": "fashion-mnist", "clip art": "clipart", "CIFAR-10": "cifar-10"}
_STANDARDISED = "docs/finetune.md#standardise-each-image"
_FIRST_NORM = "docs/finetune.md#the-first-norm-alone"
_PART = "docs/finetune.md#annealing-a-part-of-the-way"
_EPSILON = 8.0
_CLIENTS_BATCH = 2
_BATCHES = (2, 8, 32)
_SLOWER = re.compile(r"^\| resnet50 \| \d+ \| [\d.]+ \| ([\d.]+) \|", re.MULTILINE)
_SAME = re.compile(r"^\| same class as the source, (\d+) images \|(.*)\|$", re.MULTILINE)

ByArm = Mapping[str, Mapping[int, Run]]


def table() -> str:
    """The table in Markdown; links are the README's."""
    runs = list(read(RESULTS / "runs.jsonl"))
    sets = {title: finals(runs, name, "short") for title, name in _SETS.items()}
    domains = {title: finals(runs, name, "short") for title, name in _DOMAINS.items()}
    by_arm = sets[next(iter(_SETS))]
    clean, shifted = of(CLEAN), mean_of(COLUMNS[1:])
    rows = {
        "no training": (
            "the network **as it is**",
            f"a conversion computes the same; ResNet-50 takes {slower()} times as long",
        ),
        "small batches, test images like the training images": (
            "**BatchNorm frozen**",
            on_each(sets, lambda a: f"frozen {own(a, 'frozen-bn', clean)}, converted {less(a, 'ilm-gn', clean)}"),
        ),
        "small batches, test images darker, flatter or in other light": (
            f"[each image standardised]({_STANDARDISED}), **BatchNorm frozen** and best the "
            f"[**first norm converted**]({_FIRST_NORM}) alone; where fog or noise are to come, **all norms**, "
            f"[annealed in part]({_PART})",
            under_shifts(sets, shifted),
        ),
        "small batches, images far from ImageNet's light (negatives, night), in training as in test": (
            f"[each image standardised]({_STANDARDISED}) and the [**first norm converted**]({_FIRST_NORM}) alone",
            on_each(domains, lambda a: in_domain(a, clean)),
        ),
        "test images in other light that itself says something about the class": (
            "**convert**, [bounded by images](docs/robustness.md), then train",
            "the nine shifts: "
            + on_each(sets, lambda a: f"{less(a, 'ilm-gn-range', shifted)}, clean {less(a, 'ilm-gn-range', clean)}"),
        ),
        "differential privacy": ("**BatchNorm frozen**, only the head trains", private()),
        "federated averaging": ("**BatchNorm frozen**", averaged()),
        "BatchNorm can't stay: code refuses it, no statistics may be stored or averaged, or each image has to be "
        "normalised by itself": ("**convert**", kept()),
        "large batches, many images": (
            "**another way**: BatchNorm in training mode",
            f"against frozen, on 400 images {in_batches('train-bn-fast' + WARM)}; on "
            f"{batch_sizes.LARGER.images:,} {in_large_batches('train-bn-fast' + WARM)}",
        ),
        "only `nn.GroupNorm` will do": (
            "**another way**: [stock GroupNorm](docs/plain.md), calibrated and distilled",
            f"{distilled()} of images keep their class; gamma and beta copied, in small batches "
            f"{less(by_arm, 'group-norm', clean)} against frozen",
        ),
    }
    lines = [f"| {case} | {take} | {measured} |" for case, (take, measured) in rows.items()]
    return "\n".join(["| your case | take | measured |", "|---|---|---|", *lines, ""])


def under_shifts(sets: Mapping[str, ByArm], shifted: Callable[[Run], float]) -> str:
    """What a standardisation and two recipes add to frozen BatchNorm: the least and the most on these sets.

    Both baselines are taken in the way of training that is best on these very images.
    """
    gains = {title: found for title, by_arm in sets.items() if (found := _gains(by_arm, shifted))}
    if not gains:
        return NOT_YET
    ranges = []
    for title in next(iter(gains.values())):
        means = [found[title].mean for found in gains.values()]
        ranges.append(f"{title} {min(means):+.1f} to {max(means):+.1f}")
    halves = [gain.half or 0.0 for found in gains.values() for gain in found.values()]
    within = f"each ± {min(halves):.1f} to {max(halves):.1f}"
    return f"{', '.join(gains)}: points over frozen, mean of nine shifts: {', '.join(ranges)}, {within}"


def _gains(by_arm: ByArm, shifted: Callable[[Run], float]) -> dict[str, Estimate]:
    """In points; nothing unless all of them were run."""
    base, standardised = (arm + (best_way(by_arm, arm, shifted) or "") for arm in (FROZEN, STANDARDISED))
    arms = {
        "standardised": standardised,
        "the first norm converted, too,": FIRST_NORM,
        "in its place all norms annealed in part": PART_STANDARDISED,
    }
    if not by_arm.keys() >= {base, *arms.values()}:
        return {}
    return {t: estimate([100 * x for x in differences(by_arm, arm, shifted, base)]) for t, arm in arms.items()}


def in_domain(by_arm: ByArm, clean: Callable[[Run], float]) -> str:
    """Frozen BatchNorm, the better of two standardisations, and the recipe ``first-norm``, all with AdamW."""
    base, ways = FROZEN + ADAMW, [arm for arm in (STANDARDISED + ADAMW, UNIT) if arm in by_arm]
    standardised = max(ways, key=lambda arm: fmean(map(clean, by_arm[arm].values())), default=STANDARDISED)
    arms = {"standardised": standardised, "the first norm converted, too,": FIRST_NORM}
    return _beside(by_arm, base, arms, clean)


def _beside(by_arm: ByArm, base: str, arms: Mapping[str, str], measured: Callable[[Run], float]) -> str:
    others = [f"{title} {less(by_arm, arm, measured, base)}" for title, arm in arms.items()]
    return ", ".join([f"frozen {own(by_arm, base, measured)}", *others])


def on_each(sets: Mapping[str, ByArm], measured: Callable[[ByArm], str]) -> str:
    """What was measured on each set; those on which it wasn't are left out, unless it was on none."""
    found = {title: measured(by_arm) for title, by_arm in sets.items()}
    known = {title: text for title, text in found.items() if NOT_YET not in text}
    return "; ".join(f"{title}: {text}" for title, text in known.items()) or NOT_YET


def own(by_arm: ByArm, arm: str, measured: Callable[[Run], float]) -> str:
    """An arm's accuracy with its 95 % interval."""
    return _percent([measured(run) for run in by_arm[arm].values()]) if arm in by_arm else NOT_YET


def less(by_arm: ByArm, arm: str, measured: Callable[[Run], float], against: str = FROZEN) -> str:
    """What an arm has more or less than frozen BatchNorm, paired by seed, with the 95 % interval."""
    if arm not in by_arm or against not in by_arm:
        return NOT_YET
    return _percent(differences(by_arm, arm, measured, against), "+").replace("%", "points")


def _percent(values: Sequence[float], sign: str = "") -> str:
    """
    >>> _percent([0.1, 0.2, 0.3])
    '20.0 ± 24.8 %'
    """
    found = estimate([100 * value for value in values])
    return f"{found.mean:{sign}.1f}" + ("" if found.half is None else f" ± {found.half:.1f}") + " %"


def in_batches(arm: str) -> str:
    """What an arm has less than frozen BatchNorm at some batch sizes, both with a warm-up, at their best rates."""
    return _in_batches(batch_sizes.found_in(RESULTS, (arm, FROZEN + WARM)), arm, _BATCHES)


def in_large_batches(arm: str) -> str:
    """The same on many images."""
    sizes = batch_sizes.LARGE_BATCHES
    found = batch_sizes.found_in(RESULTS, (arm, FROZEN + WARM), sizes, batch_sizes.LARGER)
    return _in_batches(found, arm, sizes)


def _in_batches(found: Found, arm: str, sizes: Sequence[int]) -> str:
    by_size = {size: less_frozen(found, Point(arm, size)) for size in sizes}
    if not all(by_size.values()):
        return NOT_YET
    parts = [f"of {size} {_percent(values, '+').removesuffix(' %')}" for size, values in by_size.items()]
    return f"in batches {', '.join(parts)} points"


def distilled() -> str:
    """The agreement with its source of a GroupNorm network, by the page on them."""
    shares = re.findall(r"^\| `ln` \| \*\*(0\.\d+)\*\*", (ROOT / "docs/plain.md").read_text("utf-8"), re.MULTILINE)
    return f"{100 * float(shares[0]):.0f} %"


def slower() -> str:
    """How much longer a converted ResNet-50 takes at inference, by the page on speed."""
    ratios = sorted(float(ratio) for ratio in _SLOWER.findall((ROOT / "docs/speed.md").read_text(encoding="utf-8")))
    return f"{ratios[0]:.1f} to {ratios[-1]:.1f}"


def private() -> str:
    """The accuracies under differential privacy."""
    arms = {HEAD: "head ", "ilm-norms": "converted norms and head ", "fix": "GroupNorm put in by Opacus "}
    runs = Runs(Lines(RESULTS / "private.jsonl"), LAST_STAGE, Scale(), None, None)
    found, _ = runs.results(_EPSILON, FINAL_SEEDS, list(arms))
    return _means(f"epsilon {_EPSILON:g}", found, arms)


def averaged() -> str:
    """The accuracies after federated averaging."""
    arms = {
        "frozen-bn": "frozen ",
        "ilm-gn": "converted ",
        "group-norm": "GroupNorm in its place ",
        "train-bn": "BatchNorm in training mode ",
    }
    runs = federated.Runs(Lines(RESULTS / "federated.jsonl"), LAST_STAGE, federated.Scale(), None, None)
    found, _ = runs.results(_CLIENTS_BATCH, federated.FINAL_SEEDS, list(arms))
    return _means(f"batches of {_CLIENTS_BATCH}", found, arms)


def _means(where: str, found: Mapping[str, Mapping[int, float]], titles: Mapping[str, str]) -> str:
    means = [f"{title}{_percent(list(found[arm].values()))}" for arm, title in titles.items() if arm in found]
    return f"{where}: {'; '.join(means)}" if means else NOT_YET


def kept() -> str:
    """How many of the demo's images keep their class, by the README's table of it."""
    count, cells = _SAME.findall((ROOT / "README.md").read_text(encoding="utf-8"))[0]
    shares = [int(share) for share in re.findall(r"(\d+) %", cells)]
    swapped, converted = (round(int(count) * share / 100) for share in shares[-2:])
    return f"{converted} of {count} images keep their class; {swapped} of {count} with GroupNorm in its place"


def written(readme: str) -> str:
    """The README with the table between its marks."""
    before, _, rest = readme.partition(START)
    _, mark, after = rest.partition(END)
    if not mark:
        raise SystemExit(f"README.md lacks the lines {START.strip()} and {END.strip()}")
    return before + START + table() + END + after


def main(argv: Sequence[str] | None = None) -> None:
    """Print or write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="Put it into README.md.")
    if parser.parse_args(argv).write:
        readme = ROOT / "README.md"
        readme.write_text(written(readme.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(table(), end="")


if __name__ == "__main__":
    main()
