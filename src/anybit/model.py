"""Model: a language model that can be loaded, quantized, run, measured and saved."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np

from anybit.engine.engine import Engine
from anybit.engine.generate import Piece, generate
from anybit.engine.sampling import Sampling
from anybit.errors import AnybitError, FileFormatError, FormatError, NoKernelError, ShapeError, UsageError
from anybit.formats import Format, Spec
from anybit.io.checkpoint import QuantizedEntry, save_checkpoint
from anybit.io.hf import Source, open_model
from anybit.io.quantization import PartInfo, StoredLayer
from anybit.layouts import LAYOUTS, default_layout
from anybit.linear import ActSpec, Linear, check_kernel
from anybit.methods import METHODS
from anybit.models import ModelSpec, describe
from anybit.tensor import QTensor

BUNDLED = "pycoder-5m"
KEEP = r"embed_tokens|lm_head"
"""Weights that quantizing leaves as they are unless told otherwise: embeddings and head."""

DENSE_FORMATS = {"BF16": "bf16", "F16": "fp16", "F32": "fp32"}
_STORED = {1: "U8", 2: "U16", 4: "U32"}

Progress = Callable[[int, int, str], None]
"""Called with (done, total, name of the tensor) after each tensor."""


def resolve(path: str | Path) -> Path:
    """A model's path; the name of the bundled model stands for where it lies."""
    return Path(__file__).parent / "data" / BUNDLED if str(path) == BUNDLED else Path(path)


