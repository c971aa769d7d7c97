"""compressed-tensors' quantization schemes as format expressions, and its targets as regular expressions of tensor names.

Source: compressed-tensors 0.20, quantization/quant_args.py and quant_scheme.py (presets); facts of the format, checked against checkpoints.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from anybit.errors import UsageError
from anybit.recipes.given import Given
from anybit.recipes.pattern import Pattern

EMBEDDING = r"(?!model\.embed_tokens\.)"
_OBSERVERS = {
    "minmax": "minmax", "memoryless_minmax": "minmax", "static_minmax": "minmax", "mse": "mse", "memoryless_mse": "mse",
    "static_mse": "mse", "imatrix_mse": "imatrix",
}  # fmt: skip
_SCALES = {"torch.bfloat16": "bf16", "torch.float16": "fp16", "torch.float32": "fp32", "torch.float8_e4m3fn": "fp8_e4m3fn",
           "torch.uint8": "e8m0"}  # fmt: skip

FLOATS = {4: "fp4_e2m1", 6: "fp6_e2m3", 8: "fp8_e4m3fn"}


def _int(bits: int, **more: Any) -> dict[str, Any]:
    return {"num_bits": bits, "type": "int", "symmetric": True, **more}


def _float(bits: int, **more: Any) -> dict[str, Any]:
    return {"num_bits": bits, "type": "float", "symmetric": True, **more}


_TOKEN: dict[str, Any] = {"strategy": "token", "dynamic": True}
_GROUP: dict[str, Any] = {"strategy": "group", "group_size": 128}
_MX: dict[str, Any] = {"strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"}
_NV: dict[str, Any] = {"strategy": "tensor_group", "group_size": 16}
_TENSOR: dict[str, Any] = {"strategy": "tensor"}
_CHANNEL: dict[str, Any] = {"strategy": "channel"}
_FP8_BLOCK: dict[str, Any] = {"strategy": "block", "block_structure": [128, 128]}

PRESETS: dict[str, dict[str, Any]] = {
    "UNQUANTIZED": {},
    **{f"W{b}A16": {"weights": _int(b, **_GROUP)} for b in range(2, 9)},
    "W4A16_ASYM": {"weights": {**_int(4, **_GROUP), "symmetric": False}},
    **{f"W{b}A4": {"weights": _int(b, **_GROUP), "input_activations": _int(4, **_TOKEN)} for b in range(2, 5)},
    **{f"W{b}A8": {"weights": _int(b, **_GROUP), "input_activations": _int(8, **_TOKEN)} for b in range(2, 8)},
    **{name: {"weights": _int(8, **_CHANNEL), "input_activations": _int(8, **_TOKEN)} for name in ("W8A8", "INT8")},
    "W4AFP8": {"weights": _int(4, **_GROUP), "input_activations": _float(8, **_TOKEN)},
    "FP8": {"weights": _float(8, **_TENSOR), "input_activations": _float(8, **_TENSOR)},
    "FP8_DYNAMIC": {"weights": _float(8, **_CHANNEL), "input_activations": _float(8, **_TOKEN)},
    "FP8_BLOCK": {"weights": _float(8, **_FP8_BLOCK), "input_activations": _float(8, **_GROUP, dynamic=True)},
    "NVFP4": {"weights": _float(4, **_NV), "input_activations": _float(4, **_NV, dynamic="local")},
    "NVFP4A16": {"weights": _float(4, **_NV)},
    "MXFP4XFP8": {"weights": _float(4, **_MX), "input_activations": _float(8, **_GROUP, dynamic=True)},
    "MXFP6A8": {"weights": _float(6, **_MX), "input_activations": _float(8, **_MX, dynamic=True)},
    **{f"MXFP{b}": {"weights": _float(b, **_MX), "input_activations": _float(b, **_MX, dynamic=True)} for b in (4, 8)},
    **{f"MXFP{b}A16": {"weights": _float(b, **_MX)} for b in (4, 6, 8)},
}  # fmt: skip


@dataclass
class Scheme:
    """What becomes of the modules that some targets name. `format` None: nothing; `act` None: float; `static`: the activations'
    scale comes from calibration; `order`: GPTQ's, where the weights' arguments say one; `targets` and `ignore` as they are spelt there."""

    format: str | None
    act: str | None = None
    static: bool = False
    order: str | None = None
    targets: list[str] = field(default_factory=list)
    ignore: list[str] = field(default_factory=list)


def scheme_of(given: Given) -> Scheme:
    """A config group: weights, input_activations, targets (the caller takes `ignore`)."""
    weights, inputs = given.inside("weights"), given.inside("input_activations")
    given.only("output_activations", [], "outputs are not quantized here; only weights and inputs are")
    given.note("format", "how codes are packed is chosen by the layout")
    found = Scheme(None, targets=given.texts("targets"))
    if weights is None:
        if inputs is not None:
            raise given.refuse("input_activations", "inputs are rounded only where the weights are quantized too")
    else:
        found.format, found.order = _weights(weights)
        weights.done()
    if inputs is not None:
        found.act, found.static = _inputs(inputs)
        inputs.done()
    given.done()
    return found


def preset(name: str, given: Given, key: str) -> Scheme:
    """A scheme by name. FileFormatError: there is none of this name."""
    if name.upper() not in PRESETS:
        raise given.refuse(key, f"no such scheme; there is {', '.join(PRESETS)}")
    line = given.lines((*given.keys, key))
    if name.upper() == "W8A16":
        given.notes.append("W8A16: groups of 128, as compressed-tensors 0.20 has it; before it was one scale a row")
    return scheme_of(Given(PRESETS[name.upper()], given.file, lambda keys: line, (), given.notes))


def _numbers(given: Given) -> tuple[int, str, bool, str, int | None]:
    """bits, type, symmetric, strategy, group size."""
    bits = given.take("num_bits", int, 8)
    kind = given.take("type", str, "int", ("int", "float"))
    if kind == "int" and not 1 <= bits <= 8:
        raise given.refuse("num_bits", "integers have 1 to 8 bits here")
    if kind == "float" and bits not in FLOATS:
        raise given.refuse("num_bits", "floats of this file are E2M1 of 4 bits, E2M3 of 6 or E4M3 of 8")
    size = given.take("group_size", int)
    if size is not None and size != -1 and not 1 <= size < 1 << 24:
        raise given.refuse("group_size", "it must be a block's length, or -1")
    strategies = ("tensor", "channel", "group", "block", "token", "tensor_group", "attn_head")
    strategy = given.take("strategy", str, None, strategies) or ("tensor" if size is None else "channel" if size == -1 else "group")
    if strategy in ("group", "tensor_group") and (size is None or size < 1):
        raise given.error(("group_size",), f"strategy {strategy} needs a block's length")
    return bits, kind, given.take("symmetric", bool, True), strategy, size


def _observer(given: Given) -> str:
    name = given.take("observer", str, "minmax")
    if name not in _OBSERVERS:
        raise given.refuse("observer", f"no scale rule here stands for it; there is {', '.join(_OBSERVERS)}")
    given.note("observer_kwargs", "the search of scale=lp2.4 and scale=wmse has no options")
    return _OBSERVERS[name]


def _weights(given: Given) -> tuple[str, str | None]:
    """Format expression with its scale rule, and GPTQ's order."""
    bits, kind, symmetric, strategy, size = _numbers(given)
    given.only("dynamic", [False], "weights are stored: their scales are fixed")
    order = "activation" if actorder(given) == "activation" else None  # null here leaves it to the modifier
    rule = _observer(given)
    scale = given.take("scale_dtype", str, None, _SCALES)
    zero = given.take("zp_dtype", str, None)
    if zero not in (None, f"torch.int{bits}", "torch.int8", "torch.uint8"):
        raise given.refuse("zp_dtype", "zero points are whole numbers of the weights' width here")
    if strategy in ("token", "attn_head"):
        raise given.refuse("strategy", "this is for activations; weights have tensor, channel, group, block or tensor_group")
    block = {"tensor": "tensor", "channel": "channel"}.get(strategy, str(size))
    structure = given.take("block_structure", list)
    if strategy == "block":
        if structure is None or len(structure) != 2 or not all(type(n) is int and 0 < n < 1 << 24 for n in structure):
            raise given.refuse("block_structure", "it must be two sizes")
        block = "x".join(map(str, structure))
    if kind == "float":
        if not symmetric:
            raise given.refuse("symmetric", "floats have no zero points here")
        return _float_format(given, bits, strategy, block, scale) + _searched(rule, ""), order
    if strategy == "tensor_group":
        raise given.refuse("strategy", "scales of scales are those of NVFP4, whose type is float")
    suffix = f":{_SCALES[scale]}" if scale is not None else ""
    if bits == 1:
        raise given.refuse("num_bits", "one bit is -1 or 0 there; write binary@128 in a recipe of this tool for -1 or 1")
    if not symmetric:
        return f"uint{bits}@{block}{suffix}+zp" + _searched(rule, ""), order
    return f"int{bits}@{block}{suffix}" + _searched(rule, "full"), order


