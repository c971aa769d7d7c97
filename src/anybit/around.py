"""Transforms and branches in a checkpoint: their description in config.json and their arrays among the layer's parts, and back.

`pre.<i>.data`, `post.<i>.data`, `branches.<i>.index`, `branches.<i>.a.<part>`, `branches.<i>.b.<part>`: docs/checkpoint.md has the keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from anybit.errors import ShapeError
from anybit.formats import Element, Format
from anybit.linear import Branch, Linear
from anybit.tensor import QTensor
from anybit.transforms import Transform

Json = dict[str, Any]
Arrays = dict[str, np.ndarray]

_TRANSFORM = {"kind": str, "block": int, "seed": int, "data": bool}
_BRANCH = {"kind": str, "a": dict, "b": dict, "source": str}
_TENSOR = {"format": str, "layout": str, "shape": list}


def describe_around(linear: Linear) -> tuple[dict[str, tuple[Json, ...]], Arrays]:
    """The keys `pre`, `branches`, `post` of a layer in config.json, and the arrays that belong to them, by part name."""
    arrays: Arrays = {}
    keys = {"pre": _transforms("pre", linear.pre, arrays), "post": _transforms("post", linear.post, arrays)}
    branches = []
    for i, branch in enumerate(linear.branches):
        item: Json = {"kind": branch.kind}
        for name, tensor in (("a", branch.a), ("b", branch.b)):
            if tensor is not None:
                item[name] = {"format": tensor.format.explicit, "layout": tensor.layout, "shape": list(tensor.shape)}
                arrays |= {f"branches.{i}.{name}.{part}": array for part, array in tensor.parts.items()}
        if branch.index is not None:
            arrays[f"branches.{i}.index"] = branch.index
        branches.append(item | ({"source": branch.source} if branch.source else {}))
    return keys | {"branches": tuple(branches)}, arrays


def _transforms(where: str, transforms: Sequence[Transform], arrays: Arrays) -> tuple[Json, ...]:
    found = []
    for i, transform in enumerate(transforms):
        item: Json = {"kind": transform.kind}
        item |= {name: value for name, value in (("block", transform.block), ("seed", transform.seed)) if value is not None}
        if transform.data is not None:
            item["data"] = True
            arrays[f"{where}.{i}.data"] = transform.data
        found.append(item)
    return tuple(found)


def read_around(
    keys: Mapping[str, Sequence[Json]], parts: Mapping[str, np.ndarray], shape: tuple[int, int], elements: Mapping[str, Element]
) -> tuple[dict[str, tuple[Any, ...]], Arrays]:
    """The fields `pre`, `branches`, `post` of a Linear whose weight is `shape`, and the parts that are left: the weight's own.

    Raises: ShapeError: a key, kind or array that is not known, is missing, or does not fit. FormatError, UnknownNameError: a tensor's
        format or layout.
    """
    left = dict(parts)
    n, k = shape
    pre = tuple(_transform(f"pre[{i}]", item, left, f"pre.{i}.data", k) for i, item in enumerate(keys["pre"]))
    post = tuple(_transform(f"post[{i}]", item, left, f"post.{i}.data", n) for i, item in enumerate(keys["post"]))
    branches = tuple(_branch(f"branches[{i}]", item, left, f"branches.{i}", elements) for i, item in enumerate(keys["branches"]))
    extra = [name for name in left if name.split(".")[0] in ("pre", "post", "branches")]
    if extra:
        raise ShapeError(f"part {extra[0]} belongs to no transform or branch that is listed")
    return {"pre": pre, "branches": branches, "post": post}, left


def _fields(where: str, item: Mapping[str, Any], known: Mapping[str, type]) -> None:
    for name, value in item.items():
        if name not in known:
            raise ShapeError(f"{where} has the key '{name}', which is not known here (known: {', '.join(known)}); update anybit")
        if type(value) is not known[name]:
            raise ShapeError(f"{where}: '{name}' must be {known[name].__name__}, not {type(value).__name__}")


def _take(where: str, left: Arrays, name: str, dtype: type) -> np.ndarray:
    found = left.pop(name, None)
    if found is None or found.dtype != dtype:
        raise ShapeError(f"{where}: part {name} must be {np.dtype(dtype)}, not {'missing' if found is None else found.dtype}")
    return found


def _transform(where: str, item: Json, left: Arrays, part: str, width: int) -> Transform:
    _fields(where, item, _TRANSFORM)
    data = None
    if item.get("data"):
        data = _take(where, left, part, np.int64 if item["kind"] == "permute" else np.float32)
    transform = Transform(item["kind"], item.get("block"), data, item.get("seed"))
    try:
        transform.check(width)
    except ShapeError as error:
        raise ShapeError(f"{where}: {error}") from None
    return transform


def _branch(where: str, item: Json, left: Arrays, prefix: str, elements: Mapping[str, Element]) -> Branch:
    _fields(where, item, _BRANCH)
    tensors = {name: _tensor(f"{where}.{name}", item[name], left, f"{prefix}.{name}.", elements) for name in ("a", "b") if name in item}
    index = _take(where, left, f"{prefix}.index", np.int64) if item["kind"] != "low_rank" else None
    return Branch(item["kind"], tensors.get("a"), tensors.get("b"), index, item.get("source", ""))


def _tensor(where: str, item: Json, left: Arrays, prefix: str, elements: Mapping[str, Element]) -> QTensor:
    _fields(where, item, _TENSOR)
    shape = item.get("shape", [])
    if item.keys() != _TENSOR.keys() or len(shape) != 2 or not all(type(size) is int and 0 < size < 1 << 31 for size in shape):
        raise ShapeError(f"{where} must have a format, a layout and a shape of two sizes")
    parts = {name.removeprefix(prefix): left.pop(name) for name in list(left) if name.startswith(prefix)}
    return QTensor.from_stored(Format.parse(item["format"], elements), (shape[0], shape[1]), item["layout"], parts)
