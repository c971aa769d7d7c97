"""GGUF files: a small one with every kind of field, in both byte orders and versions, and a language model with its tokenizer."""

from __future__ import annotations

import random
import struct
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
from gguf_file import SIZES, Field, File, Tensor, small

from anybit.errors import NonFiniteError
from anybit.io import gguf
from anybit.model import load
from malformed.json_damage import TEXTS, Raw, damage_bytes

COUNTS = (
    0,
    1,
    2,
    3,
    5,
    13,
    31,
    33,
    255,
    2**16,
    2**20,
    2**24,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**32,
    2**40,
    2**42 + 1,
    2**48,
    2**60,
    2**61,
    2**62,
    2**63 - 1,
    2**63,
    2**64 - 33,
    2**64 - 8,
    2**64 - 1,
)
NAMES: list[str | bytes] = [text for text in TEXTS if not isinstance(text, Raw)]
NAMES += [
    b"\xff\xfe",
    b"\xc0\xaf",
    b"\xed\xa0\x80",
    "x" * 257,
    "token_embd.weight",
    "blk.0.attn_q.weight",
    "blk.99999999.ffn_up.weight",
    "output.bias",
]
KINDS = (*range(13), 13, 14, 255, 2**31, 2**32 - 1)
TYPES = (*range(43), 99, 255, 2**31, 2**32 - 1)


@cache
def model() -> File:
    """A llama of one layer: 32 tokens, Q8_0, Q4_0 and F32, with a byte-level or a byte-fallback tokenizer's fields."""
    rng = np.random.default_rng(0)

    def tensor(name: str, rows: int, kind: str) -> Tensor:
        if kind == "F32":
            return Tensor(name, (32,) if rows == 1 else (32, rows), 0, np.ones(32 * rows, np.float32).tobytes())
        code, _, size = SIZES[kind]
        blocks = rng.integers(0, 256, (rows, size), np.uint8)
        blocks[:, :2] = np.frombuffer(np.float16(0.01).tobytes(), np.uint8)
        return Tensor(name, (32, rows), code, blocks.tobytes())

    names = {"attn_q": 32, "attn_k": 16, "attn_v": 16, "attn_output": 32, "ffn_gate": 32, "ffn_up": 32, "ffn_down": 32}
    tensors = [tensor("token_embd.weight", 32, "Q8_0"), tensor("output_norm.weight", 1, "F32"), tensor("output.weight", 32, "F32")]
    tensors += [tensor("blk.0.attn_norm.weight", 1, "F32"), tensor("blk.0.ffn_norm.weight", 1, "F32")]
    tensors += [tensor(f"blk.0.{name}.weight", rows, "Q4_0") for name, rows in names.items()]
    words = ["<unk>", "<s>", "</s>", "\u2581", *"abcdefghijklmnopqrstuvwx", "ab", "\u2581a", "cd", "abcd"]
    numbers = {"context_length": 16, "embedding_length": 32, "block_count": 1, "feed_forward_length": 32}
    numbers |= {"attention.head_count": 4, "attention.head_count_kv": 2, "rope.dimension_count": 8, "attention.key_length": 8}
    fields = [Field("general.architecture", 8, "llama"), *(Field(f"llama.{key}", 4, n) for key, n in numbers.items())]
    fields += [
        Field("llama.attention.layer_norm_rms_epsilon", 6, 1e-5),
        Field("llama.rope.freq_base", 6, 10000.0),
        Field("llama.rope.scaling.type", 8, "linear"),
        Field("llama.rope.scaling.factor", 6, 2.0),
        Field("tokenizer.ggml.model", 8, "llama"),
        Field("tokenizer.ggml.tokens", 9, words, 8),
        Field("tokenizer.ggml.scores", 9, [-float(i) for i in range(32)], 6),
        Field("tokenizer.ggml.token_type", 9, [2, 3, 3] + [1] * 29, 5),
        Field("tokenizer.ggml.bos_token_id", 4, 1),
        Field("tokenizer.ggml.eos_token_id", 4, 2),
        Field("tokenizer.ggml.add_bos_token", 7, 1),
        Field("tokenizer.chat_template", 8, "{{ messages }}"),
        Field("general.alignment", 4, 32),
    ]
    return File(tuple(fields), tuple(tensors))


