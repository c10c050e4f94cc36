"""How notebooks show plans, results and reports: as the tables of the reports, with all text escaped."""

from __future__ import annotations

from collections.abc import Iterable

from markupsafe import Markup

from ilmconvert.calibration.calibrate import Calibration
from ilmconvert.calibration.collapse import Collapse
from ilmconvert.evaluation.accuracy import Evaluation
from ilmconvert.evaluation.compare import Fidelity
from ilmconvert.evaluation.demo import DemoResult
from ilmconvert.evaluation.outputs import OutputDifference
from ilmconvert.evaluation.verify.verification import Verification
from ilmconvert.finetune.field_checks import settings_of
from ilmconvert.finetune.recipe import Recipe
from ilmconvert.finetune.result import Result
from ilmconvert.models.load_weights import LoadedWeights
from ilmconvert.report.compare_runs import RunComparison
from ilmconvert.report.facts import (
    CALIBRATION_COLUMNS,
    calibration_rows,
    evaluation_facts,
    fidelity_facts,
    verification_facts,
)
from ilmconvert.report.run import Run, arms, read_run
from ilmconvert.report.run_tables import arms_table, epochs_table, heading
from ilmconvert.report.tables import Table
from ilmconvert.report.text import NONE, decibels, share, small
from ilmconvert.surgery.conversion_info import ConversionInfo
from ilmconvert.surgery.plan import Plan, describe_outcome


def plan(found: Plan) -> str:
    """A plan: what would become of every norm, and why some stay."""
    rows = [
        (
            ", ".join((e.name or "(root)", *e.aliases)),
            e.source.rpartition(".")[2],
            str(e.num_channels or ""),
            describe_outcome(e),
        )
        for e in found
    ]
    counts = f"{len(found.converted)} to convert, {len(found.skipped)} skipped, {len(found.errors)} refused"
    return _shown(counts, Table(("layer", "source", "channels", "becomes"), rows))


def conversion(found: ConversionInfo) -> str:
    """What was converted, how, and from what."""
    rows = [
        (", ".join((layer.name or "(root)", *layer.aliases)), layer.config.title, str(layer.config))
        for layer in found.layers
    ]
    return _shown(str(found), Table(("layer", "is a", "settings"), rows))


def weights(found: LoadedWeights) -> str:
    """Which weights a model was given."""
    facts = [
        ("file", str(found.file)),
        ("entry", found.entry or None),
        *((name, str(value)) for name, value in found.progress.items()),
        ("prefix taken off", found.prefix or None),
        ("left out", ", ".join(found.left_out) or None),
        ("left unread", ", ".join(found.unread) or None),
        ("other entries", ", ".join(found.other_entries) or None),
    ]
    return _shown("Weights", _facts(facts))


def outputs(found: OutputDifference) -> str:
    """The difference of two networks' outputs."""
    facts = [
        ("largest error", small(found.largest_error)),
        ("over the largest output", small(found.relative_error)),
        ("top-1 agreement", share(found.top1_agreement)),
    ]
    return _shown("Outputs of two networks", _facts(facts))


def evaluation(found: Evaluation) -> str:
    """Accuracy, calibration and speed."""
    return _shown("Evaluation", _facts(evaluation_facts(found, "the other model")))


def fidelity(found: Fidelity) -> str:
    """Source and converted network, and every layer that was compared."""
    before, after = fidelity_facts(found)
    return _shown(f"Compared on {found.count} images", _facts([*before, *after]), _layers(found))


def verification(found: Verification) -> str:
    """A checkpoint against its source: the verdict, the criteria, and every layer."""
    rows = [(check.name, check.limit, check.measured, "passed" if check.passed else "FAILED") for check in found.checks]
    criteria = Table(("criterion", "limit", "measured", ""), rows)
    title = f"{found.verdict.upper()}: {found.checkpoint.path} against {found.source.description}"
    notes = (found.statement, *found.caveats)
    return _shown(title, criteria, _facts(verification_facts(found)), _layers(found.fidelity), notes=notes)


def calibration(found: Calibration) -> str:
    """What each step of a calibration came to on held-out samples, and what was kept."""
    title = f"{found.held_out} held-out samples, {found.fitted_on} fitted"
    reasons = sorted(set(found.skipped.values()))
    notes = [f"{list(found.skipped.values()).count(reason)} layers not fitted: {reason}" for reason in reasons]
    return _shown(
        title, Table(CALIBRATION_COLUMNS, calibration_rows(found), numbers=1).without_empty_columns(), notes=notes
    )


def collapse(found: Collapse) -> str:
    """Layers that became plain ones, and how far they were from that."""
    rows = [(layer.name, "exact" if layer.exact else small(layer.deviation)) for layer in found.layers]
    notes = [] if found.score is None else [f"Error of the outputs {found.score.error:.1e}"]
    return _shown(f"{len(rows)} layers replaced", Table(("layer", "deviation"), rows, numbers=1), notes=notes)


def demo(found: DemoResult) -> str:
    """Networks against the source, before any training."""
    rows = [(n.title, share(n.agreement, digits=0) or NONE, f"{n.largest_error:.1e}") for n in found.networks[1:]]
    table = Table(("network", "same class as the source", "largest logit error"), rows, numbers=1)
    return _shown(f"Against the source, {len(found.images)} images, before any training", table)


def recipe(found: Recipe) -> str:
    """Every field of a recipe, with what it does."""
    rows = [(name, _value(getattr(found, name)), about.text) for name, (_, about, _) in settings_of(Recipe).items()]
    return _shown(f"Recipe {found.name}", Table(("field", "value", "what it does"), rows))


def result(found: Result) -> str:
    """The networks of a run, and its epochs; of a dry run its length."""
    if found.best is not None and found.best.exists():
        return run(read_run(found.output))
    summary = found.summary
    facts = [(name.replace("_", " "), _value(value)) for name, value in summary.items() if not isinstance(value, dict)]
    return _shown(f"{found.output}: {'dry run' if found.best is None else 'the files are gone'}", _facts(facts))


def run_comparison(found: RunComparison) -> str:
    """Several runs together."""
    return _shown(str(found), found.table())


def run(found: Run) -> str:
    """The networks of a run before and after, and its epochs."""
    table = arms_table(found)
    title = f"{found.summary.get('model') or found.path}: {heading(arms(found)).lower()}"
    return _shown(title, table, epochs_table(found))


def _value(value: object) -> str:
    return "none" if value is None else " ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def _layers(found: Fidelity) -> Table:
    columns = ("layer", "source", "converted", "signal over error", "by itself", "largest error")
    rows = [
        (
            layer.name or "(root)",
            layer.source,
            layer.converted,
            decibels(layer.snr),
            decibels(layer.own_snr),
            small(layer.largest_error),
        )
        for layer in found.layers
    ]
    return Table(columns, rows, numbers=3)


def _facts(facts: Iterable[tuple[str, str | None]]) -> Table:
    return Table(("", ""), [(label, text) for label, text in facts if text is not None])


def _shown(title: str, *tables: Table, notes: Iterable[str] = ()) -> str:
    """Tables below a title; long ones scroll."""
    parts = [Markup("<p><b>{}</b></p>").format(title)]
    parts += [Markup("<p>{}</p>").format(note) for note in notes]
    frame = Markup('<div style="max-height: 30em; overflow: auto">{}</div>')
    parts += [frame.format(table.html(inline=True)) for table in tables if table.rows]
    return Markup("\n").join(parts)
