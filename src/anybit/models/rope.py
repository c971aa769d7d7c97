"""Rotary frequencies with the published ways to stretch the context, as float32 values.

Logarithms and powers come from `decimal` (correctly rounded, the same on every machine); the rest are IEEE additions,
multiplications and divisions. Both config styles are read: `rope_parameters`, and `rope_theta` with `rope_scaling`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Context, Decimal

import numpy as np

from anybit.errors import near_misses
from anybit.models.fields import Fields
from anybit.models.spec import Rope
from anybit.registry import Registry

Frequencies = list[float]
_EXACT = Context(prec=40)


def _ln(x: float) -> float:
    return float(_EXACT.ln(Decimal(x)))


def _plain(theta: float, dim: int) -> Frequencies:
    """theta ** (-2i / dim), correctly rounded to float64."""
    log = _EXACT.ln(Decimal(theta))
    return [float(_EXACT.exp(_EXACT.divide(_EXACT.multiply(log, Decimal(-2 * i)), Decimal(dim)))) for i in range(dim // 2)]


Scaling = Callable[[Fields, float, int, int], Rope]
SCALINGS: Registry[Scaling] = Registry("RoPE type")


def _rope(
    kind: str,
    theta: float,
    dim: int,
    freqs: Frequencies,
    scale: float = 1.0,
    long: Frequencies | None = None,
    original: int = 0,
) -> Rope:
    def narrow(values: Frequencies) -> tuple[float, ...]:
        return tuple(np.asarray(values, np.float32).tolist())

    return Rope(kind, theta, dim, narrow(freqs), float(np.float32(scale)), narrow(long or []), original)


@SCALINGS.register("default")
def _default(fields: Fields, theta: float, dim: int, context: int) -> Rope:
    """Su et al. 2021, arXiv 2104.09864."""
    return _rope("default", theta, dim, _plain(theta, dim))


@SCALINGS.register("linear")
def _linear(fields: Fields, theta: float, dim: int, context: int) -> Rope:
    """Position interpolation. Chen et al. 2023, arXiv 2306.15595."""
    factor = fields.number("factor")
    return _rope("linear", theta, dim, [f / factor for f in _plain(theta, dim)])


@SCALINGS.register("dynamic")
def _dynamic(fields: Fields, theta: float, dim: int, context: int) -> Rope:
    """Dynamic NTK: within the configured context, which the engine never leaves, the factor has no effect."""
    fields.number("factor")
    return _rope("dynamic", theta, dim, _plain(theta, dim))


@SCALINGS.register("llama3")
def _llama3(fields: Fields, theta: float, dim: int, context: int) -> Rope:
    """Long wavelengths are divided by the factor, short ones kept, those between mixed. Llama 3.1 (arXiv 2407.21783)."""
    factor, low, high = fields.number("factor"), fields.number("low_freq_factor"), fields.number("high_freq_factor")
    original = fields.integer("original_max_position_embeddings", context, high=1 << 31)
    if high <= low:
        raise fields.fail("high_freq_factor", f"is {high:g}; expected more than low_freq_factor, which is {low:g}")
    freqs = []
    for f in _plain(theta, dim):
        turns = original * f / (2 * math.pi)  # rotations within the original context
        mix = min(max((turns - low) / (high - low), 0.0), 1.0)
        freqs.append((1 - mix) * f / factor + mix * f)
    return _rope("llama3", theta, dim, freqs)


@SCALINGS.register("yarn")
def _yarn(fields: Fields, theta: float, dim: int, context: int) -> Rope:
    """Interpolation by parts and a temperature. Peng et al. 2023, arXiv 2309.00071, equations 17 to 23."""
    original = fields.integer("original_max_position_embeddings", context, high=1 << 31)
    factor = fields.number("factor", context / original)
    fast, slow = fields.number("beta_fast", 32.0), fields.number("beta_slow", 1.0)
    low, high = (dim * _ln(original / (beta * 2 * math.pi)) / (2 * _ln(theta)) for beta in (fast, slow))
    if fields.flag("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001  # as published: a ramp needs some width
    freqs = []
    for i, f in enumerate(_plain(theta, dim)):
        ramp = min(max((i - low) / (high - low), 0.0), 1.0)
        freqs.append(f / factor * ramp + f * (1 - ramp))

    def temperature(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * _ln(factor) + 1.0

    # mscale and mscale_all_dim count only together: that is how the published implementations read them
    weight, weight_all = fields.number("mscale", 0.0, low=-1.0), fields.number("mscale_all_dim", 0.0, low=-1.0)
    scale = temperature(weight) / temperature(weight_all) if weight and weight_all else temperature(1.0)
    return _rope("yarn", theta, dim, freqs, fields.number("attention_factor", scale))


@SCALINGS.register("longrope")
def _longrope(fields: Fields, theta: float, dim: int, context: int) -> Rope:
    """A searched factor for every frequency, one set for short sequences and one for long. Ding et al. 2024, arXiv 2402.13753.

    Differs: a sequence uses one set from its first token to its last, chosen by the length it is planned to reach.
    """
    original = fields.integer("original_max_position_embeddings", context, high=1 << 31)
    factor = fields.number("factor", context / original)
    plain = _plain(theta, dim)

    def divided(name: str) -> Frequencies:
        listed = {f"[{i}]": value for i, value in enumerate(fields.sequence(name, length=dim // 2))}
        factors = Fields(listed, fields.file, f"{fields.path}{name}", fields.at)
        return [f / factors.number(f"[{i}]") for i, f in enumerate(plain)]

    scale = 1.0 if factor <= 1 else math.sqrt(1 + _ln(factor) / _ln(original))
    scale = fields.number("attention_factor", scale)
    return _rope("longrope", theta, dim, divided("short_factor"), scale, divided("long_factor"), original)


def read_rope(config: Fields, dim: int, context: int, theta: float = 10_000.0) -> Rope:
    """The rotary embedding that a config asks for; `theta`: where it names none.

    Raises FileFormatError: an unknown type, a missing or impossible parameter, an odd dimension.
    """
    if dim % 2:
        raise config.fail("head_dim", f"is {dim}; rotary position embedding needs an even one")
    section = config.section("rope_parameters") or config.section("rope_scaling") or Fields({}, config.file, "rope_parameters.", config.at)
    if any(isinstance(value, dict) for value in section.values.values()):
        raise config.fail(section.path.rstrip("."), "differs by layer type, which no supported family does")
    kind = section.text("rope_type", section.text("type", "default"))
    if kind not in SCALINGS:
        raise section.fail("rope_type", f"is '{kind}'{near_misses(kind, SCALINGS)}; supported: {', '.join(SCALINGS)}")
    for where in (config, section):
        if where.number("partial_rotary_factor", 1.0) != 1.0:
            raise where.fail("partial_rotary_factor", "is not 1; the supported families rotate whole heads")
    theta = section.number("rope_theta", config.number("rope_theta", theta), low=1.0)
    values = dict(section.values)
    outer = config.integer("original_max_position_embeddings", None, high=1 << 31)
    if outer is not None:  # transformers lets the outer field win
        values["original_max_position_embeddings"] = outer
    return SCALINGS[kind](Fields(values, section.file, section.path, section.at), theta, dim, context)
