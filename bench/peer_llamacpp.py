"""llama.cpp's side of llama_0p85b.py, run by the Python of an environment that has llama-cpp-python, gguf and numpy.

    peer_llamacpp.py versions | make FILE TYPE | measure FILE THREADS PROMPT DECODED

The file's codes are random bytes and its scales one constant, written straight as GGUF blocks: speed does not depend on the values.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import gguf
import numpy as np

WIDTH, LAYERS, HEADS, KV_HEADS, FFN, VOCAB = 2048, 16, 32, 8, 5632, 32000
# type: (values a block, bytes of codes, where the scale lies, the scale's bytes); the scale keeps activations near 1
HALF = np.array([0.003], np.float16).tobytes()
BLOCKS: dict[str, tuple[int, int, str, bytes]] = {
    "q4_0": (32, 16, "first", HALF),
    "q8_0": (32, 32, "first", np.array([0.0003], np.float16).tobytes()),
    "iq4_nl": (32, 16, "first", np.array([0.0003], np.float16).tobytes()),
    "mxfp4": (32, 16, "first", bytes([127 - 8])),
    "q2_k": (256, 80, "last", np.array([0.002, 0.002], np.float16).tobytes()),
    "q3_k": (256, 108, "last", np.array([0.0003], np.float16).tobytes()),
    "q4_k": (256, 140, "first", np.array([0.0001, 0.0001], np.float16).tobytes()),
    "q5_k": (256, 172, "first", np.array([0.0001, 0.0001], np.float16).tobytes()),
    "q6_k": (256, 208, "last", np.array([0.00001], np.float16).tobytes()),
    "tq1_0": (256, 52, "last", np.array([0.02], np.float16).tobytes()),
    "tq2_0": (256, 64, "last", np.array([0.02], np.float16).tobytes()),
}


def blocks(rng: np.random.Generator, kind: str, rows: int, columns: int) -> np.ndarray:
    """uint8[rows, bytes a row] of GGUF blocks."""
    values, codes, place, scale = BLOCKS[kind]
    count = columns // values
    data = rng.integers(0, 256, (rows, count, codes), dtype=np.uint8)
    scales = np.broadcast_to(np.frombuffer(scale, np.uint8), (rows, count, len(scale)))
    return np.concatenate([scales, data] if place == "first" else [data, scales], axis=2).reshape(rows, -1)


def make(path: str, kind: str) -> None:
    """Writes the model unless it is there."""
    if os.path.exists(path):
        return
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path + ".part", "llama")
    writer.add_name("random weights")
    writer.add_context_length(2048)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(VOCAB)
    writer.add_tokenizer_model("llama")
    words = [f"<0x{i:02X}>".encode() for i in range(256)] + [b"w%d" % i for i in range(VOCAB - 259)]
    writer.add_token_list([b"<unk>", b"<s>", b"</s>", *words])
    writer.add_token_scores([0.0] * VOCAB)
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * (VOCAB - 259))
    ggml_type = gguf.GGMLQuantizationType[kind.upper()]

    def matrix(name: str, rows: int, columns: int) -> None:
        writer.add_tensor(f"{name}.weight", blocks(rng, kind, rows, columns), raw_dtype=ggml_type)

    def norm(name: str) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(WIDTH, np.float32))

    matrix("token_embd", VOCAB, WIDTH)
    norm("output_norm")
    matrix("output", VOCAB, WIDTH)
    kv = WIDTH // HEADS * KV_HEADS
    for i in range(LAYERS):
        norm(f"blk.{i}.attn_norm")
        norm(f"blk.{i}.ffn_norm")
        for name, rows, columns in (
            ("attn_q", WIDTH, WIDTH), ("attn_k", kv, WIDTH), ("attn_v", kv, WIDTH), ("attn_output", WIDTH, WIDTH),
            ("ffn_gate", FFN, WIDTH), ("ffn_up", FFN, WIDTH), ("ffn_down", WIDTH, FFN),
        ):  # fmt: skip
            matrix(f"blk.{i}.{name}", rows, columns)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(path + ".part", path)


def resident() -> tuple[int, int]:
    """(bytes resident now, most so far)."""
    found = {}
    with open("/proc/self/status", encoding="ascii") as file:
        for line in file:
            key, _, value = line.partition(":")
            if key in ("VmRSS", "VmHWM"):
                found[key] = int(value.split()[0]) << 10
    return found["VmRSS"], found["VmHWM"]


def measure(path: str, threads: int, prompt: int, decoded: int) -> dict[str, Any]:
    """One run, the same steps as anybit's."""
    import llama_cpp

    before = resident()[0]
    begun = time.perf_counter()
    size = {"n_ctx": prompt + decoded + 8, "n_batch": 512, "n_threads": threads, "n_threads_batch": threads}
    model = llama_cpp.Llama(path, **size, use_mmap=True, verbose=False)
    load_s = time.perf_counter() - begun
    ids = [int(t) for t in np.random.default_rng(0).integers(300, 30000, prompt)]
    model.eval(ids[:4])
    prefill = []
    for _ in range(2):
        model.reset()
        begun = time.perf_counter()
        model.eval(ids)
        prefill.append(time.perf_counter() - begun)
    decode = []
    for token in ids[:decoded]:
        begun = time.perf_counter()
        model.eval([token])
        decode.append(time.perf_counter() - begun)
    reader = gguf.GGUFReader(path)
    sizes = {tensor.name: int(tensor.n_bytes) for tensor in reader.tensors}
    result = {
        "prefill_s": min(prefill), "decode_s": float(np.median(decode)), "decode_best_s": min(decode), "file_bytes": os.path.getsize(path),
        "read_bytes": sum(sizes.values()) - sizes["token_embd.weight"], "load_s": load_s, "memory_bytes": resident()[1] - before,
    }  # fmt: skip
    model.close()
    return result


def versions() -> dict[str, str]:
    """What was measured."""
    from importlib.metadata import version

    return {name: version(name) for name in ("llama-cpp-python", "gguf", "numpy")}


if __name__ == "__main__":
    task, *rest = sys.argv[1:]
    if task == "make":
        make(*rest)
        print("{}")
    elif task == "measure":
        print(json.dumps(measure(rest[0], *map(int, rest[1:]))))
    else:
        print(json.dumps(versions()))
