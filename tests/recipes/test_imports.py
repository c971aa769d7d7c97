"""Recipes of llm-compressor and quantization_config: what they say becomes a recipe, and what cannot be said is refused with its line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import anybit
from anybit.errors import FileFormatError
from anybit.formats import Format, Spec
from anybit.methods.awq import AWQ
from anybit.methods.gptq import Gptq
from anybit.methods.nearest import Nearest
from anybit.methods.outlier_columns import OutlierColumns
from anybit.methods.prune import TwoFour
from anybit.methods.smoothquant import SmoothQuant
from anybit.methods.static_activations import StaticActivations
from anybit.recipes.plan import make_plan
from anybit.recipes.schema import Recipe, load_recipe
from anybit.recipes.schemes import PRESETS

MATRICES = [f"self_attn.{c}_proj" for c in "qkvo"] + [f"mlp.{c}_proj" for c in ("gate", "up", "down")]
NAMES = [f"model.layers.{i}.{part}" for i in range(12) for part in MATRICES]
ALL = [*NAMES, "lm_head", "model.embed_tokens"]


def read(tmp_path: Path, text: str, name: str = "recipe.yaml") -> Recipe:
    (tmp_path / name).write_text(text)
    return load_recipe(tmp_path / name)


def quantized(recipe: Recipe) -> set[str]:
    """Modules that a recipe rounds."""
    found = {name: recipe.rule_of(f"{name}.weight") for name in ALL}
    return {name for name, rule in found.items() if rule is not None and rule.spec is not None}


def modifier(body: str, name: str = "GPTQModifier") -> str:
    return f"quant_stage:\n  quant_modifiers:\n    {name}:\n" + "".join(f"      {line}\n" for line in body.split("\n"))


def test_gptq_with_config_groups(tmp_path: Path) -> None:
    """As published models carry it."""
    recipe = read(tmp_path, """
quant_stage:
  quant_modifiers:
    GPTQModifier:
      sequential_update: true
      dampening_frac: 0.1
      ignore: [lm_head]
      config_groups:
        group_0:
          weights: {num_bits: 4, type: int, symmetric: true, strategy: group, group_size: 128,
            observer: mse}
          targets: [Linear]
""")  # fmt: skip
    (rule,) = recipe.rules
    assert rule.spec == Spec.parse("int4@128+scale=lp2.4") and rule.act is None
    assert rule.rounding == Gptq(damp=0.1, order="activation", importance=False, block=128)
    assert quantized(recipe) == set(NAMES)
    assert recipe.notes == (
        "quant_stage.quant_modifiers.GPTQModifier.sequential_update is not taken over: it says how the run is done, not what comes out",
    )
    assert recipe.name == "recipe" and recipe.about and recipe.source == "llm-compressor"


def test_smoothquant_before_gptq(tmp_path: Path) -> None:
    recipe = read(tmp_path, """
quant_stage:
    quant_modifiers:
        SmoothQuantModifier:
            smoothing_strength: 0.8
            mappings: [
                [["re:.*q_proj", "re:.*k_proj", "re:.*v_proj"], "re:.*input_layernorm"],
                [["re:.*gate_proj", "re:.*up_proj"], "re:.*post_attention_layernorm"]
            ]
        GPTQModifier:
            ignore: ["lm_head"]
            config_groups:
                group_0:
                    weights: {num_bits: 8, type: "int", symmetric: true, strategy: "channel"}
                    input_activations: {num_bits: 8, type: "int", symmetric: true, dynamic: true, strategy: "token"}
                    targets: ["Linear"]
""")  # fmt: skip
    assert recipe.steps == (SmoothQuant(roles="qkv gate_up", alpha=0.8),)
    assert recipe.rules[0].spec == Spec.parse("int8@channel+scale=full") and recipe.rules[0].act == "int8_sym@token"


def test_two_modifiers_that_round(tmp_path: Path) -> None:
    recipe = read(tmp_path, r"""
