"""Any model that anybit opens as tensors to be written elsewhere: codes stay codes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from math import lcm
from pathlib import Path

import numpy as np

from anybit.errors import UsageError
from anybit.foreign import check_foreign
from anybit.formats import Format, Spec
from anybit.formats.points import Points
from anybit.io.coded import Coded
from anybit.io.foreign import Foreign, Stored, open_foreign
from anybit.io.hf import CONFIG, open_model
from anybit.io.hf import Source as Directory
from anybit.io.packed import logical
from anybit.io.targets import Held, Source
from anybit.io.targets.target import Reader, pieces, unit_of
from anybit.layouts import LAYOUTS, sizes_known
from anybit.methods import METHODS
from anybit.methods.points import quantize_to_points
from anybit.methods.rtn import dequantize_parts
from anybit.models import describe
from anybit.stored import DENSE_FORMATS, brought_elements, check_dtype, chosen_names, resolve, stored_linear
from anybit.tensor import QTensor


class _OfTensor(Reader):
    """A tensor of ours, unpacked some rows at a time."""

    def __init__(self, tensor: QTensor, release: Callable[[], None]) -> None:
        self._tensor, self._release = tensor, release

    def _part(self, start: int, stop: int) -> QTensor:
        return self._tensor if (start, stop) == (0, self._tensor.shape[0]) else self._tensor.narrow(start, stop)

    def rows(self, start: int, stop: int) -> Mapping[str, np.ndarray]:
        return self._part(start, stop).logical()

    def values(self, start: int, stop: int) -> np.ndarray:
        return self._part(start, stop).dequantize()

    def grids(self) -> Mapping[str, np.ndarray]:
        return self._tensor.grids()

    def release(self) -> None:
        self._release()


def held_tensor(
    name: str, role: str, tensor: QTensor, act: str | None = None, release: Callable[[], None] = lambda: None,
    order: np.ndarray | None = None,
) -> Held:  # fmt: skip
    """A tensor of ours. `order`: of the inputs, where the layer permutes them."""
    fmt, shape = tensor.format, tensor.shape
    cut = len(shape) == 2 and sizes_known(fmt, shape, tensor.layout)  # what packs as a whole is taken as a whole
    unit = lcm(unit_of(fmt, shape), LAYOUTS[tensor.layout].tile[0]) if cut else shape[0]
    return Held(name, role, shape, fmt, _OfTensor(tensor, release), unit, act, order)


class _OfFile(Reader):
    """A tensor as it is coded in a file."""

    def __init__(self, stored: Stored) -> None:
        self._stored, self._coded = stored, stored.read()
        self.format = Format(self._coded.format)
        self.unit = unit_of(self.format, stored.shape) if len(stored.shape) > 1 else stored.shape[0]
        self.order = self._coded.order

    def rows(self, start: int, stop: int) -> Mapping[str, np.ndarray]:
        return logical(self._coded, start, stop)

    def values(self, start: int, stop: int) -> np.ndarray:
        return dequantize_parts(dict(self.rows(start, stop)), self.format, (stop - start, *self._stored.shape[1:]))

    def grids(self) -> Mapping[str, np.ndarray]:
        made: dict[str, list[np.ndarray]] = {}
        for start, stop in pieces(self._stored.shape, self.unit):
            for part, array in self.rows(start, stop).items():
                if part != "codes":
                    made.setdefault(part, []).append(np.array(array))
        return {part: arrays[0] if self._shared(part, arrays[0]) else np.concatenate(arrays) for part, arrays in made.items()}

    def _shared(self, part: str, array: np.ndarray) -> bool:
        """Whether all rows share a part, which comes with each piece."""
        level = int(part.partition(".")[2] or 0)
        return array.shape[0] == 1 and self.format.blocks[level].grid(self._stored.shape)[0] == 1

    def release(self) -> None:
        self._stored.release()


def held_stored(name: str, role: str, stored: Stored) -> Held:
    """A tensor of another tool's file, or a dense one, as it is coded there."""
    reader = _OfFile(stored)
    return Held(name, role, stored.shape, reader.format, reader, reader.unit, None, reader.order)


