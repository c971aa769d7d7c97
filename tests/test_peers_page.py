"""docs/peers.md is what bench/peers_differ.py runs; the libraries that are installed for tests are asked again."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


def script() -> ModuleType:
    name = "peers_differ"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, ROOT / "bench" / "peers_differ.py")
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def test_the_page_lists_the_claims_of_the_script() -> None:
    text = (ROOT / "docs" / "peers.md").read_text(encoding="utf-8")
    rows = set(re.findall(r"^\| `([\w-]+)` \| ([\w-]+) ([\d.]+) \|", text, re.MULTILINE))
    assert rows == {(claim.name, claim.package, claim.tested) for claim in script().CLAIMS}
    for _, package, number in rows:
        assert f"{package}=={number}" in text


TESTED_HERE = [claim for claim in script().CLAIMS if claim.package in ("torch", "ml_dtypes", "gfloat")]


@pytest.mark.parametrize("claim", TESTED_HERE, ids=lambda claim: claim.name)
def test_claims_hold_where_the_library_is_installed(claim: object) -> None:
    row = script().run(claim)
    if row["verdict"] == "not installed":
        pytest.skip(f"{row['package']} is not installed")
    assert row["verdict"] in ("differs", "agrees in this version"), row


def test_a_claim_that_is_not_true_is_said_so() -> None:
    module = script()
    right = next(claim for claim in module.CLAIMS if claim.name == "ml_dtypes-e8m0-ties")
    same = module.Claim("x", right.package, module.version(right.package), "", right.right, lambda: right.right, right.ours)
    assert module.run(same)["verdict"] == "no longer differs"
    wrong = module.Claim("x", right.package, right.tested, "", [1.0, 1.0], right.theirs, right.ours)
    assert module.run(wrong)["verdict"] == "anybit is wrong"
    assert module.run(module.Claim("x", "no-such-package", "1", "", [1.0], list, list))["verdict"] == "not installed"