quant_stage:
  quant_modifiers:
    AWQModifier:
      duo_scaling: true
      mappings:
        - smooth_layer: "re:.*input_layernorm$"
          balance_layers: ["re:.*q_proj$", "re:.*k_proj$", "re:.*v_proj$"]
    QuantizationModifier:
      ignore: ["lm_head", "re:.*layers\\.3\\..*"]
      scheme: "W4A16"
      targets:
        - "re:.*self_attn\\.(k|q|o|v)_proj$"
    GPTQModifier:
      ignore: ["lm_head"]
      scheme: "W8A8"
      targets:
        - "re:.*mlp\\.(down|gate|up)_proj$"
      block_size: 128
      dampening_frac: 0.001
      actorder: null
""")  # fmt: skip
    assert recipe.steps == (AWQ(roles="qkv", duo=True),)
    attention, mlp, ignored = (
        recipe.rule_of(f"model.layers.{n}.weight") for n in ("1.self_attn.o_proj", "3.mlp.up_proj", "3.self_attn.q_proj")
    )
    assert attention is not None and attention.rounding == Nearest() and str(attention.spec) == "int4@128+scale=full"
    assert mlp is not None and mlp.rounding == Gptq(damp=0.001, order="natural", importance=False)
    assert ignored is None and quantized(recipe) == {n for n in NAMES if "layers.3.self" not in n}


def test_targets_are_looked_up_as_compressed_tensors_does(tmp_path: Path) -> None:
    """Names before patterns before classes; `$` is the module's end; a pattern begins at the beginning; ignored names are exact."""
    groups = """config_groups:
  W8A16: [Linear]
  W2A16: ['re:model.layers.[13]..*']
  UNQUANTIZED: ['re:.*down_pro[j$]$']
  W6A16: [model.layers.1.mlp.up_proj]
ignore: [model.layers.1, 're:layers', model.layers.2.mlp.up_proj]"""
    recipe = read(tmp_path, modifier(groups, "QuantizationModifier"))

    def bits(name: str) -> int | None:
        rule = recipe.rule_of(f"{name}.weight")
        return None if rule is None or rule.spec is None else rule.spec.format.element.bits

    assert bits("model.layers.1.mlp.up_proj") == 6 and bits("model.layers.3.mlp.up_proj") == 2 and bits("lm_head") == 8
    assert bits("model.layers.1.self_attn.q_proj") == 2 and bits("model.layers.2.mlp.gate_proj") == 8
    assert bits("model.layers.11.self_attn.q_proj") == 2, "the letter after [13] is any"
    assert bits("model.layers.2.self_attn.q_proj") == 8, "a pattern begins at the module's beginning: layers alone ignores nothing"
    assert bits("model.layers.1.mlp.down_proj") == 2 and bits("model.layers.4.mlp.down_proj") is None
    assert bits("model.layers.2.mlp.up_proj") is None and bits("model.embed_tokens") is None


FORMATS = {
    "W8A16": ("int8@128", None), "W3A16": ("int3@128", None), "W4A16_ASYM": ("uint4@128+zp", None), "w4a16": ("int4@128", None),
    "W4A8": ("int4@128", "int8_sym@token"), "W3A4": ("int3@128", "int4_sym@token"), "INT8": ("int8@channel", "int8_sym@token"),
    "W4AFP8": ("int4@128", "fp8_e4m3fn@token"), "FP8": ("fp8_e4m3fn@tensor", "fp8_e4m3fn@tensor"),
    "FP8_DYNAMIC": ("fp8_e4m3fn@channel", "fp8_e4m3fn@token"), "FP8_BLOCK": ("fp8_e4m3fn@128x128", "fp8_e4m3fn@128"),
    "NVFP4": ("nvfp4", "nvfp4"), "NVFP4A16": ("nvfp4", None), "MXFP4": ("mxfp4", "mxfp4"), "MXFP4A16": ("mxfp4", None),
    "MXFP6A8": ("mxfp6_e2m3", "mxfp8"), "MXFP4XFP8": ("mxfp4", "fp8_e4m3fn@128"), "MXFP8": ("mxfp8", "mxfp8"), "MXFP8A16": ("mxfp8", None),
}  # fmt: skip


