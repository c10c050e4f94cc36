"""The front page says what was measured: its table, its image, its costs."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from types import ModuleType

import pytest
from PIL import Image

from benchmarks import front_table
from benchmarks.evidence import federated, private
from benchmarks.evidence.arms import ARMS, FIRST_NORM, FROZEN, PART_STANDARDISED, STANDARDISED
from benchmarks.evidence.batch_sizes import BATCH_SIZES
from benchmarks.evidence.paired import CLEAN, of
from benchmarks.evidence.runs import FINAL, Run
from benchmarks.front_image import PHOTOGRAPHS, ROWS, Seen, rows, svg
from benchmarks.front_table import ROOT, in_batches, less, on_each, own, table, written
from ilmconvert.evaluation.demo import run_demo

README = (ROOT / "README.md").read_text(encoding="utf-8")
IMAGE = ROOT / "docs/assets/front.svg"


def demo_table() -> dict[str, list[str]]:
    """The rows of the README's table of the demo, by their first cell."""
    text = re.findall(r"\[start:demo\] -->\n(.*?)<!--", README, re.DOTALL)[0]
    cells = [[cell.strip("* ") for cell in line.strip("|").split("|")] for line in text.splitlines()]
    return {first: rest for first, *rest in cells}


def texts(image: str) -> list[str]:
    """What the image shows, in its order."""
    root = ET.fromstring(image)
    return [element.text or "" for element in root.iter("{http://www.w3.org/2000/svg}text")]


def test_the_table_is_the_one_that_the_results_give() -> None:
    assert written(README) == README, "python -m benchmarks.front_table --write"
    assert written(README.replace("78.", "99.")) == README  # it would have shown
    with pytest.raises(SystemExit, match="lacks the lines"):
        written("# ilmconvert\n")


def test_every_case_says_what_to_take_and_what_was_measured() -> None:
    cases = [line.split(" | ") for line in table().splitlines()[2:]]
    taken = " ".join(take for _, take, _ in cases)
    assert all(f"**{word}**" in taken for word in ("as it is", "BatchNorm frozen", "convert", "another way"))
    assert all(re.search(r"\d", measured) for _, _, measured in cases)


def run(arm: str, seed: int, accuracy: float) -> Run:
    rates = {"rate": 0.1, "distill": 0.0, "norm_scale": 1.0, "loss": 0.0, "seconds": 0.0}
    return Run("set", 64, "short", arm, FINAL, seed, accuracy=accuracy, **rates)


def test_numbers_are_means_and_differences_paired_by_seed() -> None:
    by_arm = {
        "frozen-bn": {0: run("frozen-bn", 0, 0.5), 1: run("frozen-bn", 1, 0.7)},
        "train-bn": {0: run("train-bn", 0, 0.25), 1: run("train-bn", 1, 0.45)},
    }
    assert own(by_arm, "frozen-bn", of(CLEAN)) == "60.0 ± 127.1 %"
    assert less(by_arm, "train-bn", of(CLEAN)) == "-25.0 ± 0.0 points"
    assert own(by_arm, "ilm-gn", of(CLEAN)) == less(by_arm, "ilm-gn", of(CLEAN)) == front_table.NOT_YET


def test_a_row_names_the_sets_on_which_it_was_measured() -> None:
    sets = {
        "A": {"frozen-bn": {0: run("frozen-bn", 0, 0.5), 1: run("frozen-bn", 1, 0.5)}},
        "B": {"ilm-gn": {0: run("ilm-gn", 0, 0.5), 1: run("ilm-gn", 1, 0.5)}},
    }
    assert on_each(sets, lambda a: own(a, "frozen-bn", of(CLEAN))) == "A: 50.0 ± 0.0 %"
    assert on_each(sets, lambda a: own(a, "train-bn", of(CLEAN))) == front_table.NOT_YET


def test_the_row_on_light_has_the_least_and_the_most_of_the_sets_that_have_all_arms() -> None:
    def a_set(*gains: float) -> dict[str, dict[int, Run]]:
        arms = (FROZEN, STANDARDISED, FIRST_NORM, PART_STANDARDISED)
        values = zip(arms, (0.0, *gains), strict=False)
        return {arm: {seed: run(arm, seed, 0.5 + gain) for seed in (0, 1)} for arm, gain in values}

    sets = {"A": a_set(0.02, 0.04, 0.12), "B": a_set(0.01, 0.05, 0.08), "C": a_set(0.3)}
    said = front_table.under_shifts(sets, of(CLEAN))
    assert said.startswith("A, B: ")
    assert re.findall(r"[+-][\d.]+ to [+-][\d.]+", said) == ["+1.0 to +2.0", "+4.0 to +5.0", "+8.0 to +12.0"]
    assert front_table.under_shifts({"C": sets["C"]}, of(CLEAN)) == front_table.NOT_YET


