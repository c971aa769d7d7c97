"""safetensors files: header length, header, data."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path

from anybit.io.safetensors import SafeFile
from malformed.json_damage import Object, damage, damage_bytes, dump, hostile, parse

HUGE = (0, 1, 7, 100_000_000, 100_000_001, 2**31, 2**32, 2**48, 2**63 - 1, 2**63, 2**64 - 8, 2**64 - 1)
TEXT = json.dumps({
    "__metadata__": {"format": "pt", "note": "a b"},
    "model.embed.weight": {"dtype": "BF16", "shape": [8, 4], "data_offsets": [0, 64]},
    "__pad__.0": {"dtype": "U8", "shape": [64], "data_offsets": [64, 128]},
    "empty": {"dtype": "I64", "shape": [0, 5], "data_offsets": [128, 128]},
    "model.norm": {"dtype": "F32", "shape": [2, 3], "data_offsets": [128, 152]},
    "b": {"dtype": "U8", "shape": [7], "data_offsets": [152, 159]},
    "scalar": {"dtype": "F64", "shape": [], "data_offsets": [159, 167]},
})  # fmt: skip
DATA = bytes(range(167))


def whole(header: bytes, data: bytes, length: int | None = None) -> bytes:
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data


def base() -> dict[str, bytes]:
    return {"a.safetensors": whole(TEXT.encode(), DATA)}


def _places(tree: Object, rng: random.Random) -> str:
    """Shapes and offsets that are wrong together, as an attacker would choose them."""
    entries = [value for key, value in tree if key != "__metadata__"]
    entry = rng.choice(entries)
    fields = dict(entry)
    kind = rng.randrange(6)
    begin, end = fields["data_offsets"]
    if kind == 0:  # aliases
        new = (rng.choice(("alias", "z" * 100)), copy.deepcopy(entry))
        tree.insert(rng.randrange(len(tree)), new)
        return "two tensors on the same bytes"
    if kind == 1:
        shift = rng.choice((1, 8, -1, -8, 2**63, -begin))
        fields["data_offsets"] = [begin + shift, end + shift]
    elif kind == 2:  # products that wrap to what is there
        fields["shape"] = rng.choice(
            ([2**32, 2**32], [2**63, 2], [2**42 + 1, 2**22], [2**64, 1], [2**16] * 4, [0, 2**64], [1] * 40, [2**61 + 1, 8])
        )
    elif kind == 3:
        fields["data_offsets"] = [begin, rng.choice((2**63 - 1, 2**64 - 1, 2**64, end + 2**32, 10**17))]
    elif kind == 4:  # beyond the file, consistently
        size = rng.choice((2**20, 2**40, 2**62))
        fields |= {"dtype": "U8", "shape": [size], "data_offsets": [begin, begin + size]}
    else:
        fields["data_offsets"] = [end, begin]
    entry[:] = list(fields.items())
    return f"{fields}"[:80]


def variant(rng: random.Random) -> tuple[str, dict[str, bytes]]:
    tree, data, length = parse(TEXT), DATA, None
    kind = rng.random()
    if kind < 0.45:
        what = damage(tree, rng)
    elif kind < 0.6:
        what = "; ".join(_places(tree, rng) for _ in range(rng.choice((1, 1, 2))))
    elif kind < 0.65:
        many = rng.choice((100, 3000))
        tree = Object((f"t{i}", Object([("dtype", "U8"), ("shape", [0]), ("data_offsets", [0, 0])])) for i in range(many))
        what = f"{many} tensors; {damage(tree, rng)}"
    elif kind < 0.7:
        tree, what = hostile(rng), "another root"
    else:
        what = "bytes"
    header = dump(tree, rng.random() < 0.5).encode("utf-8", "surrogatepass")
    if kind >= 0.9:
        length = rng.choice((*HUGE, len(header) + 1, len(header) - 1, len(header) + len(data) + 1, rng.randrange(400)))
        what = f"header length {length}"
    elif kind >= 0.85:
        data = rng.choice((b"", data[:-1], data + b"\0", data * 3, data + bytes(5000)))
        what = f"{len(data)} bytes of data"
    elif kind >= 0.8:
        header += rng.choice((b" " * 100, b"\0", b"\n\t ", b"}", b"{}"))
        what = "something after the header"
    content = whole(header, data, length)
    if 0.7 <= kind < 0.8:
        what, content = damage_bytes(content, rng)
    return what, {"a.safetensors": content}


def read(folder: Path) -> None:
    with SafeFile(folder / "a.safetensors") as file:
        for name in file.tensors:
            file.tensor(name).tobytes()
