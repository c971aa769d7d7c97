"""The calibration text: the interpreter's library outside the evaluation modules, or files of the user."""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from anybit.errors import UsageError
from anybit.measure.text import HELD_OUT, Tokenizer, read_texts

SEQUENCES, LENGTH = 128, 512
_NOT_TEXT = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "ensurepip", "__pycache__", "turtledemo"}


@dataclass(frozen=True)
class CalibrationText:
    """`ids` int32[sequences, length]; `digest`: SHA-256 of them as little-endian 32-bit integers; `source`: where they came from."""

    ids: np.ndarray
    digest: str
    source: str


def library_files(stdlib: Path | None = None) -> list[Path]:
    """The standard library's source files but for the evaluation modules and its tests, in sorted order of path."""
    root = Path(sysconfig.get_path("stdlib")) if stdlib is None else stdlib
    found = []
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).parts
        if not (_NOT_TEXT & set(parts) or parts[0].removesuffix(".py") in HELD_OUT or parts[0].startswith("config-")):
            found.append(path)
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def calibration_text(
    tokenizer: Tokenizer, files: Sequence[Path] = (), sequences: int = SEQUENCES, length: int = LENGTH, separator: int = 0, seed: int = 0,
    stdlib: Path | None = None,
) -> CalibrationText:  # fmt: skip
    """`sequences` windows of `length` tokens, each file preceded by `separator`.

    Files are taken in the order given; without any, those of the standard library in an order that `seed` shuffles.
    UsageError: too little text. FileFormatError: a file is not UTF-8.
    """
    chosen = list(files)
    if not chosen:
        chosen = library_files(stdlib)
        chosen = [chosen[i] for i in np.random.Generator(np.random.Philox(seed)).permutation(len(chosen))]
    wanted, ids = sequences * length, []
    for text in read_texts(chosen):
        encoded = tokenizer.encode(text)
        ids.append(separator)
        ids.extend(getattr(encoded, "ids", encoded))
        if len(ids) >= wanted:
            break
    if len(ids) < wanted:
        raise UsageError(
            f"the calibration text has {len(ids)} tokens, {sequences} sequences of {length} are {wanted};"
            " give more --calibration files or fewer sequences"
        )
    array = np.asarray(ids[:wanted], np.int32).reshape(sequences, length)
    array.setflags(write=False)
    digest = hashlib.sha256(array.astype("<u4").tobytes()).hexdigest()
    source = ", ".join(path.name for path in files) if files else f"standard library without the evaluation modules, seed {seed}"
    return CalibrationText(array, digest, source)