def _searched(rule: str, plain: str) -> str:
    name = {"minmax": plain, "mse": "lp2.4", "imatrix": "wmse"}[rule]
    return f"+scale={name}" if name else ""


def _float_format(given: Given, bits: int, strategy: str, block: str, scale: str | None) -> str:
    if strategy == "tensor_group":
        if bits != 4 or block != "16":
            raise given.refuse("strategy", "scales of scales are those of NVFP4: 4 bits in groups of 16")
        return "nvfp4"
    if scale == "torch.uint8" or (bits == 4 and strategy == "group" and scale is None and block == "32"):
        return f"{FLOATS[bits]}@{block}:e8m0+scale=even"
    return f"{FLOATS[bits]}@{block}{f':{_SCALES[scale]}' if scale is not None else ''}"


def _inputs(given: Given) -> tuple[str, bool]:
    """The activations' format, and whether its scale is one from calibration."""
    bits, kind, symmetric, strategy, _ = _numbers(given)
    dynamic = given.take("dynamic", (bool, str), False, (True, False, "local"))
    given.take("observer", str)  # dynamic scales have none; the one scale of static inputs is the largest magnitude, or searched
    given.note("observer_kwargs", "the one scale is the largest magnitude of calibration")
    given.only("actorder", [False], "an order belongs to weights")
    scale = given.take("scale_dtype", str, None, _SCALES)
    given.note("zp_dtype", "there is no zero point")
    given.only("block_structure", [], "inputs are rounded token by token")
    if not symmetric:
        raise given.refuse("symmetric", "activations have no zero points here; take symmetric: true")
    if kind == "int" and bits < 2:
        raise given.refuse("num_bits", "activations of one bit are not known here")
    element = f"int{bits}_sym" if kind == "int" else FLOATS[bits]
    size = given.take("group_size", int)
    if strategy == "tensor_group":
        if kind != "float" or bits != 4 or size != 16 or not dynamic:
            raise given.refuse("strategy", "scales of scales are those of NVFP4: floats of 4 bits in groups of 16, dynamic or local")
        return "nvfp4", dynamic == "local"
    if strategy == "group" and dynamic:
        if scale != "torch.uint8":
            return f"{element}@{size}", False
        given.notes.append("inputs: their exponents go up from 1.75 there, OCP's rule is taken here (which runs natively)")
        return f"{element}@{size}:e8m0", False
    if strategy == "token" and dynamic:
        return f"{element}@token", False
    if strategy == "tensor" and not dynamic:
        return ("int8" if element == "int8_sym" else f"{element}@tensor"), True
    if strategy == "tensor":
        raise given.refuse(
            "strategy", "dynamic scales for the whole tensor make a token's result depend on the others; take strategy: token"
        )
    raise given.refuse("strategy", "inputs have dynamic scales by token or group, or one static scale for the tensor")