def foreign_of(path: str | Path) -> Foreign | None:
    """The model of another tool at a path; None: it is none."""
    return open_foreign(resolve(path))


def open_source(path: str | Path) -> Source:
    """Opens a model to be written elsewhere: a Hugging Face directory, dense or quantized by any tool that is read, or a GGUF file.

    Raises: FileFormatError: as `anybit.load`. UsageError: layers that no other tool has (product rules).
    """
    foreign = foreign_of(path)
    if foreign is not None:
        return _of_foreign(foreign, str(path))
    directory = open_model(resolve(path))
    spec = describe(directory.config, str(directory.path / CONFIG), directory.field)
    config = {key: value for key, value in directory.config.items() if key != "quantization_config"}
    layers = directory.quantization.layers if directory.quantization else {}
    elements = brought_elements(directory)
    shapes = {name: tuple(layer.shape) for name, layer in layers.items()} | {n: directory.tensors[n].shape for n in directory.dense}
    spec.check_tensors(shapes, str(directory.path), directory.place)
    tensors = {}
    for tensor in spec.tensors:
        name = tensor.name
        if name not in layers:
            tensors[name] = _dense(directory, name, tensor.role)
            continue
        linear = stored_linear(directory, name, layers[name], elements, None)
        if linear.product is not None:
            raise UsageError(f"{path}: layer '{name}' runs with the product rule '{linear.product}', which no other tool has")
        order = linear.pre[0].data if len(linear.pre) == 1 and linear.pre[0].kind == "permute" else None
        if (linear.pre and order is None) or linear.branches or linear.post or linear.bias is not None:
            around = "transforms, branches or a bias of its own around its weight"
            raise UsageError(f"{path}: layer '{name}' runs with {around}, which no other tool has; export a model without them")
        act = None if linear.act is None else linear.act.text + ("" if linear.act.dynamic else " (one scale)")
        tensors[name] = held_tensor(name, tensor.role, linear.weight, act, _releaser(directory, name), order)
    return Source(directory.path, config, spec, tensors, directory.sidecars, directory.eos or spec.eos, str(path))


def _releaser(directory: Directory, name: str) -> Callable[[], None]:
    return lambda: directory.release(name)


def _dense(directory: Directory, name: str, role: str) -> Held:
    info = directory.tensors[name]
    check_dtype(info.dtype, name, directory.path, directory.place)

    def read() -> Coded:
        array, _ = directory.get(name)
        codes = array.view(f"<u{array.dtype.itemsize}")
        return Coded(DENSE_FORMATS[info.dtype], info.shape, lambda start, stop: {"codes": codes[start:stop]})

    return held_stored(name, role, Stored(info.shape, read, _releaser(directory, name)))


def _of_foreign(foreign: Foreign, name: str) -> Source:
    spec = describe(foreign.config, str(foreign.path), foreign.field)
    check_foreign(foreign, spec)
    tensors = {tensor.name: held_stored(tensor.name, tensor.role, foreign.tensors[tensor.name]) for tensor in spec.tensors}
    config = {key: value for key, value in foreign.config.items() if key != "quantization_config"}
    return Source(foreign.path, config, spec, tensors, foreign.sidecars, foreign.eos or spec.eos, name)


# ---------------------------------------------------------------------------------------------- dense matrices in a format
def quantized_source(
    source: Source, spec: Spec, keep: str | None, act: str | None, method: str = "rtn", fused: tuple[tuple[str, ...], ...] = (),
    importance: Mapping[str, np.ndarray] | None = None, points: Points | None = None,
) -> Source:  # fmt: skip
    """The same model whose dense matrices are quantized when their turn comes, but for those that `keep` matches.

    `fused`: modules that share the one scale of a whole tensor, where the format has one; `importance`: float[k] by tensor, where known;
    `points`: the list that codes must be from, which are then searched for instead of rounded by `method`.
    UsageError: a matrix that is quantized already.
    """
    matrices = {name: held for name, held in source.tensors.items() if not held.plain}
    chosen = chosen_names(matrices, keep)
    for name in chosen:
        if not matrices[name].dense:
            raise UsageError(f"{source.name}: tensor '{name}' is quantized already ({matrices[name].format}); give the original model")
    last = spec.format.blocks[-1] if spec.format.blocks else None
    groups = _groups(chosen, fused if last is not None and last.kind == "tensor" else ())
    made: dict[str, Held] = {}
    for group in groups:
        made |= _quantized([matrices[name] for name in group], spec, act, method, (importance or {}).get(group[0]), points)
    return replace(source, tensors={name: made.get(name, held) for name, held in source.tensors.items()})


