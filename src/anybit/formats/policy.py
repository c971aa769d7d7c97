"""Policy and Spec: how codes are chosen, beside what they mean."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields, replace

from anybit.errors import FormatError
from anybit.formats.format import Format
from anybit.formats.rounding import NONFINITES, OVERS, check_choice, stochastic_bits
from anybit.formats.stochastic import check_round, check_seed

AUTO = "auto"


@dataclass(frozen=True)
class Policy:
    """How codes are chosen.

    scale: the name of a scale rule (absmax, floor, mse, lp2.4 ...: docs/expressions.md); "auto" is floor for E8M0 scales, mse for
        elements of at most two bits (absmax would spend their few values on the extremes) and for those of several weights a code (whose
        outermost values are few), and absmax for all others.
    round, over, nonfinite, seed: as in Element.encode; the seed is of stochastic rounding alone, and a value's place in its array is what
        else decides (so two arrays of one seed see the same bits; the tensors of a model do not: `Spec.for_tensor`). FormatError: an
        unknown name, a seed of more than 64 bits.

    >>> str(Policy(round="sr", seed=7))
    '+round=sr24+seed=7'
    """

    scale: str = AUTO
    round: str = "nearest-even"
    over: str = "saturate"
    nonfinite: str = "error"
    seed: int = 0

    def __post_init__(self) -> None:
        check_round(self.round)
        check_seed(self.seed)
        if self.round == "sr":
            object.__setattr__(self, "round", "sr24")
        check_choice("over", self.over, OVERS)
        check_choice("nonfinite", self.nonfinite, NONFINITES)

    def __str__(self) -> str:
        """`+scale=mse+round=zero`: what differs from the defaults."""
        return "".join(f"+{f.name}={getattr(self, f.name)}" for f in fields(self) if getattr(self, f.name) != f.default)


@dataclass(frozen=True)
class Spec:
    """What quantize() is told: a format and a policy.

    >>> str(Spec.parse("mxfp4+scale=mse"))
    'fp4_e2m1@32:e8m0+scale=mse'
    """

    format: Format
    policy: Policy = Policy()

    @classmethod
    def parse(cls, text: str | Format | Spec) -> Spec:
        """A Spec from an expression, a Format (default policy) or a Spec. FormatError: an expression that does not parse."""
        if isinstance(text, Spec):
            return text
        if isinstance(text, Format):
            return cls(text)
        from anybit.formats.parse import parse_spec

        return parse_spec(text)

    def __str__(self) -> str:
        return f"{self.format}{self.policy}"

    def for_tensor(self, name: str) -> Spec:
        """This spec with the seed that a model's tensor of this name has under stochastic rounding; itself under any other.

        The seed is the first 8 bytes, least significant first, of SHA-256 of the policy's own (8 bytes, least significant first) and the
        name in UTF-8. With one seed for all of them the values at one place of every tensor would be rounded by the same bits, and the
        errors of layers would be correlated.

        >>> Spec.parse("int4@32+round=sr+seed=7").for_tensor("lm_head.weight").policy.seed
        6191653840889904234
        """
        if stochastic_bits(self.policy.round) is None:
            return self
        digest = hashlib.sha256(int(self.policy.seed).to_bytes(8, "little") + name.encode()).digest()
        return replace(self, policy=replace(self.policy, seed=int.from_bytes(digest[:8], "little")))

    @property
    def scale_rule(self) -> str:
        """The name of the scale rule, with "auto" resolved."""
        if self.policy.scale != AUTO:
            return self.policy.scale
        levels = self.format.levels
        plain = self.format.zero is None and self.format.offset is None
        if not plain or not levels:
            return "absmax"
        if levels[0].element.name == "e8m0":
            return "floor"
        element = self.format.element
        return "mse" if not element.learned and (element.bits <= 2 or element.dim > 1) else "absmax"

    @property
    def policy_text(self) -> str | None:
        """How codes are chosen, for the record: the policy with the scale rule by its name; None: nothing but defaults, and no scales.

        >>> Spec.parse("int4@32").policy_text, Spec.parse("mxfp4+round=zero").policy_text, Spec.parse("bf16").policy_text
        ('+scale=absmax', '+scale=floor+round=zero', None)
        """
        policy = self.policy if self.format.block is None else replace(self.policy, scale=self.scale_rule)
        return str(policy) or None

    def check(self) -> None:
        """Raises FormatError if the element cannot serve the policy (over=inf without an infinity)."""
        self.format.element.check_policy(self.policy.round, self.policy.over, self.policy.nonfinite)
        if self.policy.nonfinite == "propagate" and self.format.zero is not None:
            raise FormatError("nonfinite=propagate needs codes for NaN, which integers with zero points do not have")
