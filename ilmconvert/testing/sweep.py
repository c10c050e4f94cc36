"""Many models, each in a process of its own, one JSON line each."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ilmconvert._constants import exact_targets
from ilmconvert.surgery import plan
from ilmconvert.testing import build_models
from ilmconvert.testing.process_pool import Task, available_memory, run_tasks
from ilmconvert.testing.summary import outcome
from ilmconvert.testing.sweep_model import MAX_PARAMETERS, run_model

_CHUNK = 24
# Bytes of a parameter: source, copy, the loaded model and gradients, in float32; some need float64.
_BYTES = 24
_BASE_BYTES = 1 << 30
SHARE_OF_MEMORY = 0.7


def survey(names: Sequence[str]) -> list[dict[str, Any]]:
    """Size, family and the number of layers that every target converts and refuses, of each model; nothing is run.

    ``parameters`` is None for a model that can't be built.
    """
    result = []
    for name in names:
        entry: dict[str, Any] = {"model": name, "family": None, "library": None, "parameters": None, "plans": {}}
        try:
            spec = build_models.for_sweep(name)
            entry |= {"library": spec.library, "family": build_models.family(spec)}
            model = build_models.build_on_meta(spec)
            for to in exact_targets():
                the_plan = plan(model, to)
                entry["plans"][to] = [len(the_plan.converted), len(the_plan.errors)]
            entry["parameters"] = sum(p.numel() for p in model.parameters())
        except Exception:  # the run itself will tell what is wrong with it
            entry["plans"] = {}
        result.append(entry)
    return result


def choose(entries: Iterable[Mapping[str, Any]], to: str) -> list[str]:
    """The smallest model of every family that holds a norm, one with layers that ``to`` converts if there is one."""
    best: dict[tuple[str, str], tuple[bool, float, str]] = {}
    for entry in entries:
        converted, refused = entry["plans"].get(to, (0, 0))
        if converted or refused:
            rank = (converted == 0, entry["parameters"], entry["model"])
            family = (entry["library"], entry["family"])
            best[family] = min(best.get(family, rank), rank)
    return [rank[2] for rank in best.values()]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a sweep's file, the last of each model and target; one that a crash cut off is left out."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    if path.exists():
        for text in path.read_text().splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                continue
            found[line["model"], line["to"]] = line
    return list(found.values())


def run_sweep(
    names: Sequence[str],
    targets: Sequence[str],
    out: Path,
    *,
    jobs: int = 2,
    timeout: float = 900,
    max_parameters: int = MAX_PARAMETERS,
    one_per_family: bool = False,
    retry: bool = False,
    on_survey: Callable[[int, int], None] = lambda done, total: None,
    on_line: Callable[[dict[str, Any], int, int], None] = lambda line, done, total: None,
) -> list[dict[str, Any]]:
    """Run every model with every target, smallest first, and append a line to ``out`` after each.

    Models and targets that have a line already are left alone, so that a sweep can be continued.

    Args:
        names: of models.
        targets: of :func:`ilmconvert.convert`.
        out: the file of JSON lines.
        jobs: processes at a time. Each has its share of the cores; large models wait until memory is free.
        timeout: seconds a model may take; then its process is ended and that is its error.
        max_parameters: larger models are converted but not run; those not run before are, once it allows them.
        one_per_family: only the smallest suitable model of every family.
        retry: run what failed again.
        on_survey, on_line: told of progress.

    Returns:
        The lines of these models and targets, those found in ``out`` included.
    """
    lines = {(line["model"], line["to"]): line for line in read_lines(out)}
    done = {key for key, line in lines.items() if not _is_open(line, retry, max_parameters)}
    todo = [name for name in names if any((name, to) not in done for to in targets)]
    entries = _survey(names if one_per_family else todo, out, jobs, on_survey)
    wanted = {to: set(choose(entries.values(), to) if one_per_family else names) for to in targets}
    pairs = [(name, to) for name in names for to in targets if name in wanted[to]]
    missing = [pair for pair in pairs if pair not in done]
    missing.sort(key=lambda pair: entries[pair[0]]["parameters"] or float("inf"))
    with _appending(out) as write:
        for count, line in enumerate(_run(missing, entries, jobs, timeout, max_parameters), 1):
            write(line)
            lines[line["model"], line["to"]] = line
            on_line(line, count, len(missing))
    return [lines[pair] for pair in pairs if pair in lines]


def _survey(
    names: Sequence[str], out: Path, jobs: int, on_survey: Callable[[int, int], None]
) -> dict[str, dict[str, Any]]:
    """:func:`survey` in other processes, remembered beside ``out``."""
    path = out.with_name(f"{out.name}.survey")
    known: dict[str, dict[str, Any]] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        entry = json.loads(line)
        known[entry["model"]] = entry
    unknown = [name for name in names if not known.get(name, {"plans": {}})["plans"]]
    chunks = [unknown[i : i + _CHUNK] for i in range(0, len(unknown), _CHUNK)]
    tasks = [Task(survey, (chunk,), _BASE_BYTES, 60.0 * _CHUNK) for chunk in chunks]
    with _appending(path) as write:
        for count, (task, result, _) in enumerate(run_tasks(tasks, jobs), 1):
            for entry in result if result is not None else [_unknown(name) for name in task.args[0]]:
                known[entry["model"]] = entry
                write(entry)
            on_survey(min(count * _CHUNK, len(unknown)), len(unknown))
    return known


def _is_open(line: Mapping[str, Any], retry: bool, max_parameters: int) -> bool:
    """Whether a model has a line but is to be run again."""
    if line["error"] is not None:
        return retry
    return outcome(line) == "planned" and line["parameters"] <= max_parameters


def _unknown(name: str) -> dict[str, Any]:
    return {"model": name, "family": None, "library": None, "parameters": None, "plans": {}}


def _run(
    pairs: Sequence[tuple[str, str]],
    entries: Mapping[str, Mapping[str, Any]],
    jobs: int,
    timeout: float,
    max_parameters: int,
) -> Iterator[dict[str, Any]]:
    tasks = []
    for name, to in pairs:
        entry = entries[name]
        if entry["plans"].get(to) == [0, 0]:
            yield _line(to, entry)
            continue
        parameters = entry["parameters"]
        memory = _BASE_BYTES + (_BYTES * parameters if parameters and parameters <= max_parameters else 0)
        tasks.append(Task(_run_known, (name, to, parameters, max_parameters), memory, timeout))
    for task, line, error in run_tasks(tasks, jobs, int(SHARE_OF_MEMORY * available_memory())):
        name, to = task.args[:2]
        yield line if line is not None else {**_line(to, entries[name]), "error": error}


def _run_known(name: str, to: str, parameters: int | None, max_parameters: int) -> dict[str, Any]:
    return run_model(name, to, parameters=parameters, max_parameters=max_parameters)


def _line(to: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """The line of a model that wasn't run, or that took its process with it."""
    about = {key: entry[key] for key in ("model", "library", "family", "parameters")}
    nothing = {"converted": 0, "skipped": {}, "refused": 0, "executed": False, "error": None}
    return {**about, "to": to, **nothing}


class _appending:
    """Appends JSON lines to a file, each of them on disk before the next begins."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Callable[[Mapping[str, Any]], None]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.file = open(self.path, "a+")
        if self.file.tell() and not self.path.read_bytes().endswith(b"\n"):
            self.file.write("\n")
        return self.write

    def write(self, line: Mapping[str, Any]) -> None:
        self.file.write(json.dumps(line, allow_nan=False) + "\n")
        self.file.flush()
        os.fsync(self.file.fileno())

    def __exit__(self, *_: object) -> None:
        self.file.close()
