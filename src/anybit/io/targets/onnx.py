"""ONNX: a whole decoder with its key/value cache as a graph of standard operators (opset 21), float32 between the layers.

    inputs   input_ids int64[batch, sequence]; past_key_values.i.key and .value float32[batch, kv_heads, past, head_dim]
    outputs  logits float32[batch, sequence, vocabulary]; present.i.key and .value, the past with what came

Sequences of a batch have one length; the first call gives caches of length 0. A matrix of int4 or int8 codes in blocks of 16 to 256 is a
MatMulNBits (onnxruntime's own operator), and with the kind `qdq` a DequantizeLinear before a standard MatMul, as every other matrix is
whose codes are integers of up to 8 bits or E4M3. Dense tensors are cast to float32, which is exact.

Source: onnxruntime's docs/ContribOperators.md (MatMulNBits) and ONNX' Operators.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from anybit.errors import UnknownNameError, UsageError
from anybit.formats import Format
from anybit.io.checkpoint import pretty, put
from anybit.io.onnx_writer import OPSET, OnnxGraph
from anybit.io.output import digested
from anybit.io.safetensors_writer import raw
from anybit.io.targets.fit import Fit, NoFit, fit
from anybit.io.targets.target import TARGETS, Held, Plan, Source, Step, Target, Written
from anybit.models.spec import Attention, Gated, Layer

FILE, DATA, ALIGN = "model.onnx", "model.onnx.data", 64
CONTRIB = "com.microsoft"
_DENSE = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}
_BLOCKS = (16, 32, 64, 128, 256)


@dataclass(frozen=True)
class _Matrix:
    """How a quantized matrix is stored: the operator that reads it and how its parts become the target's."""

    op: str
    fitted: Fit
    block: int | None  # length of a block along a row; None: one scale a row, or for all (`axis` says)
    tensor: bool = False

    @property
    def bits(self) -> int:
        return self.fitted.target.element.bits

    @property
    def text(self) -> str:
        """The plan's word for it."""
        return f"{self.op} {self.fitted.target}"


def _matrix(held: Held, kind: str | None) -> _Matrix:
    """NoFit: no operator computes just its values."""
    fmt = held.format.plain
    if held.plain or held.role == "embedding":
        raise NoFit("embeddings are dense there; quantize again with --keep embed_tokens, or write dequantized")
    if fmt.block is None or len(fmt.levels) != 1 or fmt.offset is not None or not (fmt.block.per_row or fmt.block.kind == "tensor"):
        raise NoFit("DequantizeLinear has one scale a block of a row, a row or a tensor, and no offsets")
    if held.order is not None:
        raise NoFit("its inputs are in another order (desc_act), which no operator that is written has")
    size, whole = fmt.block.size, fmt.block.kind == "tensor"
    # onnxruntime multiplies int8 codes with one scale a row by rounded activations; blocks of a whole row it computes as they are
    floats = fmt.element.name.startswith("fp")
    block = "tensor" if whole and floats else "channel" if size is None else str(size)
    if size is not None and held.shape[1] % size:
        raise NoFit(f"rows of {held.shape[1]} are no whole blocks of {size}")
    elements = ("fp8_e4m3fn",) if floats and size is None else ("int4", "int8")
    reason = NoFit("no operator reads such codes")
    for element in elements:
        text = f"{element}@{block}:fp32" if fmt.zero is None else f"u{element}@{block}:fp32+zp=u{element}"
        try:
            fitted = fit(fmt, Format(text), held.shape)
            fitted.check(held)
        except NoFit as error:
            reason = error
            continue
        packed = kind != "qdq" and size in _BLOCKS
        if held.shape[1] % 2 and fitted.target.element.bits == 4:
            raise NoFit(f"rows of {held.shape[1]} 4-bit codes end inside a byte")
        length = size if size is not None or floats else held.shape[1]
        return _Matrix("MatMulNBits" if packed else "DequantizeLinear", fitted, length, whole and floats)
    raise reason


