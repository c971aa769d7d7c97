"""A small random model whose rows are whole blocks of every type, quantized, exported and read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

import anybit
from anybit.export import Export, prepare, write
from anybit.sources import open_source
from tests.small import CONFIG, arrays, write_model

WIDE: dict[str, Any] = {
    **CONFIG, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 1, "num_attention_heads": 8, "num_key_value_heads": 4,
    "head_dim": 32, "torch_dtype": "bfloat16",
}  # fmt: skip
MERGES = ["h e", "l l", "he ll", "hell o", "\u0120 w"]


def tokenizer(vocab: int = 64) -> str:
    """Byte-level BPE of a few words."""
    letters = sorted(set("helowrd\u0120abcfgijkmnpqstuvxyz0123456789"))
    words = ["<s>", "</s>", *letters, *(merge.replace(" ", "") for merge in MERGES)]
    assert len(words) <= vocab
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "pre_tokenizer": level, "post_processor": None,
        "decoder": level, "added_tokens": [{"id": i, "content": words[i], **flags} for i in (0, 1)],
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
            "fuse_unk": False, "byte_fallback": False, "vocab": {word: i for i, word in enumerate(words)},
            "merges": [merge.split() for merge in MERGES],
        },
    })  # fmt: skip


def model(path: Path, config: dict[str, Any] | None = None, **dtypes: Any) -> Path:
    """The directory of a small random model with a tokenizer."""
    config = config or WIDE
    write_model(path, config, arrays(config), **dtypes)
    (path / "tokenizer.json").write_text(tokenizer())
    return path


def quantized(folder: Path, fmt: str, act: str | None = None, config: dict[str, Any] | None = None, keep: str = "embed|head") -> Path:
    """The same quantized by us."""
    out = folder / "quantized"
    source = folder / "model"
    if not source.exists():
        model(source, config)
    anybit.load(source).quantize(fmt, act=act, keep=keep).save(out)
    return out


def values(path: Path) -> dict[str, np.ndarray]:
    """Every tensor's float32 values."""
    return {name: held.values(0, held.shape[0]) for name, held in open_source(path).tensors.items()}


def export(path: Path, out: Path, to: str, **options: Any) -> Export:
    """Plans and writes."""
    made = prepare(path, to, **options)
    write(made, out)
    return made


def differing(here: Path, there: Path) -> list[str]:
    """Names of tensors whose values are not equal."""
    one, other = values(here), values(there)
    assert one.keys() == other.keys()
    return [name for name in one if not np.array_equal(one[name], other[name])]
