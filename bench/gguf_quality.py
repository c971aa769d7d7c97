"""Our quantizer and llama.cpp's own to the same GGUF types: KL divergence of the bundled model from its original.

    python bench/gguf_quality.py --ggml LIBGGML_BASE [--types q4_k,q6_k] [--tokens 8192] [--draws 4] [--out FILE.json]

LIBGGML_BASE is llama.cpp's libggml-base.so, as llama-cpp-python installs it: every matrix of the blocks goes through its
`ggml_quantize_chunk`, what `llama_model_quantize` calls, and through ours; both results run on our engine with float activations, over the
same held-out text. Embedding and head stay. Twice: without data ("plain"), and with one importance matrix for both ("imatrix"), the mean
of squared inputs over calibration text (128 windows of 512 tokens). llama.cpp makes IQ1_S, IQ2_XXS and IQ2_XS with importance alone:
"plain" gives it ones.

One quantized model says little about a difference of some percent: with its input channels in another order, so that other weights share
a block, the same quantizer makes one whose divergence is a percent or two away. `--draws N` takes N orders, the same for both, the first
as it is, and gives the ratio of the means with its standard error over the orders.
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


def in_order(quantize: Any, kind: str, w: np.ndarray, importance: np.ndarray | None, seed: int) -> QTensor:
    """A matrix quantized with its columns in another order (0: as they are); its values in the order that they had."""
    if not seed:
        made: QTensor = quantize(kind, w, importance)
        return made
    order = np.random.default_rng([seed, w.shape[1]]).permutation(w.shape[1])
    moved = quantize(kind, np.ascontiguousarray(w[:, order]), None if importance is None else importance[order])
    values = np.empty(w.shape, np.float32)
    values[:, order] = moved.dequantize()
    return anybit.quantize(values, "fp32")


def ratio_of(ours_kl: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    """Ratio of the means over orders, and its standard error from how the pairs differ (nan for one)."""
    ratio = float(ours_kl.mean() / theirs.mean())
    left = ours_kl - ratio * theirs
    return ratio, float(left.std(ddof=1) / np.sqrt(len(left)) / theirs.mean()) if len(left) > 1 else float("nan")


def main() -> None:
    """Measures, prints."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--ggml", required=True)
    parser.add_argument("--types", default=TYPES)
    parser.add_argument("--modes", default="plain,imatrix")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--seed", type=int, default=0, help="of the calibration text")
    parser.add_argument("--draws", type=int, default=1, help="orders of the input channels")
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
            for draw in range(options.draws):
                for who, quantize in (("ours", ours), ("llama.cpp", ggml.quantized)):
                    changed = {}
                    for name, mean in weigh.items():
                        made = in_order(quantize, kind, source.array(name), mean if mode == "imatrix" else None, draw)
                        changed[name] = replace(base.linears[name], weight=made)
                    models[f"{who} {draw}"] = replace(base, weights={**base.weights, **changed})
            results = evaluate(models, text.ids, base)
            one: dict[str, Any] = {"type": kind, "mode": mode}
            for who in ("ours", "llama.cpp"):
                drawn = [results[f"{who} {draw}"] for draw in range(options.draws)]
                kls = [each.kl_mean for each in drawn]
                one[who] = {"kl": kls[0].mean, "se": kls[0].se, "top1": drawn[0].same_top1, "kls": [each.mean for each in kls]}
            one["ratio"], one["ratio_se"] = ratio_of(*(np.array(one[who]["kls"]) for who in ("ours", "llama.cpp")))
            found.append(one)
            shown = [f"{who} {one[who]['kl']:.5g} +- {one[who]['se']:.2g}" for who in ("ours", "llama.cpp")]
            spread = f" +- {one['ratio_se']:.3f} of {options.draws} orders" if options.draws > 1 else ""
            print(f"{kind:7} {mode:8} {shown[0]:32} {shown[1]:36} ratio {one['ratio']:.3f}{spread}", flush=True)
    if options.out:
        Path(options.out).write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
