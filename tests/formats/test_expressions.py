"""The grammar: what parses, what it means in bits, and what is refused, where and why."""

from __future__ import annotations

import copy
import pickle
from fractions import Fraction
from math import prod

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anybit.errors import FormatError, ShapeError
from anybit.formats import ALIASES, Format, Policy, Spec, named_formats, parse_element

SHAPE = (4096, 4096)
# Expression, bits a weight at 4096 x 4096; GGUF's and OCP's own figures among them.
SIZES = [
    ("int4@128", "4.125"), ("int4@128:bf16+zp", "4.15625"), ("int8@channel", "8.0078125"), ("int8@token", "8.0078125"),
    ("fp8_e4m3fn@128x128:fp32", "8.001953125"), ("mxfp4", "4.25"), ("msfp12", "4.5"), ("fp4_e2m1@16:ufp8_e5m3", "4.5"),
    ("ternary@256:fp16", "2.0625"), ("binary@128:fp16", "1.125"), ("nf4@64:fp8_e4m3fn@16384:fp32", "4.1328125"),
    ("int2@32x1:fp16+off", "3"), ("uint4@64:fp16+zp=fp16", "4.5"), ("uint4@128:fp16+zp", "4.15625"), ("q4_0", "4.5"), ("q4_1", "5"),
    ("q5_0", "5.5"), ("q5_1", "6"), ("q8_0", "8.5"), ("q2_k", "2.625"), ("q3_k", "3.4375"), ("q4_k", "4.5"), ("q5_k", "5.5"),
    ("q6_k", "6.5625"), ("iq4_nl", "4.5"), ("iq4_xs", "4.25"), ("iq4nl@32:fp16", "4.5"), ("iq4nl@32:int6@256:fp16", "4.25"),
    ("mxint8", "8.25"), ("fixed8_f6@32:e8m0", "8.25"), ("nf4_dq", "4.1328125"), ("nf4@64:dyn8@16384:fp32", "4.1328125"),
    ("posit8_es1@64", "8.25"), ("posit8@64", "8.25"), ("pot4_nz@64", "4.25"), ("pot4@64", "4.25"), ("pot6_k2@64", "6.25"),
    ("log6_f2@64", "6.25"), ("pow4_a0.5@channel", "4.0078125"), ("bipolar3@64", "3.25"), ("fixed8_f4", "8"), ("ufixed8_f4", "8"),
    ("fixed8_f4_k2", "7"), ("p3109_p3@32", "8.5"), ("codebook_-1_-0.5_0_0.5_1@64", "3.25"),
    ("mxfp6", "6.25"), ("mxfp8", "8.25"), ("bf16", "16"), ("fp32", "32"), ("int4", "4"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "bits"), SIZES)
def test_sizes(text: str, bits: str) -> None:
    assert Fraction(Format(text).size_bits(SHAPE), prod(SHAPE)) == Fraction(bits)