@pytest.mark.parametrize("scheme", FORMATS)
def test_schemes_by_name(scheme: str, tmp_path: Path) -> None:
    """The presets' table, written down by hand; every one has kernels."""
    recipe = read(tmp_path, modifier(f"scheme: {scheme}\nignore: [lm_head]\ntargets: Linear", "QuantizationModifier"))
    weight, act = FORMATS[scheme]
    spec = recipe.rules[0].spec
    assert spec is not None and spec.format == Format(weight)
    got = recipe.rules[0].act
    assert (got is None) == (act is None) and (act is None or Spec.parse(str(got)).format == Format(act))
    assert recipe.steps == ((StaticActivations(),) if scheme in ("FP8", "NVFP4") else ())
    spec_of_model = anybit.load("pycoder-5m").spec
    assert make_plan(recipe, spec_of_model).choices.keys() == {
        t.name for t in spec_of_model.tensors if t.role == "linear" and "lm_head" not in t.name
    }  # fmt: skip


def test_every_preset_is_read(tmp_path: Path) -> None:
    for name in PRESETS:
        recipe = read(tmp_path, modifier(f"scheme: {name}", "QuantizationModifier"))
        assert (recipe.rules[0].spec is None) == (name == "UNQUANTIZED")


def test_presets_are_those_of_compressed_tensors() -> None:
    """Where that library is installed: every field that says something, for every preset that it has too."""
    library = pytest.importorskip("compressed_tensors.quantization.quant_scheme")
    shared = set(library.PRESET_SCHEMES) & set(PRESETS)
    assert len(shared) >= 15
    for name in shared:
        theirs = library.preset_name_to_scheme(name, ["Linear"])
        for part in ("weights", "input_activations"):
            a, b = getattr(theirs, part), PRESETS[name].get(part)
            assert (a is None) == (b is None), (name, part)
            if a is None or b is None:
                continue
            dynamic = a.dynamic.value if hasattr(a.dynamic, "value") else a.dynamic
            found = (a.num_bits, a.type, a.symmetric, a.strategy, a.group_size, a.block_structure, dynamic)
            mine = (
                b["num_bits"],
                b["type"],
                b["symmetric"],
                b["strategy"],
                b.get("group_size"),
                b.get("block_structure"),
                b.get("dynamic", False),
            )
            assert found == mine, (name, part)


def test_pruning_and_a_cache(tmp_path: Path) -> None:
    text = """
sparsity_stage:
  run_type: oneshot
  sparsity_modifiers:
    WandaPruningModifier: {sparsity: 0.5, mask_structure: "2:4", targets: [Linear], ignore: ["re:.*lm_head"]}
quantization_stage:
  quantization_modifiers:
    QuantizationModifier:
      ignore: ["re:.*lm_head"]
      config_groups: {a: {targets: [Linear], weights: {num_bits: 8, strategy: tensor, symmetric: true}}}
      kv_cache_scheme: {num_bits: 8, type: float, symmetric: true, strategy: token, dynamic: true}
"""
    recipe = read(tmp_path, text)
    assert recipe.steps == (TwoFour(weighted=True),) and quantized(recipe) == set(NAMES)
    assert recipe.kv_cache is not None and str(recipe.kv_cache.keys) == "fp8_e4m3fn@token"


