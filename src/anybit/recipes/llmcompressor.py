"""llm-compressor's recipe.yaml as a recipe of this tool: what it says is kept, or refused with its line.

Taken: QuantizationModifier, GPTQModifier, SmoothQuantModifier, AWQModifier, WandaPruningModifier; schemes by name or as config_groups;
targets and ignored modules. Everything is calibrated and rounded block by block here, whatever the stages are called.

Source: llm-compressor, modifiers/ (fields and defaults); the recipes that its examples and published models carry.
Differs: SmoothQuant's ranges are largest magnitudes here, AWQ's error is each layer's own, GPTQ keeps rows that nearest serves better.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from anybit.errors import UsageError
from anybit.recipes.given import Given, Lines
from anybit.recipes.pattern import Pattern
from anybit.recipes.schemes import Scheme, actorder, preset, rule_match, rules, scheme_of, static_steps

_RUN = "it says how the run is done, not what comes out"
_LAYERS = {
    f"model.layers.0.{part}.{leaf}": role
    for part, leaf, role in (
        ("self_attn", "q_proj", "qkv"), ("self_attn", "k_proj", "qkv"), ("self_attn", "v_proj", "qkv"), ("self_attn", "o_proj", "o"),
        ("mlp", "gate_proj", "gate_up"), ("mlp", "up_proj", "gate_up"), ("mlp", "down_proj", "down"),
    )
}  # fmt: skip
_BEFORE = {
    "qkv": "model.layers.0.input_layernorm", "gate_up": "model.layers.0.post_attention_layernorm",
    "o": "model.layers.0.self_attn.v_proj", "down": "model.layers.0.mlp.up_proj",
}  # fmt: skip


def recognised(value: Any) -> bool:
    """Whether a YAML document is a recipe of llm-compressor."""
    return isinstance(value, dict) and "version" not in value and any(_is_stage(key) or key.endswith("Modifier") for key in value)


def _is_stage(key: str) -> bool:
    return key.endswith(("_stage", "_modifiers")) or key == "modifiers"


class _Import:
    """What the modifiers so far make."""

    def __init__(self) -> None:
        self.steps: list[Any] = []
        self.rules: list[dict[str, Any]] = []
        self.schemes: list[Scheme] = []
        self.cache: dict[str, str] | None = None

    def quantize(self, given: Given, rounding: Callable[[Scheme], Any]) -> None:
        """The schemes of a modifier that rounds."""
        schemes = _schemes(given)
        whole = any(not s.targets or "Linear" in s.targets for s in [*self.schemes, *schemes])
        if self.schemes and whole:
            raise given.error((), "two modifiers round, and one of them all Linear modules: name the modules of each")
        self.schemes += schemes
        self.rules += rules(schemes, rounding, given)
        cache = given.inside("kv_cache_scheme")
        if cache is not None:
            self.cache = kv_cache(cache)

    def before_rounding(self, given: Given) -> None:
        """FileFormatError: a step that changes the float model comes after a modifier that rounds."""
        if self.schemes:
            raise given.error((), "it comes after a modifier that rounds; put it before, as it changes the float model")


def recipe(value: Any, file: str, lines: Lines) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The values of a recipe of this tool, for `parse_recipe`, and what was not taken over."""
    top, made = Given(value, file, lines), _Import()
    for key in top.value:
        _stage(key, top, made)
    if not made.rules:
        raise top.error((), "no modifier rounds anything: add a QuantizationModifier or a GPTQModifier")
    made.steps += static_steps(made.schemes, top)
    found: dict[str, Any] = {
        "version": 1, "about": "imported from a recipe of llm-compressor", "source": "llm-compressor", "steps": made.steps,
        "rules": made.rules,
    }  # fmt: skip
    return found | ({"kv_cache": made.cache} if made.cache else {}), tuple(top.notes)


def _stage(key: str, above: Given, made: _Import) -> None:
    """A stage, a group of modifiers in it, or a modifier."""
    if key.endswith("Modifier"):
        name = key.removeprefix("vLLM")
        given = above.inside(key) or Given({}, above.file, above.lines, (*above.keys, key), above.notes)
        if name not in _MODIFIERS:
            why = _REFUSED.get(name, f"this modifier is not known; there is {', '.join(_MODIFIERS)}")
            raise above.error((key,), why)
        _MODIFIERS[name](given, made)
        given.done()
    elif _is_stage(key):
        inside = above.inside(key)
        if inside is None:
            return
        inside.only("run_type", ["oneshot"], "only oneshot: nothing is trained here")
        for each in inside.value:
            if each != "run_type":
                _stage(each, inside, made)
    else:
        raise above.error((key,), "neither a stage, a group of modifiers nor a modifier")


