"""Models of 4 GB open at once: headers are read, weights are mapped. The files are sparse; a busy machine gets several tries."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from gguf_file import Field, File, Tensor

from anybit.io import gguf
from anybit.io.safetensors import SafeFile

COUNT, ROWS, COLUMNS = 150, 3584, 4096  # 4.4 GB of bfloat16
NBYTES = 2 * ROWS * COLUMNS
TOKENS = 150_000


def fastest(open_it: Callable[[], None]) -> tuple[float, int]:
    """Best seconds of five, and bytes of memory that opening took."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    best = 1e9
    for _ in range(5):
        begun = time.perf_counter()
        open_it()
        best = min(best, time.perf_counter() - begun)
    return best, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10


def sparse(path: Path, head: bytes, size: int) -> None:
    with path.open("wb") as file:
        file.write(head)
        file.truncate(size)


def test_safetensors_of_4_gb(tmp_path: Path) -> None:
    header = {
        f"model.layers.{i}.weight": {"dtype": "BF16", "shape": [ROWS, COLUMNS], "data_offsets": [i * NBYTES, (i + 1) * NBYTES]}
        for i in range(COUNT)
    }
    text = json.dumps(header).encode()
    size = 8 + len(text) + COUNT * NBYTES
    sparse(tmp_path / "m.safetensors", len(text).to_bytes(8, "little") + text, size)
    assert size > 4 << 30

    def read() -> None:
        with SafeFile(tmp_path / "m.safetensors") as file:
            last = file.tensor(f"model.layers.{COUNT - 1}.weight")
            assert last.shape == (ROWS, COLUMNS) and last[-1, -1] == 0
            del last

    seconds, grown = fastest(read)
    print(f"\nsafetensors: {size} bytes, {1000 * seconds:.1f} ms, {grown} bytes")
    assert seconds < 1 and grown < 64 << 20


def test_gguf_of_4_gb_with_a_vocabulary(tmp_path: Path) -> None:
    fields = (
        Field("general.architecture", 8, "llama"), Field("tokenizer.ggml.tokens", 9, [f"token{i}" for i in range(TOKENS)], 8),
        Field("tokenizer.ggml.scores", 9, [0.0] * TOKENS, 6), Field("tokenizer.ggml.merges", 9, [f"a{i} b" for i in range(TOKENS)], 8),
    )  # fmt: skip
    tensors = tuple(Tensor(f"blk.{i}.weight", (COLUMNS, ROWS), 1, b"", offset=i * NBYTES) for i in range(COUNT))
    file = File(fields, tensors)
    head = file.header()
    head += bytes(-len(head) % file.alignment)
    sparse(tmp_path / "m.gguf", head, len(head) + COUNT * NBYTES)
    assert len(head) + COUNT * NBYTES > 4 << 30

    def read() -> None:
        with gguf.open(tmp_path / "m.gguf") as opened:
            blocks = opened.container.blocks(f"blk.{COUNT - 1}.weight")
            assert len(opened) == COUNT and blocks.shape == (ROWS, COLUMNS) and blocks[-1, -1]["v"] == 0
            del blocks

    seconds, grown = fastest(read)
    print(f"\ngguf: {len(head)} bytes of header, {1000 * seconds:.1f} ms, {grown} bytes")
    assert seconds < 1 and grown < 64 << 20


@pytest.mark.parametrize("count", [1, 1000])
def test_limits_cost_nothing_per_value(tmp_path: Path, count: int) -> None:
    """Skipping the strings of a vocabulary costs under a microsecond each: no call of the system, no object."""
    words = [f"token{i}" for i in range(100 * count)]
    path = tmp_path / "v.gguf"
    path.write_bytes(replace(File((Field("a.words", 9, words, 8),), ()), alignment=32).bytes())
    seconds, _ = fastest(lambda: gguf.open(path).close())
    print(f"\n{len(words)} strings: {1e6 * seconds / len(words):.2f} us each")
    assert seconds < 0.01 + 3e-6 * len(words)