def _nibbles(codes: np.ndarray) -> np.ndarray:
    """Two codes a byte, the first in the low half."""
    return codes[:, 0::2] | codes[:, 1::2] << np.uint8(4)


Data = Iterator[tuple[str, np.ndarray]]


class _Builder:
    """Builds the graph and, beside it, what gives the bytes of its weights."""

    def __init__(self, source: Source, matrices: dict[str, _Matrix]) -> None:
        self.source, self.matrices, self.graph = source, matrices, OnnxGraph()
        self.data: list[tuple[str, Callable[[], Data]]] = []
        self.dense: dict[str, str] = {}

    # ------------------------------------------------------------------------------------------ weights
    def values(self, name: str) -> str:
        """A dense tensor as float32."""
        if name not in self.dense:
            held, g = self.source.tensors[name], self.graph
            element = held.format.plain.element
            size = math.prod(held.shape) * element.bits // 8
            stored = g.weight(name, _DENSE[element.name], held.shape, size)

            def data() -> Data:
                for start, stop in held.pieces() if len(held.shape) > 1 else [(0, held.shape[0])]:
                    yield name, np.ascontiguousarray(held.rows(start, stop)["codes"])
                held.release()

            self.data.append((name, data))
            self.dense[name] = stored if element.name == "fp32" else g.node("Cast", stored, to=1)
        return self.dense[name]

    def linear(self, x: str, name: str) -> str:
        """x times a matrix transposed, and its bias."""
        g, bias = self.graph, f"{name.removesuffix('.weight')}.bias"
        if name not in self.matrices:
            y = g.node("MatMul", x, g.node("Transpose", self.values(name), perm=[1, 0]))
        elif self.matrices[name].op == "MatMulNBits":
            y = self._n_bits(x, name)
        else:
            y = g.node("MatMul", x, g.node("Transpose", self._dequantized(name), perm=[1, 0]))
        return g.node("Add", y, self.values(bias)) if bias in self.source.tensors else y

    def _n_bits(self, x: str, name: str) -> str:
        """MatMulNBits: unsigned codes uint8[n, blocks, bytes a block], scales float32[n, blocks], zero points (2^(bits-1) if not given)."""
        held, matrix, g = self.source.tensors[name], self.matrices[name], self.graph
        (n, k), bits = held.shape, matrix.bits
        assert matrix.block is not None
        blocks = k // matrix.block
        inputs = [g.weight(f"{name}.codes", "U8", (n, blocks, matrix.block * bits // 8), n * k * bits // 8)]
        inputs.append(g.weight(f"{name}.scales", "F32", (n, blocks), 4 * n * blocks))
        zeros = matrix.fitted.target.zero is not None
        if zeros:
            width = -(-blocks * bits // 8)
            inputs.append(g.weight(f"{name}.zeros", "U8", (n, width), n * width))
        flip = np.uint8(0 if zeros else 1 << (bits - 1))
        self.data.append((name, lambda: self._coded(held, matrix, flip)))
        return g.node("MatMulNBits", x, *inputs, domain=CONTRIB, K=k, N=n, bits=bits, block_size=matrix.block, accuracy_level=1)

    def _dequantized(self, name: str) -> str:
        """DequantizeLinear of codes [n, k] with scales [n, blocks], [n] or one."""
        held, matrix, g = self.source.tensors[name], self.matrices[name], self.graph
        (n, k), bits = held.shape, matrix.bits
        zeros = matrix.fitted.target.zero is not None
        dtype = "F8_E4M3" if matrix.fitted.target.element.name.startswith("fp") else ("U" if zeros else "I") + str(bits)
        grid = () if matrix.tensor else (n,) if matrix.block is None else (n, k // matrix.block)
        inputs = [g.weight(f"{name}.codes", dtype, (n, k), n * k * bits // 8), g.weight(f"{name}.scales", "F32", grid, 4 * math.prod(grid))]
        if zeros:
            inputs.append(g.weight(f"{name}.zeros", dtype, grid, -(-math.prod(grid) * bits // 8)))
        self.data.append((name, lambda: self._coded(held, matrix, np.uint8(0))))
        if matrix.block is None:
            return g.node("DequantizeLinear", *inputs, axis=0)
        return g.node("DequantizeLinear", *inputs, axis=1, block_size=matrix.block)

    def _coded(self, held: Held, matrix: _Matrix, flip: np.uint8) -> Data:
        """Codes, then scales, then zero points of a matrix."""
        k, bits = held.shape[1], matrix.bits
        grids: dict[str, list[np.ndarray]] = {}
        for start, stop in held.pieces():
            parts = matrix.fitted.parts(held.rows(start, stop), (stop - start, k))
            codes = parts["codes"] ^ flip
            yield f"{held.name}.codes", _nibbles(codes & np.uint8(15)) if bits == 4 else np.ascontiguousarray(codes)
            for name in parts.keys() - {"codes"}:
                grids.setdefault(name, []).append(np.array(parts[name]))
        yield f"{held.name}.scales", grids["scale.0"][0] if matrix.tensor else np.concatenate(grids["scale.0"])
        if "zero" in grids:
            zeros = grids["zero"][0] if matrix.tensor else np.concatenate(grids["zero"])
            if bits == 4:  # a row at a time for MatMulNBits, one stream for DequantizeLinear
                zeros = zeros if matrix.op == "MatMulNBits" else zeros.reshape(1, -1)
                zeros = _nibbles(np.pad(zeros, ((0, 0), (0, zeros.shape[1] % 2))))
            yield f"{held.name}.zeros", np.ascontiguousarray(zeros)
        held.release()

    # ------------------------------------------------------------------------------------------ the decoder
    def norm(self, x: str, name: str) -> str:
        """RMSNorm along the last axis."""
        g = self.graph
        mean = g.node("ReduceMean", g.node("Mul", x, x), g.constant([-1]), keepdims=1)
        root = g.node("Sqrt", g.node("Add", mean, g.constant([self.source.spec.norm_eps], "F32", scalar=True)))
        return g.node("Mul", g.node("Div", x, root), self.values(name))

    def heads(self, x: str, count: int, dim: int) -> str:
        """[batch, sequence, count * dim] to [batch, count, sequence, dim]."""
        return self.graph.node("Transpose", self.split(x, count, dim), perm=[0, 2, 1, 3])

    def split(self, x: str, count: int, dim: int) -> str:
        """[batch, sequence, count * dim] to [batch, sequence, count, dim]."""
        return self.graph.node("Reshape", x, self.graph.constant([0, 0, count, dim]))

    def turned(self, x: str, dim: int, turns: tuple[str, str]) -> str:
        """Rotary embedding of [batch, heads, sequence, dim]."""
        g, half = self.graph, dim // 2
        low = g.node("Slice", x, g.constant([0]), g.constant([half]), g.constant([3]))
        high = g.node("Slice", x, g.constant([half]), g.constant([dim]), g.constant([3]))
        other = g.node("Concat", g.node("Neg", high), low, axis=3)
        return g.node("Add", g.node("Mul", x, turns[0]), g.node("Mul", other, turns[1]))

    def attention(self, x: str, index: int, a: Attention, turns: tuple[str, str], mask: str) -> str:
        """Attention with grouped queries over the cache and what came."""
        g, d, each = self.graph, a.head_dim, a.heads // a.kv_heads
        q, k = self.split(self.linear(x, a.q), a.heads, d), self.split(self.linear(x, a.k), a.kv_heads, d)
        q, k = (y if norm is None else self.norm(y, norm) for y, norm in ((q, a.q_norm), (k, a.k_norm)))
        q, k = (self.turned(g.node("Transpose", y, perm=[0, 2, 1, 3]), d, turns) for y in (q, k))
        v = self.heads(self.linear(x, a.v), a.kv_heads, d)
        shape: list[int | str] = ["batch", a.kv_heads, "past", d]
        whole = []
        for what, y in (("key", k), ("value", v)):
            past = g.input(f"past_key_values.{index}.{what}", "F32", shape)
            whole.append(g.node("Concat", past, y, out=f"present.{index}.{what}", axis=2))
            g.output(f"present.{index}.{what}", "F32", ["batch", a.kv_heads, "total", d])
        keys, held = (g.node("Unsqueeze", y, g.constant([2])) for y in whole)
        grouped = g.node("Reshape", q, g.constant([0, a.kv_heads, each, -1, d]))
        scores = g.node("MatMul", grouped, g.node("Transpose", keys, perm=[0, 1, 2, 4, 3]))
        scores = g.node("Add", g.node("Mul", scores, g.constant([1.0 / math.sqrt(d)], "F32", scalar=True)), mask)
        mixed = g.node("MatMul", g.node("Softmax", scores, axis=-1), held)
        joined = g.node("Reshape", mixed, g.constant([0, a.heads, -1, d]))
        flat = g.node("Reshape", g.node("Transpose", joined, perm=[0, 2, 1, 3]), g.constant([0, 0, a.heads * d]))
        return self.linear(flat, a.o)

    def mlp(self, x: str, layer: Layer) -> str:
        """down(silu(gate) * up)"""
        g, mlp = self.graph, layer.mlp
        assert isinstance(mlp, Gated)
        gate = self.linear(x, mlp.gate)
        active = g.node("Mul", gate, g.node("Sigmoid", gate))
        return self.linear(g.node("Mul", active, self.linear(x, mlp.up)), mlp.down)

    def places(self) -> tuple[str, str]:
        """Positions of the queries and of all keys: float32[sequence] and [total]."""
        g = self.graph
        first = self.source.spec.layers[0].mixer
        assert isinstance(first, Attention)
        zero, one = g.constant([0], scalar=True), g.constant([1], scalar=True)
        count = g.node("Gather", g.node("Shape", "input_ids"), one)
        past = g.node("Gather", g.node("Shape", "past_key_values.0.key"), g.constant([2], scalar=True))
        total = g.node("Add", past, count)
        return (
            g.node("Cast", g.node("Range", past, total, one), to=1),
            g.node("Cast", g.node("Range", zero, total, one), to=1),
        )

    def turns(self, a: Attention, queries: str) -> tuple[str, str]:
        """Cosine and sine float32[sequence, dim] of the queries' angles."""
        g = self.graph
        angles = g.node("Mul", g.node("Unsqueeze", queries, g.constant([1])), g.constant(a.rope.frequencies, "F32"))
        both = g.node("Concat", angles, angles, axis=1)
        made = [g.node(op, both) for op in ("Cos", "Sin")]
        if a.rope.scale != 1.0:
            made = [g.node("Mul", y, g.constant([a.rope.scale], "F32", scalar=True)) for y in made]
        return made[0], made[1]

    def mask(self, queries: str, keys: str, window: int | None) -> str:
        """float32[sequence, total]: 0 where a query sees a key, else very low."""
        g = self.graph
        distance = g.node("Sub", g.node("Unsqueeze", queries, g.constant([1])), g.node("Unsqueeze", keys, g.constant([0])))
        hidden = g.node("Less", distance, g.constant([0.0], "F32", scalar=True))
        if window is not None:
            far = g.node("GreaterOrEqual", distance, g.constant([float(window)], "F32", scalar=True))
            hidden = g.node("Or", hidden, far)
        low, none = g.constant([-1e30], "F32", scalar=True), g.constant([0.0], "F32", scalar=True)
        return g.node("Where", hidden, low, none)

    def build(self) -> None:
        """The whole graph."""
        g, spec = self.graph, self.source.spec
        ids = g.input("input_ids", "I64", ["batch", "sequence"])
        x = g.node("Gather", self.values(spec.embedding), ids)
        queries, keys = self.places()
        made: dict[object, tuple[str, str]] = {}
        masks: dict[int | None, str] = {}
        for index, layer in enumerate(spec.layers):
            a = layer.mixer
            assert isinstance(a, Attention)
            if a.rope.long and a.rope.long != a.rope.frequencies:
                raise UsageError("longrope with other factors for long sequences is nothing that this graph computes")
            if a.rope not in made:
                made[a.rope] = self.turns(a, queries)
            if a.window not in masks:
                masks[a.window] = self.mask(queries, keys, a.window)
            y = self.attention(self.norm(x, layer.mixer_norm), index, a, made[a.rope], masks[a.window])
            x = g.node("Add", x, self.scaled(y, layer.residual))
            x = g.node("Add", x, self.scaled(self.mlp(self.norm(x, layer.mlp_norm), layer), layer.residual))
        logits = self.linear(self.norm(x, spec.norm), spec.head)
        g.node("Identity", logits, out="logits")
        g.output("logits", "F32", ["batch", "sequence", spec.vocab])

    def scaled(self, x: str, factor: float) -> str:
        """The residual factor of some models."""
        return x if factor == 1.0 else self.graph.node("Mul", x, self.graph.constant([factor], "F32", scalar=True))


def _plan(source: Source, kind: str | None) -> Plan:
    if kind not in (None, "qdq"):
        raise UnknownNameError(f"no kind '{kind}' of onnx; give onnx, onnx:qdq, or quantize first")
    if any(not isinstance(layer.mlp, Gated) for layer in source.spec.layers):
        raise UsageError(f"{source.name} has experts, and the graph that is written here has one MLP a layer; choose another target")
    steps, matrices = [], {}
    for name, held in source.tensors.items():
        text = held.format.alias or str(held.format)
        if held.dense:
            element = held.format.plain.element
            steps.append(Step(name, held.shape, text, element.name, True, math.prod(held.shape) * element.bits // 8))
            continue
        try:
            matrix = matrices[name] = _matrix(held, kind)
        except NoFit as error:
            steps.append(Step(name, held.shape, text, "", False, 0, str(error)))
            continue
        size = matrix.fitted.target.size_bits(held.shape) // 8
        steps.append(Step(name, held.shape, text, matrix.text, True, size))
    builder = _Builder(source, matrices)
    if all(step.stored for step in steps):
        builder.build()

    def write(folder: Path, written: Written) -> dict[str, str]:
        from anybit import __version__

        at = 0
        sizes = [(name, nbytes) for name, _, _, nbytes in builder.graph.weights]
        with digested(folder / DATA, passing=True) as file:

            def pour(piece: bytes | memoryview) -> None:
                nonlocal at
                file.write(piece)
                at += len(piece)

            index, left = 0, 0
            for name, data in builder.data:
                for part, array in data():
                    view = raw(array)
                    if not left:
                        assert sizes[index][0] == part, (sizes[index], part)
                        pour(bytes(-at % ALIGN))
                        left, index = sizes[index][1], index + 1
                    assert sizes[index - 1][0] == part
                    assert view.nbytes <= left, (part, view.nbytes, left)
                    pour(view)
                    left -= view.nbytes
                written(name)
        model = builder.graph.model(DATA, ALIGN, "anybit", __version__, {"": OPSET, CONTRIB: 1})
        put(folder / FILE, model)
        put(folder / "config.json", (pretty(source.config, levels=2) + "\n").encode())
        for sidecar in source.sidecars:
            put(folder / sidecar.name, sidecar.read_bytes())
        return {DATA: file.sha256}

    return Plan(tuple(steps), write, (), None)


TARGETS.add("onnx", Target("onnx", "a decoder for onnxruntime", "onnx[:qdq]", lambda kind: None, _plan))