def actorder(given: Given, default: str | None = None) -> str | None:
    """GPTQ's order here, for their `actorder`: "activation", "natural", or the default where nothing is said."""
    if "actorder" not in given:
        return default
    value = given.take("actorder", (str, bool))
    if value in (None, False):
        return "natural"
    if value is True or str(value).lower() in ("group", "dynamic"):
        raise given.refuse("actorder", "another order of columns at run time is not stored here; take static, which rounds in that order")
    if str(value).lower() not in ("weight", "static"):
        raise given.refuse("actorder", "there is static (weight), group, and null")
    return "activation"


def module_match(target: str, given: Given, key: str) -> str:
    """A pattern of tensor names for one target or ignored name: a module, re: and a pattern from its beginning, or Linear."""
    if target.startswith("re:"):
        return _ended(target[3:], given, key) + r".*\.weight$"
    if target == "Linear":
        return r".*\.weight$"
    if re.fullmatch(r"[A-Z]\w*", target):
        raise given.refuse(key, f"{target} is a class; of classes only Linear is known here, modules are named or matched by re:")
    return re.escape(target) + r"\.weight$"


def _ended(pattern: str, given: Given, key: str) -> str:
    """A pattern of module names whose `$` is the module's end, in a tensor's name."""
    try:
        Pattern(pattern)
    except UsageError as error:
        raise given.refuse(key, str(error)) from None
    if re.match(r"\(\?[aiLmsux]+\)", pattern):
        raise given.refuse(key, "flags for a whole pattern cannot be kept; write (?i:...) around it")
    made, i, listed = "", 0, False
    while i < len(pattern):
        letter = pattern[i]
        if letter == "\\":
            made += r"(?=\.weight$)" if pattern[i + 1] == "Z" and not listed else pattern[i : i + 2]
            i += 2
            continue
        if listed:
            listed = letter != "]"
        elif letter == "[":
            listed = True
            skip = re.match(r"\[\^?\]?", pattern[i:])
            assert skip is not None
            made, i = made + skip[0], i + len(skip[0])
            continue
        made += r"(?=\.weight$)" if letter == "$" and not listed else letter
        i += 1
    return f"(?:{made})"