WEIGHTS = (
    "config_groups:\n  g:\n    targets: [Linear]\n    weights: {num_bits: 4, type: int, symmetric: true, strategy: group, group_size: 64}"
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (modifier("scheme: W4A16", "SparseGPTModifier"), "line 3: @SparseGPTModifier: SparseGPT moves weights"),
        (modifier("scheme: W4A16", "FooModifier"), "line 3: @FooModifier: this modifier is not known"),
        (modifier("scheme: W4A17"), 'line 4: @GPTQModifier.scheme: "W4A17": no such scheme'),
        (modifier("scheme: W4A16\nschemes: 1"), "line 5: @GPTQModifier.schemes: this key is not known; did you mean scheme?"),
        (modifier("ignore: [lm_head]"), "line 3: @GPTQModifier: neither scheme nor config_groups"),
        (modifier("scheme: W4A16\nactorder: group"), 'line 5: @GPTQModifier.actorder: "group": another order of columns'),
        (modifier("scheme: W4A16\ntargets: [LlamaAttention]"), "line 5: @GPTQModifier.targets"),
        (modifier("scheme: W4A16\ntargets: ['re:(']"), "no regular expression"),
        (modifier("scheme: W4A16\nkv_cache_scheme: {num_bits: 8, type: float, strategy: tensor}"), "line 5: quant_stage.quant_modifiers"
         ".GPTQModifier.kv_cache_scheme: caches have a scale for each token"),
        (modifier(WEIGHTS.replace("64}", "64, foo: 1}")), "line 7: @GPTQModifier.config_groups.g.weights.foo:"),
        (modifier(WEIGHTS + "\n    output_activations: {num_bits: 8}"), "line 8: @GPTQModifier.config_groups.g.output"),
        (modifier(WEIGHTS + "\n    input_activations: {num_bits: 8, symmetric: false, strategy: token, dynamic: true}"), "no zero points"),
        (modifier(WEIGHTS + "\n    input_activations: {num_bits: 8, strategy: tensor, dynamic: true}"), "a token's result depend on"),
        (modifier(WEIGHTS.replace("int,", "float,").replace("num_bits: 4", "num_bits: 5")), "floats of this file are E2M1 of 4 bits"),
        (modifier(WEIGHTS.replace("64}", "64, observer: foo}")), "no scale rule here stands for it"),
        (modifier("scheme: W4A16\nsequential_targets: [x]\nblock_size: 512"), 'line 6: @GPTQModifier.block_size: 512'),
        (modifier("duo_scaling: both", "AWQModifier"), "one form of scales is searched here"),
        (modifier("smoothing_strength: 0.5\nmappings: [[['re:.*q_proj'], 're:.*input_layernorm']]", "SmoothQuantModifier"),
         "line 5: @SmoothQuantModifier.mappings.0: its layers are not all that read one input"),
        (modifier("smoothing_strength: 0.5", "SmoothQuantModifier"), "line 1: the file: no modifier rounds anything"),
        (modifier("scheme: W4A16") + "    SmoothQuantModifier: {}\n", "line 5: @SmoothQuantModifier: it"),
        (modifier("scheme: W4A16") + "    QuantizationModifier: {scheme: W8A8}\n", "@QuantizationModifier: two"),
        ("quant_stage:\n  run_type: train\n", 'line 2: quant_stage.run_type: "train": only oneshot'),
        ("quant_stage:\n  foo: {}\n", "line 2: quant_stage.foo: neither a stage, a group of modifiers nor a modifier"),
        ("quant_stage: 3\n", "line 1: quant_stage: must be a mapping, not 3"),
    ],
)  # fmt: skip
def test_what_cannot_be_said_is_refused_with_its_line(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(FileFormatError) as error:
        read(tmp_path, text)
    said = message.replace("@", "quant_stage.quant_modifiers.")
    assert said in str(error.value) and "recipe.yaml: line " in str(error.value) and "\n" not in str(error.value)


def config(tmp_path: Path, whole: bool = True, **keys: Any) -> Recipe:
    value = {"model_type": "llama", "quantization_config": keys} if whole else keys
    return read(tmp_path, json.dumps(value, indent=2), "config.json")


def test_a_checkpoint_of_compressed_tensors(tmp_path: Path) -> None:
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 128, "block_structure": None,
               "dynamic": False, "actorder": "static", "observer": "minmax", "observer_kwargs": {}}  # fmt: skip
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None, "format": "pack-quantized"}
    recipe = config(
        tmp_path, quant_method="compressed-tensors", config_groups={"group_0": group}, ignore=["lm_head"], kv_cache_scheme=None,
        format="pack-quantized", quantization_status="compressed", version="0.20.0", sparsity_config={}, transform_config={},
    )  # fmt: skip
    assert recipe.rules[0].spec == Spec.parse("int4@128+scale=full") and recipe.rules[0].rounding == Gptq()
    assert quantized(recipe) == set(NAMES) and any("how codes were chosen" in note for note in recipe.notes)
    with pytest.raises(FileFormatError, match=r"config.json: line 5: quantization_config.transform_config: .*no recipe here stands for it"):
        config(tmp_path, quant_method="compressed-tensors", transform_config={"config_groups": {}}, config_groups={"a": group})


