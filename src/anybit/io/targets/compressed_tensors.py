"""compressed-tensors directories, as vLLM and transformers load them: the tensors are those of `io/containers/compressed_tensors.py`.

Integers of 2 to 8 bits (a group, channel or tensor; with zero points too) as pack-quantized, or as int-quantized where eight bits of a
channel or tensor meet int8 activations; E4M3 as float-quantized (tensor, channel, group, 2-D block); nvfp4, mxfp4 and mxfp8. Codes of other
elements go where their values are among an integer's: ternary weights are written as two bits.

Source: compressed-tensors 0.20, config/ and compressors/. Packing is dense, as since 0.18.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from anybit.errors import UsageError
from anybit.formats import Format, parse_element
from anybit.io.checkpoint import Item, pretty, put, write_items
from anybit.io.containers.bits import packed_stream
from anybit.io.safetensors_writer import Entry
from anybit.io.targets.fit import Fit, NoFit, decode_floats, encode_floats, fit
from anybit.io.targets.target import TARGETS, Held, Parts, Plan, Source, Step, Target, Written, expert_notes

FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("w1", "w3"))
"""Modules that vLLM runs as one; it takes the largest of their scales of whole tensors."""
SCALES = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}
PRESETS = {f"w{bits}a16": f"int{bits}@128:bf16+scale=mse" for bits in range(2, 8)} | {
    "w8a16": "int8@channel:bf16", "fp8": "fp8_e4m3fn@channel:bf16", "fp8_block": "fp8_e4m3fn@128x128:bf16", "nvfp4": "nvfp4+scale=mse",
    "mxfp4": "mxfp4+scale=mse", "mxfp8": "mxfp8",
}  # fmt: skip
"""What `compressed-tensors:KIND` makes of dense matrices; any other KIND is a format."""


@dataclass(frozen=True)
class _Scheme:
    """How the weights of one group are stored. `args` are compressed-tensors' QuantizationArgs, `form` its name of the compressor."""

    form: str
    target: Format
    strategy: str
    group: int | None
    block: tuple[int, int] | None
    act: bool

    @property
    def args(self) -> dict[str, Any]:
        element, zero = self.target.element, self.target.zero
        float_scales = {"nvfp4-pack-quantized": "torch.float8_e4m3fn"} | dict.fromkeys(
            ("mxfp4-pack-quantized", "mxfp8-quantized"), "torch.uint8"
        )
        return {
            "num_bits": element.bits, "type": "float" if element.name.startswith("fp") else "int", "symmetric": zero is None,
            "strategy": self.strategy, "group_size": self.group, "block_structure": list(self.block) if self.block else None,
            "dynamic": False, "actorder": None, "scale_dtype": float_scales.get(self.form), "zp_dtype": None, "observer": "minmax",
            "observer_kwargs": {},
        }  # fmt: skip

    @property
    def inputs(self) -> dict[str, Any] | None:
        """Activations: int8, a scale for each token that is found when it comes."""
        if not self.act:
            return None
        return {
            "num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "group_size": None, "block_structure": None,
            "dynamic": True, "actorder": None, "scale_dtype": None, "zp_dtype": None, "observer": None, "observer_kwargs": {},
        }  # fmt: skip


def _blocks(held: Held) -> tuple[str, int | None, tuple[int, int] | None, str]:
    """compressed-tensors' strategy, group size, block structure, and our block. NoFit."""
    block = held.format.blocks[0]
    if block.kind == "tensor":
        return "tensor", None, None, "tensor"
    rows, columns = block.on(held.shape)
    if rows > 1:
        return "block", None, (rows, columns), f"{rows}x{columns}"
    if block.size is None:
        return "channel", None, None, "channel"
    if held.shape[1] % columns:
        raise NoFit(f"rows of {held.shape[1]} are no whole groups of {columns}")
    return "group", columns, None, str(columns)