def test_batchnorm_in_training_by_batch_size_is_that_of_the_page_on_evidence() -> None:
    page = (ROOT / "docs/evidence.md").read_text(encoding="utf-8")
    _, _, after = page.partition("<!-- table: batch sizes, warm-up, differences -->")
    title = re.escape(ARMS["train-bn-fast-warm"].title)
    cells = re.findall(rf"^\| {title} \|(.*)\|$", after, re.MULTILINE)[0].split(" | ")
    by_size = dict(zip(BATCH_SIZES, cells, strict=True))
    found = re.findall(r"of (\d+) ([-+][\d.]+) ± ([\d.]+)", in_batches("train-bn-fast-warm"))
    assert len(found) == 3
    for size, mean, half in found:
        assert f"{float(mean) / 100:+.3f} ± {float(half) / 100:.3f} (" in by_size[int(size)]


def test_the_costs_are_those_of_the_page_on_speed() -> None:
    speed = (ROOT / "docs/speed.md").read_text(encoding="utf-8")
    steps = sorted(float(x) for x in re.findall(r"^\| resnet50 \| \d+ \|.* ([\d.]+) \|$", speed, re.MULTILINE))
    said = f"a training step of a converted ResNet-50 takes {steps[0]:.1f} to {steps[-1]:.1f} times as long"
    assert said in " ".join(README.split())


def test_the_image_shows_what_the_table_of_the_demo_says() -> None:
    found = demo_table()
    columns = dict(
        zip(("source", "frozen", "fresh", "copied", "identity"), zip(*found.values(), strict=True), strict=True)
    )
    names = list(found)
    shown = texts(IMAGE.read_text(encoding="utf-8"))
    for name, title in ROWS.items():
        start = shown.index(title)
        classes = [text.lstrip("✓✗ ") for text in shown[start + 2 : start + 2 + len(PHOTOGRAPHS)]]
        assert classes == [columns[name][names.index(photograph)] for photograph in PHOTOGRAPHS]
    for name in ("copied", "identity"):
        share = columns[name][names.index("same class as the source, 36 images")]
        assert f"same class: {36 * int(share.split()[0]) // 100} of 36" in shown


def test_the_image_marks_what_differs_and_needs_nothing_from_elsewhere() -> None:
    found = [Seen("a", ("cat", "cup", "car"), 3), Seen("b & c", ("cat", "reel", "car"), 2)]
    drawn = svg(found, 3, [Image.new("RGB", (40, 30), "red")] * 3)
    assert texts(drawn)[2:] == [
        "a",
        "3 images",
        "cat",
        "cup",
        "car",
        "b & c",
        "same class: 2 of 3",
        "✓ cat",
        "✗ reel",
        "✓ car",
    ]
    assert re.findall(r'href="(\w+:[\w/]+)', drawn) == ["data:image/jpeg"] * 3


@pytest.mark.slow
def test_the_demo_prints_the_table_and_the_image_of_the_front_page() -> None:
    result = run_demo()
    found = demo_table()
    shown = [network for network in result.networks if network.name != "moments"]
    for photograph in found.keys() & set(result.images):
        place = result.images.index(photograph)
        assert found[photograph] == [network.classes[place] for network in shown]
    shares = [f"{100 * network.agreement:.0f} %" for network in shown]
    assert found[f"same class as the source, {len(result.images)} images"] == ["", *shares[1:]]
    errors = found["largest logit error, of the largest logit"][1:]
    assert [float(text) for text in errors] == pytest.approx([n.largest_error for n in shown[1:]], rel=0.6)
    image = IMAGE.read_text(encoding="utf-8")
    for row in rows(result):
        assert row.title in texts(image)
        assert set(row.classes) <= {text.lstrip("✓✗ ") for text in texts(image)}


@pytest.mark.parametrize(
    ("program", "page", "count"),
    [(private, "differential-privacy", 3 * 5 + 1), (federated, "federated-learning", 2 * 5)],
)
def test_pages_have_the_numbers_of_the_committed_runs(
    program: ModuleType, page: str, count: int, capsys: pytest.CaptureFixture[str]
) -> None:
    program.main(["--out", str(front_table.RESULTS), "--table"])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    text = (ROOT / f"docs/guides/{page}.md").read_text(encoding="utf-8")
    assert len(rows) == count
    assert all(row in text for row in rows)
