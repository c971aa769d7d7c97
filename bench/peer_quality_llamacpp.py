"""llama.cpp's quantizer for quality_peers.py, run by the Python of an environment that has llama-cpp-python and numpy.

    peer_quality_llamacpp.py GGUF OUT TYPE [IMPORTANCE]

GGUF is the float model. Every matrix becomes TYPE (q4_k, q3_k, q2_k), the embedding stays bf16. IMPORTANCE is a .npz of float32[k], the
mean square of each input channel, by GGUF tensor name: what llama-imatrix gathers. The last line of standard output is JSON.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from importlib.metadata import version
from typing import Any

BF16 = 30  # ggml_type


def main() -> None:
    """llama_model_quantize, all matrices alike ("pure"), one thread."""
    import llama_cpp
    import numpy as np

    source, out, kind, *rest = sys.argv[1:]
    quiet = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    types = {
        "q4_k": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_S, "q3_k": llama_cpp.LLAMA_FTYPE_MOSTLY_Q3_K_S, "q2_k": llama_cpp.LLAMA_FTYPE_MOSTLY_Q2_K
    }  # fmt: skip
    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread, params.ftype, params.pure, params.token_embedding_type = 1, types[kind], True, BF16
    held: list[Any] = []
    if rest:
        entry = llama_cpp.llama_cpp.llama_model_imatrix_data
        found = np.load(rest[0])
        given = (entry * (len(found.files) + 1))()  # one without a name ends them
        for each, name in zip(given, found.files, strict=False):
            values = np.ascontiguousarray(found[name], np.float32)
            held.append(values)
            each.name, each.size = name.encode(), values.size
            each.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        params.imatrix = ctypes.cast(given, ctypes.POINTER(entry))
    begun = time.perf_counter()
    code = llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(out), ctypes.byref(params))
    if code:
        sys.exit(f"llama_model_quantize gave {code}")
    said = {
        "seconds": time.perf_counter() - begun, "versions": {"llama-cpp-python": version("llama-cpp-python")},
        "settings": {"pure": True, "importance": bool(rest), "embedding": "bf16"},
    }  # fmt: skip
    print(json.dumps(said))


if __name__ == "__main__":
    main()