def _scheme(held: Held, scales: str) -> tuple[_Scheme, Fit]:
    """The narrowest scheme that holds a matrix exactly, with `scales` where they are floats. NoFit: there is none."""
    strategy, group, block, ours = _blocks(held)
    fmt = held.format.plain
    if fmt.element.name == "fp4_e2m1" and fmt.zero is None and fmt.offset is None:
        if len(fmt.levels) == 2:
            made = _Scheme("nvfp4-pack-quantized", Format("nvfp4"), "tensor_group", 16, None, False)
        else:
            made = _Scheme("mxfp4-pack-quantized", Format("mxfp4"), "group", 32, None, False)
        return made, fit(fmt, made.target, held.shape)
    if len(fmt.levels) != 1 or fmt.offset is not None:
        raise NoFit("it has no scales of scales other than nvfp4's, and no offsets")
    if fmt.element.name.startswith("fp"):
        if fmt.levels[0].element.name == "e8m0" and group == 32:
            made = _Scheme("mxfp8-quantized", Format("mxfp8"), "group", 32, None, False)
        else:
            made = _Scheme("float-quantized", Format(f"fp8_e4m3fn@{ours}:{scales}"), strategy, group, block, False)
        return made, fit(fmt, made.target, held.shape)
    if strategy == "block":
        raise NoFit("integers have no two-dimensional blocks there")
    reason = NoFit(f"codes of {fmt.element} are no integers of 2 to 8 bits")
    act = held.act == "int8"
    for bits in range(2, 9):
        text = f"int{bits}@{ours}:{scales}" if fmt.zero is None else f"uint{bits}@{ours}:{scales}+zp=uint{bits}"
        plain = bits == 8 and act and strategy != "group" and fmt.zero is None
        made = _Scheme("int-quantized" if plain else "pack-quantized", Format(text), strategy, group, block, act)
        try:
            return made, fit(fmt, made.target, held.shape)
        except NoFit as error:
            reason = error
    raise reason