@cache
def bytes_model() -> File:
    """The same with the fields of a byte-level tokenizer."""
    words = ["<|end|>", *"abcdefghijklmnopqrstuvwxyz", "ab", "cd", "abcd", "\u0120", "\u0120a"]
    kept = tuple(f for f in model().fields if not str(f.key).startswith("tokenizer."))
    return replace(
        model(),
        fields=(
            *kept,
            Field("tokenizer.ggml.model", 8, "gpt2"),
            Field("tokenizer.ggml.pre", 8, "qwen2"),
            Field("tokenizer.ggml.tokens", 9, words, 8),
            Field("tokenizer.ggml.token_type", 9, [3] + [1] * 31, 5),
            Field("tokenizer.ggml.eos_token_id", 4, 0),
            Field("tokenizer.ggml.merges", 9, ["a b", "c d", "ab cd", "\u0120 a"], 8),
        ),
    )


def base() -> dict[str, bytes]:
    return {"a.gguf": model().bytes()}


def _field(file: File, rng: random.Random) -> tuple[str, File]:
    i = rng.randrange(len(file.fields))
    old = file.fields[i]
    kind = rng.randrange(9)
    if kind == 0:
        change = {"key_length": rng.choice((*COUNTS, len(old.key) + 1))}
    elif kind == 1:
        change = {
            "key": rng.choice(NAMES) if rng.random() < 0.5 else str(old.key)[: rng.randrange(len(old.key))] + rng.choice(("", "x", "\0"))
        }
    elif kind == 2 and old.kind == 9:
        change = {"count": rng.choice((*COUNTS, len(old.value) + 1, max(0, len(old.value) - 1)))}
    elif kind == 3:  # another type over the same bytes
        change = {"raw": struct.pack(f"{file.order}I", rng.choice(KINDS)) + rng.randbytes(rng.choice((0, 1, 4, 8, 12, 24)))}
    elif kind == 4:  # an array of any type and length
        values = rng.randbytes(rng.choice((0, 8, 64, 512)))
        change = {"raw": struct.pack(f"{file.order}IIQ", 9, rng.choice(KINDS), rng.choice((*COUNTS, len(values)))) + values}
    elif kind == 5:  # text of any length
        change = {"raw": struct.pack(f"{file.order}IQ", 8, rng.choice(COUNTS)) + rng.choice((b"", b"llama", b"\xff\xfe" * 9, bytes(40)))}
    elif kind == 6:
        depth = rng.choice((1, 2, 9, 500, 20000))
        nested = struct.pack(f"{file.order}I", 9) + struct.pack(f"{file.order}IQ", 9, 1) * depth + struct.pack(f"{file.order}IQ", 0, 0)
        change = {"raw": nested}
    elif kind == 7 and old.kind in (4, 5, 6, 8):  # a wrong value of the right type
        values_of = {
            4: [n for n in COUNTS if n < 2**32],
            5: [-1, 0, 2**31 - 1, -(2**31)],
            8: ["llama", "gpt2", "qwen2", "bert", "yarn", "none", *TEXTS[:20]],
            6: [0.0, -1.0, float("nan"), float("inf"), 1e-40, 3e38, 1e-30],
        }
        change = {"value": rng.choice(values_of[old.kind])}
    elif kind == 8 and old.kind == 9 and old.value:
        values = list(old.value)
        at = rng.randrange(len(values))
        if old.of == 8:
            values[at] = rng.choice(
                (*[t for t in TEXTS if not isinstance(t, Raw)], values[at - 1], "<0x-1>", "<0xZZ>", "a b c", "\u2581" * 2000)
            )
        elif old.of == 6:
            values[at] = rng.choice((float("nan"), float("inf"), -float("inf"), 0.0, 3e38))
        else:
            values[at] = rng.choice((-1, 0, 7, 99, 2**31 - 1) if old.of == 5 else (0, 1, 255))
        change = {"value": values[: rng.choice((len(values), len(values), at))]}
    else:
        fields = list(file.fields)
        what = rng.choice(("twice", "gone", "moved"))
        if what == "twice":
            fields.insert(rng.randrange(len(fields)), old)
        elif what == "gone":
            fields.pop(i)
        else:
            rng.shuffle(fields)
        return f"field {old.key!r} {what}", file.changed(fields=tuple(fields))
    return f"field {old.key!r}: {str(change)[:60]}", file.with_field(i, **change)


