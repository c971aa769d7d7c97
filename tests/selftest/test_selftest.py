"""The self-test passes on what is right, and each part of it fails on something deliberately wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from anybit.cli import main as cli
from anybit.cli.commands import selftest as command
from anybit.errors import FileFormatError, OutputError, UsageError
from anybit.formats import Element, parse_element
from anybit.kernels import cpu
from anybit.layouts import LAYOUTS
from anybit.layouts.rows import Rows
from anybit.layouts.tile import Tile16x4
from anybit.reference import linear
from anybit.reference.rational import Rational
from anybit.reference.steps import Steps, patterns
from anybit.selftest import Check, Step, WrongError, certificate, elements, products, quick, run, storage
from anybit.selftest import patterns as all_patterns
from anybit.tensor import QTensor


@dataclass(frozen=True)
class Mutant(Element):
    """Another element with one mistake: what `decode` or `encode` gives is passed through a function."""

    of: Element
    decoding: Callable[[np.ndarray, np.ndarray], np.ndarray] = lambda codes, values: values
    encoding: Callable[[np.ndarray, np.ndarray, str], np.ndarray] = lambda x, codes, mode: codes

    @property
    def fields(self) -> dict[str, Any]:
        return self.of.fields

    def decode(self, codes: Any) -> np.ndarray:
        return self.decoding(np.asarray(codes), self.of.decode(codes))

    def encode(self, x: Any, round: str = "nearest-even", over: str = "saturate", nonfinite: str = "error") -> np.ndarray:
        return self.encoding(np.asarray(x), self.of.encode(x, round, over, nonfinite), round)


def mutant(name: str, **change: Any) -> Mutant:
    return Mutant(name, parse_element(name).bits, parse_element(name), **change)


def at(pattern: int, code: int) -> Callable[[np.ndarray, np.ndarray, str], np.ndarray]:
    """An encoding with one float32 pattern wrong."""
    return lambda x, codes, mode: np.where(x.astype(np.float32).view(np.uint32) == pattern, codes.dtype.type(code), codes)


patterns_encode = all_patterns.encode


def encode_wrong(monkeypatch: pytest.MonkeyPatch, pattern: int, code: int) -> None:
    """What --full judges, with one float32 pattern wrong."""
    right = patterns_encode
    monkeypatch.setattr(all_patterns, "encode", lambda t, x: at(pattern, code)(x, right(t, x), t.round))


def bits_of(value: float) -> int:
    return int(np.float32(value).view(np.uint32))


def test_right_elements_pass() -> None:
    names = ("fp4_e2m1", "int4_sym", "nf4", "fp5_e3m1", "binary", "ternary", "uint3", "fp8_e4m3fnuz", "fp6_e3m2_b5_ns")
    for turn, name in enumerate(names):
        element = parse_element(name)
        assert elements.decode_step(element) == 2 << element.bits
        assert elements.encode_step(element, turn) > 4 * elements.halves().size * 0.5


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (mutant("fp4_e2m1", decoding=lambda c, v: np.where(c == 5, 2.5, v)), "code 5 decodes to 2.5, not 3; 1 of 16 differ"),
        (mutant("int4", decoding=lambda c, v: np.where(v < 0, v + 16, v)), "code 8 decodes to 8, not -8; 8 of 16"),
        (mutant("fp8_e4m3fn", decoding=lambda c, v: np.where(c == 0xFF, -480.0, v)), "code 255 decodes to -480, not nan"),
        (mutant("fp8_e4m3fn", decoding=lambda c, v: v + 0.0), "code 128 decodes to 0, not -0"),
        (mutant("int4_sym", decoding=lambda c, v: np.where(c == 8, -8.0, v)), "code 8 decodes to -8, not -7"),
    ],
    ids=["a value", "unsigned", "a special", "minus zero", "the unused code"],
)
def test_wrong_values_are_found(wrong: Mutant, says: str) -> None:
    with pytest.raises(WrongError) as caught:
        elements.decode_step(wrong)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (mutant("fp4_e2m1", encoding=lambda x, c, m: np.where(np.abs(x) == 2.5, c | 1, c)), "2.5 with round=nearest-even"),
        (mutant("fp4_e2m1", encoding=at(bits_of(0.25) + 1, 0)), "0.2500000298023224 with round=nearest-even"),
        (mutant("fp4_e2m1", encoding=lambda x, c, m: np.where((x == 0) & (c == 8), 0, c)), "-0.0 with round="),
        (mutant("int8", encoding=lambda x, c, m: np.where(x > 2**31, 0, c)), "is code 0, not 127"),
        (mutant("fp8_e5m2", encoding=lambda x, c, m: np.where(np.abs(x) < 2.0**-14, c & 0x80, c)), "is code "),
        (mutant("nf4", encoding=lambda x, c, m: c if m == "nearest-even" else np.minimum(c + 1, 15)), "with round="),
    ],
    ids=["ties away", "one number", "sign of zero", "wraps far away", "subnormals flushed", "another mode"],
)
def test_wrong_codes_are_found(wrong: Mutant, says: str) -> None:
    with pytest.raises(WrongError) as caught:
        elements.encode_step(wrong, 0)
    assert says in str(caught.value)


def test_disagreeing_references_are_found() -> None:
    fields = parse_element("fp4_e2m1").fields
    exact = Rational(fields)
    exact.code_of[exact.finite[3]] ^= 1
    assert list(Steps(fields, "nearest-even", "saturate").disagreements(exact))
    assert not list(Steps(fields, "nearest-even", "saturate").disagreements(Rational(fields)))


class WrongRows(Rows):
    def pack(self, fmt: Any, shape: Any, logical: Any) -> dict[str, np.ndarray]:
        stored = super().pack(fmt, shape, logical)
        return stored | {"codes": stored["codes"][..., ::-1]}


class ShortRows(Rows):
    def unpack(self, fmt: Any, shape: Any, stored: Any) -> dict[str, np.ndarray]:
        parts = super().unpack(fmt, shape, stored)
        codes = parts["codes"].copy()
        codes[..., 1000:] = 0
        return parts | {"codes": codes}


class SwappedTiles(Tile16x4):
    """Packs and unpacks consistently, but not as described."""

    def pack(self, fmt: Any, shape: Any, logical: Any) -> dict[str, np.ndarray]:
        stored = super().pack(fmt, shape, logical)
        return stored | {"codes": (stored["codes"] >> 4) | (stored["codes"] << 4)}

    def unpack(self, fmt: Any, shape: Any, stored: Any) -> dict[str, np.ndarray]:
        return super().unpack(fmt, shape, {**stored, "codes": (stored["codes"] >> 4) | (stored["codes"] << 4)})


@pytest.mark.parametrize(
    ("layout", "wrong", "step", "says"),
    [
        ("rows", WrongRows(), storage.rows_step, "do not lie as the layout says"),
        ("rows", ShortRows(), storage.rows_step, "1023 codes of 4 bits do not come back"),
        ("tile16x4", SwappedTiles(), storage.tile_step, "do not lie as the layout says"),
    ],
    ids=["reversed bytes", "dropped tail", "swapped nibbles"],
)
def test_wrong_packing_is_found(monkeypatch: pytest.MonkeyPatch, layout: str, wrong: Any, step: Any, says: str) -> None:
    assert step(4) > 0
    monkeypatch.setitem(LAYOUTS._items, layout, wrong)
    with pytest.raises(WrongError, match=says):
        step(4)


def test_wrong_products_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    for isa in cpu.native.supported_isas():
        assert products.native_step("nvfp4", 0, isa) > 0 and products.exact_step("nvfp4", 0) > 0
    right, reference, values = QTensor.matmul, linear.matmul_operands, QTensor.dequantize

    def off_by_one_bit(self: QTensor, x: Any, act: str | None = None, bias: Any = None) -> np.ndarray:
        y = right(self, x, act, bias)
        y.view(np.uint32)[-1, -1] ^= 1
        return y

    with monkeypatch.context() as patch:
        patch.setattr(QTensor, "matmul", off_by_one_bit)
        with pytest.raises(WrongError, match=r"activations float, 1 thread\(s\): \[2, 17\] is .*; 1 of 54 differ"):
            products.native_step("nvfp4", 0, cpu.isa())
    with monkeypatch.context() as patch:
        patch.setattr(QTensor, "dequantize", lambda self: values(self) * np.float32(1 + 2.0**-23))
        with pytest.raises(WrongError, match="dequantized weights"):
            products.native_step("nvfp4", 0, cpu.isa())
    with monkeypatch.context() as patch:
        patch.setattr(linear, "matmul_operands", lambda x, w, act=None: reference(x, w, act) * np.float32(1 + 2.0**-12))
        with pytest.raises(WrongError, match=r"activations float: output \[\d, \d\] is "):
            products.exact_step("int8@channel", 0)


def test_every_step_of_the_quick_checks_is_named_and_weighs() -> None:
    checks = quick.quick_checks()
    assert {"decode", "encode", "packing", "product", f"kernels {cpu.isa()}"} <= {check.name for check in checks}
    assert all(step.weight > 0 and step.label for check in checks for step in check.steps)


def test_failures_are_collected_and_nothing_compared_is_no_pass() -> None:
    def wrong() -> int:
        raise WrongError("a\nb")

    def breaks() -> int:
        raise IndexError("out of range")

    seen: list[tuple[int, str]] = []
    steps = [Step("one", wrong), Step("two", breaks, 3), Step("three", lambda: 5)]
    first, second = run([Check("x", "", steps), Check("y", "", [Step("z", lambda: 0)])], lambda weight, label: seen.append((weight, label)))
    assert first.failures == ["one: a b", "two: IndexError: out of range"] and first.compared == 5 and not first.passed
    assert not second.passed and [weight for weight, _ in seen] == [1, 3, 1, 1]


# ---------------------------------------------------------------------------------------------- all patterns
def test_steps_know_every_pattern() -> None:
    """Runs between steps are the codes of patterns, on either side of zero and of switch points."""
    for name in ("fp4_e2m1", "int8", "codebook_-3_1_0.25_2", "fp8_e5m2"):
        steps = Steps(parse_element(name).fields, "nearest-even", "saturate")
        for first in (0, bits_of(1.0), bits_of(-3.0), 1 << 31, bits_of(100.0)):
            codes = np.full(1 << 16, -2)
            for start, stop, code in steps.runs(first, 1 << 16):
                assert (codes[start:stop] == -2).all()
                codes[start:stop] = code
            x = np.arange(first, first + (1 << 16), dtype=np.uint64).astype(np.uint32).view(np.float32)
            assert np.array_equal(codes, steps.encode(x)) and np.array_equal(codes, parse_element(name).encode(x))


SHORT = 1 << 22
TARGETS = ("fp8_e4m3fn", "fp8_e5m2+over=inf", "fp4_e2m1+round=odd", "int8+nonfinite=saturate", "e8m0+over=nan", "fp8_e4m3fnuz+round=up")


@pytest.mark.parametrize("name", TARGETS)
def test_patterns_around_one_zero_infinity_and_nan(name: str) -> None:
    t = all_patterns.target(name)
    steps = Steps(t.element.fields, t.round, t.over)
    all_patterns.judge_steps(steps, t.element)
    count = 1 << 14
    special = (0, 0x7F800000 - count, 0x7F800000, 0x7FC00000, 1 << 31, 0xFF800000 - count, 0xFF800000, (1 << 32) - count)
    for first in (*special, bits_of(1.0), bits_of(-448.0)):
        assert all_patterns.compare_chunk(t, steps, first, count)[1:] == (0, "")


def test_one_wrong_pattern_of_all_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Anywhere: an ordinary number, NaN, infinity, minus zero."""
    steps = Steps(parse_element("fp8_e4m3fn").fields, "nearest-even", "saturate")
    t = all_patterns.Target(parse_element("fp8_e4m3fn"), "nearest-even", "saturate", "propagate")
    for pattern in (0x00012345, 0x7F800000, 0x7FABCDEF, 0xFF800000, 0x80000000):
        encode_wrong(monkeypatch, pattern, 0x11)
        first = pattern & ~((1 << 16) - 1)
        _, wrong, line = all_patterns.compare_chunk(t, steps, first, 1 << 16)
        assert wrong == 1 and f"pattern 0x{pattern:08x}) is code 17" in line


