"""The evaluation text: standard-library modules that the bundled model never saw, or files of the user."""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from platform import python_version
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from anybit.errors import FileFormatError, UsageError

HELD_OUT = (
    "argparse", "csv", "dataclasses", "email", "fractions", "heapq", "http", "ipaddress", "json", "logging",
    "pathlib", "statistics", "tarfile", "textwrap", "unittest",
)  # fmt: skip
DEFAULT_TOKENS = 32_768


class Tokenizer(Protocol):
    """What reads text: `encode(text)` gives token ids, or an object with `.ids`."""

    def encode(self, text: str, /) -> Any: ...


@dataclass(frozen=True)
class EvalText:
    """Token ids to evaluate on and where they came from.

    `ids` is int32[t]; the first `t - 1` are inputs, so `t - 1` tokens are scored. `digest` is the SHA-256 of the ids as little-endian
    32-bit integers: two results with equal digests scored the same tokens.
    """

    ids: NDArray[np.int32]
    digest: str
    source: str
    python: str | None = None
    missing: tuple[str, ...] = ()

    @property
    def tokens(self) -> int:
        """How many tokens are scored."""
        return max(len(self.ids) - 1, 0)

    def describe(self) -> dict[str, Any]:
        """What a result records about its text."""
        return {
            "source": self.source,
            "tokens": self.tokens,
            "tokens_sha256": self.digest,
            "python": self.python,
            "missing_modules": list(self.missing),
        }


def separator_of(model: Any) -> int:
    """The token before each file: the model's beginning of text, else its end of text, else 0."""
    spec = model.spec
    return int(spec.bos if spec.bos is not None else spec.eos[0] if spec.eos else 0)


def held_out_files(stdlib: Path | None = None) -> tuple[list[Path], tuple[str, ...]]:
    """The held-out modules' source files in sorted order of path, and the names of those that this interpreter does not have.

    They are looked up in the standard library's own folder, never by import: a file named json.py beside the user must not count.
    """
    root = Path(sysconfig.get_path("stdlib")) if stdlib is None else stdlib
    files: list[Path] = []
    missing: list[str] = []
    for name in HELD_OUT:
        module, package = root / f"{name}.py", root / name
        found = [module] if module.is_file() else sorted(path for path in package.rglob("*.py") if path.is_file())
        files += found
        if not found:
            missing.append(name)
    return sorted(files, key=lambda path: path.relative_to(root).as_posix()), tuple(missing)


def default_text(tokenizer: Tokenizer, tokens: int = DEFAULT_TOKENS, separator: int = 0, stdlib: Path | None = None) -> EvalText:
    """The first `tokens` tokens (and one more, the last target) of the held-out modules, each file preceded by `separator`.

    UsageError: this interpreter's standard library has too little of them.
    """
    files, missing = held_out_files(stdlib)
    ids = _collect(tokenizer, read_texts(files), tokens + 1, separator)
    if len(ids) <= tokens:
        lacking = f"; it lacks {', '.join(missing)}" if missing else ""
        raise UsageError(
            f"the held-out modules of Python {python_version()} give {max(len(ids) - 1, 0)} tokens, {tokens} are asked for{lacking};"
            " give --text FILE or fewer --tokens"
        )
    return _text(ids, "held-out standard library", python_version(), missing)


def text_from_files(tokenizer: Tokenizer, paths: Sequence[Path], tokens: int | None = None, separator: int = 0) -> EvalText:
    """The text of `paths` in the given order, each file preceded by `separator`; all of it, or the first `tokens`.

    FileFormatError: a file is not UTF-8. UsageError: there are fewer than two tokens.
    """
    limit = None if tokens is None else tokens + 1
    ids = _collect(tokenizer, read_texts(paths), limit, separator)
    if len(ids) < 2:
        raise UsageError(f"{', '.join(map(str, paths))}: no text to evaluate on")
    return _text(ids, ", ".join(path.name for path in paths), None, ())


def read_texts(paths: Iterable[Path]) -> Iterator[str]:
    """The text of each file. FileFormatError: it is not UTF-8."""
    for path in paths:
        try:
            yield path.read_bytes().decode("utf-8")
        except UnicodeDecodeError as error:
            raise FileFormatError(f"{path}: text at byte {error.start}: not UTF-8; convert the file") from None


def _collect(tokenizer: Tokenizer, texts: Iterable[str], limit: int | None, separator: int) -> list[int]:
    ids: list[int] = []
    for text in texts:
        if limit is not None and len(ids) >= limit:
            break
        encoded = tokenizer.encode(text)
        ids.append(separator)
        ids.extend(getattr(encoded, "ids", encoded))
    return ids[:limit]


def _text(ids: list[int], source: str, python: str | None, missing: tuple[str, ...]) -> EvalText:
    array = np.asarray(ids, dtype=np.int32)
    array.setflags(write=False)
    return EvalText(array, hashlib.sha256(array.astype("<u4").tobytes()).hexdigest(), source, python, missing)
