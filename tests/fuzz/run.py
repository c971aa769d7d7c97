"""`python -m fuzz.run TARGET [libFuzzer options]` under atheris; see docs/fuzzing.md."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path


def main(arguments: list[str]) -> None:
    import atheris

    with atheris.instrument_imports(include=["anybit.io"]):
        from fuzz.targets import TARGETS
    target = TARGETS[arguments[1]]

    def mutator(data: bytes, most: int, seed: int) -> bytes:
        made = target.mutate(data, seed) if seed % 2 else atheris.Mutate(data, most)
        return bytes(made[:most])

    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(target.seeds()):
            (Path(corpus) / f"{number:04}").write_bytes(seed)
        atheris.Setup([arguments[0], corpus, "-max_len=20000", "-timeout=5", *arguments[2:]], target.run, custom_mutator=mutator)
        atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv)