def test_gptq(tmp_path: Path) -> None:
    recipe = config(
        tmp_path, quant_method="gptq", bits=4, group_size=32, desc_act=True, static_groups=True, sym=False, damp_percent=0.05,
        true_sequential=True, lm_head=False, checkpoint_format="gptq", dataset="c4",
        dynamic={r"+:.*\.down_proj$": {"bits": 8, "group_size": 64}, r"-:.*\.layers\.2\..*": {}},
    )  # fmt: skip
    down, kept, rest = (recipe.rule_of(f"model.layers.{n}.weight") for n in ("2.mlp.down_proj", "2.mlp.up_proj", "3.mlp.up_proj"))
    assert down is not None and down.spec == Spec.parse("uint8@64:fp16+zp") and kept is not None and kept.spec is None
    assert rest is not None and rest.spec == Spec.parse("uint4@32:fp16+zp")
    assert rest.rounding == Gptq(damp=0.05, order="activation", importance=False) and recipe.calibration.sequential == "group"
    assert quantized(recipe) == {n for n in NAMES if "layers.2." not in n or "down" in n}
    assert "quantization_config.dataset is not taken over: calibration text is given by --calibration" in recipe.notes
    assert str(config(tmp_path, False, quant_method="gptq", bits=3, group_size=-1).rules[0].spec) == "int3@channel:fp16+scale=full"


