"""What writers of other tools' formats share: a model to be written, a plan that says what becomes of each tensor, and the registry.

A writer never chooses codes. It takes tensors as they are held (`Held`) and says, before anything is written, whether its format holds each
one exactly; only a model whose every tensor has a place is written.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import lcm, prod
from pathlib import Path
from typing import Any

import numpy as np

from anybit.formats import Format
from anybit.formats.points import Points
from anybit.io.foreign import Sidecar
from anybit.models import PLAIN, Experts, ModelSpec
from anybit.registry import Registry

SLAB = 1 << 21
"""Weights that a writer works on at once."""
Parts = Mapping[str, np.ndarray]
Written = Callable[[str], None]


def expert_notes(spec: ModelSpec) -> list[str]:
    """What becomes elsewhere of experts that are quantized one by one."""
    if not any(isinstance(layer.mlp, Experts) for layer in spec.layers):
        return []
    return ["experts keep their names, as llm-compressor has them for vLLM; transformers 5.23 leaves quantized ones at random numbers"]


class Reader(ABC):
    """Reads what is in a tensor, the whole of it or some rows, cut at multiples of its `unit`."""

    @abstractmethod
    def rows(self, start: int, stop: int) -> Parts:
        """The logical parts of some rows (as `io.coded.Coded`)."""

    @abstractmethod
    def values(self, start: int, stop: int) -> np.ndarray:
        """float32: what they mean, in the order of the codes."""

    @abstractmethod
    def grids(self) -> Parts:
        """The whole tensor's parts without its codes."""

    @abstractmethod
    def release(self) -> None:
        """Gives memory back."""


@dataclass(frozen=True)
class Held:
    """A tensor that is to be written: what is known of it, and the reader of what is in it.

    `unit`: where its rows may be cut. `act` is what a quantized layer takes as input, None for float. `order`: column j of the parts stands
    for input order[j] (None: for input j). `points`: the list that its codes are known to be from.
    """

    name: str
    role: str
    shape: tuple[int, ...]
    format: Format
    reader: Reader
    unit: int = 1
    act: str | None = None
    order: np.ndarray | None = None
    points: Points | None = None

    def rows(self, start: int, stop: int) -> Parts:
        """See `Reader.rows`."""
        return self.reader.rows(start, stop)

    def values(self, start: int, stop: int) -> np.ndarray:
        """float32 values of some rows, by inputs."""
        return self.by_inputs(self.reader.values(start, stop))

    def grids(self) -> Parts:
        """See `Reader.grids`."""
        return self.reader.grids()

    def release(self) -> None:
        """See `Reader.release`."""
        self.reader.release()

    @property
    def module(self) -> str:
        """`model.norm.weight` -> `model.norm`."""
        return self.name.rpartition(".")[0]

    @property
    def plain(self) -> bool:
        """Whether it is none of the matrices that may be quantized: a norm, a bias, a router."""
        return self.role in PLAIN

    @property
    def dense(self) -> bool:
        """Whether its values are stored one by one as float32, float16 or bfloat16."""
        return self.format.plain.explicit in ("fp32", "fp16", "bf16")

    @property
    def groups(self) -> np.ndarray:
        """int32[k]: for each input the block of the row that its scale belongs to."""
        size = self.format.blocks[0].on(self.shape)[1]
        found = np.empty(self.shape[1], np.int32)
        found[slice(None) if self.order is None else self.order] = np.arange(self.shape[1]) // size
        return found

    def by_inputs(self, codes: np.ndarray) -> np.ndarray:
        """Codes or values of some rows, [rows, k] by columns, in the order of the inputs."""
        if self.order is None:
            return codes
        found = np.empty_like(codes)
        found[:, self.order] = codes
        return found

    def pieces(self, step: int = 1) -> Iterator[tuple[int, int]]:
        """Runs of rows to be worked on one after another, cut at multiples of `unit` and `step`."""
        return pieces(self.shape, lcm(self.unit, step))


def pieces(shape: tuple[int, ...], unit: int) -> Iterator[tuple[int, int]]:
    """Runs of rows of some million weights, cut at multiples of `unit`."""
    each = max(1, SLAB // max(1, prod(shape[1:]) * unit)) * unit
    for start in range(0, shape[0], each):
        yield start, min(start + each, shape[0])


def unit_of(fmt: Format, shape: tuple[int, ...]) -> int:
    """The number of rows at whose multiples a tensor may be cut: no block of scales reaches over a cut, but for a whole tensor's."""
    sizes = [block.on(shape)[0] for block in fmt.blocks]
    return lcm(*(size for size in sizes if size < shape[0])) if sizes else 1


@dataclass(frozen=True)
class Source:
    """A model that is to be written: `config` without a quantization_config, `tensors` by name in the order of execution."""

    path: Path
    config: Mapping[str, Any]
    spec: ModelSpec
    tensors: Mapping[str, Held]
    sidecars: tuple[Sidecar, ...] = ()
    eos: tuple[int, ...] = ()
    name: str = "model"

    def sidecar(self, name: str) -> bytes | None:
        """The content of a file that comes along, or None."""
        found = next((file for file in self.sidecars if file.name == name), None)
        return None if found is None else found.read_bytes()


@dataclass(frozen=True)
class Step:
    """What becomes of a tensor: `stored` is the target's word for it ("" if there is no place), `exact` whether every value stays, `note`
    what differs, or why it cannot be written."""

    name: str
    shape: tuple[int, ...]
    held: str
    stored: str
    exact: bool
    nbytes: int
    note: str = ""


@dataclass(frozen=True)
class Plan:
    """Steps for all tensors, what the reader of the result should know, and the call that writes the files into a directory.

    `write(folder, written)` gives the SHA-256 of each large file. Where one file is the model, `file` is its name, and `pour(put, written)`
    gives all its bytes to `put`, one piece after another.
    """

    steps: tuple[Step, ...]
    write: Callable[[Path, Written], Mapping[str, str]]
    notes: tuple[str, ...] = ()
    file: str | None = None
    pour: Callable[[Callable[[Any], None], Written], None] | None = None

    @property
    def refused(self) -> tuple[Step, ...]:
        """The tensors that have no place."""
        return tuple(step for step in self.steps if not step.stored)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors as they will be stored."""
        return sum(step.nbytes for step in self.steps)


@dataclass(frozen=True)
class Target:
    """A format of another tool.

    `spec(kind)` is the format in which dense matrices are quantized where a kind is named (UnknownNameError: no such kind), None if the
    target quantizes nothing; `plan(source, kind)` says what becomes of every tensor. `fused` lists modules, by the last part of
    their names, whose tensors share one scale of the whole tensor. `points(kind)` is the list that codes of a kind must be from, where
    not every code of its format is one of the kind's.
    """

    name: str
    about: str
    form: str
    spec: Callable[[str], str | None]
    plan: Callable[[Source, str | None], Plan]
    fused: tuple[tuple[str, ...], ...] = field(default=())
    points: Callable[[str], Points | None] = lambda kind: None


TARGETS: Registry[Target] = Registry("export target", "anybit.io.targets")
