"""Reads ONNX files and runs them in NumPy: protocol buffers field by field, operators by their definitions, only those that occur here."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

TYPES: dict[int, Any] = {1: np.float32, 2: np.uint8, 3: np.int8, 7: np.int64, 10: np.float16}
TYPES |= {16: ml_dtypes.bfloat16, 17: ml_dtypes.float8_e4m3fn}
FOUR = {21: False, 22: True}  # signed?


def fields(data: bytes) -> dict[int, list[Any]]:
    """A message's fields by number."""
    found: dict[int, list[Any]] = {}
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(data):
        key = varint()
        if key & 7 == 0:
            value: Any = varint()
            value -= (value >> 63) << 64
        elif key & 7 == 5:
            value = struct.unpack("<f", data[at : at + 4])[0]
            at += 4
        else:
            assert key & 7 == 2
            length = varint()
            value = data[at : at + length]
            assert len(value) == length
            at += length
        found.setdefault(key >> 3, []).append(value)
    return found


def text(value: bytes) -> str:
    return value.decode()


def attributes(node: Mapping[int, list[Any]]) -> dict[str, Any]:
    made = {}
    for each in map(fields, node.get(5, [])):
        kind = each[20][0]
        made[text(each[1][0])] = {1: lambda e: e[2][0], 2: lambda e: e[3][0], 3: lambda e: text(e[4][0]), 7: lambda e: e[8]}[kind](each)
    return made


def tensor(message: Mapping[int, list[Any]], folder: Path) -> np.ndarray:
    shape, kind = tuple(message.get(1, [])), message[2][0]
    if message.get(14) == [1]:
        place = {text(entry[1][0]): text(entry[2][0]) for entry in map(fields, message[13])}
        data = (folder / place["location"]).read_bytes()[int(place["offset"]) :][: int(place["length"])]
        assert int(place["offset"]) % 64 == 0
    else:
        data = message[9][0]
    if kind in FOUR:
        raw = np.frombuffer(data, np.uint8)
        codes = np.stack([raw & 15, raw >> 4], axis=-1).reshape(-1)[: int(np.prod(shape))].astype(np.int8)
        return (codes - 16 * (codes > 7) * FOUR[kind]).reshape(shape)
    return np.frombuffer(data, TYPES[kind]).reshape(shape)


def dequantize(x: np.ndarray, scale: np.ndarray, zero: np.ndarray | None = None, *, axis: int = 1, block_size: int = 0) -> np.ndarray:
    def spread(part: np.ndarray) -> np.ndarray:
        if block_size:
            return np.repeat(part, block_size, axis=axis)
        return part.reshape([-1 if i == axis else 1 for i in range(x.ndim)]) if part.ndim else part

    q = x.astype(np.float32)
    return (q if zero is None else q - spread(zero).astype(np.float32)) * spread(scale)


def matmul_n_bits(
    x: np.ndarray, b: np.ndarray, scale: np.ndarray, zero: np.ndarray | None = None, *, K: int, N: int, bits: int, block_size: int,
    accuracy_level: int,
) -> np.ndarray:  # fmt: skip
    def unpacked(raw: np.ndarray) -> np.ndarray:
        return raw if bits == 8 else np.stack([raw & 15, raw >> 4], axis=-1).reshape(*raw.shape[:-1], -1)

    assert accuracy_level == 1
    q = unpacked(b).astype(np.float32)
    assert q.shape == (N, K // block_size, block_size)
    z = np.full(scale.shape, 1 << (bits - 1)) if zero is None else unpacked(zero)[:, : scale.shape[1]]
    w = ((q - z[..., None].astype(np.float32)) * scale[..., None]).reshape(N, K)
    return x @ w.T


def cut(x: np.ndarray, start: np.ndarray, stop: np.ndarray, axes: np.ndarray) -> np.ndarray:
    return np.take(x, np.arange(start[0], min(stop[0], x.shape[axes[0]])), axis=axes[0])


def softmax(x: np.ndarray, axis: int) -> np.ndarray:
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def reshape(x: np.ndarray, shape: np.ndarray) -> np.ndarray:
    return x.reshape([x.shape[i] if n == 0 else int(n) for i, n in enumerate(shape)])


OPERATORS: dict[str, Callable[..., Any]] = {
    "Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide, "MatMul": np.matmul, "Neg": np.negative, "Sqrt": np.sqrt,
    "Cos": np.cos, "Sin": np.sin, "Less": np.less, "GreaterOrEqual": np.greater_equal, "Or": np.logical_or, "Where": np.where,
    "Identity": lambda x: x, "Sigmoid": lambda x: 1 / (1 + np.exp(-x)), "Cast": lambda x, to: x.astype(TYPES[to]),
    "Transpose": lambda x, perm: x.transpose(perm), "Reshape": reshape, "Softmax": softmax, "Slice": cut,
    "Concat": lambda *parts, axis: np.concatenate(parts, axis=axis), "Unsqueeze": lambda x, axes: np.expand_dims(x, tuple(axes)),
    "Gather": lambda x, index: x[index], "Shape": lambda x: np.array(x.shape, np.int64), "Range": np.arange,
    "ReduceMean": lambda x, axes, keepdims: x.mean(axis=tuple(axes), keepdims=bool(keepdims)), "DequantizeLinear": dequantize,
    "MatMulNBits": matmul_n_bits,
}  # fmt: skip


class Runs:
    """An ONNX model that runs: `runs(feeds)` gives its outputs by name."""

    def __init__(self, path: Path) -> None:
        model = fields(path.read_bytes())
        self.opsets = {text(each[1][0]) if 1 in each else "": each[2][0] for each in map(fields, model[8])}
        graph = fields(model[7][0])
        self.nodes = [fields(node) for node in graph[1]]
        self.weights = {text(each[8][0]): tensor(each, path.parent) for each in map(fields, graph[5])}
        self.inputs = [text(fields(each)[1][0]) for each in graph[11]]
        self.outputs = [text(fields(each)[1][0]) for each in graph[12]]

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        held = {**self.weights, **feeds}
        for node in self.nodes:
            op = text(node[4][0])
            made = OPERATORS[op](*(held[text(name)] for name in node[1]), **attributes(node))
            held[text(node[2][0])] = np.asarray(made)
        return {name: held[name] for name in self.outputs}