def _groups(names: list[str], fused: tuple[tuple[str, ...], ...]) -> list[list[str]]:
    found: dict[tuple[str, object], list[str]] = {}
    for name in names:
        module = name.removesuffix(".weight")
        parent, _, last = module.rpartition(".")
        index = next((i for i, group in enumerate(fused) if last in group), None)
        found.setdefault((parent, last if index is None else index), []).append(name)
    return list(found.values())


def _quantized(
    group: list[Held], spec: Spec, act: str | None, method: str, importance: np.ndarray | None, points: Points | None
) -> dict[str, Held]:
    together, fmt = _Together(group, spec, method, importance, points), spec.format
    made = (
        Held(held.name, held.role, held.shape, fmt, _OfGroup(together, held), unit_of(fmt, held.shape), act, None, points) for held in group
    )  # fmt: skip
    return {held.name: held for held in made}


class _Together:
    """Matrices that are quantized together as one, each cut out of the result; made on first use, dropped when all are released."""

    def __init__(self, group: list[Held], spec: Spec, method: str, importance: np.ndarray | None, points: Points | None) -> None:
        self._group, self._spec, self._method, self._importance, self._points = group, spec, method, importance, points
        self._made: dict[str, QTensor] = {}
        self._open = {held.name for held in group}

    def tensor(self, name: str) -> QTensor:
        """One of them, in rows."""
        if not self._made:
            parts, rows, start = self._parts(), sum(held.shape[0] for held in self._group), 0
            for held in self._group:
                stop = start + held.shape[0]
                mine = {part: _cut(array, rows, start, stop) for part, array in parts.items()}
                self._made[held.name] = QTensor.pack(self._spec.format, held.shape, mine, "rows")
                start = stop
            self._open.update(self._made)
        return self._made[name]

    def _parts(self) -> Mapping[str, np.ndarray]:
        values = [held.values(0, held.shape[0]) for held in self._group]
        whole = values[0] if len(values) == 1 else np.concatenate(values)
        del values
        weigh = {} if self._importance is None else {"importance": self._importance}  # not every method weighs errors
        name = f"tensor '{self._group[0].name}'"
        if self._points is None:
            parts = METHODS[self._method](whole, self._spec, name=name, **weigh)
        else:
            parts = quantize_to_points(whole, self._spec.format, self._points, name=name, **weigh)
        for held in self._group:
            held.release()
        return parts

    def release(self, name: str) -> None:
        """One is not needed for now."""
        self._open.discard(name)
        if not self._open:
            self._made.clear()


class _OfGroup(Reader):
    """One of some matrices that are quantized together."""

    def __init__(self, together: _Together, held: Held) -> None:
        self._together, self._name, self._shape = together, held.name, held.shape

    def _tensor(self) -> QTensor:
        return self._together.tensor(self._name)

    def rows(self, start: int, stop: int) -> Mapping[str, np.ndarray]:
        return {name: _cut(array, self._shape[0], start, stop) for name, array in self._tensor().logical().items()}

    def values(self, start: int, stop: int) -> np.ndarray:
        return dequantize_parts(dict(self.rows(start, stop)), self._tensor().format, (stop - start, *self._shape[1:]))

    def grids(self) -> Mapping[str, np.ndarray]:
        return self._tensor().grids()

    def release(self) -> None:
        self._together.release(self._name)


def _cut(part: np.ndarray, rows: int, start: int, stop: int) -> np.ndarray:
    """Some rows' share of a part that has a row for every row of the tensor, for several of them, or one for all."""
    if part.shape[0] == 1 or part.ndim < 2:
        return part
    each = -(-rows // part.shape[0])
    return part[start // each : -(-stop // each)]