def test_awq_bitsandbytes_and_fp8(tmp_path: Path) -> None:
    recipe = config(
        tmp_path, quant_method="awq", bits=4, group_size=128, zero_point=True, version="gemm", modules_to_not_convert=["layers.1"]
    )
    assert recipe.steps == (AWQ(duo=True, clip=True),) and recipe.rules[0].spec == Spec.parse("uint4@128:fp16+zp")
    assert quantized(recipe) == {n for n in NAMES if "layers.1." not in n}, "layers.11 is another"
    recipe = config(tmp_path, quant_method="bitsandbytes", load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                    bnb_4bit_compute_dtype="bfloat16", load_in_8bit=False, llm_int8_threshold=6.0)  # fmt: skip
    assert recipe.rules[0].spec == Spec.parse("nf4_dq") and quantized(recipe) == set(NAMES)
    assert sum("double_quant" in note or "compute_dtype" in note for note in recipe.notes) == 2
    recipe = config(
        tmp_path, quant_method="bitsandbytes", load_in_8bit=True, llm_int8_threshold=4.0, llm_int8_skip_modules=["lm_head", "mlp"]
    )
    assert recipe.steps == (OutlierColumns(threshold=4.0),) and recipe.rules[0].act == "int8_sym@token"
    assert quantized(recipe) == {n for n in NAMES if "mlp" not in n}
    recipe = config(tmp_path, quant_method="fp8", activation_scheme="dynamic", weight_block_size=[128, 128], fmt="e4m3")
    assert recipe.rules[0].spec == Spec.parse("fp8_e4m3fn@128x128:fp32") and recipe.rules[0].act == "fp8_e4m3fn@128:fp32"
    recipe = config(tmp_path, quant_method="fp8", activation_scheme="static")
    assert recipe.steps == (StaticActivations(),) and recipe.rules[0].act == "fp8_e4m3fn@tensor"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"quant_method": "hqq"}, 'line 4: quantization_config.quant_method: "hqq": there is compressed-tensors, gptq, awq'),
        ({"bits": 4}, "line 1: the file: neither a quantization_config nor a config.json with one"),
        ({"quant_method": "gptq", "bits": 4, "desc_act": True}, "line 6: quantization_config.desc_act: true: columns in another order"),
        ({"quant_method": "gptq", "bits": 9}, "line 5: quantization_config.bits: 9: 2 to 8 bits"),
        ({"quant_method": "gptq", "bits": "4"}, 'line 5: quantization_config.bits: "4": it must be int'),
        ({"quant_method": "gptq", "bits": 4, "bitz": 3}, "line 6: quantization_config.bitz: this key is not known; did you mean bits?"),
        ({"quant_method": "gptq", "dynamic": {"+:(": {}}}, "no regular expression"),
        ({"quant_method": "gptq", "dynamic": {"+:a": {"bit": 3}}}, "line 7: quantization_config.dynamic.+:a.bit: this key is not known"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "quantization_config.bnb_4bit_quant_type: null: this FP4 is a list"),
        ({"quant_method": "bitsandbytes"}, "one of load_in_8bit and load_in_4bit must be true"),
        ({"quant_method": "fp8", "fmt": "e5m2"}, 'line 5: quantization_config.fmt: "e5m2": E4M3 alone'),
        ({"quant_method": "fp8", "weight_block_size": [128]}, "it must be two sizes"),
        ({"quant_method": "awq", "group_size": 0}, "line 5: quantization_config.group_size: 0: it must be a block's length"),
        ({"quant_method": "compressed-tensors"}, "quantization_config.config_groups: at least one group is needed"),
    ],
)
def test_a_configuration_that_cannot_be_had_is_refused_with_its_line(keys: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(FileFormatError) as error:
        config(tmp_path, **keys)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_an_import_quantizes_as_its_recipe_does(tmp_path: Path) -> None:
    """Codes, against those of a recipe of this tool with the same words."""
    from anybit.recipes.quantize import quantize_recipe
    from anybit.recipes.schema import parse_recipe

    small = {"calibration": {"sequences": 2, "length": 32}}
    theirs = read(tmp_path, modifier("scheme: W4A16\nignore: [lm_head, 're:.*mlp.*']"))
    theirs = parse_recipe(json.loads(theirs.text) | small, "theirs")
    mine = parse_recipe({
        "version": 1, **small,
        "rules": [{"match": "self_attn", "format": "int4@128+scale=full", "rounding": {"gptq": {"importance": False}}}],
    }, "mine")  # fmt: skip
    for name, recipe in (("a", theirs), ("b", mine)):
        quantize_recipe("pycoder-5m", tmp_path / name, recipe)
    a, b = (anybit.load(tmp_path / name).linears for name in ("a", "b"))
    assert {n for n, linear in a.items() if not linear.weight.format.dense} == {n for n in a if "self_attn" in n}
    assert all((a[n].weight.dequantize() == b[n].weight.dequantize()).all() for n in a)


def test_names_of_layers_are_those_of_the_families() -> None:
    """The modules that mappings are looked up in are a model's own."""
    from anybit.recipes.llmcompressor import _BEFORE, _LAYERS

    spec = anybit.load("pycoder-5m").spec
    names = {t.name.removesuffix(".weight") for t in spec.tensors}
    assert set(_LAYERS) | set(_BEFORE.values()) <= names
