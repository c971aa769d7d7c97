"""Model: a language model that can be loaded, quantized, run, measured and saved."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np

from anybit.cache import CacheSpec
from anybit.engine.engine import Engine
from anybit.engine.generate import Piece, generate
from anybit.engine.sampling import Sampling
from anybit.errors import FileFormatError, FormatError, ShapeError, UsageError
from anybit.foreign import foreign_weights
from anybit.formats import Format, Spec
from anybit.io.checkpoint import save_checkpoint
from anybit.io.foreign import Foreign, Sidecar, open_foreign
from anybit.io.hf import CONFIG, open_model
from anybit.io.quantization import StoredLayer
from anybit.io.tokenizer import read_tokenizer
from anybit.linear import ActSpec, Linear, check_kernel
from anybit.methods import METHODS
from anybit.models import PLAIN, ModelSpec, describe
from anybit.products import attention_product
from anybit.stored import (
    BUNDLED,
    KEEP,
    brought_elements,
    check_finite,
    check_request,
    chosen_names,
    dense_tensor,
    entry_of,
    float32_of,
    formats_of,
    resolve,
    stored_attention,
    stored_cache,
    stored_linear,
    tables_of,
)  # fmt: skip
from anybit.streaming import quantize_file
from anybit.tensor import QTensor

Progress = Callable[[int, int, str], None]
"""Called with (done, total, name of the tensor) after each tensor."""


@dataclass(frozen=True, eq=False)
class Model:
    """A described model on its weights.

    `weights` holds a `Linear` for every matrix (embedding and head too) and float32 arrays for norms and routers; `plain` these and biases
    as they were stored, (dtype, array), for saving. Everything is read-only; `quantize`, `replace`, `with_act`, `with_product`,
    `with_attention` and `with_cache` give new models that share what is equal. `attention`: the product rule of q k^T and p v, None for
    multiplication. `cache`: formats of keys and values between tokens. `policies`: how the codes of each matrix were chosen, where known.
    """

    config: Mapping[str, Any]
    spec: ModelSpec
    weights: Mapping[str, Linear | np.ndarray]
    plain: Mapping[str, tuple[str, np.ndarray]]
    sidecars: tuple[Sidecar, ...] = ()
    name: str = "model"
    policies: Mapping[str, str] = field(default_factory=dict)
    attention: str | None = None
    cache: CacheSpec | None = None

    # ---------------------------------------------------------------------------------------------- running
    @cached_property
    def engine(self) -> Engine:
        """The engine, made on first use."""
        return Engine(self.spec, self.weights, attention=self.attention, cache=self.cache)

    @cached_property
    def tokenizer(self) -> Any:
        """The model's `tokenizers.Tokenizer`. FileFormatError: there is none, or it cannot be read."""
        file = next((file for file in self.sidecars if file.name == "tokenizer.json"), None)
        if file is None:
            raise FileFormatError(f"{self.name}: no tokenizer.json; save the model's fast tokenizer there (tokenizer.save_pretrained)")
        return read_tokenizer(file.read_bytes(), file if isinstance(file, Path) else f"{self.name}: {file.name}")

    def tokenize(self, text: str) -> np.ndarray:
        """int32[t] token ids of a text, with the special tokens that the tokenizer adds. UsageError: half a surrogate pair in it."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            what = f"character {error.start} of the text, {text[error.start]!a}, is half a surrogate pair"
            raise UsageError(f"{what}; bytes that are not UTF-8 come in as such: give the text in UTF-8") from None
        return np.asarray(self.tokenizer.encode(text).ids, np.int32)

    def logits(self, ids: Any) -> np.ndarray:
        """float32[t, vocabulary]: the logits after each of t tokens. DoesNotFitError: more tokens than the context holds."""
        return self.engine.forward(ids)

    def _pieces(self, prompts: Sequence[str], max_tokens: int | None, stop: str | Sequence[str], sampling: Sampling) -> Iterator[Piece]:
        ids = [self.tokenize(prompt) for prompt in prompts]
        stop = (stop,) if isinstance(stop, str) else stop
        return generate(self.engine, self.tokenizer, [i.tolist() for i in ids], max_tokens, sampling, stop)

    def stream(
        self, prompt: str, max_tokens: int | None = None, temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0,
        seed: int = 0, stop: str | Sequence[str] = (),
    ) -> Iterator[str]:  # fmt: skip
        """The continuation of a prompt in pieces of text, as they are made. Arguments and errors as `generate`."""
        sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)
        pieces = self._pieces([prompt], max_tokens, stop, sampling)
        return (piece.text for piece in pieces if piece.text)

    @overload
    def generate(
        self, prompt: str, max_tokens: int | None = ..., temperature: float = ..., top_k: int = ..., top_p: float = ...,
        min_p: float = ..., seed: int = ..., stop: str | Sequence[str] = ...,
    ) -> str: ...  # fmt: skip
    @overload
    def generate(
        self, prompt: list[str] | tuple[str, ...], max_tokens: int | None = ..., temperature: float = ..., top_k: int = ...,
        top_p: float = ..., min_p: float = ..., seed: int = ..., stop: str | Sequence[str] = ...,
    ) -> list[str]: ...  # fmt: skip
    def generate(
        self, prompt: str | list[str] | tuple[str, ...], max_tokens: int | None = None, temperature: float = 0.0, top_k: int = 0,
        top_p: float = 1.0, min_p: float = 0.0, seed: int = 0, stop: str | Sequence[str] = (),
    ) -> str | list[str]:  # fmt: skip
        """The continuation of a prompt, or of each of several, without the prompt.

        Args: max_tokens, None for as many as the context holds; temperature, 0 for the most likely token each time; top_k, top_p, min_p
            narrow the choice; seed: with the position it decides every choice; stop, a string or several that end the text and are not
            shown.
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

    @cached_property
    def quantized(self) -> frozenset[str]:
        """Names of the matrices that are stored in fewer bits than dense ones."""
        formats = {name: linear.weight.format for name, linear in self.linears.items()}
        return frozenset(name for name, fmt in formats.items() if fmt.pack or not fmt.dense)

    @property
    def policy(self) -> str | None:
        """How the codes of all quantized matrices were chosen ("+scale=mse"); None: they differ (see `policies`), or it is not known."""
        found = {self.policies.get(name) for name in self.quantized or self.policies}
        return found.pop() if len(found) == 1 else None

    @property
    def nbytes(self) -> int:
        """Bytes of all weights as stored, padding included."""
        return sum(linear.nbytes for linear in self.linears.values()) + sum(array.nbytes for _, array in self.plain.values())

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
        chosen = [self.linears[name] for name in self.linears if name in self.quantized]
        return Fraction(8 * sum(linear.nbytes for linear in chosen), sum(linear.weight.size for linear in chosen)) if chosen else None

    @property
    def context(self) -> int:
        """How many tokens a sequence may have."""
        return self.engine.context

    def explain(self) -> list[dict[str, Any]]:
        """For each matrix the kernel that serves it and how, its instruction set and integer path, and why no other kernel does."""
        rows = []
        for name, linear in self.linears.items():
            choice = check_kernel(linear.weight, linear.act_name, native=True, rule=linear.rule)
            native, weight, product = linear.native, linear.weight, linear.native_product
            rows.append({
                "name": name, "shape": list(weight.shape), "format": weight.format.explicit, "layout": weight.layout,
                "act": linear.act_text, "around": list(linear.around), "kernel": choice.kernel.name, "isa": native.isa,
                "table": weight.bound.element.table.kind, "dot": product.path if product else native.kind if linear.act_name else "float",
                "product": linear.product or "multiplication", "bytes": linear.nbytes,
                "why": choice.kernel.about + ("" if product else "; " + native.how(1 if linear.act_name else 0)), "others": choice.others,
            })  # fmt: skip
        return rows

    # ---------------------------------------------------------------------------------------------- changing
    def replace(self, weights: Mapping[str, Linear | np.ndarray], policy: str | None = None) -> Model:
        """The same model with some weights given anew: a `Linear` for a matrix, whatever runs around it, or float32 numbers for a norm.

        policy: how codes of these matrices were chosen, stored with the checkpoint; None: not known. UsageError: no such weight.
        ShapeError: one of another shape, or a layer that nothing runs. NoKernelError: activations or a branch that nothing runs.
        """
        plain = dict(self.plain)
        shapes = {tensor.name: tensor for tensor in self.spec.tensors}
        for name, given in weights.items():
            if name not in self.weights:
                raise UsageError(f"{self.name} has no weight '{name}'; it has {', '.join(list(self.weights)[:4])}, ...")
            matrix, tensor = isinstance(self.weights[name], Linear), shapes[name]
            found = given.weight.shape if isinstance(given, Linear) else given.shape
            if isinstance(given, Linear) != matrix or tuple(found) != tensor.shape:
                kind = "a Linear" if matrix else "an array"
                raise ShapeError(f"weight '{name}' must be {kind} of shape {list(tensor.shape)}, not {type(given).__name__} {list(found)}")
            if not isinstance(given, Linear):
                plain[name] = ("F32", np.ascontiguousarray(given, np.float32))
                continue
            given.check()
            bias = f"{tensor.module}.bias"
            if bias in shapes and given.bias is None:
                raise ShapeError(f"weight '{name}' needs a bias, as the model has one there")
            before = self.weights[name]
            if bias in shapes and isinstance(before, Linear) and given.bias is not before.bias:
                plain[bias] = ("F32", np.ascontiguousarray(given.bias, np.float32))
        norms = {name: plain[name][1] for name, given in weights.items() if not isinstance(given, Linear)}
        # The same codes with something else around them were chosen as before.
        codes = {name: linear.weight for name, linear in self.linears.items()}
        matrices = [name for name, given in weights.items() if isinstance(given, Linear) and (policy or given.weight is not codes[name])]
        policies = self._with_policy(matrices, policy)
        return replace(self, weights={**self.weights, **weights, **norms}, plain=plain, policies=policies)

    def _with_policy(self, names: Sequence[str], policy: str | None) -> dict[str, str]:
        """`policies` where some matrices have been quantized anew."""
        kept = {name: text for name, text in self.policies.items() if name not in set(names)}
        return kept if policy is None else kept | dict.fromkeys(names, policy)

    def with_act(self, act: str | None) -> Model:
        """The same weights with other activations in the quantized matrices: None or "float", or "int8"."""
        spec = ActSpec.named(act)
        changed = {name: replace(self.linears[name], act=spec) for name in self.linears if name in self.quantized}
        return replace(self, weights={**self.weights, **changed})

    def open(self, width: int) -> Model:
        """The nested integers among the weights opened at a width, the other weights as they are. FormatError: none nests there."""
        opened = {name: linear.weight.open(width) for name, linear in self.linears.items() if linear.weight.format.nested}
        if not opened:
            raise FormatError(f"{self.name} has no nested integers to open at {width}; quantize it to int8@128+nest={width}, for instance")
        return replace(self, weights={**self.weights, **{name: replace(self.linears[name], weight=each) for name, each in opened.items()}})

    def with_product(self, product: str | None, keep: str | None = KEEP) -> Model:
        """The same weights with another product rule (docs/products.md), None for multiplication, in every matrix that `keep` does not
        match.

        Raises: UnknownNameError, UsageError: no such rule. NoKernelError: it does not take a weight or its activations.
        """
        changed = {name: replace(self.linears[name], product=product) for name in chosen_names(self.linears, keep)}
        for linear in changed.values():
            check_kernel(linear.weight, linear.act_name, native=True, rule=linear.rule)
        return replace(self, weights={**self.weights, **changed})

    def with_attention(self, product: str | None) -> Model:
        """The same model with a product rule (lmul, lmulM) in q k^T and p v; None: multiplication. UsageError: no such rule."""
        if product is not None:
            attention_product(product)
        return replace(self, attention=product)

    def with_cache(self, cache: CacheSpec | str | None) -> Model:
        """The same model with keys and values kept in a number format ("int8@64", "k=int8@64,v=int4@32,stage=pre_rope"); None: float32.

        UsageError, FormatError: no such format. NoKernelError: the cache cannot hold it.
        """
        return replace(self, cache=CacheSpec.parse(cache) if cache is None or isinstance(cache, str) else cache)

    def quantize(
        self, fmt: Format | Spec | str, keep: str | None = KEEP, act: str | None = None, method: str = "rtn",
        progress: Progress | None = None, product: str | None = None,
    ) -> Model:  # fmt: skip
        """A model whose matrices are stored in a format.

        Args: fmt, a format, spec or the text of one; keep, a regular expression of weight names that stay as they are (None or "": none);
            act, activations of the quantized matrices, None (float) or "int8"; method, how codes are chosen; product, a rule in
            the place of multiplication in the quantized matrices, such as "lmul".
        Raises: FormatError, UnknownNameError: the format or method. NonFiniteError: NaN or Inf in a weight (tensor, index, count).
            UsageError: keep is no regular expression, or leaves nothing to quantize.
        """
        spec, act_spec = check_request(fmt, act, method, product)
        chosen = chosen_names(self.linears, keep)
        weights = dict(self.weights)
        for done, name in enumerate(chosen):
            linear = self.linears[name]
            w = linear.weight.dequantize()
            parts = METHODS[method](w, spec.for_tensor(name), name=f"tensor '{name}'")
            weights[name] = replace(linear, weight=QTensor.pack(spec.format, w.shape, parts), act=act_spec, product=product)
            if progress:
                progress(done + 1, len(chosen), name)
        return replace(self, weights=weights, policies=self._with_policy(chosen, spec.policy_text))

    def save(self, path: str | Path) -> int:
        """Writes a checkpoint directory, all of it or nothing; gives its safetensors bytes.

        OutputError: it exists, or the disk fails. UsageError: a product rule whose table is a file, which a checkpoint does not store.
        """
        listed = {tensor.module for tensor in self.spec.tensors if tensor.role == "bias"}
        modules = {tensor.name: tensor.module for tensor in self.spec.tensors}
        common, quantized = self.policy, self.quantized
        entries = []
        for name, linear in self.linears.items():
            entry, text = entry_of(linear, modules[name] in listed), self.policies.get(name)
            policy = None if name in quantized and text == common else text
            entries.append((name, replace(entry, stored=replace(entry.stored, policy=policy))))
        plain = [(name, dtype, array) for name, (dtype, array) in self.plain.items()]
        cache = None if self.cache is None else self.cache.fields
        tables = tables_of(fmt for linear in self.linears.values() for fmt in formats_of(linear))
        return save_checkpoint(
            path, self.config, entries, plain, self.sidecars, tables=tables, policy=common, attention_product=self.attention,
            kv_cache=cache,
        )  # fmt: skip

    def __repr__(self) -> str:
        return f"Model({self.name}, {self.spec.family}, {self.parameters} weights, {float(self.bits_per_weight):.3f} bits a weight)"