def test_sizes_that_ask_for_care() -> None:
    assert Format("nvfp4").size_bits(SHAPE) == prod(SHAPE) * 9 // 2 + 32
    assert Format("int8_sym@tensor").size_bits(SHAPE) == prod(SHAPE) * 8 + 32
    # Five trits a byte, rounded up to whole bits; each of 65,536 blocks has one scale.
    assert Format("ternary@256:fp16+pack=base3").size_bits(SHAPE) == -(-prod(SHAPE) * 8 // 5) + prod(SHAPE) // 256 * 16
    # A short last block has a whole scale, zero point and offset; missing leading sizes are 1; blocks do not run over rows.
    assert Format("int4@128").size_bits((3, 130)) == 3 * 130 * 4 + 3 * 2 * 16
    assert Format("int4@32:fp16+zp").size_bits((2, 5, 33)) == 330 * 4 + 20 * 20
    assert Format("uint4@32:uint6@256:fp16+off").size_bits((1, 300)) == 1200 + 10 * 12 + 2 * 32
    assert Format("uint4@32:uint6@256:fp16+off=int8").size_bits((1, 300)) == 1200 + 10 * 14 + 2 * 32
    assert Format("fp8_e4m3fn@128x128:fp32").size_bits((129, 257)) == 129 * 257 * 8 + 6 * 32
    assert Format("fp8_e4m3fn@128x128:fp32").size_bits((257,)) == 257 * 8 + 3 * 32
    assert Format("int4@allx32").size_bits((64, 64)) == 64 * 64 * 4 + 2 * 16
    assert Format("int4@128").size_bits((0, 128)) == 0
    with pytest.raises(ShapeError, match="at least one axis"):
        Format("int4").size_bits(())


@pytest.mark.parametrize(
    ("text", "limit"),
    [("int4@128", "33/8"), ("nvfp4", "9/2"), ("int8@channel", "8"), ("q6_k", "105/16"), ("q2_k", "21/8"), ("int2@32x1:fp16+off", "3"),
     ("ternary@256:fp16+pack=base3", "133/80"), ("fp8_e4m3fn@128x128:fp32", "4097/512"), ("int4@allx32", "4"), ("bf16", "16"),
     ("int8@128+nest=4.2", "65/8"), ("int8@128+nest=4.2+open=4", "33/8"), ("bf16+pack=escape", "1027/64")],
)  # fmt: skip
def test_bits_per_weight_is_the_limit(text: str, limit: str) -> None:
    fmt = Format(text)
    assert fmt.bits_per_weight == Fraction(limit)
    large = (1 << 20, 1 << 20)
    assert abs(Fraction(fmt.size_bits(large), prod(large)) - fmt.bits_per_weight) < Fraction(1, 10_000)


@pytest.mark.parametrize(
    ("text", "short", "explicit"),
    [
        ("int4@128", "int4@128", "int4@128:bf16"),
        ("INT4@128:BF16", "int4@128", "int4@128:bf16"),
        ("int8@channel", "int8@channel", "int8@channel:fp32"),
        ("int8@token:fp16", "int8@token:fp16", "int8@token:fp16"),
        ("nvfp4", "fp4_e2m1@16:fp8_e4m3fn@tensor", "fp4_e2m1@16:fp8_e4m3fn@tensor:fp32"),
        ("mxfp4", "fp4_e2m1@32:e8m0", "fp4_e2m1@32:e8m0"),
        ("int4@32+zp", "int4@32+zp", "int4@32:bf16+zp=int4"),
        ("uint4@32+zp=uint4", "uint4@32+zp", "uint4@32:bf16+zp=uint4"),
        ("uint4@64:fp16+zp=fp16", "uint4@64:fp16+zp=fp16", "uint4@64:fp16+zp=fp16"),
        ("q4_1", "uint4@32:fp16+off", "uint4@32:fp16+off=fp16"),
        ("int4@1x128", "int4@128", "int4@128:bf16"),
        ("int4@allx32:fp32", "int4@allx32:fp32", "int4@allx32:fp32"),
        ("fp8_e4m3ieee_b7@32", "fp8_e4m3@32", "fp8_e4m3@32:bf16"),
        ("fp4_e2m1none@32", "fp4_e2m1@32", "fp4_e2m1@32:bf16"),
        ("fp16_e5m10", "fp16", "fp16"),
        ("fp16_e8m7", "bf16", "bf16"),
        ("fp6_e3m2_b5_ns@32:e8m0", "fp6_e3m2_b5_ns@32:e8m0", "fp6_e3m2_b5_ns@32:e8m0"),
        ("codebook_-1.0_.5_1e-3_2e3@64", "codebook_-1_0.5_0.001_2000@64", "codebook_-1_0.5_0.001_2000@64:bf16"),
        ("posit8_es2@64", "posit8@64", "posit8@64:bf16"),
        ("POT6_K2@64", "pot6_k2@64", "pot6_k2@64:bf16"),
        ("pow4_a.50@channel", "pow4_a0.5@channel", "pow4_a0.5@channel:fp32"),
        ("mxint8", "fixed8_f6@32:e8m0", "fixed8_f6@32:e8m0"),
        ("nf4_dq", "nf4@64:dyn8@16384", "nf4@64:dyn8@16384:fp32"),
        ("p3109_k8_p3uf@tensor", "p3109_p3uf@tensor", "p3109_p3uf@tensor:fp32"),
        ("fixed08_f-04_k02@9", "fixed8_f-4_k2@9", "fixed8_f-4_k2@9:bf16"),
        ("ternary@256:fp16+pack=plain", "ternary@256:fp16", "ternary@256:fp16"),
        ("ternary@256:fp16+pack=base3", "ternary@256:fp16+pack=base3", "ternary@256:fp16+pack=base3"),
        ("int8@128+nest=4.2", "int8@128+nest=4.2", "int8@128:bf16+nest=4.2"),
        ("int8@128+open=4+nest=4.2", "int8@128+nest=4.2+open=4", "int8@128:bf16+nest=4.2+open=4"),
        ("int8@128+nest=4.2+open=8", "int8@128+nest=4.2", "int8@128:bf16+nest=4.2"),
        ("uint8@64+nest=4+zp+open=4", "uint8@64+zp+nest=4+open=4", "uint8@64:bf16+zp=uint8+nest=4+open=4"),
        ("bf16+pack=escape", "bf16+pack=escape", "bf16+pack=escape"),
    ],
)
def test_canonical_texts(text: str, short: str, explicit: str) -> None:
    fmt = Format(text)
    assert (str(fmt), fmt.explicit) == (short, explicit)
    assert fmt == Format(short) == Format(explicit) and hash(fmt) == hash(Format(explicit))
    assert pickle.loads(pickle.dumps(fmt)) == copy.deepcopy(fmt) == Format(fmt) == fmt


def test_equality_is_meaning() -> None:
    assert Format("int4@128") != Format("int4@128:fp16") and Format("int4@128") != "int4@128"
    assert Format("nvfp4").alias == "nvfp4" and Format("fp4_e2m1@32:e8m0").alias == "mxfp4" and Format("int4@128").alias is None
    assert Format("bf16").dense and Format("fp32").dense and not Format("int8").dense and not Format("int16@128").dense
    with pytest.raises(AttributeError):
        Format("int4@128").pack = "base3"  # type: ignore[misc]
    assert repr(Format("mxfp4")) == "Format('fp4_e2m1@32:e8m0')"


REFUSED = [
    ("fp4_e2m", "no format named 'fp4_e2m'; did you mean fp4_e2m1?"),
    ("mxfp5", "no format named 'mxfp5'; did you mean mxfp"),
    ("fp4_e2m@32", "fp4_e2m@32: no format named 'fp4_e2m' at position 0; did you mean fp4_e2m1?"),
    ("int4@12a", "int4@12a: '12a' is no block (tensor, channel, token, or sizes such as 128, 32x1, allx32) at position 5"),
    ("int4@", "a block expected, the expression ends at position 5"),
    ("int4@0", "'0' is no block"),
    ("int4@128x", "'128x' is no block"),
    ("int4@-3", "'-3' is no block"),
    ("int4@1x1x1x1x1x1x1x1x4", "at most 8"),
    ("int4@" + "9" * 5000, "is no block"),
    ("int4@128:", "a scale's element expected, the expression ends at position 9"),
    ("int4@128:bf16@", "a block expected, the expression ends at position 14"),
    ("int4:bf16", "a scale needs a block before it, as in int4@128:bf16 at position 4"),
    ("int4@128:bf16:fp32", "a scale of the scales bf16 needs '@' and a block after bf16 at position 13"),
    ("int4@128:bf15", "no format named 'bf15' at position 9; did you mean bf16"),
    ("int4@128:bf16@64", "a block of 64 does not hold whole blocks of 128"),
    ("int4@128:bf16@192", "at position 9"),
    ("int4@32x1:fp16@32:fp32", "does not hold whole blocks of 32x1"),
    ("int4@tensor:fp16@128:fp32", "does not hold whole blocks of tensor"),
    ("int4@128+foo", "no option named 'foo' at position 9; there is zp, off"),
    ("int4@128+", "an option expected"),
    ("int4@128+zpp", "no option named 'zpp' at position 9; did you mean zp?"),
    ("int4@128=3", "'=' not expected at position 8"),
    ("int4@128+zp+zp", "a second +zp at position 12"),
    ("int4+zp", "+zp needs a block"),
    ("nf4+off", "+off needs a block"),
    ("nf4@64+zp", "zero points need integer codes, and nf4 is none; use +off at position 7"),
    ("uint4@32:e8m0+off", "offsets need zero and a sign, which e8m0 cannot store"),
    ("uint4@32:fp16+off=uint4", "which uint4 cannot store"),
    ("int4@128+scale=mse", "+scale says how codes are chosen, not what they mean"),
    ("int4@128+nest=4.2", "nested widths of int4 are 1 to 3, not 4.2 at position 9"),
    ("int4@128+open=4", "only nested integers can be opened; write +nest=4+open=4 at position 9"),
    ("int8@128+nest=2.4", "nested widths fall, as in 4.2, unlike 2.4 at position 9"),
    ("int8@128+nest=4.4", "nested widths fall, as in 4.2, unlike 4.4"),
    ("int8@128+nest=4.", "'4.' is no list of widths in bits, as in nest=4.2+open=4 at position 14"),
    ("int8@128+nest", "'=' expected after nest at position 13"),
    ("int8@128+nest=4.2+open=4.2", "'4.2' is no width in bits"),
    ("int8@128+nest=4.2+open=3", "int8 is nested at 4, 2 and cannot be opened at 3 at position 18"),
    ("int8@128+open=3+nest=4", "cannot be opened at 3 at position 9"),
    ("int8+nest=4", "+nest needs a block, as in int8@128+nest=4 at position 5"),
    ("int8_sym@128+nest=4", "the top bits of a symmetric integer reach the value that it leaves out at position 13"),
    ("nf4@64+nest=2", "nesting needs integer codes such as int8 or uint8, not nf4 at position 7"),
    ("uint12@64+zp+nest=4", "nested integers with zero points have at most 8 bits, and uint12 has 12"),
    ("int4@128+pack=escape", "packs exponents of bf16 and of signed 8-bit floats, and int4 is neither at position 9"),
    ("int4@128+pack=base3", "packs 5 ternary codes a byte, and int4 is not ternary"),
    ("ternary@64+pack=base4", "no packing named 'base4' at position 16; did you mean base3?"),
    ("ternary@64+pack", "'=' expected after pack"),
    ("mxfp4@64", "mxfp4 is a whole format (fp4_e2m1@32:e8m0) and takes no block or scale of its own at position 5"),
    ("fp8_e4m2", "4 exponent, 2 mantissa and 1 sign bits are 7, not 8"),
    ("fp8_e4m2@32", "fp8_e4m2: 4 exponent, 2 mantissa"),
    ("fp10_e9m0", "at most 8 exponent"),
    ("fp1_e0m0", "no exponent and no mantissa bits"),
    ("fp4_e0m3ieee", "there are no exponent bits"),
    ("fp4_e0m3_ns", "all values are subnormal"),
    ("ufp8_e4m4fnuz", "an unsigned format does not have"),
    ("fp2_e1m0ieee", "no finite value but zero"),
    ("fp8_e5m2_b200", "float32's range"),
    ("fp8_e5m2_b-200", "float32's range"),
    ("fp16_e8m7none", "float32's range"),
    ("fp8_e4m3_b100000", "a bias of 100000 puts all values out of float32's range; the usual one is 7 at position 0"),
    ("fixed8_f1000000", "F of fixed8 lies between -120 and 70"),
    ("pow4_a-1", "no format named 'pow4_a-1'; did you mean pow4_a0.5?"),
    ("fp4_e2m1_b100", "below 2^-64"),
    ("int0", "integers have 1 to 16 bits, not 0"),
    ("int1_sym", "int1 is 0 and -1: without its least value only zero is left"),
    ("int17", "not 17"),
    ("uint0", "integers have 1 to 16 bits, not 0"),
    ("uint4_sym", "no negative side to make symmetric"),
    ("codebook", "an empty codebook"),
    ("codebook_", "an empty codebook"),
    ("codebook_1", "a codebook has 2 to 65536 entries, not 1"),
    ("codebook_1_1.0", "1 is in the codebook twice"),
    ("codebook_0_-0", "0 is in the codebook twice"),
    ("codebook_0_1__2", "'' is no number"),
    ("codebook_0_x", "'x' is no number"),
    ("codebook_0_1e999", "finite entries"),
    ("codebook_0_1e-30", "between 2^-64 and 2^64"),
    ("codebook_0_1e30", "between 2^-64 and 2^64"),
    ("codebook(-1,1)@64", "unexpected '('; expressions consist of"),
    ("int4 @3", "unexpected ' '"),
    ("int4@128\n", "unexpected '\\n'"),
    ("int４", "unexpected '４'"),
    ("", "an empty format"),
    ("@128", "an element expected, '@' found at position 0"),
    ("+", "an element expected"),
    ("nan", "no format named 'nan'"),
    ("int4_", "no format named 'int4_'; did you mean int4"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED, ids=[text[:30] for text, _ in REFUSED])
def test_refused(text: str, message: str) -> None:
    with pytest.raises(FormatError) as caught:
        Format(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("wrong", [None, 4, b"int4", ["int4"]])
def test_not_a_text(wrong: object) -> None:
    with pytest.raises(FormatError, match="a format is a text such as int4@128, not"):
        Format(wrong)  # type: ignore[arg-type]
    with pytest.raises(FormatError, match="an element is a text such as int4, not"):
        parse_element(wrong)  # type: ignore[arg-type]


def test_elements_by_themselves() -> None:
    with pytest.raises(FormatError, match=r"^no format named 'fp4_e2m'; did you mean fp4_e2m1\?$"):
        parse_element("fp4_e2m")
    with pytest.raises(FormatError, match=r"^fp8_e4m2: 4 exponent"):
        parse_element("fp8_e4m2")
    with pytest.raises(FormatError):
        parse_element("int4@128")
    assert parse_element("FP16_E5M10") is parse_element("fp16_e5m10") and parse_element("fp16_e5m10") == parse_element("fp16")


def test_specs() -> None:
    spec = Spec.parse("mxfp4+scale=mse+round=zero+over=error")
    assert spec.policy == Policy(scale="mse", round="zero", over="error") and spec.format == Format("mxfp4")
    assert str(spec) == "fp4_e2m1@32:e8m0+scale=mse+round=zero+over=error" and Spec.parse(str(spec)) == spec == Spec.parse(spec)
    assert Spec.parse(Format("int4@128")) == Spec.parse("int4@128") == Spec(Format("int4@128"))
    assert Spec.parse("mxfp4").scale_rule == "floor" and Spec.parse("mxfp4+scale=absmax").scale_rule == "absmax"
    assert Spec.parse("nvfp4").scale_rule == "absmax"
    for text, message in [
        ("mxfp4+round=sr33", "round=sr33: use one of nearest-even, nearest-away, nearest-zero, zero, up, down, odd, sr1 .. sr32"),
        ("mxfp4+round=sr+seed=x", "'x' is no seed (an integer from 0 to 2^64 - 1) at position 20"),
        ("mxfp4+round=even", "round=even: use one of nearest-even"),
        ("mxfp4+scale", "'=' expected after scale"),
        ("mxfp4+scale=", "a name for scale expected"),
        ("mxfp4+over=inf+over=nan", "a second +over"),
        ("mxfp4+ower=inf", "no option named 'ower' at position 6; did you mean over?"),
    ]:
        with pytest.raises(FormatError) as caught:
            Spec.parse(text)
        assert message in str(caught.value)
    with pytest.raises(FormatError, match="fp4_e2m1 has no infinity"):
        Spec.parse("mxfp4+over=inf").check()
    Spec.parse("int4@32+over=wrap").check()
    for text in ("mxfp4", "int4_sym@32", "nf4@64", "ternary@64"):
        with pytest.raises(FormatError, match=r"over=wrap: \w+ is no two's complement or unsigned number to wrap; use saturate"):
            Spec.parse(f"{text}+over=wrap").check()


def test_named_formats_all_parse() -> None:
    names = [n.name for n in named_formats()]
    assert len(names) == len(set(names)) and {"int4", "nf4", "mxfp4", "ternary", "binary", "e8m0", "bf16"} <= set(names)
    for named in named_formats():
        fmt = Format(named.name)
        assert named.about and "\n" not in named.about
        assert fmt == Format(named.expression)
        if named.blocked:
            assert fmt.alias == named.name and fmt.levels
        else:
            assert fmt.element.name == named.name and fmt.block is None
    assert set(ALIASES) <= set(names)


# Random expressions: the parts are valid by construction, so the whole is.
integers = st.integers(2, 16).flatmap(lambda n: st.sampled_from([f"int{n}", f"uint{n}", f"int{n}_sym"]))
minifloats = st.tuples(st.integers(1, 8), st.integers(1, 7), st.sampled_from(["", "ieee", "fn", "none"]), st.booleans()).map(
    lambda p: f"{'' if p[3] else 'u'}fp{p[0] + p[1] + p[3]}_e{p[0]}m{p[1]}{p[2] if p[0] < 8 else 'ieee'}"
).filter(lambda t: not t.endswith(("e1m1ieee", "e1m1")))  # fmt: skip
codebooks = st.lists(st.integers(-1000, 1000), min_size=2, max_size=20, unique=True).map(
    lambda v: "codebook_" + "_".join(str(x / 8) for x in v)
)
scalars = st.one_of(
    st.tuples(st.integers(3, 9), st.integers(0, 4)).map(lambda p: f"posit{p[0]}_es{p[1]}"),
    st.tuples(st.sampled_from(["", "u"]), st.integers(1, 16), st.integers(-60, 60)).map(lambda p: f"{p[0]}fixed{p[1]}_f{p[2]}"),
    st.integers(2, 7).flatmap(lambda n: st.sampled_from([f"pot{n}", f"pot{n}_nz", f"pot{n + 2}_k3", f"bipolar{n}", f"log{n + 1}_f2"])),
    st.tuples(st.integers(2, 8), st.integers(100, 3000)).map(lambda p: f"pow{p[0]}_a{p[1] / 1000}"),
    st.tuples(st.integers(5, 9), st.integers(2, 4), st.sampled_from(["", "f", "u"])).map(lambda p: f"p3109_k{p[0]}_p{p[1]}{p[2]}"),
)
elements = st.one_of(integers, minifloats, codebooks, scalars, st.sampled_from(["nf4", "ternary", "binary", "e8m0", "fp16", "bf16"]))
scales = st.sampled_from(["fp16", "bf16", "uint6", "e8m0", "fp8_e4m3fn", "fp32", "ufp8_e5m3", "int8"])


@st.composite
def formats(draw: st.DrawFn) -> str:
    text = draw(elements)
    if not draw(st.booleans()):
        return text
    sizes = draw(st.one_of(st.sampled_from(["tensor", "channel", "token"]), st.lists(st.integers(1, 300), min_size=1, max_size=3)))
    if isinstance(sizes, str):
        text += "@" + sizes
        outer = [draw(st.sampled_from(["tensor"] if sizes == "tensor" else ["tensor", "channel", "allxall"])) for _ in range(2)]
        outer = ["tensor", "tensor"] if outer[0] == "tensor" else [outer[0], "tensor"]
    else:
        text += "@" + "x".join(map(str, sizes))
        larger = [n * draw(st.integers(1, 8)) for n in sizes]
        outer = ["x".join(map(str, larger)), draw(st.sampled_from(["tensor", "x".join(["all"] * len(sizes))]))]
    depth = draw(st.integers(0, 2))
    for i in range(depth):
        text += ":" + draw(scales)
        if i < depth - 1 or draw(st.booleans()):
            text += "@" + outer[i]
    return text


@settings(max_examples=400, deadline=None)
@given(formats())
def test_random_expressions_round_trip(text: str) -> None:
    fmt = Format(text)
    for again in (str(fmt), fmt.explicit, text.upper()):
        assert Format(again) == fmt
    assert str(Format(str(fmt))) == str(fmt) and Format(fmt.explicit).explicit == fmt.explicit
    shape = (30, 70)
    bits = fmt.size_bits(shape)
    assert bits >= 30 * 70 * fmt.element.bits
    assert fmt.block is not None or bits == 30 * 70 * fmt.element.bits
    assert str(Spec.parse(text + "+scale=mse")) == str(fmt) + "+scale=mse"


@settings(max_examples=600, deadline=None)
@given(
    st.one_of(
        st.text(max_size=30),
        st.text(alphabet="abcdefimnopuvxz0123456789._-@:+=x", max_size=40),
        st.tuples(formats(), st.integers(0, 60), st.text(alphabet="@:+=_-x9ae.", min_size=1, max_size=2)).map(
            lambda p: p[0][: p[1]] + p[2] + p[0][p[1] :]
        ),
        st.tuples(formats(), st.integers(0, 60)).map(lambda p: p[0][: p[1]] + p[0][p[1] + 1 :]),
    )
)
def test_anything_else_is_a_format_error_or_a_format(text: str) -> None:
    try:
        fmt = Format(text)
    except FormatError as error:
        assert "\n" not in str(error)
        return
    assert Format(str(fmt)) == fmt and fmt.size_bits((3, 5)) > 0
