from pathlib import Path
from typing import Any

import pytest

from anybit.errors import FileFormatError, UnknownNameError
from anybit.formats import Spec
from anybit.methods.nearest import Nearest
from anybit.recipes import strict_yaml
from anybit.recipes.schema import Recipe, load_recipe, named, parse_recipe

RULE = "version: 1\nrules: [{match: layers, format: int4@32}]\n"


def parsed(text: str) -> Recipe:
    return parse_recipe(strict_yaml.parse(text, "r.yaml"), "r.yaml")


def test_a_recipe_is_read_as_it_is_written(tmp_path: Path) -> None:
    text = """
version: 1
name: mixed
source: here
calibration: {sequences: 5, length: 33, seed: 2, sequential: group}
rules:
  - {match: lm_head, keep: true}
  - {match: 'down_proj', format: int6@64+scale=wmse, rounding: {nearest: {importance: true}}, act: int8@token}
  - {match: layers, format: mxfp4, act: float}
kv_cache: {k: int8@32, stage: pre_rope}
gates: {max_kl: 0.5, min_top1: 0.25}
allocation: {bits: 4.25, formats: [int4@32, int8@32], cost: hawq}
nonfinite: saturate
"""
    (tmp_path / "r.yaml").write_text(text)
    r = load_recipe(tmp_path / "r.yaml")
    assert (r.name, r.source, r.calibration.sequential, r.gates.max_kl) == ("mixed", "here", "group", 0.5)
    assert r.kv_cache is not None and str(r.kv_cache.keys) == "int8@32" and r.kv_cache.values is None and r.kv_cache.stage == "pre_rope"
    assert r.rule_of("lm_head.weight") is r.rules[0] and r.rules[0].spec is None
    down = r.rule_of("model.layers.3.mlp.down_proj.weight")
    assert down is not None and down.rounding == Nearest(importance=True) and down.act == "int8@token"
    assert down.spec == Spec.parse("int6@64+scale=wmse+nonfinite=saturate")
    other = r.rule_of("model.layers.3.mlp.up_proj.weight")
    assert other is not None and other.act is None and other.spec == Spec.parse("mxfp4+nonfinite=saturate")
    assert r.rule_of("model.norm.weight") is None
    assert r.allocation is not None and r.allocation.formats == ("int4@32", "int8@32")
    (tmp_path / "s.yml").write_text(text.replace("version: 1\n", "").replace("nonfinite: saturate", "version: 1\nnonfinite: saturate"))
    assert load_recipe(str(tmp_path / "s.yml")).digest == r.digest, "the order of keys does not count"
    (tmp_path / "t.yaml").write_text(text + "about: nothing that it does\nmeasured: {kl: 0.5, model: x}\n")
    other_words = load_recipe(tmp_path / "t.yaml")
    assert other_words.digest == r.digest and other_words.measured == {"kl": 0.5, "model": "x"}
    assert parsed(RULE).digest != r.digest


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("version: 2", "r.yaml: 'version' is 2; this anybit reads version 1"),
        ("rules: []", "'version' is null"),
        ("version: 1", "'rules' is missing or empty"),
        ("- 1", "must be a mapping, not [1]"),
        (RULE + "rulez: 1", "no key 'rulez'; did you mean rules?"),
        (RULE.replace("format", "formt"), "rules[0]: no key 'formt'; did you mean format?"),
        (RULE.replace("int4@32", "int4@0"), "rules[0]: 'format': int4@0: '0' is no block"),
        (RULE.replace("match: layers", "match: '('"), "rules[0]: 'match' is no regular expression"),
        (RULE.replace("match: layers, ", ""), "rules[0]: 'match' is missing"),
        (RULE.replace("format: int4@32", "keep: false"), "rules[0]: give either 'format' or 'keep: true'"),
        (RULE.replace("}", ", keep: true}"), "rules[0]: give either 'format' or 'keep: true'"),
        (RULE.replace("format: int4@32", "keep: true, act: int8"), "'act' says nothing of a matrix that is kept"),
        (RULE.replace("}", ", rounding: neerest}"), "no step named 'neerest'; did you mean nearest?"),
        (RULE.replace("}", ", rounding: {nearest: {importanc: true}}}"), "no option 'importanc'; did you mean importance?"),
        (RULE.replace("}", ", rounding: {nearest: {importance: 1}}}"), "rules[0]: rounding: nearest: 'importance' is 1; it must be bool"),
        (RULE.replace("}", ", rounding: [nearest]}"), "must be a name, or a name with its options"),
        (RULE.replace("}", ", corrections: [nearest]}"), "nearest is no correction but a rounding"),
        (RULE + "steps: [nearest]", "steps[0]: nearest is no step of the model or step of a group but a rounding"),
        (RULE.replace("}", ", act: int0}"), "rules[0]: 'act'"),
        (RULE + "gates: {max_kl: -1}", "gates: 'max_kl' is -1; it must be a number of nats"),
        (RULE + "gates: {min_top1: 2}", "gates: 'min_top1' is 2"),
        (RULE + "gates: {max_kl: true}", "gates: 'max_kl' is true"),
        (RULE + "calibration: {sequences: 0}", "calibration: 'sequences' is 0; it must be a whole number of at least 1"),
        (RULE + "calibration: {sequential: layer}", "'sequential' is \"layer\"; it must be block or group"),
        (RULE + "kv_cache: {k: int8@0}", "r.yaml: kv_cache: int8@0"),
        (RULE + "kv_cache: {key: int8@32}", "kv_cache: no key 'key'"),
        (RULE + "kv_cache: {k: int8@32, stage: late}", "kv_cache: stage=late of a cache is none of post_rope, pre_rope"),
        (RULE + "nonfinite: maybe", "'nonfinite' is \"maybe\""),
        (RULE + "allocation: {bits: 4}", "allocation: 'formats' and a budget are needed"),
        (RULE + "allocation: {bits: 4, formats: [int4@32]}", "'formats' is [\"int4@32\"]"),
        (RULE + "allocation: {bits: 4, formats: [int4@32, int5@x]}", "allocation: formats[1]"),
        ("a: 1\na: 2", "r.yaml: line 2, column 1: key 'a' stands here twice"),
        ("a: &x 1\nb: *x", "r.yaml: line 1, column 4: anchors and aliases are not allowed"),
        ("a: !!python/object/apply:os.system [x]", "tag tag:yaml.org,2002:python/object/apply:os.system is not allowed"),
        ("<<: {a: 1}", "a key must be plain text"),
        ("[" * 40, "nested deeper than 16"),
        ("[" + "1," * 30_000 + "1]", "more than 5000 values"),
        ("a: [1", "line 1, column 6: no YAML"),
        ("\x00", "no YAML"),
        ("a: 1\n---\nb: 1", "line 2, column 1: no YAML: but found another document"),
    ],
)
def test_what_is_wrong_is_said(text: str, message: str) -> None:
    with pytest.raises(FileFormatError) as error:
        parsed(text)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_the_line_is_said(tmp_path: Path) -> None:
    rules = "  - {match: layers, format: int4@32}\n  - match: head\n    format: int4@32\n"
    text = f"version: 1\nrules:\n{rules}    rounding:\n      nearest: {{importance: "
    wrong = {
        text + "2}": "r.yaml: line 7: rules[1]: rounding: nearest: 'importance' is 2",
        text.replace("head", "'('") + "true}": "r.yaml: line 4: rules[1]: 'match' is no regular expression",
        text.replace("    format: int4@32", "    format: int4@0") + "true}": "r.yaml: line 5: rules[1]: 'format': int4@0",
        text + "true}\ngates:\n  max_kl: -1\n": "r.yaml: line 9: gates: 'max_kl' is -1",
        text + "true}\nrulez: 1\n": "r.yaml: line 8: no key 'rulez'",
        "\n\n[1]\n": "r.yaml: line 1: it must be a mapping",
        "version: 1\nname: " + "9" * 5000: "r.yaml: line 2, column 7: no YAML",
        "version: 1\n\x07": "r.yaml: line 2: no YAML: special characters are not allowed",
    }
    for content, message in wrong.items():
        (tmp_path / "r.yaml").write_text(content)
        with pytest.raises(FileFormatError) as error:
            load_recipe(tmp_path / "r.yaml")
        assert message in str(error.value)


def test_files_are_bounded(tmp_path: Path) -> None:
    (tmp_path / "big.yaml").write_bytes(b"#" * (1 << 20) + b"\n")
    (tmp_path / "odd.yaml").write_bytes(b"name: \xff")
    for name, message in (("big", "larger than 1048576 bytes"), ("odd", "byte 6 is not UTF-8"), ("none", "No such file")):
        with pytest.raises(FileFormatError) as error:
            load_recipe(tmp_path / f"{name}.yaml")
        assert message in str(error.value)


def test_named_recipes_open_and_near_names_are_offered() -> None:
    for name in named():
        recipe = load_recipe(name)
        assert recipe.name == name and recipe.about and recipe.source
    with pytest.raises(UnknownNameError, match=r"no recipe named 'nearest-int5'; did you mean nearest-int"):
        load_recipe("nearest-int5")


def test_plain_values_stay_plain() -> None:
    value: Any = strict_yaml.parse("{a: 2026-11-21, b: null, c: 1e3, d: .5, e: yes, f: '1'}", "x")
    assert value == {"a": "2026-11-21", "b": None, "c": "1e3", "d": 0.5, "e": True, "f": "1"}