def load(path: str | Path, open: int | None = None) -> Model:
    """Opens a model: a Hugging Face directory, one that anybit saved, a GGUF file, or the name of the bundled model, "pycoder-5m".

    A model that anybit saved runs in place on the mapped file. Another one's matrices are repacked tensor by tensor; quantized ones keep
    their codes and scales.
    Args: open, a width at which nested integers are opened (see `Model.open`).
    Raises: FileFormatError: no model, a damaged one, an unsupported architecture, a tensor that is missing or does not fit the config.
        NonFiniteError: NaN or infinity in a dense tensor that is read now (tensor, index, count).
    """
    foreign = open_foreign(resolve(path))
    if foreign is not None:
        model = _load_foreign(foreign, str(path))
        return model if open is None else model.open(open)
    source = open_model(resolve(path))
    where, place = source.path, source.place
    spec = describe(source.config, str(source.path / CONFIG), source.field)
    layers = dict(source.quantization.layers) if source.quantization else {}
    elements = brought_elements(source)
    shapes = {name: tuple(layer.shape) for name, layer in layers.items()} | {name: source.tensors[name].shape for name in source.dense}
    spec.check_tensors(shapes, str(where), place)
    weights: dict[str, Linear | np.ndarray] = {}
    plain: dict[str, tuple[str, np.ndarray]] = {}
    biases: dict[str, np.ndarray] = {}
    for tensor in spec.tensors:
        if tensor.role not in PLAIN:
            continue
        if tensor.name in layers:
            what = f"a {tensor.role} cannot be quantized{place(tensor.name)}"
            raise FileFormatError(f"{where}: layer '{tensor.name}': {what}; save the model again")
        array, dtype = source.get(tensor.name)
        values = float32_of(array, dtype, tensor.name, where, place)
        check_finite(array, dtype, tensor.name, where, place)
        plain[tensor.name] = (dtype, array)
        if tensor.role == "bias":
            biases[tensor.module] = values
        else:
            weights[tensor.name] = values
    for tensor in spec.tensors:
        name = tensor.name
        if tensor.role in PLAIN:
            continue
        if name in layers:
            weights[name] = stored_linear(source, name, layers[name], elements, biases.get(tensor.module))
        else:
            weights[name] = Linear(dense_tensor(*source.get(name), name, where, place), biases.get(tensor.module))
            source.release(name)
    spec = replace(spec, eos=source.eos or spec.eos)
    attention, cache = stored_attention(source), stored_cache(source)
    model = Model(source.config, spec, weights, plain, source.sidecars, str(path), {}, attention, cache)
    model = replace(model, policies=_stored_policies(model, layers, source.quantization.policy if source.quantization else None))
    return model if open is None else model.open(open)


def _stored_policies(model: Model, layers: Mapping[str, StoredLayer], common: str | None) -> dict[str, str]:
    """How codes were chosen: what a layer says itself, and what the checkpoint says of all quantized ones."""
    found = {name: layer.policy or (common if name in model.quantized else None) for name, layer in layers.items()}
    return {name: text for name, text in found.items() if text is not None}


def _load_foreign(source: Foreign, name: str) -> Model:
    """A model from another tool's container, which stays mapped while its tokenizer may be asked for."""
    spec = describe(source.config, str(source.path), source.field)
    weights, plain = foreign_weights(source, spec)
    spec = replace(spec, eos=source.eos or spec.eos)
    return Model(source.config, spec, weights, plain, source.sidecars, name)


__all__ = ["BUNDLED", "KEEP", "Model", "load", "quantize_file", "resolve"]
