"""CacheSpec: the number formats that keys and values are kept in between tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from anybit.errors import FormatError, NoKernelError, UsageError
from anybit.formats import Spec

STAGES = ("post_rope", "pre_rope")
_KEYS = ("k", "v", "stage", "sinks", "window")


@dataclass(frozen=True)
class CacheSpec:
    """Formats of keys and values; None: float32.

    The key and the value of each head and token are arrays of their own: blocks lie along the head's dimension, "token" is the whole of it.
    stage: keys are stored after rotary embedding, or before it and turned whenever they are read (their channels keep their meaning then).
    sinks, window: multiples of 64, the length of a tile: a query sees tiles that begin below `sinks`, and of the tiles up to its own the
    last window / 64, in float32. They are held beside the codes while they are needed.

    >>> CacheSpec.parse("k=int8@64,v=int4@32,stage=pre_rope").text
    'k=int8@64:bf16,v=int4@32:bf16,stage=pre_rope'
    """

    keys: Spec | None = None
    values: Spec | None = None
    stage: str = "post_rope"
    sinks: int = 0
    window: int = 0

    def __post_init__(self) -> None:
        if self.stage not in STAGES:
            raise UsageError(f"stage={self.stage} of a cache is none of {', '.join(STAGES)}")
        for name, value in (("sinks", self.sinks), ("window", self.window)):
            if type(value) is not int or not 0 <= value <= 1 << 20 or value % 64:
                raise UsageError(f"{name}={value} of a cache is no multiple of 64 up to 2^20")

    @classmethod
    def parse(cls, text: str | None) -> CacheSpec | None:
        """None and "float": float32. "int8@64": keys and values. "k=int8@64,v=float,stage=pre_rope": each by itself.

        UsageError: another form. FormatError: no such format. NoKernelError: the cache cannot hold it.
        """
        if text in (None, "float"):
            return None
        assert text is not None
        if "k=" not in text and "v=" not in text:
            text = f"k={text},v={text}"
        fields: dict[str, Any] = {}
        for part in text.split(","):
            name, _, value = part.partition("=")
            if name not in _KEYS or name in fields or not value:
                raise UsageError(f"cache '{text}' is a format, or k=FORMAT,v=FORMAT with stage, sinks, window; '{part}' is neither")
            fields[name] = int(value) if name in ("sinks", "window") and value.isdecimal() else value
        return cls.of(fields)

    @classmethod
    def of(cls, fields: Mapping[str, Any], elements: Any = None) -> CacheSpec:
        """From the keys k, v, stage, sinks, window, of which each may be absent. Errors as `parse`."""
        formats = [fields.get(name) for name in ("k", "v")]
        keys, values = (None if text in (None, "float") else Spec.parse(str(text)) for text in formats)
        made = cls(keys, values, str(fields.get("stage", "post_rope")), fields.get("sinks", 0), fields.get("window", 0))
        made.native()
        return made

    @property
    def fields(self) -> dict[str, Any]:
        """What a checkpoint stores."""
        texts = [None if spec is None else f"{spec.format.explicit}{spec.policy}" for spec in (self.keys, self.values)]
        exact = {name: value for name, value in (("sinks", self.sinks), ("window", self.window)) if value}
        return {"k": texts[0], "v": texts[1], "stage": self.stage, **exact}

    @property
    def text(self) -> str:
        """What `parse` reads."""
        fields = self.fields
        changed = {"stage": self.stage if self.stage != "post_rope" else "", "sinks": self.sinks, "window": self.window}
        more = "".join(f",{name}={value}" for name, value in changed.items() if value)
        return f"k={fields['k'] or 'float'},v={fields['v'] or 'float'}{more}"

    def native(self) -> dict[str, Any]:
        """What the native decoder takes. NoKernelError: a format that the cache cannot hold."""
        keys, values = (None if spec is None else _format(spec) for spec in (self.keys, self.values))
        return {"keys": keys, "values": values, "turned": self.stage == "post_rope", "sinks": self.sinks, "window": self.window}


def _format(spec: Spec) -> Any:
    from anybit.methods.round_trip import cache_rounding

    try:
        spec.check()
    except FormatError as error:
        raise NoKernelError(f"a cache cannot hold {spec}: {error}") from None
    found, reason = cache_rounding(spec)
    if found is None:
        raise NoKernelError(f"a cache cannot hold {spec}: {reason}; use int8@64, int4@32, mxfp4 or fp8_e4m3fn, for instance")
    return found