def _entries(held: Held, scheme: _Scheme) -> list[Entry]:
    """Names, dtypes and shapes of a module's tensors."""
    n, k = held.shape
    bits, module = scheme.target.element.bits, held.module
    grid = scheme.target.grids(held.shape)[0]
    if scheme.form == "nvfp4-pack-quantized":
        return [
            (f"{module}.weight_packed", "U8", (n, k // 2)), (f"{module}.weight_scale", "F8_E4M3", grid),
            (f"{module}.weight_global_scale", "F32", (1,)),
        ]  # fmt: skip
    if scheme.form == "mxfp4-pack-quantized":
        return [(f"{module}.weight_packed", "U8", (n, k // 2)), (f"{module}.weight_scale", "U8", grid)]
    if scheme.form == "mxfp8-quantized":
        return [(f"{module}.weight", "F8_E4M3", (n, k)), (f"{module}.weight_scale", "U8", grid)]
    scale = (f"{module}.weight_scale", SCALES[scheme.target.levels[0].element.name], (1,) if scheme.strategy == "tensor" else grid)
    if scheme.form != "pack-quantized":
        return [(f"{module}.weight", "I8" if scheme.form == "int-quantized" else "F8_E4M3", (n, k)), scale]
    entries = [(f"{module}.weight_packed", "I32", (n, -(-k * bits // 32))), scale, (f"{module}.weight_shape", "I64", (2,))]
    if scheme.target.zero is not None:
        entries.append((f"{module}.weight_zero_point", "I32", (-(-n * bits // 32), grid[1])))
    return entries


def _make(held: Held, scheme: _Scheme, fitted: Fit, entries: list[Entry]) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays of a module's tensors in their order: codes some rows at a time, the others at the end."""
    n, k = held.shape
    bits, module, form = scheme.target.element.bits, held.module, scheme.form
    # u = q + 2^(b-1) is q in two's complement with its highest bit turned
    flip = np.uint8(1 << (bits - 1) if scheme.target.zero is None else 0)
    grids: dict[str, list[np.ndarray]] = {}
    for start, stop in held.pieces():
        parts = fitted.parts(held.rows(start, stop), (stop - start, k))
        for name, part in parts.items():
            if name != "codes":
                grids.setdefault(name, []).append(np.array(part))
        codes = np.ascontiguousarray(parts["codes"])
        if form == "pack-quantized":
            codes = packed_stream(codes ^ flip, bits)
        elif form in ("nvfp4-pack-quantized", "mxfp4-pack-quantized"):
            codes = codes[:, 0::2] | codes[:, 1::2] << np.uint8(4)
        yield entries[0][0], codes
    sizes = scheme.target.grids(held.shape)
    whole = {name: _joined(parts, sizes[int(name.partition(".")[2] or 0)]) for name, parts in grids.items()}
    yield f"{module}.weight_scale", whole["scale.0"].reshape(entries[1][2])
    if form == "nvfp4-pack-quantized":
        yield f"{module}.weight_global_scale", _divisor(whole["scale.1"].view(np.float32)).reshape(1)
    if form == "pack-quantized":
        yield f"{module}.weight_shape", np.array([n, k], np.int64)
    if scheme.target.zero is not None:
        yield f"{module}.weight_zero_point", np.ascontiguousarray(packed_stream(np.ascontiguousarray(whole["zero"].T), bits).T)


def _joined(parts: list[np.ndarray], grid: tuple[int, ...]) -> np.ndarray:
    return parts[0] if parts[0].shape == grid else np.concatenate(parts)


def _divisor(scale: np.ndarray) -> np.ndarray:
    """The float32 whose float32 reciprocal is the scale, where there is one; otherwise the nearest."""
    guess = np.float32(1) / scale.astype(np.float32)
    near = [guess, np.nextafter(guess, np.float32(0)), np.nextafter(guess, np.float32(np.inf))]
    best: np.ndarray = min(near, key=lambda g: float(abs(np.float64(1) / np.float64(g.reshape(-1)[0]) - np.float64(scale.reshape(-1)[0]))))
    exact = [g for g in near if (np.float32(1) / g == scale).all()]
    return exact[0] if exact else best


def _item(held: Held, scheme: _Scheme, fitted: Fit) -> Item:
    entries = _entries(held, scheme)

    def produce() -> Iterator[tuple[str, np.ndarray]]:
        yield from _make(held, scheme, fitted, entries)
        held.release()

    return Item(held.name, entries, produce)


def dense_item(held: Held, element: str | None = None) -> Item:
    """A dense tensor as it is stored, or in another dtype that has its values. NoFit, when it is made: it has not."""
    own = held.format.plain.element
    element = element or own.name
    entry = (held.name, SCALES[element], held.shape)

    def produce() -> Iterator[tuple[str, np.ndarray]]:
        for start, stop in held.pieces():
            codes = held.rows(start, stop)["codes"]
            yield held.name, codes if element == own.name else encode_floats(decode_floats(codes, own), parse_element(element))
        held.release()

    return Item(held.name, [entry], produce)


# ---------------------------------------------------------------------------------------------- the plan
Schemes = dict[str, tuple[_Scheme, Fit]]
DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def _schemes(source: Source, scales: str) -> tuple[Schemes, dict[str, str]]:
    """The scheme of each matrix that is not dense, and the reasons of those that have none."""
    found: Schemes = {}
    refused = {}
    for name, held in source.tensors.items():
        if held.dense:
            continue
        try:
            if held.order is not None:
                raise NoFit("its inputs are in another order (desc_act), which compressed-tensors dropped; --to gptq writes it as g_idx")
            if held.plain or held.role == "embedding" or (held.role == "head" and source.spec.tied):
                raise NoFit("embeddings are stored dense there; quantize again with --keep embed_tokens, or write dequantized")
            scheme, fitted = _scheme(held, scales)
            fitted.check(held)
            found[name] = scheme, fitted
        except NoFit as error:
            refused[name] = str(error)
    return found, refused


def _holds(held: Held, element: str) -> bool:
    """Whether a dtype has every value of a dense tensor."""
    own = held.format.plain.element
    try:
        if own.name != element:
            for start, stop in held.pieces():
                encode_floats(decode_floats(held.rows(start, stop)["codes"], own), parse_element(element))
            held.release()
    except NoFit:
        return False
    return True


def _chosen(source: Source) -> tuple[str, Schemes, dict[str, str], list[str]]:
    """The dtype of the model, its schemes, what is refused, and a note.

    Loaders turn scales and dense tensors into the dtype that config.json names, and round weights to that of the scales: one dtype has
    to hold all. A 16-bit one if there is one, the matrices' own first, else float32.
    """
    dense = [held for held in source.tensors.values() if held.dense]
    sizes = {name: sum(len(h.shape) * h.shape[0] for h in dense if h.format.plain.element.name == name) for name in ("bf16", "fp16")}
    for dtype in sorted(sizes, key=lambda name: -sizes[name]):
        schemes, refused = _schemes(source, dtype)
        if not refused and all(_holds(held, dtype) for held in dense):
            return dtype, schemes, refused, []
    schemes, refused = _schemes(source, "fp32")
    note = "no 16-bit dtype holds all scales and dense tensors, so that config.json says float32"
    advice = "scales in the dtype of the dense tensors, as in int4@128:bf16, make a 16-bit model"
    return "fp32", schemes, refused, [] if refused else [f"{note}; {advice}"]


def _groups(source: Source, schemes: Schemes) -> dict[str, Any]:
    """quantization_config."""
    by_scheme: dict[str, list[str]] = {}
    described: dict[str, dict[str, Any]] = {}
    for name, (scheme, _) in schemes.items():
        group = {"targets": ["Linear"], "format": scheme.form, "weights": scheme.args, "input_activations": scheme.inputs}
        group["output_activations"] = None
        key = repr(group)
        described[key] = group
        by_scheme.setdefault(key, []).append(source.tensors[name].module)
    matrices = [held for held in source.tensors.values() if held.role in ("linear", "head", "router")]
    ignored = [held.module for held in matrices if held.name not in schemes]
    if source.spec.tied:
        ignored.append("lm_head")
    groups = {}
    for number, (key, modules) in enumerate(by_scheme.items()):
        targets = ["Linear"] if len(by_scheme) == 1 else modules
        groups[f"group_{number}"] = {**described[key], "targets": targets}
    forms = {group["format"] for group in groups.values()}
    return {
        "quant_method": "compressed-tensors", "format": forms.pop() if len(forms) == 1 else "mixed-precision",
        "quantization_status": "compressed", "version": "0.20.0", "global_compression_ratio": None, "kv_cache_scheme": None,
        "ignore": ignored, "sparsity_config": {}, "transform_config": {}, "config_groups": groups,
    }  # fmt: skip


def _fused_notes(source: Source, schemes: Schemes) -> list[str]:
    """What vLLM would do to modules that it runs as one and that are not stored alike."""
    notes = []
    for group in FUSED:
        alike = True
        shared = True
        for parent in {held.module.rpartition(".")[0] for held in source.tensors.values()}:
            names = [f"{parent}.{last}.weight" for last in group if f"{parent}.{last}.weight" in source.tensors]
            kinds = {repr(schemes[name][0]) if name in schemes else "" for name in names}
            alike &= len(kinds) <= 1
            if len(kinds) == 1 and all(name in schemes and schemes[name][0].strategy in ("tensor", "tensor_group") for name in names):
                factors = {source.tensors[name].grids()[f"scale.{len(schemes[name][0].target.levels) - 1}"].tobytes() for name in names}
                shared &= len(factors) <= 1
        listed = ", ".join(group)
        if not alike:
            notes.append(f"vLLM runs {listed} as one and needs them quantized alike, which they are not here; transformers does not mind")
        if not shared:
            advice = "export the original model with --to compressed-tensors:nvfp4, which shares it"
            notes.append(f"{listed} have scales of their own for whole tensors, of which vLLM takes the largest; {advice}")
    return notes


def _plan(source: Source, kind: str | None) -> Plan:
    dtype, schemes, refused, notes = _chosen(source)
    steps, items = [], []
    for name, held in source.tensors.items():
        text = held.format.alias or str(held.format)
        if held.dense:
            items.append(dense_item(held, dtype))
            steps.append(Step(name, held.shape, text, dtype, True, items[-1].nbytes))
        elif name in refused:
            steps.append(Step(name, held.shape, text, "", False, 0, refused[name]))
        else:
            scheme, fitted = schemes[name]
            items.append(_item(held, scheme, fitted))
            exact = scheme.form != "nvfp4-pack-quantized" or kind is not None or _exact_divisor(held.grids())
            note = "" if exact else "the global scale is a divisor there: its reciprocal is off by 2^-24"
            steps.append(Step(name, held.shape, text, f"{scheme.form} {scheme.target}", exact, items[-1].nbytes, note))
    if not schemes and not refused:
        advice = "name what to make, as in --to compressed-tensors:w4a16 (or nvfp4, or a format)"
        raise UsageError(f"{source.name}: nothing is quantized; {advice}")
    if kind is None:
        notes += _fused_notes(source, schemes)
    if any(scheme.target.zero is not None for scheme, _ in schemes.values()):
        seen = "transformers 5.23 and compressed-tensors 0.20"
        notes.append(f"{seen} load zero points only with CompressedTensorsConfig(dequantize=True)")
    notes += expert_notes(source.spec)
    if any(scheme.act for scheme, _ in schemes.values()):
        notes.append("int8 activations have one scale a token there, one a block here")

    def write(folder: Path, written: Written) -> dict[str, str]:
        digests, _ = write_items(folder, items, on_written=written, exported=True)
        config = {key: value for key, value in source.config.items() if key not in ("dtype", "torch_dtype")}
        config |= {"torch_dtype" if "torch_dtype" in source.config else "dtype": DTYPES[dtype]}
        put(folder / "config.json", (pretty({**config, "quantization_config": _groups(source, schemes)}, levels=4) + "\n").encode())
        for file in source.sidecars:
            put(folder / file.name, file.read_bytes())
        return digests

    return Plan(tuple(steps), write, tuple(notes))


def _exact_divisor(parts: Parts) -> bool:
    scale = parts["scale.1"].view(np.float32)
    return bool((np.float32(1) / _divisor(scale) == scale).all())


def _spec(kind: str) -> str:
    return PRESETS.get(kind, kind)


TARGETS.add(
    "compressed-tensors",
    Target("compressed-tensors", "a directory for vLLM and transformers", "compressed-tensors[:KIND]", _spec, _plan, FUSED),
)
