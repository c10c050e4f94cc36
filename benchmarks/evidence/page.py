"""The tables and figures of docs/evidence.md and docs/evidence-fine-tuning.md, from what was measured and committed.

python -m benchmarks.evidence.page            # prints the tables by name
python -m benchmarks.evidence.page --write    # puts each below its mark in the pages, and draws the figures

After new results under benchmarks/evidence/results, write them again, and read what the pages say of them.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.evidence import batch_size_tables, batch_sizes, noise, plot, rates, tables
from benchmarks.evidence.arms import ADAMW, FROZEN, STANDARDISED, UNIT, WARM, WINNERS
from benchmarks.evidence.augmented import AUGMENTED
from benchmarks.evidence.from_scratch import LONGER as FIVE_TIMES
from benchmarks.evidence.from_scratch import SHAPES, USUAL, Comparison
from benchmarks.evidence.lines import Lines
from benchmarks.evidence.paired import Finals, finals
from benchmarks.evidence.runs import Run, read
from benchmarks.evidence.small_resnet import NORMS
from benchmarks.report import Table, to_markdown

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS, ASSETS = ROOT / "benchmarks/evidence/results", ROOT / "docs/assets"
PAGES = (ROOT / "docs/evidence.md", ROOT / "docs/evidence-fine-tuning.md")
SETS, BUDGET = ("fashion-mnist", "clipart", "cifar-10"), "short"
LONGER, LONGEST = "medium", "long"
_DOMAINS = ("cifar-10-negatives", "cifar-10-low-light", "mednist")
_DRAWN = ("ilm-gn", "ilm-gn-range", STANDARDISED, "ilm-in-first", "ilm-in-first-standardised")
_DRAWN_WARM = (STANDARDISED, "ilm-in-first", "ilm-in-first-standardised")
_DRAWN_ADAMW = (STANDARDISED, "ilm-in-first-standardised")
_DRAWN_RATES = (FROZEN, "ilm-gn-range", STANDARDISED, "ilm-gn", "frozen-bn-reestimated", "ilm-ln-moments")
_WHOLE = "ilm-gn"  # begins the names of the arms that convert all norms to ILM-GN
_MARK = re.compile(r"<!-- table: (.+) -->\n(?:\n(?:\|.*\n)+)?")


def all_tables() -> dict[str, Table]:
    """Every table of the pages by its name."""
    runs = list(read(RESULTS / "runs.jsonl"))
    made = {"overview": tables.overview(runs)}
    first = SETS[0]
    tasks = (*((name, BUDGET) for name in SETS), (first, LONGER), (SETS[-1], LONGER), (first, LONGEST))
    augmented, domains = ([(name, BUDGET) for name in names] for names in (AUGMENTED, _DOMAINS))
    for recipe in WINNERS:
        made["in short" if recipe == "first-norm" else f"in short, {recipe}"] = tables.in_short(runs, tasks, recipe)
    made["in short, augmented"] = tables.in_short(runs, augmented)
    made["in short, domains"] = tables.in_short(runs, domains)
    made["augmentation"] = tables.augmentation(runs, first, AUGMENTED[0], BUDGET)
    for name, budget in (*tasks, *augmented, *domains):
        task = name if budget == BUDGET else f"{name}, {budget}"
        for against, found in _compared(finals(runs, name, budget)).items():
            made[task if against == FROZEN else f"{task}, less {against}"] = tables.summary(found, name, against)
    every = finals(runs, first, BUDGET)
    whole = {arm: found for arm, found in every.items() if arm.startswith(_WHOLE) and arm.endswith(ADAMW)}
    base = {arm: found for arm, found in every.items() if arm == FROZEN + ADAMW}
    made[f"{first}, a part of the path"] = tables.summary(base | whole, first, FROZEN + ADAMW)
    made["settings"] = tables.chosen(runs, first, BUDGET, first)
    made["rates"] = rates.table(_rates(runs), first)
    with_others = [*runs, *read(RESULTS / "adamw-other-rates.jsonl")]
    made[f"rates, {LONGER}"] = rates.table(rates.scores(with_others, first, LONGER), first)
    last, note = SETS[-1], " (without distillation)"
    distilled, plain = (rates.scores(runs, last, LONGER, *more) for more in ((), (note, 0.0)))
    made[f"rates, {last}, {LONGER}"] = rates.table(distilled | plain, last)
    adamw = [run for run in with_others if run.arm.endswith(ADAMW)]
    made["rates, AdamW"] = rates.table(rates.scores(adamw, first, BUDGET), first)
    made["moved"] = tables.moved(finals(runs, first, BUDGET), first)
    by_noise = Lines(RESULTS / "noise.jsonl")
    made |= {f"noise, {name}": noise.table(by_noise, noise.Scale(), name) for name in noise.SHOWN}
    return made | _by_batch_size() | _from_scratch(Lines(RESULTS / "from_scratch.jsonl"))


def _by_batch_size() -> dict[str, Table]:
    larger = batch_sizes.found_in(RESULTS, batch_sizes.SHOWN_LARGER, batch_sizes.LARGE_BATCHES, batch_sizes.LARGER)
    by_size = {
        "batch sizes": batch_sizes.found_in(RESULTS, batch_sizes.SHOWN),
        "batch sizes, warm-up": batch_sizes.found_in(RESULTS, batch_sizes.SHOWN_WARM),
        "large batches": larger,
    }
    made: dict[str, Table] = {}
    for name, sizes in by_size.items():
        made[name] = batch_size_tables.table(sizes)
        made[f"{name}, differences"] = batch_size_tables.differences(sizes)
    return made


def _from_scratch(lines: Lines) -> dict[str, Table]:
    short = Comparison(first := SETS[0], None, lines, USUAL)
    made = {f"from scratch, batch size {size}": short.table(list(NORMS), size) for size in (32, 2)}
    for image_set in SHAPES:
        name = "from scratch, longer" if image_set == first else f"from scratch, {image_set}, longer"
        made[name] = Comparison(image_set, None, lines, FIVE_TIMES).table(list(NORMS), 32)
    return made


def _compared(by_arm: Finals) -> dict[str, Finals]:
    """What is compared with each baseline: arms trained in the same way."""
    adamw = {arm: found for arm, found in by_arm.items() if arm.endswith(ADAMW)}
    warm = {arm: found for arm, found in by_arm.items() if arm.endswith(WARM) and arm not in adamw}
    cold = {arm: found for arm, found in by_arm.items() if not arm.endswith(WARM)}
    ways = (("", cold), (WARM, warm), (ADAMW, adamw))
    made = {base + way: found for way, found in ways for base in (FROZEN, STANDARDISED) if base + way in found}
    return made | ({UNIT: adamw} if UNIT in adamw else {})


def _rates(runs: Sequence[Run]) -> dict[str, dict[float, list[float]]]:
    before = read(RESULTS / "before-encoder-scales.jsonl")
    return rates.scores(runs, SETS[0], BUDGET) | rates.scores(before, SETS[0], BUDGET, " (before encoder scales)")


def written(page: str, made: Mapping[str, Table]) -> str:
    """A page with each table below its mark; a name that isn't known is an error.

    >>> print(written("<!-- table: speed -->\\n\\n| old |\\n", {"speed": Table("", [{"ms": 2}])}), end="")
    <!-- table: speed -->
    <BLANKLINE>
    | ms |
    |---|
    | 2 |
    """

    def put(mark: re.Match[str]) -> str:
        if mark[1] not in made:
            raise SystemExit(f"a page asks for the table {mark[1]!r}; there are {', '.join(made)}")
        lines = to_markdown(made[mark[1]]).splitlines()
        return "\n".join([f"<!-- table: {mark[1]} -->", "", *lines[2:], ""])

    return _MARK.sub(put, page)


def draw(folder: Path) -> None:
    """The figures of the pages."""
    runs = list(read(RESULTS / "runs.jsonl"))
    for name, way, drawn in (("", "", _DRAWN), ("-warm-up", WARM, _DRAWN_WARM), ("-adamw", ADAMW, _DRAWN_ADAMW)):
        arms, file = [arm + way for arm in drawn], folder / f"evidence{name}.svg"
        sets = [image_set for image_set in SETS if set(arms) & set(finals(runs, image_set, BUDGET))]
        plot.draw(runs, file, image_sets=sets, budget=BUDGET, arms=arms, against=FROZEN + way)
    rates.draw(rates.drawn(_rates(runs), _DRAWN_RATES), folder / "evidence-rates.svg")
    sizes = batch_sizes.found_in(RESULTS, batch_sizes.SHOWN_WARM)
    batch_size_tables.draw_figure(sizes, folder / "evidence-batch-sizes.svg")


def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables, or write the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="Put them into the pages, and draw their figures.")
    write = parser.parse_args(argv).write
    made = all_tables()
    if write:
        for page in PAGES:
            page.write_text(written(page.read_text(encoding="utf-8"), made), encoding="utf-8")
        draw(ASSETS)
    else:
        print("\n\n".join(to_markdown(Table(name, table.rows)) for name, table in made.items() if table.rows))


if __name__ == "__main__":
    main()