def _tensor(file: File, rng: random.Random) -> tuple[str, File]:
    i = rng.randrange(len(file.tensors))
    old = file.tensors[i]
    kind = rng.randrange(8)
    if kind == 0:
        change = {"name": rng.choice((*NAMES, *(t.name for t in file.tensors)))}
    elif kind == 1:
        change = {"name_length": rng.choice((*COUNTS, len(old.name) + 1))}
    elif kind == 2:
        change = {"axes": rng.choice((0, 5, 6, 255, 2**31, 2**32 - 1, len(old.sizes) + 1))}
    elif kind == 3:
        at = rng.randrange(len(old.sizes))
        change = {"sizes": tuple(rng.choice(COUNTS) if j == at else n for j, n in enumerate(old.sizes))}
    elif kind == 4:
        change = {
            "sizes": rng.choice(
                ((2**32, 2**32), (2**63, 2), (2**42 + 1, 2**22), (2**16,) * 4, (2**61 + 32, 8), old.sizes[::-1], (*old.sizes, 1))
            )
        }
    elif kind == 5:
        change = {"kind": rng.choice(TYPES)}
    elif kind == 6:
        change = {"offset": rng.choice((*COUNTS, 32, 64, 2**64 - 32, 2**63 - 32, 2**20))}
    else:
        tensors = list(file.tensors)
        what = rng.choice(("twice", "gone", "moved"))
        if what == "twice":
            tensors.insert(rng.randrange(len(tensors)), old)
        elif what == "gone":
            tensors.pop(i)
        else:
            rng.shuffle(tensors)
        return f"tensor {old.name!r} {what}", file.changed(tensors=tuple(tensors))
    return f"tensor {old.name!r}: {str(change)[:60]}", file.with_tensor(i, **change)


def variant(rng: random.Random) -> tuple[str, dict[str, bytes]]:
    file = rng.choice((model(), model(), bytes_model(), small()))
    if rng.random() < 0.3:
        file = file.changed(
            **rng.choice(({"version": 2}, {"order": ">"}, {"order": ">", "version": 2}, {"alignment": 8}, {"alignment": 64}))
        )
    kind, done = rng.random(), []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if kind < 0.45:
            what, file = _field(file, rng)
        elif kind < 0.8:
            what, file = _tensor(file, rng)
        elif kind < 0.9:
            change = rng.choice(
                (
                    {"magic": rng.choice((b"GGML", b"FUGG", b"\0\0\0\0", b"GGUF"))},
                    {"version": rng.choice((0, 1, 2, 3, 4, 0x3000000, 2**32 - 1))},
                    {"count": rng.choice((*COUNTS, len(file.tensors) + 1))},
                    {"field_count": rng.choice((*COUNTS, len(file.fields) + 1))},
                    {"alignment": rng.choice((8, 16, 4096))},
                    {"tail": rng.randbytes(50)},
                )
            )
            what, file = str(change), file.changed(**change)
        else:
            what = "bytes"
        done.append(what)
    content = file.bytes()
    if kind >= 0.9:
        head = len(file.header())
        what, part = damage_bytes(content[:head], rng)
        content = part + content[head:]
        done = [what]
    return "; ".join(done), {"a.gguf": content}


def read(folder: Path) -> None:
    """Everything that a file can be asked for, and the model in it: loaded, its tokenizer made, one token run."""
    with gguf.open(folder / "a.gguf") as file:
        for key in file.metadata:
            file.metadata[key]
        for name in file:
            file[name]
        is_model = "token_embd.weight" in file
    if is_model:
        loaded = load(folder / "a.gguf")
        loaded.tokenizer.encode("abcd \u00e4\U0001f600")
        with suppress(NonFiniteError):  # of what the weights give
            loaded.logits([0])
