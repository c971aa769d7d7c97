"""Our quantizer and llama.cpp's own to the same GGUF types: KL divergence of the bundled model from its original.

    python bench/gguf_quality.py --ggml LIBGGML_BASE [--types q4_k,q6_k] [--tokens 8192] [--out FILE.json]

LIBGGML_BASE is llama.cpp's libggml-base.so, as llama-cpp-python installs it: every matrix of the blocks goes through its
`ggml_quantize_chunk`, what `llama_model_quantize` calls, and through ours; both results run on our engine with float activations, over the
same held-out text. Embedding and head stay. Twice: without data ("plain"), and with one importance matrix for both ("imatrix"), the mean
of squared inputs over calibration text (128 windows of 512 tokens). llama.cpp makes IQ1_S, IQ2_XXS and IQ2_XS with importance alone:
"plain" gives it ones.
"""

from __future__ import annotations

import argparse
import ctypes
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import anybit
from anybit.calibrate import calibration_text
from anybit.calibrate.importance import importance_of
from anybit.formats import Spec
from anybit.io.gguf.kind import KINDS
from anybit.io.targets.gguf import RULES
from anybit.measure.accuracy import evaluate
from anybit.measure.text import default_text
from anybit.methods import METHODS
from anybit.methods.points import quantize_to_points
from anybit.methods.scales import SCALES
from anybit.recipes.source import FloatSource
from anybit.tensor import QTensor

TYPES = "q2_k,q3_k,q4_k,q5_k,q6_k,q4_0,q4_1,q5_0,q5_1,q8_0,iq4_nl,iq4_xs,tq2_0,mxfp4,iq3_s,iq3_xxs,iq2_s,iq2_xs,iq2_xxs,iq1_m,iq1_s"
MODEL = "pycoder-5m"


class Ggml:
    """llama.cpp's quantizers."""

    def __init__(self, path: str) -> None:
        self.lib = ctypes.CDLL(path)
        self.lib.ggml_quantize_chunk.restype = ctypes.c_size_t
        self.lib.ggml_quantize_requires_imatrix.restype = ctypes.c_bool
        self.lib.ggml_quantize_chunk.argtypes = (
            ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p
        )  # fmt: skip

    def quantized(self, kind: str, w: np.ndarray, importance: np.ndarray | None) -> QTensor:
        """A matrix in a type's blocks, read back by our reader."""
        one = KINDS[kind.upper()]
        blocks = np.zeros((w.shape[0], w.shape[1] // one.weights), one.dtype)
        if importance is None and self.lib.ggml_quantize_requires_imatrix(one.code):
            importance = np.ones(w.shape[1])
        weigh = None if importance is None else np.ascontiguousarray(importance, np.float32)
        size = self.lib.ggml_quantize_chunk(
            one.code, w.ctypes.data, blocks.ctypes.data, 0, *w.shape, None if weigh is None else weigh.ctypes.data
        )  # fmt: skip
        assert size == blocks.nbytes
        return packed(anybit.Format(one.format_of(blocks)), w.shape, one.convert(blocks))


def packed(fmt: Any, shape: tuple[int, ...], parts: dict[str, np.ndarray]) -> QTensor:
    """Parts in any shape that has the rows first."""
    from anybit.methods.rtn import part_shapes

    sizes = {name: size for name, (_, size) in part_shapes(fmt, shape).items()}
    return QTensor.pack(fmt, shape, {name: np.ascontiguousarray(parts[name].reshape(size)) for name, size in sizes.items()})


def ours(kind: str, w: np.ndarray, importance: np.ndarray | None) -> QTensor:
    """As `anybit export --to gguf:KIND` chooses codes."""
    one = KINDS[kind.upper()]
    if one.points is not None:
        fmt = anybit.Format(one.format)
        return QTensor.pack(fmt, w.shape, quantize_to_points(w, fmt, one.points, importance))
    rule = RULES.get(kind, "absmax")
    spec = Spec.parse(f"{one.format}+scale={rule}")
    given = importance if SCALES[rule].searches else None
    return QTensor.pack(spec.format, w.shape, METHODS["rtn"](w, spec, importance=given))


def main() -> None:
    """Measures, prints."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--ggml", required=True)
    parser.add_argument("--types", default=TYPES)
    parser.add_argument("--modes", default="plain,imatrix")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--seed", type=int, default=0, help="of the calibration text")
    parser.add_argument("--out")
    options = parser.parse_args()
    base, source, ggml = anybit.load(MODEL), FloatSource(MODEL), Ggml(options.ggml)
    text = default_text(base.tokenizer, options.tokens, 0)
    ids = calibration_text(base.tokenizer, [], 128, 512, 0, options.seed).ids
    weigh = importance_of(source, ids)
    found = []
    for kind in options.types.split(","):
        for mode in options.modes.split(","):
            models = {}
            for who, quantize in (("ours", ours), ("llama.cpp", ggml.quantized)):
                changed = {}
                for name, mean in weigh.items():
                    made = quantize(kind, source.array(name), mean if mode == "imatrix" else None)
                    changed[name] = replace(base.linears[name], weight=made)
                models[who] = replace(base, weights={**base.weights, **changed})
            results = evaluate(models, text.ids, base)
            one: dict[str, Any] = {"type": kind, "mode": mode}
            for who, result in results.items():
                assert result.kl_mean is not None
                one[who] = {"kl": result.kl_mean.mean, "se": result.kl_mean.se, "top1": result.same_top1}
            one["ratio"] = one["ours"]["kl"] / one["llama.cpp"]["kl"]
            found.append(one)
            shown = [f"{who} {one[who]['kl']:.5g} +- {one[who]['se']:.2g}" for who in models]
            print(f"{kind:7} {mode:8} {shown[0]:32} {shown[1]:36} ratio {one['ratio']:.3f}", flush=True)
    if options.out:
        Path(options.out).write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
