"""Expressions of recipes: the answers of `re`, in a time that no expression can blow up."""

from __future__ import annotations

import re
import time
import warnings
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from anybit.errors import FileFormatError, UsageError
from anybit.recipes.pattern import MAX_LENGTH, Pattern
from anybit.recipes.schema import load_recipe

ONE = (
    "a", "b", "A", ".", r"\.", r"\d", r"\w", r"\s", "[ab]", "[^a]", "[a-c1]", "[]a]", r"[\]a]", "[^]]", r"\x61", r"\u0062", "^", "$", r"\b",
    r"\B", r"\A", r"\Z", "{", "}", "a{,b", "", "(?#x)", "\u00e9", "\u017f",
)  # fmt: skip
REPEATS = ("*", "+", "?", "*?", "+?", "??", "{2}", "{1,2}", "{,2}", "{1,}", "{,}", "{2,3}?", "{0}")
EXPRESSIONS = st.recursive(
    st.sampled_from(ONE),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda two: f"(?:{two[0]}|{two[1]})"),
        st.tuples(st.sampled_from(("(", "(?:", "(?i:", "(?=", "(?!")), inner).map(lambda two: f"{two[0]}{two[1]})"),
        st.tuples(st.sampled_from(("(", "(?:")), inner, st.sampled_from(REPEATS)).map(lambda three: f"{three[0]}{three[1]}){three[2]}"),
    ),
    max_leaves=12,
)


@settings(max_examples=1500, deadline=None)
@given(EXPRESSIONS, st.lists(st.text("abcAB1.}\n s\u00e9\u017f", max_size=9), min_size=1, max_size=6), st.booleans())
@example("(?:a|$)*b", ["aab"], False)
@example("(?:|a){3}b", ["ab", "aab", "b"], False)
def test_the_answers_are_those_of_re(text: str, names: list[str], ignoring_case: bool) -> None:
    text = f"(?i){text}" if ignoring_case else text
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            theirs = re.compile(text)
        except re.error:
            with pytest.raises(UsageError, match="is no regular expression"):
                Pattern(text)
            return
        ours = Pattern(text)
    for name in names:
        assert (ours.search(name), ours.match(name)) == (bool(theirs.search(name)), bool(theirs.match(name)))


HOSTILE = (
    "(a+)+b", "(a|a)*b", "(a*)*b", "(a|aa)+$b", "(.*a){20}b", "(x+x+)+y", "^(([a-z])+.)+[A-Z]([a-z])+$", "(a?){60}a{60}b", ".*" * 30 + "z",
    "((a*)*)*b", "(?:(?:(?:a|b)*c?)*d?)*!", "(?=(a+)+b)a", "(?:(?:(?:(?:a{1,99}){1,99}){1,99}){1,99})b", "((((a?){9}){9}){9}){9}b",
    "(?:a|(?=a)|a?){1000}b", "(a{1000}){1000}", "(?:(?!b)(?:(?!b)(?:(?!b)a*)*)*)*c", "(a+)*" * 40 + "b", "^(\\w+\\.?)+-$", "(?i:(A|a)+)+b",
)  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_no_expression_takes_long(text: str) -> None:
    begun = time.process_time()
    found = [Pattern(text).search(name) for name in ("a" * 100, "a" * 1000, "aq" * 300, "model.layers.12.self_attn.q_proj.weight" * 3)]
    assert not any(found)
    assert time.process_time() - begun < 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (r"(a)\1", r"has a back reference at character 4, which is not taken here"),
        ("(?P<n>a)(?P=n)", "has a back reference at character 9"),
        ("(?<=a)b", "has looking behind at character 1"),
        ("(?<!a)b", "has looking behind"),
        ("(a)?(?(1)b|c)", "has a condition at character 5"),
        ("(?s:a)", "has flags other than i"),
        ("(?x)a", "has flags other than i"),
        ("(" * 33 + ")" * 33, "has a group more than 32 deep"),
        ("a" * (MAX_LENGTH + 1), "has 4097 characters, 4096 at most"),
        ("(" * 2000 + ")" * 2000, "(is no regular expression|has a group more than 32 deep)"),
        ("a{99999999999}", "is no regular expression"),
        ("(", "is no regular expression: missing \\)"),
    ],
)
def test_what_is_left_out_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Pattern(text)


def test_a_recipe_says_where(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("version: 1\nname: x\nrules:\n  - match: '(l)\\1'\n    format: int4@32\n")
    with pytest.raises(FileFormatError, match=r"r\.yaml: line 4: rules\[0\]: 'match' has a back reference at character 4"):
        load_recipe(file)
    file.write_text("version: 1\nname: x\nrules:\n  - match: '(l+)+!'\n    format: int4@32\n  - {match: layers, format: int4@64}\n")
    begun = time.process_time()
    found = load_recipe(file).rule_of("l" * 200 + "ayers")
    assert found is not None and str(found.spec) == "int4@64" and time.process_time() - begun < 1
