"""Damage to JSON that knows its structure. Objects are lists of pairs here, so that a key can occur twice; Raw is text as it stands."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any


class Object(list[tuple[str, Any]]):
    """A JSON object: its pairs."""


class Raw(str):
    """JSON text that is written as it is, valid or not."""


NUMBERS: list[Any] = [
    -1, 0, 1, 2, 3, 7, 31, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**48, 2**53 + 1, 2**62, 2**63 - 1, 2**63,
    2**64 - 1, 2**64, -(2**31), -(2**63), 10**19, 10**30, 0.5, -0.0, 1e-320, 1e300, Raw("1e400"), Raw("-1e400"), Raw("NaN"),
    Raw("Infinity"), Raw("-Infinity"), Raw("1" * 5000), Raw("0." + "1" * 5000), Raw("01"), Raw("+1"), Raw(".5"), Raw("0x10"), Raw("1e"),
    Raw("-"),
]  # fmt: skip
TEXTS: list[Any] = [
    "", " ", "a", "..", "../../etc/passwd", "/etc/passwd", "\\\\host\\share", "a\0b", "a\nb", "\x1b[31mred", "\x7f", "\u202eevil",
    "\u2028", "x" * 300, "x" * 70000, "-1", "0", "null", "NaN", "F32", "U8", "BF16", "F8_E4M3", "I64", "int4@32", "int4", "fp32",
    "uint4@32:fp16+zp", "nf4@64:fp32", "int4@999999999", "fp8_e4m3fn@tensor:fp32", "rows", "tile16x4", "int8", "lmul", "${x}",
    "{{ 7 * 7 }}", "%s%n", "\U0001f600", "e\u0301", Raw('"\\ud800"'), Raw('"\\udc00\\ud800"'), Raw('"\\u00"'), Raw('"\\x41"'),
    Raw('"open'), Raw("'a'"), Raw('"tab\there"'),
]  # fmt: skip
OTHERS: list[Any] = [
    None, True, False, [], Object(), [[]], [Object()], Object([("a", 1)]), Object([("a", 1), ("a", 2)]), Object([("kind", "rotation")]),
    Raw("[" * 70 + "]" * 70), Raw("[" * 50_000), Raw('{"a":' * 50_000), Raw("[" + "[]," * 3000 + "[]]"), Raw(""), Raw("[1,]"), Raw("{,}"),
    Raw("/**/1"), Raw("undefined"), Raw("[1 2]"), Raw('{"a" 1}'), Raw('{"a":1'), Raw("]"), Raw("}"),
]  # fmt: skip


def parse(text: str | bytes) -> Any:
    return json.loads(text, object_pairs_hook=Object)


def dump(value: Any, compact: bool = False) -> str:
    comma, colon = (",", ":") if compact else (", ", ": ")
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, Object):
        return "{" + comma.join(f"{k if isinstance(k, Raw) else json.dumps(k)}{colon}{dump(v, compact)}" for k, v in value) + "}"
    if isinstance(value, list):
        return "[" + comma.join(dump(v, compact) for v in value) + "]"
    return json.dumps(value, ensure_ascii=False)


Spot = tuple[Any, int]  # a container and the place in it


def spots(value: Any) -> list[Spot]:
    """Every value of a tree but the root."""
    found: list[Spot] = []
    todo = [value]
    while todo:
        each = todo.pop()
        if isinstance(each, list):
            found += [(each, i) for i in range(len(each))]
            todo += [item[1] for item in each] if isinstance(each, Object) else each
    return found


def get(spot: Spot) -> Any:
    holder, i = spot
    return holder[i][1] if isinstance(holder, Object) else holder[i]


def put(spot: Spot, value: Any) -> None:
    holder, i = spot
    holder[i] = (holder[i][0], value) if isinstance(holder, Object) else value


def hostile(rng: random.Random) -> Any:
    return copy.deepcopy(rng.choice(rng.choice((NUMBERS, TEXTS, OTHERS))))


def _nudged(value: Any, rng: random.Random) -> Any:
    """A value of the same type that is nearly the old one."""
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, (int, float)):
        return rng.choice((value + 1, value - 1, -value, value * 2, value // 2 if value else 5, value + 0.5, str(value), value + 2**32))
    if isinstance(value, str):
        cut = rng.randrange(len(value) + 1)
        return rng.choice(
            (value[:cut], value + value, value.upper(), value[:cut] + "\0" + value[cut:], value + " ", value[::-1], value[:cut] + "é")
        )
    return hostile(rng)


def _replace(tree: Any, spot: Spot, rng: random.Random) -> str:
    value = hostile(rng)
    put(spot, value)
    return f"a value becomes {str(value)[:30]!r}"


def _nudge(tree: Any, spot: Spot, rng: random.Random) -> str:
    put(spot, _nudged(get(spot), rng))
    return f"nudged to {str(get(spot))[:30]!r}"


def _delete(tree: Any, spot: Spot, rng: random.Random) -> str:
    holder, i = spot
    gone = holder.pop(i)
    return f"without {str(gone)[:30]!r}"


def _twice(tree: Any, spot: Spot, rng: random.Random) -> str:
    holder, i = spot
    item = copy.deepcopy(holder[i])
    if isinstance(holder, Object) and rng.random() < 0.5:  # the same key in another spelling, or with another value
        name = Raw('"' + "".join(f"\\u{ord(c):04x}" for c in item[0][:200]) + '"') if rng.random() < 0.5 else item[0]
        item = (name, _nudged(item[1], rng))
    holder.insert(rng.choice((i, i + 1, len(holder))), item)
    return f"{str(item)[:30]!r} twice"


def _rename(tree: Any, spot: Spot, rng: random.Random) -> str:
    holder, i = spot
    if not isinstance(holder, Object):
        return _nudge(tree, spot, rng)
    key = holder[i][0]
    new = (
        rng.choice(TEXTS)
        if rng.random() < 0.5
        else rng.choice((key + "x", key.upper(), key + " ", key[:-1], "__" + key, key.replace("e", "\u0435")))
    )
    holder[i] = (new, holder[i][1])
    return f"{key[:20]!r} is called {new[:30]!r}"


def _swap(tree: Any, spot: Spot, rng: random.Random) -> str:
    other = rng.choice(spots(tree))
    a, b = copy.deepcopy(get(spot)), copy.deepcopy(get(other))
    put(spot, b)
    put(other, a)
    return f"{str(a)[:20]!r} and {str(b)[:20]!r} change places"


def _graft(tree: Any, spot: Spot, rng: random.Random) -> str:
    holder, i = spot
    value = copy.deepcopy(get(rng.choice(spots(tree)))) if rng.random() < 0.6 else hostile(rng)
    new = (rng.choice(TEXTS), value) if isinstance(holder, Object) else value
    holder.insert(i, new)
    return f"{str(new)[:30]!r} comes in"


def _shuffle(tree: Any, spot: Spot, rng: random.Random) -> str:
    rng.shuffle(spot[0])
    return "another order"


def _many(tree: Any, spot: Spot, rng: random.Random) -> str:
    holder, i = spot
    item = holder[i]
    count = min(rng.choice((33, 300, 3000)), 200_000 // (1 + len(dump(get(spot)))))
    if isinstance(holder, Object):
        holder += [(f"{item[0]}{n}" if isinstance(item[0], str) else "k", item[1]) for n in range(count)]
    else:
        holder += [item] * count
    return f"{count} more of {str(item)[:20]!r}"


OPERATIONS: list[tuple[Callable[[Any, Spot, random.Random], str], int]] = [
    (_replace, 6),
    (_nudge, 6),
    (_delete, 3),
    (_twice, 3),
    (_rename, 3),
    (_swap, 2),
    (_graft, 2),
    (_shuffle, 1),
    (_many, 1),
]


def damage(tree: Any, rng: random.Random, under: tuple[str, ...] = ()) -> str:
    """Changes a tree in place, once to three times; `under`: only below that key. Gives what was done."""
    done: list[str] = []
    operations = dict(OPERATIONS)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        root = tree
        for key in under:
            root = next((v for k, v in root if k == key), root) if isinstance(root, Object) else root
        places = spots(root) if isinstance(root, list) else []
        if not places:
            break
        (operation,) = rng.choices(list(operations), list(operations.values()))
        if operation is _many:  # once: they would multiply
            operations.pop(_many)
        done.append(operation(root, rng.choice(places), rng))
    return "; ".join(done)


def damage_bytes(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Damage that knows nothing: cuts, flips, insertions."""
    what = rng.choice(("cut", "flip", "insert", "remove", "bom", "utf16", "tail", "head", "empty", "zeros", "repeat"))
    at = rng.randrange(len(data) + 1)
    if what == "cut":
        return f"cut to {at}", data[:at]
    if what == "flip" and data:
        changed = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 8))):
            changed[rng.randrange(len(data))] = rng.choice((rng.randrange(256), *b'"{}[],:0129\\ ue-'))
        return "bytes changed", bytes(changed)
    if what == "insert":
        new = rng.choice((b"\0", b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"{", b"]", b'"', b",", b"\\", b"\n", b"1e999", b"[" * 500))
        return f"{new[:10]!r} at {at}", data[:at] + new + data[at:]
    if what == "remove":
        return f"bytes gone at {at}", data[:at] + data[at + rng.randint(1, 9) :]
    if what == "bom":
        return "a byte order mark", b"\xef\xbb\xbf" + data
    if what == "utf16":
        return "UTF-16", data.decode("utf-8", "replace").encode("utf-16")
    if what == "tail":
        return "a tail", data + rng.choice((b"\0", b"{}", b"x", data, b" " * 5000, bytes(5000)))
    if what == "head":
        return "a head", rng.choice((b"\0", b"//\n", b"[", b"\n" * 3000)) + data
    if what == "zeros":
        return f"zeros from {at}", data[:at] + bytes(len(data) - at)
    if what == "repeat":
        return "repeated", data[:at] + data[: min(len(data), 4000)] + data[at:]
    return "empty", b""