def _float32(array: np.ndarray, dtype: str, name: str, where: object) -> np.ndarray:
    """float32 values of a stored dense array. FileFormatError: a dtype that holds no weights."""
    if dtype not in DENSE_FORMATS:
        raise FileFormatError(f"{where}: tensor '{name}' has dtype {dtype}; weights must be {', '.join(DENSE_FORMATS)}")
    if dtype == "BF16":
        return (array.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return array.astype(np.float32)


def _dense(array: np.ndarray, dtype: str, name: str, where: object) -> QTensor:
    """A dense weight in the layout that kernels read."""
    if dtype not in DENSE_FORMATS:
        raise FileFormatError(f"{where}: tensor '{name}' has dtype {dtype}; weights must be {', '.join(DENSE_FORMATS)}")
    return QTensor.dense(array, DENSE_FORMATS[dtype])


@dataclass(frozen=True, eq=False)
class Model:
    """A described model on its weights.

    `weights` holds a `Linear` for every matrix (embedding and head too) and float32 arrays for norms; `plain` the norms and biases as they
    were stored, (dtype, array), for saving. Everything is read-only; `quantize` and `with_act` give new models that share what is equal.
    """

    config: Mapping[str, Any]
    spec: ModelSpec
    weights: Mapping[str, Linear | np.ndarray]
    plain: Mapping[str, tuple[str, np.ndarray]]
    sidecars: tuple[Path, ...] = ()
    name: str = "model"
    policy: str | None = None
    quantized: frozenset[str] = frozenset()

    # ---------------------------------------------------------------------------------------------- running
    @cached_property
    def engine(self) -> Engine:
        """The engine, made on first use."""
        return Engine(self.spec, self.weights)

    @cached_property
    def tokenizer(self) -> Any:
        """The model's `tokenizers.Tokenizer`. FileFormatError: there is none, or it cannot be read."""
        path = next((path for path in self.sidecars if path.name == "tokenizer.json"), None)
        if path is None:
            raise FileFormatError(f"{self.name}: no tokenizer.json; save the model's fast tokenizer there (tokenizer.save_pretrained)")
        from tokenizers import Tokenizer

        try:
            return Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing narrower
            raise FileFormatError(f"{path}: no tokenizer that can be read: {error}; save the tokenizer again") from None

    def tokenize(self, text: str) -> np.ndarray:
        """int32[t] token ids of a text, with the special tokens that the tokenizer adds."""
        return np.asarray(self.tokenizer.encode(text).ids, np.int32)

    def logits(self, ids: Any) -> np.ndarray:
        """float32[t, vocabulary]: the logits after each of t tokens. DoesNotFitError: more tokens than the context holds."""
        return self.engine.forward(ids)

    def _pieces(self, prompts: Sequence[str], max_tokens: int | None, stop: Sequence[str], sampling: Sampling) -> Iterator[Piece]:
        ids = [self.tokenize(prompt) for prompt in prompts]
        return generate(self.engine, self.tokenizer, [i.tolist() for i in ids], max_tokens, sampling, stop)

    def stream(
        self, prompt: str, max_tokens: int | None = None, temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0,
        seed: int = 0, stop: Sequence[str] = (),
    ) -> Iterator[str]:  # fmt: skip
        """The continuation of a prompt in pieces of text, as they are made. Arguments and errors as `generate`."""
        sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)
        pieces = self._pieces([prompt], max_tokens, stop, sampling)
        return (piece.text for piece in pieces if piece.text)

    @overload
    def generate(self, prompt: str, max_tokens: int | None = None, **options: Any) -> str: ...
    @overload
    def generate(self, prompt: Sequence[str], max_tokens: int | None = None, **options: Any) -> list[str]: ...
    def generate(
        self, prompt: str | Sequence[str], max_tokens: int | None = None, temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0,
        min_p: float = 0.0, seed: int = 0, stop: Sequence[str] = (),
    ) -> str | list[str]:  # fmt: skip
        """The continuation of a prompt, or of each of several, without the prompt.

        Args: max_tokens, None for as many as the context holds; temperature, 0 for the most likely token each time; top_k, top_p, min_p
            narrow the choice; seed: with the position it decides every choice; stop, strings that end the text and are not shown.
        Returns: text; the same for every batch, thread count and instruction set.
        Raises: DoesNotFitError: a prompt leaves no room in the context (it is never cut). UsageError: an option out of range.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)
        texts = [""] * len(prompts)
        for piece in self._pieces(prompts, max_tokens, stop, sampling):
            texts[piece.sequence] += piece.text
        return texts[0] if isinstance(prompt, str) else texts

    # ---------------------------------------------------------------------------------------------- what it is
    @cached_property
    def linears(self) -> dict[str, Linear]:
        """Every matrix by name, in the order of execution."""
        return {name: weight for name, weight in self.weights.items() if isinstance(weight, Linear)}

    @property
    def nbytes(self) -> int:
        """Bytes of all weights as stored, padding included."""
        return sum(linear.weight.nbytes for linear in self.linears.values()) + sum(array.nbytes for _, array in self.plain.values())

    @property
    def parameters(self) -> int:
        """How many weights, a tied embedding counted once."""
        return sum(linear.weight.size for linear in self.linears.values()) + sum(array.size for _, array in self.plain.values())

    @property
    def bits_per_weight(self) -> Fraction:
        """Stored bits a weight of the whole model: embeddings, head, norms and padding included."""
        return Fraction(8 * self.nbytes, self.parameters)

    @property
    def quantized_bits_per_weight(self) -> Fraction | None:
        """Stored bits a weight of the quantized matrices alone; None if there are none."""
        chosen = [self.linears[name].weight for name in self.linears if name in self.quantized]
        return Fraction(8 * sum(w.nbytes for w in chosen), sum(w.size for w in chosen)) if chosen else None

    @property
    def context(self) -> int:
        """How many tokens a sequence may have."""
        return self.engine.context

    def explain(self) -> list[dict[str, Any]]:
        """For each matrix the kernel that serves it, its instruction set and integer path, and why no other kernel does."""
        rows = []
        for name, linear in self.linears.items():
            choice = check_kernel(linear.weight, linear.act_name)
            native = linear.native
            rows.append({
                "name": name, "shape": list(linear.weight.shape), "format": linear.weight.format.explicit, "layout": linear.weight.layout,
                "act": linear.act_name or "float", "kernel": choice.kernel.name, "isa": native.isa, "table": linear.weight.format.element.table.kind,
                "dot": native.kind if linear.act_name else "float", "bytes": linear.weight.nbytes, "others": choice.others,
            })  # fmt: skip
        return rows

    # ---------------------------------------------------------------------------------------------- changing
    def with_act(self, act: str | None) -> Model:
        """The same weights with other activations in the quantized matrices: None or "float", or "int8"."""
        spec = ActSpec.named(act)
        weights = {name: replace(w, act=spec) if isinstance(w, Linear) and name in self.quantized else w for name, w in self.weights.items()}
        return replace(self, weights=weights)

    def quantize(
        self, fmt: Format | Spec | str, keep: str | None = KEEP, act: str | None = None, method: str = "rtn", progress: Progress | None = None
    ) -> Model:
        """A model whose matrices are stored in a format.

        Args: fmt, a format, spec or the text of one; keep, a regular expression of weight names that stay as they are (None or "": none);
            act, activations of the quantized matrices, None (float) or "int8"; method, how codes are chosen.
        Raises: FormatError, UnknownNameError: the format or method. NonFiniteError: NaN or Inf in a weight (tensor, index, count).
            UsageError: keep is no regular expression, or leaves nothing to quantize.
        """
        spec = fmt if isinstance(fmt, Spec) else Spec.parse(fmt) if isinstance(fmt, str) else Spec(fmt)
        act_spec = ActSpec.named(act)
        chosen = chosen_names(self.linears, keep)
        weights = dict(self.weights)
        for done, name in enumerate(chosen):
            linear = self.linears[name]
            w = linear.weight.dequantize()
            check_act(spec.format, w.shape, act_spec)
            weights[name] = replace(linear, weight=QTensor.pack(spec.format, w.shape, METHODS[method](w, spec, name=name)), act=act_spec)
            if progress:
                progress(done + 1, len(chosen), name)
        return replace(self, weights=weights, policy=str(spec.policy) or None, quantized=self.quantized | set(chosen))

    def save(self, path: str | Path) -> int:
        """Writes a checkpoint directory, all of it or nothing; gives the bytes of its weights. OutputError: it exists, or the disk fails."""
        entries = [(name, _entry(linear)) for name, linear in self.linears.items()]
        plain = [(name, dtype, array) for name, (dtype, array) in self.plain.items()]
        return save_checkpoint(path, self.config, entries, plain, self.sidecars, policy=self.policy)

    def __repr__(self) -> str:
        return f"Model({self.name}, {self.spec.family}, {self.parameters} weights, {float(self.bits_per_weight):.3f} bits a weight)"


def chosen_names(names: Mapping[str, Any], keep: str | None) -> list[str]:
    """The names that `keep` does not match. UsageError: it is no regular expression, or matches all of them."""
    try:
        pattern = re.compile(keep) if keep else None
    except re.error as error:
        raise UsageError(f"keep='{keep}' is no regular expression: {error}") from None
    chosen = [name for name in names if not (pattern and pattern.search(name))]
    if not chosen:
        raise UsageError(f"keep='{keep}' matches every matrix: nothing is left to quantize")
    return chosen


def check_act(fmt: Format, shape: tuple[int, ...], act: ActSpec | None) -> None:
    """Refuses before work starts what no kernel would run. NoKernelError."""
    from anybit.kernels import choose
    from anybit.kernels.cpu import op_spec

    choose(op_spec(fmt, default_layout(fmt, shape), act.kernel_name if act else None))


def _entry(linear: Linear) -> QuantizedEntry:
    """A matrix as a checkpoint stores it."""
    if linear.pre or linear.post or linear.branches or linear.product:
        raise NoKernelError("transforms, branches and product rules cannot be saved yet")
    weight = linear.weight
    parts = {name: PartInfo(_STORED[part.dtype.itemsize], part.shape) for name, part in weight.parts.items()}
    stored = StoredLayer(weight.format.explicit, weight.layout, weight.shape, parts, act=linear.act_name)
    return QuantizedEntry(stored, lambda: dict(weight.parts))


def _stored_tensor(source: Source, name: str, layer: StoredLayer) -> QTensor:
    where = f"{source.path}: layer '{name}'"
    if layer.pre or layer.post or layer.branches or layer.product:
        raise FileFormatError(f"{where}: it has transforms, branches or a product rule, which this anybit does not run; update anybit")
    try:
        return QTensor.from_stored(Format(layer.format), layer.shape, layer.layout, source.parts(name))
    except (FormatError, ShapeError, KeyError) as error:
        raise FileFormatError(f"{where}: {error}; save the model again") from None


def load(path: str | Path) -> Model:
    """Opens a model: a Hugging Face directory, one that anybit saved, or the name of the bundled model, "pycoder-5m".

    A model that anybit saved runs in place on the mapped file. Another one's matrices are repacked tensor by tensor.
    Raises: FileFormatError: no model, a damaged one, an unsupported architecture, a tensor that is missing or does not fit the config.
    """
    source = open_model(resolve(path))
    spec = describe(source.config)
    layers = dict(source.quantization.layers) if source.quantization else {}
    shapes = {name: tuple(layer.shape) for name, layer in layers.items()} | {name: source.tensors[name].shape for name in source.dense}
    spec.check_tensors(shapes, str(source.path))
    biases = {tensor.module: tensor.name for tensor in spec.tensors if tensor.role == "bias"}
    weights: dict[str, Linear | np.ndarray] = {}
    plain: dict[str, tuple[str, np.ndarray]] = {}
    quantized = set()
    for tensor in spec.tensors:
        name = tensor.name
        if tensor.role in ("norm", "bias"):
            array, dtype = source.get(name)
            plain[name] = (dtype, array)
            if tensor.role == "norm":
                weights[name] = _float32(array, dtype, name, source.path)
            continue
        bias_name = biases.get(tensor.module)
        bias = _float32(*source.get(bias_name), bias_name, source.path) if bias_name else None
        if name in layers:
            weight, act = _stored_tensor(source, name, layers[name]), layers[name].act
            if not weight.format.dense:
                quantized.add(name)
        else:
            array, dtype = source.get(name)
            weight, act = _dense(array, dtype, name, source.path), None
            source.release(name)
        weights[name] = Linear(weight, bias, act=ActSpec.named(act))
    spec = replace(spec, eos=source.eos or spec.eos)
    policy = source.quantization.policy if source.quantization else None
    return Model(source.config, spec, weights, plain, source.sidecars, str(path), policy, frozenset(quantized))


def quantize_file(
    path: str | Path, out: str | Path, fmt: Format | Spec | str, keep: str | None = KEEP, act: str | None = None, method: str = "rtn",
    progress: Progress | None = None,
) -> int:  # fmt: skip
    """Quantizes a stored model into a new checkpoint, tensor by tensor: never more than one matrix in memory. Gives bytes written.

    Arguments and errors as `Model.quantize` and `load`; OutputError: `out` exists or cannot be written (nothing is left half written).
    """
    spec = fmt if isinstance(fmt, Spec) else Spec.parse(fmt) if isinstance(fmt, str) else Spec(fmt)
    act_spec = ActSpec.named(act)
    source = open_model(resolve(path))
    if source.quantization is not None:
        raise UsageError(f"{path} is quantized already; give the original model")
    model = describe(source.config)
    model.check_tensors({name: source.tensors[name].shape for name in source.dense}, str(source.path))
    matrices = {tensor.name: tensor for tensor in model.tensors if tensor.role not in ("norm", "bias")}
    chosen = set(chosen_names(matrices, keep))
    total = len(matrices)
    entries = []
    for name, tensor in matrices.items():
        dtype = source.tensors[name].dtype
        if dtype not in DENSE_FORMATS:
            raise FileFormatError(f"{source.path}: tensor '{name}' has dtype {dtype}; weights must be {', '.join(DENSE_FORMATS)}")
        target = spec.format if name in chosen else Format(DENSE_FORMATS[dtype])
        layout = default_layout(target, tensor.shape)
        if name in chosen:
            check_act(target, tensor.shape, act_spec)
        sizes = LAYOUTS[layout].parts(target, tensor.shape)
        parts = {part: PartInfo(_STORED[kind.itemsize], shape) for part, (kind, shape) in sizes.items()}
        stored = StoredLayer(target.explicit, layout, tensor.shape, parts, act=act if name in chosen and act_spec else None)

        def produce(name: str = name, dtype: str = dtype, chosen_here: bool = name in chosen) -> dict[str, np.ndarray]:
            array, _ = source.get(name)
            if chosen_here:
                w = _float32(array, dtype, name, source.path)
                tensor = QTensor.pack(spec.format, w.shape, METHODS[method](w, spec, name=f"tensor '{name}'"))
            else:
                tensor = _dense(array, dtype, name, source.path)
            source.release(name)
            return dict(tensor.parts)

        entries.append((name, QuantizedEntry(stored, produce)))
    METHODS[method]  # an unknown name is refused before anything is written
    plain = [(tensor.name, source.tensors[tensor.name].dtype, source.get(tensor.name)[0]) for tensor in model.tensors if tensor.role in ("norm", "bias")]
    written = 0

    def on_written(name: str) -> None:
        nonlocal written
        written += 1
        if progress and written <= total:
            progress(written, total, name)

    return save_checkpoint(out, source.config, entries, plain, source.sidecars, policy=str(spec.policy) or None, on_written=on_written)


__all__ = ["BUNDLED", "KEEP", "AnybitError", "Model", "load", "quantize_file", "resolve"]
