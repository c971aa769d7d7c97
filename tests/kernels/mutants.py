"""A second, plainer writing of the product in which each rule of the contract can be broken by name.

Unbroken it must equal the reference; every mutant must differ from it on the inputs that the kernel tests use. A kernel with that mistake
would then be caught by them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np

from anybit.reference.fma import fma
from anybit.reference.linear import Operands, act_edges, quantize_activations, weight_edges

F = np.float32
Array = np.ndarray
Fma = Callable[[Array, Array, Array], Array]

# fmt: off
# mistakes in how stored weights are read
READING = (
    "zero kernel", "swapped nibbles", "k reversed within four", "neighbouring output", "row of the tile above", "dropped last k",
    "dropped tail of four", "dropped tail of 32", "scale of the next block", "scale of the next row", "first scale everywhere",
    "last block unscaled", "sign ignored", "step forgotten", "zero point ignored", "zero point negated", "zero point of the next block",
    "offset ignored", "offset of the next block", "second level ignored",
)
# mistakes of arithmetic with either kind of activations
ARITHMETIC = (
    "separate multiply and add", "double rounding", "flush to zero", "blocks reversed", "two chains", "float64 accumulator",
    "bias first", "offsets last", "scales folded late",
)
FLOAT_ONLY = (
    "k descending", "sixteen partial sums", "scale on each weight", "one chain over blocks", "sum of x by fma with scale",
)
INT8_ONLY = (
    "sums in int16", "sums in int8", "dots saturate in int16", "dots wrap in int16", "rounding half away", "rounding to zero",
    "reciprocal of amax", "scale by division", "scale of the whole row", "scale of the row above", "q up to 128",
    "activation blocks not restarted", "activation block is the weight block", "float(dot) truncated", "scales not multiplied first",
    "small amax kept", "exact table instead of the rounded one",
)
# fmt: on
MUTANTS = READING + ARITHMETIC + FLOAT_ONLY + INT8_ONLY


def plain(x: Array, w: Operands, act: str | None, bias: Array | None, mutant: str = "") -> Array:
    """y float32[m, n]; `mutant` names the one thing that is wrong, nothing by default."""
    if mutant == "zero kernel":
        return np.zeros((x.shape[0], w.values.shape[0]), F)
    with np.errstate(all="ignore"):
        if mutant.startswith("dropped"):
            unit = {"dropped last k": 1, "dropped tail of four": 4, "dropped tail of 32": 32}[mutant]
            kept = x.shape[1] - (1 if unit == 1 else x.shape[1] % unit)
            x = np.where(np.arange(x.shape[1]) < kept, x, F(0))
        w = misread(w, mutant)
        step = multiply_add(mutant)
        y = _int8(x, w, step, mutant, bias) if act == "int8" else _float(x, w, step, mutant, bias)
        return y if bias is None or mutant == "bias first" else y + bias


def misread(w: Operands, mutant: str) -> Operands:
    """The weights as a kernel with this mistake would read them."""

    def codes(change: Callable[[Array], Array]) -> Operands:
        return replace(w, t=None if w.t is None else change(w.t), values=change(w.values))

    def factors(change: Callable[[Array], Array]) -> Operands:
        return replace(w, sw=change(w.sw), sw_float=change(w.sw_float))

    def zeros(change: Callable[[Array], Array]) -> Operands:
        return w if w.zero is None else replace(w, zero=change(w.zero))

    def offsets(change: Callable[[Array], Array]) -> Operands:
        return w if w.off is None or w.off_float is None else replace(w, off=change(w.off), off_float=change(w.off_float))

    k = w.values.shape[1]
    swapped, reversed_four = (np.arange(k) ^ mask for mask in (1, 3))
    last = np.arange(w.sw.shape[1]) == w.sw.shape[1] - 1
    first_level = w.levels[0] if w.levels else w.sw
    changes: dict[str, Callable[[], Operands]] = {
        "swapped nibbles": lambda: codes(lambda t: t[:, np.minimum(swapped, k - 1)]),
        "k reversed within four": lambda: codes(lambda t: t[:, np.minimum(reversed_four, k - 1)]),
        "neighbouring output": lambda: codes(lambda t: np.roll(t, 1, axis=0)),
        "row of the tile above": lambda: codes(lambda t: np.concatenate([t[:16], t[: max(0, t.shape[0] - 16)]])[: t.shape[0]]),
        "sign ignored": lambda: codes(np.abs),
        "scale of the next block": lambda: factors(lambda s: np.roll(s, -1, axis=1)),
        "scale of the next row": lambda: factors(lambda s: np.roll(s, -1, axis=0)),
        "first scale everywhere": lambda: factors(lambda s: np.broadcast_to(s[:, :1], s.shape)),
        "last block unscaled": lambda: factors(lambda s: np.where(last, F(1), s)),
        "step forgotten": lambda: factors(lambda s: s / F(w.step)),
        "second level ignored": lambda: factors(lambda s: first_level * F(w.step)),
        "zero point ignored": lambda: zeros(np.zeros_like),
        "zero point negated": lambda: zeros(np.negative),
        "zero point of the next block": lambda: zeros(lambda z: np.roll(z, -1, axis=1)),
        "offset ignored": lambda: offsets(np.zeros_like),
        "offset of the next block": lambda: offsets(lambda m: np.roll(m, -1, axis=1)),
    }
    return changes[mutant]() if mutant in changes else w


def multiply_add(mutant: str) -> Fma:
    """fma, or what the mutant does instead."""

    def flushing(a: Array, b: Array, c: Array) -> Array:
        return flush(fma(flush(a), flush(b), flush(c)))

    return {
        "separate multiply and add": lambda a, b, c: a * b + c,
        "double rounding": lambda a, b, c: (np.asarray(a, float) * b + c).astype(F),
        "flush to zero": flushing,
        "float64 accumulator": lambda a, b, c: np.asarray(a, float) * b + c,
    }.get(mutant, fma)


def flush(v: Array) -> Array:
    return np.where(np.abs(v) < F(2.0**-126), F(0), v).astype(F)


def _chain(terms: list[tuple[Array, Array]], step: Fma, mutant: str, start: Array) -> Array:
    """acc = fma(a, b, acc) over the terms."""
    if mutant == "blocks reversed":
        terms = terms[::-1]
    chains = [terms[0::2], terms[1::2]] if mutant == "two chains" else [terms]
    sums = []
    for chain in chains:
        acc = start
        for a, b in chain:
            acc = step(a, b, acc)
        sums.append(acc)
    return sums[0].astype(F) if len(sums) == 1 else sums[0] + sums[1]


def _finish(dots: list[tuple[Array, Array]], extra: list[tuple[Array, Array]], step: Fma, mutant: str, start: Array) -> Array:
    """Products of blocks and their offsets, in turn (or, broken, the offsets after all blocks)."""
    if mutant == "offsets last" or not extra:
        terms = dots + extra
    else:
        terms = [term for pair in zip(dots, extra, strict=True) for term in pair]
    return _chain(terms, step, mutant, start)


def _start(x: Array, w: Operands, bias: Array | None, mutant: str) -> Array:
    start = np.zeros((x.shape[0], w.values.shape[0]), F)
    return start + bias if bias is not None and mutant == "bias first" else start


def _float(x: Array, w: Operands, step: Fma, mutant: str, bias: Array | None) -> Array:
    edges = weight_edges(x.shape[1], w.block)
    p = np.zeros((x.shape[0], w.values.shape[0]), F)
    dots, extra = [], []
    for b, (first, last) in enumerate(pairwise(edges)):
        values = w.values[:, first:last] - (0 if w.zero is None else w.zero[:, b, None].astype(F))
        scale = w.sw_float[None, :, b]
        if mutant == "scale on each weight":
            values, scale = values * scale.T, np.ones_like(scale)
        columns = range(first, last) if mutant != "k descending" else range(last - 1, first - 1, -1)
        lanes = (
            [np.zeros_like(p) for _ in range(16)]
            if mutant == "sixteen partial sums"
            else [p if mutant == "one chain over blocks" else np.zeros_like(p)]
        )
        sx = np.zeros((x.shape[0], 1), F)
        for i, k in enumerate(columns):
            lane = i % len(lanes)
            lanes[lane] = step(x[:, k, None], values[None, :, k - first], lanes[lane])
            sx = sx + x[:, k, None]
        p = lanes[0]
        for lane_sum in lanes[1:]:
            p = p + lane_sum
        dots.append((p.astype(F), scale))
        if w.off_float is not None:
            if mutant == "sum of x by fma with scale":
                sx = x[:, first:last].astype(float).sum(1, keepdims=True).astype(F)
            extra.append((sx, w.off_float[None, :, b]))
    if mutant == "one chain over blocks":
        dots = [(dots[-1][0], dots[-1][1])]
        extra = extra[-1:]
    return _finish(dots, extra, step, mutant, _start(x, w, bias, mutant))


def _quantize(x: Array, edges: list[int], mutant: str) -> tuple[Array, Array, Array]:
    """q, s, sums as the contract says, or with one rule broken."""
    q, s, sums = quantize_activations(x, edges)
    starts, lengths = np.asarray(edges[:-1]), np.diff(edges)
    amax = np.maximum.reduceat(np.abs(x), starts, axis=1)
    if mutant == "scale of the whole row":
        amax = np.broadcast_to(amax.max(1, keepdims=True), amax.shape)
        s = amax * (F(1) / F(127))
    if mutant == "small amax kept":
        s = amax * (F(1) / F(127))
    r = np.where(amax < F(2.0**-120), F(0), F(127) / amax)
    if mutant == "reciprocal of amax":
        r = F(127) * (F(1) / amax)
    if mutant == "q up to 128":
        r = F(128) / amax
    if mutant == "small amax kept":
        r = F(127) / amax
    scaled = np.where(np.isfinite(x * np.repeat(r, lengths, axis=1)), x * np.repeat(r, lengths, axis=1), 0)
    rounding: dict[str, Callable[[Array], Array]] = {
        "rounding half away": lambda v: np.trunc(v + np.copysign(F(0.5), v)),
        "rounding to zero": np.trunc,
    }
    if mutant in (
        "rounding half away",
        "rounding to zero",
        "reciprocal of amax",
        "q up to 128",
        "scale of the whole row",
        "small amax kept",
    ):
        q = rounding.get(mutant, np.rint)(scaled).astype(np.int32)
    if mutant == "scale by division":
        s = np.where(amax < F(2.0**-120), F(0), amax / F(127))
    if mutant == "scale of the row above":
        s = np.roll(s, 1, axis=0)
    sums = np.add.reduceat(q.astype(np.int64), starts, axis=1)
    if mutant in ("sums in int16", "sums in int8"):
        sums = sums.astype(np.int16 if mutant.endswith("16") else np.int8).astype(np.int64)
    return q.astype(np.int64), s, sums


def _int8(x: Array, w: Operands, step: Fma, mutant: str, bias: Array | None) -> Array:
    assert w.t is not None
    k = x.shape[1]
    edges = act_edges(k, w.block)
    if mutant == "activation blocks not restarted" and w.block > 512:
        edges = sorted({*range(0, k, 128), *weight_edges(k, w.block)})
    if mutant == "activation block is the weight block":
        edges = weight_edges(k, w.block)
    q, s, sums = _quantize(x, edges, mutant)
    sw = w.sw_float if mutant == "exact table instead of the rounded one" else w.sw
    dots, extra = [], []
    for a, (first, last) in enumerate(pairwise(edges)):
        b = first // w.block
        t = w.values if mutant == "exact table instead of the rounded one" else w.t.astype(np.int64)
        products = q[:, None, first:last] * t[None, :, first:last]
        if mutant == "dots saturate in int16":  # what vpmaddubsw does with a biased byte: pairs saturate
            pairs = np.add.reduceat(products, np.arange(0, last - first, 2), axis=2)
            products = np.clip(pairs, -32768, 32767)
        dot = products.sum(-1)
        if mutant == "dots wrap in int16":
            dot = dot.astype(np.int16).astype(np.int64)
        if w.zero is not None:
            dot = dot - w.zero[None, :, b].astype(np.int64) * sums[:, a, None]
        as_float = dot.astype(F)
        if mutant == "float(dot) truncated":
            as_float = np.where(np.abs(as_float.astype(float)) > np.abs(dot), np.nextafter(as_float, F(0)), as_float)
        scale = s[:, a, None] * sw[None, :, b]
        if mutant == "scales folded late":
            scale = (s[:, a, None] * (w.levels[0][None, :, b] if w.levels else F(1))) * F(w.step)
            for level in w.levels[1:]:
                scale = scale * level[None, :, b]
        if mutant == "flush to zero":
            scale = flush(flush(s[:, a, None]) * flush(sw[None, :, b]))
        dots.append((as_float * s[:, a, None], sw[None, :, b]) if mutant == "scales not multiplied first" else (as_float, scale))
        if w.off is not None:
            extra.append((s[:, a, None] * sums[:, a, None].astype(F), w.off[None, :, b]))
    return _finish(dots, extra, step, mutant, _start(x, w, bias, mutant))