def test_judging_counts_and_digests(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    row = all_patterns.judge(all_patterns.target("fp4_e2m1"), 2, lambda n, note: seen.append(n), SHORT)
    assert (row["patterns"], row["wrong"], row["first_wrong"], sum(seen)) == (SHORT, 0, None, SHORT // all_patterns.CHUNK)
    assert row["digest"] == all_patterns.judge(all_patterns.target("fp4_e2m1"), 1, None, SHORT)["digest"]
    encode_wrong(monkeypatch, 5, 7)
    other = all_patterns.judge(all_patterns.target("fp4_e2m1"), 2, None, SHORT)
    assert other["wrong"] == 1 and other["digest"] != row["digest"] and "pattern 0x00000005" in other["first_wrong"]


@pytest.mark.parametrize(
    ("text", "says"),
    [("mxfp4", "give an element without block or scale, as fp4_e2m1"), ("fp32", "up to 16 bits"), ("int8+over=error", "can be judged")],
)
def test_formats_that_cannot_be_judged(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        all_patterns.target(text)


# ---------------------------------------------------------------------------------------------- the command
@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer elements, no products, few patterns."""
    monkeypatch.setattr(quick, "built_in", lambda: ([parse_element("fp4_e2m1")], ["fp32: 2^32 codes"]))
    monkeypatch.setattr(quick, "product_checks", list)
    monkeypatch.setattr(quick, "storage_checks", list)
    monkeypatch.setattr(all_patterns, "judge", partial(all_patterns.judge, last=SHORT))
    monkeypatch.setattr(all_patterns, "PATTERNS", SHORT)


def call(*args: str, code: int = 0) -> str:
    found = CliRunner().invoke(cli.main, ["selftest", "--no-progress", *args], catch_exceptions=False, standalone_mode=True)
    assert found.exit_code == code, found.output
    return found.stdout


def test_the_command_says_what_it_did(small: None) -> None:
    lines = call().splitlines()
    assert lines[0].startswith("ok    decode") and "left out: fp32: 2^32 codes" in lines[0]
    assert lines[1].startswith("ok    encode") and lines[-1] == "everything is as defined"
    found = json.loads(call("--json"))
    assert found["passed"] and [row["name"] for row in found["checks"]] == ["decode", "encode"] and "formats" not in found


def test_the_command_fails_when_an_element_is_wrong(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = mutant("fp4_e2m1", decoding=lambda c, v: np.where(c == 5, 2.5, v))
    monkeypatch.setattr(quick, "built_in", lambda: ([wrong], []))
    lines = call(code=1).splitlines()
    assert lines[0].startswith("FAIL  decode") and lines[1] == "      fp4_e2m1: code 5 decodes to 2.5, not 3; 1 of 16 differ"
    assert lines[-1].startswith("something is not as defined")
    assert json.loads(call("--json", code=1))["passed"] is False


def test_full_writes_a_certificate_and_goes_on_from_it(small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.json"
    call("--full", "--format", "fp4_e2m1", "--certificate", str(path))
    first = json.loads(path.read_text())
    assert first["kind"] == certificate.KIND and first["source"] == certificate.source_digest() and first["machine"]["cpu"]
    assert [(row["patterns"], row["wrong"], row["steps"]) for row in first["formats"]] == [(SHORT, 0, 18)]
    text = call("--full", "--format", "fp4_e2m1", "--format", "int4+round=zero", "--certificate", str(path))
    assert "from the certificate" in text.splitlines()[2] and "from the certificate" not in text.splitlines()[3]
    second = json.loads(path.read_text())
    assert second["formats"][0] == first["formats"][0] and len(second["formats"]) == 2
    monkeypatch.setattr(certificate, "source_digest", lambda: "another")  # other code: nothing that was found before counts
    assert "from the certificate" not in call("--full", "--format", "fp4_e2m1", "--certificate", str(path))
    assert [item.name for item in tmp_path.iterdir()] == ["c.json"]


def test_full_fails_on_one_wrong_number(small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode_wrong(monkeypatch, 77, 7)
    found = json.loads(call("--full", "--format", "fp4_e2m1", "--certificate", str(tmp_path / "c.json"), "--json", code=1))
    assert found["formats"][0]["wrong"] == 1 and not found["passed"]


def test_an_interrupt_leaves_what_was_finished(small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, judge = tmp_path / "c.json", all_patterns.judge

    def interrupted(t: Any, *more: Any) -> Any:
        if t.element.name == "int4":
            raise KeyboardInterrupt
        return judge(t, *more)

    monkeypatch.setattr(all_patterns, "judge", interrupted)
    found = CliRunner().invoke(cli.main, ["selftest", "--full", "--format", "fp4_e2m1", "--format", "int4", "--certificate", str(path)])
    assert found.exit_code != 0
    assert [row["expression"].split("+")[0] for row in json.loads(path.read_text())["formats"]] == ["fp4_e2m1"]


def test_places_and_options_that_are_refused(small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "quick", lambda *_: pytest.fail("refused before the minute of work, not after it"))
    other = tmp_path / "other.json"
    other.write_text('{"a": 1}')
    for args, kind, says in [
        (("--format", "int4"), UsageError, "--format goes with --full"),
        (("--full", "--format", "int4@32"), UsageError, "give an element without block"),
        (("--full", "--format", "fp4_e2m1", "--certificate", str(other)), FileFormatError, "no certificate of anybit"),
        (("--full", "--format", "fp4_e2m1", "--certificate", str(tmp_path / "no" / "c.json")), OutputError, "cannot write"),
    ]:
        with pytest.raises(kind, match=says):
            CliRunner().invoke(cli.main, ["selftest", "--no-progress", *args], catch_exceptions=False)
    assert other.read_text() == '{"a": 1}'
    assert command.command.name == "selftest" and patterns(np.array([(1 << 31) - 1]))[0] == 0x80000000
