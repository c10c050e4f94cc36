"""Killed, starved or raced: a file is the old one or the new one, whole; the next run tidies up and goes on."""

from __future__ import annotations

import fcntl
import hashlib
import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ilmconvert import load, save
from ilmconvert.checkpoint.atomic_write import remove_leftovers, write_atomically
from tests.checkpoint import crash_jobs
from tests.checkpoint.crash_jobs import duration, network, save_network, start, wait_and_kill
from tests.finetune import finetune_jobs
from tests.helpers import save_trained

KILLS = 50


def leftovers(folder: Path) -> list[Path]:
    return list(folder.glob(".*.tmp"))


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that everybody may enter, unlike ``tmp_path``."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_the_next_write_removes_what_the_dead_left_and_nothing_else(tmp_path: Path) -> None:
    names = (".a.safetensors.00.ilmconvert.tmp", ".b.safetensors.01.ilmconvert.tmp")
    dead, alive = (tmp_path / name for name in names)
    for folder in (dead, alive):
        folder.mkdir()
        (folder / "part").write_bytes(b"half")
    other = tmp_path / ".other.tmp"
    other.write_bytes(b"")
    lock = os.open(alive, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    write_atomically(tmp_path / "c.safetensors", lambda path: path.write_bytes(b"whole") and None)
    assert sorted(tmp_path.iterdir()) == sorted([alive, other, tmp_path / "c.safetensors"])
    os.close(lock)
    remove_leftovers(tmp_path)
    assert not alive.exists()


def race(path: Path, times: int) -> None:
    """Two processes save two networks to one name, again and again; whoever looks finds one of them, whole."""
    whole = {save(network(seed), path.with_name(f"{seed}.safetensors")).read_bytes() for seed in (1, 2)}
    save_network(path, 1)
    writers = [start(save_network, path, seed, times) for seed in (1, 2)]
    seen = set()
    while any(process.exitcode is None for process in writers):
        seen.add(path.read_bytes())
        for process in writers:
            process.join(0.002)
    assert [process.exitcode for process in writers] == [0, 0]
    assert seen <= whole
    assert path.read_bytes() in whole
    assert not leftovers(path.parent)


def test_two_processes_write_one_file(tmp_path: Path) -> None:
    race(tmp_path / "m.safetensors", 20)


@pytest.mark.slow
def test_two_processes_write_one_file_a_thousand_times(tmp_path: Path) -> None:
    race(tmp_path / "m.safetensors", 1000)


def test_a_file_that_may_not_grow(tmp_path: Path) -> None:
    path, message = tmp_path / "m.safetensors", tmp_path / "message"
    save_network(path, 2)
    before = path.read_bytes()
    duration(crash_jobs.save_with_little_room, path, len(before) // 2, message)
    text = message.read_text()
    assert text.startswith(f"can't write {path}: ")
    assert "File too large" in text
    assert text.endswith("choose another place")
    assert len(text.splitlines()) == 1
    assert path.read_bytes() == before
    assert {p.name for p in tmp_path.iterdir()} == {"m.safetensors", "message"}


def test_a_folder_that_may_not_be_written(open_folder: Path, tmp_path: Path) -> None:
    path, message = open_folder / "m.safetensors", tmp_path / "message"
    save_network(path, 2)
    before = path.read_bytes()
    open_folder.chmod(0o555)
    duration(crash_jobs.save_as_nobody, path, message)
    assert message.read_text() == f"can't write {path}: Permission denied; choose another place"
    open_folder.chmod(0o755)
    assert path.read_bytes() == before
    assert [p.name for p in open_folder.iterdir()] == ["m.safetensors"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A file system in memory of the size asked for."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(size: str) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("a file system can't be mounted here; the limit on a file's size is tested all the same")
        return place

    yield mount
    subprocess.run(["umount", str(place)], capture_output=True)


def test_a_full_disk(small_disk: Callable[[str], Path], tmp_path: Path) -> None:
    path, message = small_disk("250k") / "m.safetensors", tmp_path / "message"
    save_network(path, 2)
    before = path.read_bytes()
    duration(crash_jobs.save_with_little_room, path, 1 << 30, message)
    assert "No space left on device" in message.read_text()
    assert len(message.read_text().splitlines()) == 1
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["m.safetensors"]


@pytest.mark.slow
@pytest.mark.parametrize("size", ["1m", "5m", "7m", "8m", "9m"])
def test_fine_tuning_on_a_full_disk(small_disk: Callable[[str], Path], tmp_path: Path, size: str) -> None:
    """It says so wherever it runs out of room, and goes on when there is some."""
    disk, message, undisturbed = small_disk(size), tmp_path / "message", tmp_path / "undisturbed"
    duration(crash_jobs.finetune_refused, disk / "run", message)
    assert "No space left on device" in message.read_text() or "inline_container" in message.read_text()
    assert len(message.read_text().splitlines()) == 1
    subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
    duration(crash_jobs.finetune_run, disk / "run")
    duration(crash_jobs.finetune_run, undisturbed)
    assert digest(disk / "run" / "last.safetensors") == digest(undisturbed / "last.safetensors")


@pytest.mark.slow
def test_saving_survives_kills(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    whole = {save(network(seed), path.with_name(f"{seed}.safetensors")).read_bytes(): seed for seed in (1, 2)}
    save_network(path, 1)
    seconds, chance, left = duration(save_network, path, 1, 100), random.Random(0), 0
    for _ in range(KILLS):
        wait_and_kill(start(save_network, path, 3 - whole[path.read_bytes()], 10_000), chance.uniform(0, seconds))
        assert path.read_bytes() in whole
        left += bool(leftovers(tmp_path))
    assert left, "no process was killed while it wrote"
    print(f"save: {KILLS} kills survived, {left} of them in the middle of a write")
    save_network(path, 2)
    assert whole[path.read_bytes()] == 2
    assert {p.name for p in tmp_path.iterdir()} == {"1.safetensors", "2.safetensors", "m.safetensors"}


@pytest.mark.slow
def test_converting_survives_kills(tmp_path: Path) -> None:
    path, weights = tmp_path / "m.safetensors", save_trained(tmp_path)
    duration(crash_jobs.convert_command, path, weights)
    new = path.read_bytes()
    seconds = duration(crash_jobs.convert_command, path, weights)
    old = save(load(path).half(), path).read_bytes()
    chance, finished = random.Random(0), 0
    for _ in range(KILLS):
        path.write_bytes(old)
        process = start(crash_jobs.convert_command, path, weights)
        wait_and_kill(process, chance.uniform(0, 1.1 * seconds))
        assert path.read_bytes() in (old, new)
        finished += path.read_bytes() == new
    print(f"convert: {KILLS} kills survived, {finished} after the file was complete")
    duration(crash_jobs.convert_command, path, weights)
    assert path.read_bytes() == new
    assert {p.name for p in tmp_path.iterdir()} == {"m.safetensors", weights.name}


@pytest.mark.slow
def test_fine_tuning_survives_kills(tmp_path: Path) -> None:
    """Killed until it happens to end, again and again; the files are those that an undisturbed run writes."""
    undisturbed = tmp_path / "undisturbed"
    whole = files_of_a_run(undisturbed)
    seconds, chance, runs = duration(crash_jobs.finetune_run, tmp_path / "timed"), random.Random(0), 0
    kills = 0
    folder = tmp_path / "run0"
    while kills < KILLS:
        process = start(crash_jobs.finetune_run, folder)
        kills += wait_and_kill(process, chance.uniform(0, 1.3 * seconds))
        for name in ("last.safetensors", "best.safetensors"):
            assert not (folder / name).exists() or digest(folder / name) in whole
        if process.exitcode == 0:
            runs += 1
            compare(folder, undisturbed)
            folder = tmp_path / f"run{runs}"
    duration(crash_jobs.finetune_run, folder)
    compare(folder, undisturbed)
    print(f"finetune: {kills} kills survived, {runs + 1} runs ended as if undisturbed")


def files_of_a_run(folder: Path) -> set[str]:
    """Digests of all checkpoints that a run writes."""
    seen = set()

    def look(*_: object) -> None:
        seen.update(digest(path) for path in folder.glob("*.safetensors"))

    finetune_jobs.run(folder, progress=look, save_every=1, **finetune_jobs.RANDOM)
    look()
    assert len(seen) >= 3
    return seen


def compare(folder: Path, undisturbed: Path) -> None:
    for name in ("last.safetensors", "best.safetensors"):
        assert digest(folder / name) == digest(undisturbed / name)
    assert not leftovers(folder)
    assert not list((folder / "state").glob("*.tmp"))