def _schemes(given: Given) -> list[Scheme]:
    """From `config_groups`, or `scheme` with `targets`; `ignore` belongs to all."""
    groups, targets = given.inside("config_groups"), given.texts("targets")
    ignore = given.texts("ignore")
    scheme = given.take("scheme", (str, dict))
    if groups is not None:
        if scheme is not None:
            raise given.refuse("scheme", "config_groups are given too; keep one of them")
        # with config_groups, `targets` says which modules are walked; the groups' own targets decide
        found = [_group(name, groups) for name in groups.value]
        if targets and targets != ["Linear"]:
            raise given.refuse("targets", "config_groups have targets of their own; leave these out")
    elif isinstance(scheme, dict):
        inside = given.inside("scheme")
        assert inside is not None
        found = []
        for name in inside.value:
            made = preset(name, inside, name)
            made.targets = inside.texts(name)
            found.append(made)
    elif scheme is not None:
        found = [preset(scheme, given, "scheme")]
        found[0].targets = targets
    else:
        raise given.error((), "neither scheme nor config_groups: what its modules become is not said")
    for each in found:
        each.ignore = ignore
    return found


def _group(name: str, groups: Given) -> Scheme:
    """A group under config_groups: a scheme, or the name of one with its targets."""
    if isinstance(groups.value[name], list):
        made = preset(name, groups, name)
        made.targets = groups.texts(name)
        return made
    inside = groups.inside(name)
    if inside is None:
        raise groups.refuse(name, "it must be a mapping, or a list of targets under a scheme's name")
    return scheme_of(inside)


def kv_cache(given: Given) -> dict[str, str]:
    """Formats of keys and values. FileFormatError: scales that are not each token's."""
    bits, kind = given.take("num_bits", int, 8), given.take("type", str, "int", ("int", "float"))
    strategy, dynamic = given.take("strategy", str, "tensor"), given.take("dynamic", bool, False)
    size = given.take("group_size", int)
    given.only("symmetric", [True], "keys and values have no zero points in this scheme; write kv_cache in a recipe of this tool")
    given.note("observer", "dynamic scales have none")
    for key in ("observer_kwargs", "block_structure", "actorder", "scale_dtype", "zp_dtype"):
        given.only(key, [{}], "it says nothing of a cache here")
    given.done()
    if not dynamic or strategy not in ("token", "group") or (kind == "float" and bits != 8):
        raise given.error((), "caches have a scale for each token or group of it here, never one for all; write kv_cache in a recipe of"
                          " this tool, such as {k: fp8_e4m3fn@token, v: fp8_e4m3fn@token}")  # fmt: skip
    text = f"{f'int{bits}' if kind == 'int' else 'fp8_e4m3fn'}@{size if strategy == 'group' else 'token'}"
    return {"k": text, "v": text}


def _observers(given: Given) -> None:
    for key in ("weight_observer", "input_observer", "output_observer", "observer"):
        given.only(key, ["minmax", "memoryless_minmax", "static_minmax"], "give the observer in the weights' arguments of config_groups")


def _quantization(given: Given, made: _Import) -> None:
    _observers(given)
    for key in ("num_calibration_steps", "disable_quantization_observer_epoch", "bypass_divisibility_checks"):
        given.note(key, _RUN)
    made.quantize(given, lambda scheme: "nearest")


def _gptq(given: Given, made: _Import) -> None:
    _observers(given)
    damp, block = given.take("dampening_frac", (int, float), 0.01), given.take("block_size", int, 128)
    if not 0 < damp <= 10:
        raise given.refuse("dampening_frac", "it lies above 0, and not above 10")
    if not 8 <= block <= 256:
        raise given.refuse("block_size", "8 to 256 columns are handled together here; it does not change the result but for rounding")
    order = actorder(given, "activation")
    for key in ("sequential_update", "offload_hessians", "num_calibration_steps", "bypass_divisibility_checks"):
        given.note(key, _RUN)
    given.note("sequential_targets", "blocks are taken one after the other")
    given.only("quantize", [True], "it rounds")

    def rounding(scheme: Scheme) -> Any:
        return {
            "gptq": {"damp": float(damp), "order": scheme.order or order, "importance": "wmse" in (scheme.format or ""), "block": block}
        }

    made.quantize(given, rounding)


def _smoothquant(given: Given, made: _Import) -> None:
    made.before_rounding(given)
    alpha = given.take("smoothing_strength", (int, float), 0.5)
    if not 0 <= alpha <= 1:
        raise given.refuse("smoothing_strength", "it must lie from 0 to 1")
    given.only("ignore", [[]], "whole inputs are smoothed; leave mappings out instead")
    for key in ("num_calibration_steps", "calibration_function", "algorithm"):
        given.note(key, _RUN)
    made.steps.append({"smoothquant": {"roles": _roles(given) or "qkv gate_up", "alpha": float(alpha)}})