def rule_match(target: str, ignore: list[str], given: Given) -> str:
    """The pattern of a rule: tensors of a target's modules, but for those of ignored ones and the embedding's."""
    without = "".join(f"(?!{module_match(each, given, 'ignore')})" for each in ignore)
    return f"^{EMBEDDING}{without}{module_match(target, given, 'targets')}"


def rules(schemes: list[Scheme], rounding: Any, given: Given) -> list[dict[str, Any]]:
    """Rules of this tool for schemes in their order: named modules before patterns before classes, as compressed-tensors looks them up."""
    found: list[tuple[int, dict[str, Any]]] = []
    for scheme in schemes:
        for target in scheme.targets or ["Linear"]:
            rule: dict[str, Any] = {"match": rule_match(target, scheme.ignore, given)}
            if scheme.format is None:
                rule["keep"] = True
            else:
                rule |= {"format": scheme.format, "rounding": rounding(scheme)}
                if scheme.act is not None:
                    rule["act"] = scheme.act
            found.append((1 if target.startswith("re:") else 2 if target == "Linear" else 0, rule))
    return [rule for _, rule in sorted(found, key=lambda each: each[0])]


def static_steps(schemes: list[Scheme], given: Given) -> list[Any]:
    """The step that calibrates one scale for each input, where schemes ask for it. FileFormatError: others have dynamic ones."""
    acts = [scheme for scheme in schemes if scheme.act is not None]
    if len({scheme.static for scheme in acts}) > 1:
        raise given.error((), "some inputs have static scales and others dynamic ones: static ones are for all layers here")
    return ["static_activations"] if any(scheme.static for scheme in acts) else []
