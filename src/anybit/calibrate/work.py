"""The work folder of a calibration: hidden states between blocks, finished blocks, and how far it got.

    state.json            {"version": 1, "digest": ..., "done": n, "shape": [...], "cross": false, "hidden": "hidden-n.f32"}
    hidden-n.f32          float32[sequences, length, width] before block n (original-n.f32: the original model's, where a step needs them)
    choice.json           the formats that an allocation chose, for runs that go on (recipes/kept.py)
    block-i.safetensors   a finished block; ends.safetensors, when all is done: the final norm, and of embedding and head what changed

state.json is replaced last, in one step, so that a kill at any moment leaves the state before or the state after; the hidden states before
block n are not touched while block n is worked on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from anybit.calibrate.finished import load_finished, save_finished
from anybit.errors import AnybitError, FileFormatError, UsageError
from anybit.io import strict_json
from anybit.io.output import failed
from anybit.io.save import atomic_file

if TYPE_CHECKING:
    from anybit.calibrate.run import Finished

STATE, ENDS = "state.json", "ends.safetensors"


def refuse_unfinished(folder: Path) -> None:
    """UsageError: a run that was killed left its state here."""
    if (folder / STATE).exists():
        raise UsageError(f"{folder} holds an unfinished run: give --resume to go on with it, or remove the folder")


@contextmanager
def on_disk(path: Path) -> Iterator[None]:
    """Errors of the system as OutputError: what, and what to do."""
    try:
        yield
    except AnybitError:
        raise
    except OSError as error:
        raise failed(path, error) from None


class Work:
    """See the module. `shape`: sequences, length, width."""

    def __init__(self, folder: Path, digest: str, resume: bool) -> None:
        self._folder, self._digest, self._resume = folder, digest, resume
        self.shape: tuple[int, int, int] = (0, 0, 0)
        self._now: dict[bool, _States] = {}
        self._next: dict[bool, _States] = {}
        self._at, self._cross = 0, False

    def begin(self, shape: tuple[int, int, int], cross: bool, embedded: Callable[[int], np.ndarray]) -> int:
        """Opens or makes the folder; `embedded(i)` is float32[length, width] of sequence i. Returns how many blocks are done."""
        self.shape, self._cross = shape, cross
        with on_disk(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        state = self._read()
        if state is not None:
            self._at = state["done"]
            self._open()
            return self._at
        for original in (False, True) if cross else (False,):
            states = _States(self._file(0, original), shape, new=True)
            for i in range(shape[0]):
                states.put(i, embedded(i))
            states.close()
        self._write()
        self._open()
        return 0

    def hidden(self, i: int, original: bool = False) -> np.ndarray:
        """float32[length, width] of sequence i before the block that is worked on."""
        return self._now[original].get(i)

    def put(self, i: int, x: np.ndarray, original: bool = False) -> None:
        """The same after it."""
        self._next[original].put(i, x)

    def keep(self, finished: Finished) -> None:
        """A block is done: what it became is stored, and the hidden states after it take the place of those before."""
        save_finished(self._folder / f"block-{finished.index}.safetensors", finished)
        self._close()
        old = [self._file(self._at, original) for original in self._now]
        self._at += 1
        self._write()
        for path in old:
            with on_disk(path):
                path.unlink(missing_ok=True)
        self._open()

    def load(self, index: int) -> Finished:
        """A block that an earlier run finished."""
        return load_finished(self._folder / f"block-{index}.safetensors")

    def done(self, ends: Finished) -> None:
        """The last piece; hidden states are not needed any more."""
        save_finished(self._folder / ENDS, ends)
        self._close()
        with on_disk(self._folder):
            (self._folder / STATE).unlink(missing_ok=True)  # first: a state whose hidden states are gone could not be resumed
            for original in (False, True):
                for at in (self._at, self._at + 1):
                    self._file(at, original).unlink(missing_ok=True)

    def _file(self, at: int, original: bool) -> Path:
        return self._folder / f"{'original' if original else 'hidden'}-{at}.f32"

    def _open(self) -> None:
        for original in (False, True) if self._cross else (False,):
            self._now[original] = _States(self._file(self._at, original), self.shape)
            self._next[original] = _States(self._file(self._at + 1, original), self.shape, new=True)

    def _close(self) -> None:
        for states in (*self._now.values(), *self._next.values()):
            states.close()

    def _write(self) -> None:
        state = {"version": 1, "digest": self._digest, "done": self._at, "shape": list(self.shape), "cross": self._cross}
        with atomic_file(self._folder / STATE) as file:
            file.write(json.dumps(state).encode())

    def _read(self) -> dict[str, Any] | None:
        path = self._folder / STATE
        if not path.exists():
            return None
        if not self._resume:
            refuse_unfinished(self._folder)
        state = strict_json.read(path)
        wanted = {"version": 1, "digest": self._digest, "shape": list(self.shape), "cross": self._cross}
        if not isinstance(state, dict) or type(state.get("done")) is not int or state["done"] < 0:
            raise FileFormatError(f"{path}: no state of a calibration; remove the folder and begin anew")
        for key, value in wanted.items():
            if state.get(key) != value:
                raise UsageError(
                    f"{self._folder} holds another run's state ('{key}' differs): give its recipe, model and text, or another folder"
                )
        for original in (False, True) if self._cross else (False,):
            file = self._file(state["done"], original)
            if self.shape[0] and (not file.exists() or file.stat().st_size != 4 * int(np.prod(self.shape))):
                raise FileFormatError(f"{file}: the hidden states are missing or cut short; remove the folder and begin anew")
        return state


class _States:
    """float32[sequences, length, width] in a file, one sequence in memory at a time: mapped pages would count as the process' own."""

    def __init__(self, path: Path, shape: tuple[int, int, int], new: bool = False) -> None:
        self._shape, self._step = shape[1:], 4 * shape[1] * shape[2]
        self._path = path
        with on_disk(path):
            # a plan without data has no sequences, and no file
            self._file = open(path, "w+b" if new else "rb", buffering=0) if shape[0] else None  # noqa: SIM115
            if new and self._file is not None:
                self._file.truncate(shape[0] * self._step)

    def get(self, i: int) -> np.ndarray:
        """A sequence. FileFormatError: the file was cut short meanwhile, or cannot be read."""
        assert self._file is not None
        found = np.empty(self._shape, np.float32)
        view = found.reshape(-1).view(np.uint8).data
        try:
            self._file.seek(i * self._step)
            while view:
                count = self._file.readinto(view)
                if not count:
                    raise FileFormatError(f"{self._path}: the hidden states are cut short; remove the folder and begin anew")
                view = view[count:]
        except OSError as error:
            raise FileFormatError(f"{self._path}: cannot be read: {error.strerror}; check the disk, then go on with --resume") from None
        return found

    def put(self, i: int, x: np.ndarray) -> None:
        """Writes a sequence."""
        assert self._file is not None
        data = np.ascontiguousarray(x, np.float32)
        assert data.shape == self._shape
        view = data.reshape(-1).view(np.uint8).data
        with on_disk(self._path):
            self._file.seek(i * self._step)
            while view:
                view = view[self._file.write(view) :]

    def close(self) -> None:
        """What was written reaches the disk."""
        if self._file is not None and not self._file.closed:
            with on_disk(self._path):
                if self._file.writable():
                    os.fsync(self._file.fileno())
                self._file.close()