def _awq(given: Given, made: _Import) -> None:
    made.before_rounding(given)
    grid = given.take("n_grid", int, 20)
    duo = given.take("duo_scaling", (bool, str), True, (True, False, "both"))
    if duo == "both":
        raise given.refuse("duo_scaling", "one form of scales is searched here; take true or false")
    if grid < 1:
        raise given.refuse("n_grid", "it must be at least 1")
    for key in ("offload_device", "max_chunk_memory", "num_calibration_steps", "sequential_targets", "offload_cache"):
        given.note(key, _RUN)
    given.only("force_balance_layers", [[]], "all matrices of an input are scaled")
    roles = _roles(given)
    made.steps.append({"awq": {"grid": grid, "duo": duo} | ({"roles": roles} if roles else {})})
    if any(key in given for key in ("config_groups", "scheme")):
        made.quantize(given, lambda scheme: "nearest")
    else:
        given.only("ignore", [[]], "whole inputs are scaled; leave mappings out instead")
        given.note("targets", "mappings decide")


def _wanda(given: Given, made: _Import) -> None:
    made.before_rounding(given)
    sparsity = given.take("sparsity", (int, float))
    mask = given.take("mask_structure", str, "0:0", ("0:0", "2:4"))
    if sparsity is None or not 0 <= sparsity < 1:
        raise given.refuse("sparsity", "one share for all layers is needed, at least 0 and less than 1")
    if mask == "2:4" and sparsity != 0.5:
        raise given.refuse("sparsity", "two of every four is 0.5")
    for key in ("sequential_update", "sequential_targets", "offload_hessians"):
        given.note(key, _RUN)
    given.only("owl_m", [], "all layers have one share")
    given.only("owl_lmbda", [], "all layers have one share")
    given.only("sparsity_profile", [], "all layers have one share")
    targets = given.texts("targets") or ["Linear"]
    ignore = given.texts("ignore")
    rules = [Pattern(rule_match(target, ignore, given)) for target in targets]
    kept = [name for name in _LAYERS if not any(rule.match(f"{name}.weight") for rule in rules)]
    if kept:
        raise given.refuse("targets", f"steps are for all layers of an input, and {kept[0]} is left out")
    made.steps.append("two_four" if mask == "2:4" else {"magnitude": {"fraction": float(sparsity), "weighted": True}})


def _roles(given: Given) -> str | None:
    """The inputs that `mappings` name, in their order; None where it is left out."""
    mappings = given.take("mappings", list)
    if mappings is None:
        return None
    found = []
    for i, mapping in enumerate(mappings):
        if isinstance(mapping, dict) and set(mapping) == {"smooth_layer", "balance_layers"}:
            mapping = [mapping["balance_layers"], mapping["smooth_layer"]]
        if not (isinstance(mapping, list) and len(mapping) == 2 and isinstance(mapping[0], list) and isinstance(mapping[1], str)):
            raise given.error(("mappings", str(i)), "it must be a list of layers and the one before them")
        patterns = [each for each in mapping[0] if isinstance(each, str)]
        hit = {role for name, role in _LAYERS.items() if any(_names(pattern, name) for pattern in patterns)}
        whole = {name for name, role in _LAYERS.items() if role in hit}
        if len(hit) != 1 or not all(any(_names(pattern, name) for pattern in patterns) for name in whole):
            raise given.error(("mappings", str(i)), "its layers are not all that read one input: q, k and v; o; gate and up; down")
        role = next(iter(hit))
        if not _names(mapping[1], _BEFORE[role]):
            raise given.error(("mappings", str(i)), f"what makes the input of {role} is {_BEFORE[role]} here")
        found.append(role)
    return " ".join(found)


def _names(pattern: str, name: str) -> bool:
    """Whether a target names a module of the first layer."""
    if pattern.startswith("re:"):
        try:
            return Pattern(pattern[3:]).match(name)
        except UsageError:
            return False
    return name == pattern or name.endswith(f".{pattern}")


_MODIFIERS: dict[str, Callable[[Given, _Import], None]] = {
    "QuantizationModifier": _quantization, "GPTQModifier": _gptq, "SmoothQuantModifier": _smoothquant, "AWQModifier": _awq,
    "WandaPruningModifier": _wanda,
}  # fmt: skip
_REFUSED = {
    "SparseGPTModifier": "SparseGPT moves weights while it prunes, which no step here does; WandaPruningModifier is known",
    "ConstantPruningModifier": "it trains with a fixed mask, and nothing is trained here; pruned weights stay zero in rounding anyway",
    "MagnitudePruningModifier": "it prunes while it trains, and nothing is trained here; WandaPruningModifier is known",
    "SpinQuantModifier": "its rotations differ from rotate_residual's; write a recipe of this tool with that step",
    "QuIPModifier": "its rotations differ from hadamard's; write a recipe of this tool with that step",
    "AutoRoundModifier": "its shifts are learned by block, signround's by layer; write a recipe of this tool with that rounding",
}
