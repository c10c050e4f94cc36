"""The same led by coverage, with atheris: ``python -m tests.fuzz.guided FOLDER -runs=20000 -max_len=100000``.

FOLDER collects the files that reach new code; it starts with the valid ones. ``pip install atheris``: Linux, and only
some versions of Python have it, so that nothing else depends on it.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path
from random import Random

import torch


def main() -> None:
    import atheris

    with atheris.instrument_imports(include=["ilmconvert", "safetensors"]):
        from tests.fuzz.cases import try_file, valid_files
        from tests.fuzz.mutations import mutate
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    corpus, scratch = Path(sys.argv[1]), Path(tempfile.mkdtemp())
    corpus.mkdir(exist_ok=True)
    for file in valid_files(scratch):
        (corpus / file.name).write_bytes(file.data)
        try_file(scratch / f"{file.name}.safetensors", file.into)

    def test_one(data: bytes) -> None:
        path = scratch / "case.safetensors"
        path.write_bytes(data)
        try_file(path, None)

    def mutator(data: bytes, max_size: int, seed: int) -> bytes:
        try:
            return mutate(data, Random(seed))[:max_size]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            changed: bytes = atheris.Mutate(data, max_size)  # no longer a checkpoint whose parts could be told
            return changed

    atheris.Setup(sys.argv, test_one, custom_mutator=mutator)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
