"""ONNX model files without the onnx package: the few protocol-buffer messages that a graph needs, with weights in a file beside.

A message is a run of fields, each a varint of (number << 3 | wire type) and a varint, four bytes, or a length and bytes.
Source: onnx.proto3 (IR version 10); the numbers below are its field numbers.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

IR_VERSION = 10
OPSET = 21
DTYPES = {"F32": 1, "U8": 2, "I8": 3, "I64": 7, "BOOL": 9, "F16": 10, "BF16": 16, "F8_E4M3": 17, "U4": 21, "I4": 22}
"""Tensor types of ONNX by safetensors' names."""


def _varint(n: int) -> bytes:
    n &= (1 << 64) - 1  # negative numbers take ten bytes
    out = bytearray()
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    out.append(n)
    return bytes(out)


def _bytes(number: int, data: bytes | str) -> bytes:
    data = data.encode() if isinstance(data, str) else data
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _int(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _float(number: int, value: float) -> bytes:
    return _varint(number << 3 | 5) + struct.pack("<f", value)


def _attribute(name: str, value: Any) -> bytes:
    """AttributeProto: a float, an int, a string or a list of ints."""
    head = _bytes(1, name)
    if isinstance(value, float):
        return head + _float(2, value) + _int(20, 1)
    if isinstance(value, int):
        return head + _int(3, value) + _int(20, 2)
    if isinstance(value, str):
        return head + _bytes(4, value) + _int(20, 3)
    return head + b"".join(_int(8, item) for item in value) + _int(20, 7)


@dataclass
class OnnxGraph:
    """A graph that is built node by node. Names of values are made here; `node` gives that of the output.

    `weights` collects (name, dtype, shape, bytes) of tensors that lie in the file beside, in their order.
    """

    nodes: list[bytes] = field(default_factory=list)
    small: list[bytes] = field(default_factory=list)
    inputs: list[bytes] = field(default_factory=list)
    outputs: list[bytes] = field(default_factory=list)
    weights: list[tuple[str, str, tuple[int, ...], int]] = field(default_factory=list)
    constants: dict[tuple[Any, ...], str] = field(default_factory=dict)

    def node(self, op: str, *inputs: str, out: str | None = None, domain: str = "", **attributes: Any) -> str:
        """Adds a node of one output. NodeProto: inputs 1, output 2, name 3, operator 4, attributes 5, domain 7."""
        name = out or f"v{len(self.nodes)}"
        data = b"".join(_bytes(1, each) for each in inputs) + _bytes(2, name) + _bytes(3, f"n{len(self.nodes)}") + _bytes(4, op)
        data += b"".join(_bytes(5, _attribute(key, value)) for key, value in attributes.items())
        self.nodes.append(data + (_bytes(7, domain) if domain else b""))
        return name

    def constant(self, values: Sequence[Any], dtype: str = "I64", scalar: bool = False) -> str:
        """A small tensor inside the graph. TensorProto: dims 1, type 2, name 8, raw data 9."""
        key = (dtype, scalar, tuple(values))
        if key not in self.constants:
            name = f"c{len(self.constants)}"
            data = struct.pack(f"<{len(values)}{'q' if dtype == 'I64' else 'f'}", *values)
            dims = b"" if scalar else _int(1, len(values))
            self.small.append(dims + _int(2, DTYPES[dtype]) + _bytes(8, name) + _bytes(9, data))
            self.constants[key] = name
        return self.constants[key]

    def weight(self, name: str, dtype: str, shape: tuple[int, ...], nbytes: int) -> str:
        """A tensor in the file beside."""
        self.weights.append((name, dtype, shape, nbytes))
        return name

    def value(self, name: str, dtype: str, shape: Sequence[int | str]) -> bytes:
        """ValueInfoProto: name 1, type 2 (tensor 1: element type 1, shape 2: dimensions 1, each a number 1 or a name 2)."""
        dims = b"".join(_bytes(1, _bytes(2, n) if isinstance(n, str) else _int(1, n)) for n in shape)
        return _bytes(1, name) + _bytes(2, _bytes(1, _int(1, DTYPES[dtype]) + _bytes(2, dims)))

    def input(self, name: str, dtype: str, shape: Sequence[int | str]) -> str:
        """An input of the graph; a string is a size that is known when it runs."""
        self.inputs.append(self.value(name, dtype, shape))
        return name

    def output(self, name: str, dtype: str, shape: Sequence[int | str]) -> None:
        """An output of the graph."""
        self.outputs.append(self.value(name, dtype, shape))

    def model(self, file: str, align: int, producer: str, version: str, domains: Mapping[str, int]) -> bytes:
        """ModelProto: IR version 1, producer 2 and 3, graph 7 (nodes 1, name 2, initializers 5, inputs 11, outputs 12), opsets 8.

        `file` holds the weights one after another, each from the next multiple of `align` (external data 13 of TensorProto: offset and
        length; data location 14 is 1).
        """
        initializers, at = list(self.small), 0
        for name, dtype, shape, nbytes in self.weights:
            at += -at % align
            entries = {"location": file, "offset": str(at), "length": str(nbytes)}
            place = b"".join(_bytes(13, _bytes(1, key) + _bytes(2, text)) for key, text in entries.items())
            dims = b"".join(_int(1, n) for n in shape)
            initializers.append(dims + _int(2, DTYPES[dtype]) + _bytes(8, name) + place + _int(14, 1))
            at += nbytes
        graph = b"".join(_bytes(1, node) for node in self.nodes) + _bytes(2, "decoder")
        graph += b"".join(_bytes(5, each) for each in initializers)
        graph += b"".join(_bytes(11, each) for each in self.inputs) + b"".join(_bytes(12, each) for each in self.outputs)
        opsets = b"".join(_bytes(8, _bytes(1, domain) + _int(2, number)) for domain, number in domains.items())
        return _int(1, IR_VERSION) + _bytes(2, producer) + _bytes(3, version) + _bytes(7, graph) + opsets
