"""The pages: figures, what they say, that they fetch nothing, and how a browser shows them."""

from __future__ import annotations

import json
import math
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from click.testing import CliRunner, Result
from PIL import Image

import ilmconvert
from ilmconvert.cli import COMMANDS, main
from ilmconvert.evaluation import LayerFidelity
from ilmconvert.evaluation.metrics import wilson
from ilmconvert.finetune.run_folder import RunFolder
from ilmconvert.models.create import create_model
from ilmconvert.report import ReportError, read_run, write_run
from ilmconvert.report.axes import ticks
from ilmconvert.report.figures import Share, curves_figure, layers_figure, shares_figure
from ilmconvert.report.run import arms
from ilmconvert.report.text import NONE
from tests.helpers import CHROMIUM, save_trained

VOID = {"meta", "img", "br", "link", "input", "hr"}
LIGHT, DARK = (0xFB, 0xFA, 0xF8), (0x15, 0x17, 0x1B)
AMBER, GREEN = (0xB8, 0x69, 0x1F), (0x2E, 0x7D, 0x57)


class Page(HTMLParser):
    """The tags, texts and attributes of a page; fails where tags don't match."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(self.source)
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    def is_self_contained(self) -> bool:
        """No script, and nothing that a browser would fetch."""
        places = [v or "" for _, attrs in self.tags for k, v in attrs.items() if k in ("src", "href", "srcset")]
        return (
            not any(tag in ("script", "link", "iframe", "object") for tag, _ in self.tags)
            and all(place.startswith("data:") for place in places)
            and not re.search(r"url\(|@import", self.source)
        )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report")
    model = create_model("test_resnet", weights=save_trained(path, scale=0.5))
    ilmconvert.save(ilmconvert.convert(model, exclude="layer4*"), path / "exact.safetensors")
    bounded = ilmconvert.convert(model, "ilm_ln", restore_bound=0.1)
    ilmconvert.save(bounded, path / "bounded.safetensors")
    rng = np.random.default_rng(0)
    (path / "data").mkdir()
    for i, name in enumerate(("plain", "<b>&amp;", "third")):
        image = rng.integers(0, 60, (60, 60, 3)) + 60 * i
        Image.fromarray(image.astype(np.uint8)).save(path / "data" / f"{name}.png")
    make_run(path / "run")
    return path


def make_run(
    path: Path, *, finished: bool = True, before: bool = True, baselines: bool = True, validated: bool = True
) -> None:
    """A run folder, written by what writes those of real runs."""
    names = ("", "frozen-bn", "group-norm") if baselines else ("",)
    bests = {}
    for i, name in enumerate(names):
        run = RunFolder(path / "baselines" / name if name else path)
        config = {
            "recipe": {"name": "full", "epochs": 3, "lr": 0.01, "to": "ilm_gn", "train": "full"},
            "model": {"name": "net", "head_replaced": not before, "converted_here": True, "init": "identity"},
            "data": {"source": "pics", "train": 80, "val": 40 if validated else None, "classes": ["cat", "dog"]},
        }
        run.write_config(config)
        rows = [
            {
                "epoch": epoch,
                "step": 10 * epoch,
                "lr": 0.01 / epoch,
                "train_loss": 1.0 / epoch,
                "train_top1": 0.5 + 0.1 * epoch,
                "val_loss": 1.2 / epoch if validated else None,
                "val_top1": 0.6 + 0.1 * epoch - 0.05 * i if validated else None,
                "seconds": 5.0 * epoch,
                "images_per_second": 40.0,
            }
            for epoch in (1, 2, 3)
        ]
        run.write_metrics(rows)
        bests[name] = {**dict.fromkeys(("val_top5", "val_agreement")), **rows[-1]}
        start = {
            "count": 40,
            "top1": 0.7 if i < 2 else 0.05,
            "agreement": 1.0,
            "against_top1": 0.7 if not name else None,
        }
        summary: dict[str, Any] = {"status": "finished" if finished else "running", "before": start if before else None}
        run.write_summary(summary | ({"best": bests[name], "model": "net"} if finished else {}))
    if finished and baselines:
        run = RunFolder(path)
        run.write_summary({**run.read_summary(), "baselines": {name: bests[name] for name in names[1:]}})


@pytest.fixture(autouse=True)
def inside(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(COMMANDS, "verify", ("ilmconvert.cli.verify:verify", "Compare."))
    monkeypatch.setitem(COMMANDS, "report", ("ilmconvert.cli.report:report", "Report."))


def run(*args: str) -> Result:
    return CliRunner().invoke(main, list(args))


def verified(name: str, *args: str) -> Page:
    options = ["--batch-size", "2", "--random-batches", "1", "--input-size", "48", "--html", "report.html"]
    result = run("verify", name, *options, *args)
    assert result.exit_code in (0, 1), result.output
    return Page(Path("report.html"))


def svgs(page: Page) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(text) for text in re.findall(r"<svg.*?</svg>", page.source, re.S)]


def test_the_page_of_a_verification() -> None:
    page = verified("exact.safetensors", "--data", "data")
    assert page.is_self_contained()
    for text in ("PASSED", "Same first class as the source", "Layer by layer", "test_resnet", "Parameters"):
        assert text in page.text
    # what was left and why
    assert "left out when the model was converted" in page.text
    assert "layer4.0.bn1" in page.text
    images = [attrs["src"] or "" for tag, attrs in page.tags if tag == "img"]
    assert len(images) == 3
    assert all(place.startswith("data:image/jpeg;base64,") for place in images)
    # names of files are text, not markup
    assert "&lt;b&gt;&amp;amp;.png" in page.source
    layers = json.loads(
        run("verify", "exact.safetensors", "--json", "--random-batches", "1", "--input-size", "48").stdout
    )["layers"]
    for figure in svgs(page):  # of a wide page and of a narrow one
        dots = [e for e in figure.iter() if e.tag.endswith("circle")]
        assert len(dots) == 2 * len(layers)
        assert {(e[0].text or "").split(":")[0] for e in dots} == {layer["name"] for layer in layers}
    widths = [float(figure.attrib["viewBox"].split()[2]) for figure in svgs(page)]
    assert widths == [960, 400]


def test_the_page_says_what_it_cannot_show() -> None:
    page = verified("exact.safetensors")
    assert "Random numbers instead of images" in page.text
    assert not [tag for tag, _ in page.tags if tag == "img"]
    assert "What this can't show" not in verified("bounded.safetensors", "--data", "data").text


def test_a_failed_check_is_said() -> None:
    page = verified("exact.safetensors", "--max-error", "1e-15")
    assert "FAILED" in page.text
    assert "PASSED" not in page.text


def test_figures_are_accessible_and_hold_every_value() -> None:
    layers = [
        LayerFidelity("a", "X", "Y", math.inf, 90.0, 0.0, 0.0),
        LayerFidelity("b.0.<c>", "X", "Y", 40.0, None, 1.0, 0.1),
        LayerFidelity("d", "X", "Y", math.nan, math.nan, math.nan, math.nan),
    ]
    root = ElementTree.fromstring(layers_figure(layers))
    assert root.attrib["role"] == "img"
    assert root.attrib["aria-label"]
    assert "lowest at d, with not finite" in (root[0].text or "")
    dots = [e for e in root.iter() if e.tag.endswith("circle")]
    assert len(dots) == 5
    heights = {(e[0].text or ""): float(e.attrib["cy"]) for e in dots}
    assert heights["a: exact"] < heights["a: 90 dB by itself"] < heights["b.0.<c>: 40 dB"] < heights["d: not finite"]


def test_far_from_rounding_the_scale_fits_the_values() -> None:
    layers = [LayerFidelity(f"l{i}", "BatchNorm2d", "GroupNorm", 4.0 + i, 20.0 + i, 1.0, 0.1) for i in range(3)]
    figure = str(layers_figure(layers))
    assert "rounding" not in figure
    assert "25 dB" in figure
    assert "100 dB" not in figure


def test_points_lie_where_their_values_are() -> None:
    figure = curves_figure({"one": [(1, 0.0), (2, 1.0), (3, 0.5)]}, {"one": "converted"}, "loss", "{:g}".format)
    points = [e for e in ElementTree.fromstring(figure).iter() if e.tag.endswith("circle")]
    x, y = ([float(e.attrib[key]) for e in points] for key in ("cx", "cy"))
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=0.2)
    assert y[2] == pytest.approx((y[0] + y[1]) / 2, abs=0.2)
    assert y[1] < y[0]
    single = curves_figure({"one": [(1, 0.3)]}, {"one": "converted"}, "loss", "{:g}".format)
    assert "nan" not in single
    shares = ElementTree.fromstring(
        shares_figure([Share("a", 0.5, (0.4, 0.6), "b1"), Share("b", 1.0, None, "b2")], "x")
    )
    assert len([e for e in shares.iter() if "interval" in e.attrib.get("class", "")]) == 1


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.2, 0.2001), (-30, 140), (0, 0), (5, 5), (1e-9, 3e-9), (0, 1e6)])
def test_ticks_span_the_range(low: float, high: float) -> None:
    found = ticks(low, high)
    assert found[0] <= low
    assert found[-1] >= high
    assert 2 <= len(found) <= 9
    steps = np.diff(found)
    assert np.allclose(steps, steps[0], rtol=1e-3)


def test_the_table_of_a_run() -> None:
    found = arms(read_run("run"))
    assert [arm.name for arm in found] == ["", "frozen-bn", "group-norm"]
    assert [arm.source for arm in found] == [0.7] * 3
    assert [arm.start for arm in found] == [0.7, 0.7, 0.05]
    assert [arm.end for arm in found] == pytest.approx([0.9, 0.85, 0.8])
    assert found[0].end_interval == wilson(36, 40)
    data = json.loads(run("report", "run", "--json").stdout)
    assert [network["end"] for network in data["networks"]] == pytest.approx([0.9, 0.85, 0.8])
    assert len(data["epochs"]) == 3


def test_the_page_of_a_run() -> None:
    result = run("report", "run", "--html", "report.html")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "Wrote report.html"
    assert "statistics frozen" in " ".join(result.stdout.split())
    page = Page(Path("report.html"))
    assert page.is_self_contained()
    for text in ("Before, right after, after", "90.0 %", "+5.0 points", "One run each", "ILM-GN", "5.0 %", "cat, dog"):
        assert text in page.text
    assert "Epoch 0 is the network right after" in page.text
    wide, narrow, accuracy, loss = svgs(page)
    for shares in (wide, narrow):
        assert len([e for e in shares.iter() if "interval" in e.attrib.get("class", "")]) == 3
    titles = [e[0].text or "" for e in accuracy.iter() if e.tag.endswith("circle")]
    # the network right after its norms were replaced stands at epoch 0
    assert "GroupNorm(32), gamma and beta copied, epoch 0: 5 %" in titles
    assert len(titles) == 3 * 4 + 3
    assert len([e for e in loss.iter() if e.tag.endswith("circle")]) == 3 * 3 + 3


def test_the_page_goes_into_the_run_folder(tmp_path: Path) -> None:
    make_run(tmp_path / "mine")
    assert run("report", "mine", "--html").exit_code == 0
    assert Page(Path("mine/report.html")).is_self_contained()
    assert run("report", "mine").exit_code == 0


def tables(page: Page) -> list[list[list[str]]]:
    """The texts of every table: its rows, the headings first."""
    rows = [re.findall(r"<tr.*?</tr>", table, re.S) for table in re.findall(r"<table.*?</table>", page.source, re.S)]
    cells = r"<t[hd][^>]*>(.*?)</t[hd]>"
    return [[[re.sub("<.*?>", " ", cell).strip() for cell in re.findall(cells, row)] for row in each] for each in rows]


def test_a_new_head_leaves_no_columns_of_dashes_and_no_epoch_0(tmp_path: Path) -> None:
    make_run(tmp_path / "new", before=False)
    page = Page(write_run(read_run("new"), "new.html"))
    networks, epochs = tables(page)
    assert networks[0] == ["Network", "After", "Loss", "Best epoch"]
    assert networks[1] == ["ILM-GN", "90.0 % 76.9 to 96.0", "0.4", "3 of 3"]
    assert epochs[0] == ["Epoch", "Training loss", "Validation loss", "Top-1", "Learning rate"]
    assert "Epoch 0" not in page.text
    assert "Right after" not in page.text
    assert "right after" not in page.text
    assert "After fine-tuning" in page.text
    shown = " ".join(run("report", "new").stdout.split())
    assert "right after" not in shown
    assert "before training" in shown


@pytest.mark.parametrize("how", [{}, {"before": False}, {"validated": False, "before": False}, {"finished": False}])
def test_no_column_is_empty(how: dict[str, bool], tmp_path: Path) -> None:
    make_run(tmp_path / "some", **how)
    for table in tables(Page(write_run(read_run("some"), "some.html"))):
        assert len({len(row) for row in table}) == 1
        for heading, *cells in zip(*table, strict=True):
            assert set(cells) - {NONE, ""}, heading


def test_a_page_without_validation_images_shows_the_training_loss(tmp_path: Path) -> None:
    make_run(tmp_path / "blind", validated=False, before=False)
    page = Page(write_run(read_run("blind"), "blind.html"))
    (loss,) = svgs(page)
    assert len([e for e in loss.iter() if e.tag.endswith("circle")]) == 3
    assert "Nothing was measured on validation images." in page.text


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"finished": False}, "3 of 3 epochs are done"),
        ({"before": False}, "The head is new"),
        ({"baselines": False}, "No baseline was run"),
        ({"validated": False, "before": False}, "no validation images"),
    ],
)
def test_pages_of_less_than_a_whole_run(how: dict[str, bool], said: str, tmp_path: Path) -> None:
    make_run(tmp_path / "less", **how)
    page = Page(write_run(read_run("less"), "less.html"))
    assert said in page.text
    assert not {"nan", "None", "inf"} & set(page.text.split())
    assert run("report", "less").exit_code == 0


def test_the_page_of_a_plain_checkpoint() -> None:
    model = create_model("test_resnet", weights="trained.safetensors")
    ilmconvert.save(ilmconvert.convert(model, "gn"), "plain.safetensors")
    page = verified("plain.safetensors", "--data", "data")
    for text in ("Conversion to GN", "Not judged", "Plain GroupNorm, initialised from running statistics", "GroupNorm"):
        assert text in page.text
    assert "ILM Norm" not in page.text
    assert "Rounding in single precision" not in page.text
    assert page.is_self_contained()


def test_the_page_of_a_run_of_a_converted_checkpoint(tmp_path: Path) -> None:
    make_run(tmp_path / "plain", baselines=False)
    config = yaml.safe_load(Path("plain/config.yaml").read_text())
    config["model"]["converted_here"] = False
    Path("plain/config.yaml").write_text(yaml.safe_dump(config))
    summary = json.loads(Path("plain/summary.json").read_text())
    summary["before"] = {"agreement": 0.25, "against": "teacher", "count": 40}
    Path("plain/summary.json").write_text(json.dumps(summary))
    page = Page(write_run(read_run("plain"), "plain.html"))
    assert "At the start: same class as the teacher 25.0 %" in page.text
    assert "name that instead of the checkpoint" in page.text
    assert "ilm_gn" not in page.text.lower()


def test_a_run_before_its_first_epoch(tmp_path: Path) -> None:
    make_run(tmp_path / "young", finished=False, baselines=False)
    Path("young/metrics.csv").unlink()
    assert "0 of 3 epochs are done" in Page(write_run(read_run("young"), "young.html")).text
    result = run("report", "young")
    assert result.exit_code == 0
    assert "isn't finished" in result.stderr


def test_folders_that_hold_no_run(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="there is no folder"):
        read_run("nowhere")
    with pytest.raises(ReportError, match=r"no config\.yaml"):
        read_run("data")
    make_run(tmp_path / "bad")
    for file, content in (("summary.json", "{"), ("metrics.csv", "epoch\nx\n"), ("config.yaml", "- 1\n")):
        old = Path("bad", file).read_text()
        Path("bad", file).write_text(content)
        with pytest.raises(ReportError, match="damaged run"):
            read_run("bad")
        Path("bad", file).write_text(old)
    result = run("report", "nowhere")
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("kind", ["verify", "run"])
def test_a_browser_shows_it_in_light_and_dark(kind: str, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    if kind == "verify":
        verified("exact.safetensors", "--data", "data")
        Path("report.html").rename(page)
    else:
        write_run(read_run("run"), page)
    for scheme, ground in ((1, LIGHT), (0, DARK)):
        shot, log = screenshot(page, tmp_path / f"{scheme}.png", scheme)
        assert tuple(shot[3, 3]) == ground
        # there are letters and figures on it, in more than a few colours
        assert len(np.unique(shot.astype(np.int64) @ [65536, 256, 1])) > 100
        assert (shot != np.array(ground)).any(axis=2).mean() > 0.05
        # nothing lies outside the page's width
        assert (shot[:, -3:] == np.array(ground)).all()
        assert not re.search(r"CONSOLE|Refused|net::ERR", log), log


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [400, 500])
def test_the_points_of_the_intervals_are_in_sight(width: int, tmp_path: Path) -> None:
    page = write_run(read_run("run"), tmp_path / "page.html")
    # the curves and their legend have the same colours, and the cards fill a narrow window
    text = re.sub('class="(legend|pair|cards)"', "hidden", page.read_text())
    page.write_text(text.replace("<style>", "<style>[hidden] { display: none !important; }"))
    frame = tmp_path / "frame.html"  # a window of Chromium is at least 500 wide
    frame.write_text(f'<body style="margin:0"><iframe src="page.html" style="width:{width}px;height:1500px;border:0">')
    shot, _ = screenshot(frame, tmp_path / "shot.png", 1)
    for colour in (AMBER, GREEN):
        rows, columns = np.nonzero((shot == np.array(colour)).all(axis=2))
        assert len(rows) > 25  # most of a disc of radius 4
        assert np.ptp(rows) < 14
        assert columns.max() < width


def screenshot(page: Path, out: Path, scheme: int) -> tuple[np.ndarray[Any, Any], str]:
    """The page as Chromium draws it without a network; scheme 1 is light, 0 dark."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr"]
    options += [f"--user-data-dir={out}.profile", f"--blink-settings=preferredColorScheme={scheme}"]
    options += ["--host-resolver-rules=MAP * ~NOTFOUND", "--window-size=900,1600", f"--screenshot={out}"]
    result = subprocess.run([str(CHROMIUM), *options, page.as_uri()], capture_output=True, text=True, timeout=120)
    assert out.exists(), result.stderr
    with Image.open(out) as image:
        return np.asarray(image.convert("RGB")), "\n".join(
            line for line in result.stderr.splitlines() if page.name in line or "CONSOLE" in line
        )
