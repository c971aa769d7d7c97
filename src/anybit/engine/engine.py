"""Runs a described model on its weights: tokens in, logits out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from anybit.cache import CacheSpec
from anybit.engine.state import State
from anybit.errors import DoesNotFitError, NoKernelError, NonFiniteError, ShapeError, UsageError
from anybit.kernels.cpu import native
from anybit.kernels.product import native_product
from anybit.linear import Linear
from anybit.models.spec import Experts, Mlp, ModelSpec, Rope
from anybit.products import attention_product

MOST_POSITIONS = 1 << 20  # rotary angles are exact enough below this (docs/contract.md)
CHUNK_BYTES = 16 << 20  # activations of one chunk


class Engine:
    """A model that can be run. Results are the same bits for every chunk, batch, thread count and instruction set.

    Args: spec, the description; weights, by tensor name: a `Linear` for every matrix (it holds the bias), float32 arrays for norms and
        routers;
        chunk, tokens of one native call (None: what keeps its activations under 16 MB, at most 512); attention, a product rule (lmul,
        lmulM) in the place of multiplication in q k^T and p v; cache, formats of keys and values (None: float32).
    Raises: ShapeError: a weight is missing or its shape is not the description's. NoKernelError: no kernel runs a weight.
    """

    def __init__(
        self, spec: ModelSpec, weights: Mapping[str, Linear | np.ndarray], chunk: int | None = None, attention: str | None = None,
        cache: CacheSpec | None = None,
    ) -> None:  # fmt: skip
        self.spec = spec
        self.context = min(spec.context, MOST_POSITIONS)
        self._weights = weights
        self._check()
        rule = None if attention is None else native_product(attention_product(attention), None, None)
        held = (cache or CacheSpec()).native()
        self._windowed = bool(held["sinks"] or held["window"])
        self._decoder = native.Decoder(self._use(spec.embedding), self._norm(spec.norm), spec.norm_eps, self._use(spec.head), rule, **held)
        ropes: list[Rope] = []
        rows = 3 * spec.width
        for layer in spec.layers:
            mixer, mlp = layer.mixer, layer.mlp
            if mixer.rope not in ropes:
                ropes.append(mixer.rope)
                frequencies = (np.asarray(values, np.float32) for values in (mixer.rope.frequencies, mixer.rope.long))
                self._decoder.add_rope(*frequencies, mixer.rope.scale)
            self._decoder.add_layer(
                heads=mixer.heads, kv_heads=mixer.kv_heads, dim=mixer.head_dim, window=mixer.window or 0, rope=ropes.index(mixer.rope),
                eps=spec.norm_eps, residual=layer.residual,
                linears=[self._use(name) for name in (mixer.q, mixer.k, mixer.v, mixer.o)],
                mlps=[[self._use(name) for name in (part.gate, part.up, part.down)] for part in mlp.parts],
                **self._router(mlp), mixer_norm=self._norm(layer.mixer_norm), mlp_norm=self._norm(layer.mlp_norm),
                q_norm=self._norm(mixer.q_norm), k_norm=self._norm(mixer.k_norm),
            )  # fmt: skip
            widths = 5 if isinstance(mlp, Experts) else 3
            rows = max(rows, widths * spec.width + 2 * (mixer.heads + mixer.kv_heads) * mixer.head_dim + 2 * mlp.width)
        self._long_from = min((rope.original for rope in ropes if rope.long), default=None)
        self.chunk = chunk or max(64, min(512, CHUNK_BYTES // (4 * rows) // 64 * 64))

    @property
    def cache_bytes_per_token(self) -> float:
        """Bytes that keys and values of one token take in all layers; pages hold 64 tokens."""
        return int(self._decoder.page_bytes) / 64

    def _check(self) -> None:
        for tensor in self.spec.tensors:
            if tensor.role == "bias":
                owner = self._weights.get(f"{tensor.module}.weight")
                shape = owner.bias.shape if isinstance(owner, Linear) and owner.bias is not None else None
            else:
                given = self._weights.get(tensor.name)
                shape = given.weight.shape if isinstance(given, Linear) else None if given is None else given.shape
            if shape is None or tuple(shape) != tensor.shape:
                found = "is missing" if shape is None else f"has shape {list(shape)}"
                raise ShapeError(f"weight '{tensor.name}' {found}; the model needs {list(tensor.shape)}")

    def _use(self, name: str) -> Any:
        linear = self._weights[name]
        if not isinstance(linear, Linear):
            raise ShapeError(f"weight '{name}' must be a Linear")
        if name == self.spec.embedding and linear.around:
            raise NoKernelError(f"weight '{name}' is the embedding: its rows are read as they are, so nothing may run around it")
        return linear.use

    def _router(self, mlp: Mlp) -> dict[str, Any]:
        if not isinstance(mlp, Experts):
            return {"router": None, "chosen": 0, "renormalise": False}
        return {"router": Linear.of_floats(self._weights[mlp.router]).use, "chosen": mlp.chosen, "renormalise": mlp.renormalise}

    def _norm(self, name: str | None) -> Any:
        return None if name is None else np.ascontiguousarray(self._weights[name], np.float32)

    def state(self, planned: int | None = None) -> State:
        """An empty state for a sequence of up to `planned` tokens (None: the whole context).

        Only models with longrope scaling look at the plan: it decides which set of frequencies the sequence uses throughout.
        """
        is_long = self._long_from is not None and (planned is None or planned > self._long_from)
        limit = self.context if is_long or self._long_from is None else min(self._long_from, self.context)
        return State(self._decoder.cache(is_long), limit)

    def forward(self, ids: Any, state: State | None = None, all_logits: bool = True) -> np.ndarray:
        """Appends tokens to a state (None: a new one) and gives the logits after each of them, or after the last only.

        Args: ids, integers [t], t >= 1.
        Returns: float32[t, vocab], or float32[1, vocab].
        Raises: ShapeError, UsageError: ids are no list of tokens of this model. DoesNotFitError: the context would be exceeded.
            NonFiniteError: a value overflowed; names layer and token. After an error the state is what it was.
        """
        tokens = self._tokens(ids)
        state = state or self.state(len(tokens))
        start, count = state.length, len(tokens)
        if start + count > state.limit:
            more = f"{start} tokens and {count} more" if start else f"{count} tokens"
            raise DoesNotFitError(f"{more} do not fit into the context of {state.limit}")
        out = np.empty((count if all_logits else 1, self.spec.vocab), np.float32)
        before = state.snapshot() if self._windowed and count > self.chunk else None
        try:
            for at in range(0, count, self.chunk):
                part = tokens[at : at + self.chunk]
                rows = out[at : at + len(part)] if all_logits else out
                self._run(part, [state], [len(part)], all_logits, rows)
        except BaseException:
            if before is not None:
                state.restore(before)
            else:
                state.truncate(start)
            raise
        return out

    def step(self, tokens: Sequence[int], states: Sequence[State]) -> np.ndarray:
        """One further token for each of several sequences: float32[sequences, vocab]. Errors as `forward`."""
        for state in states:
            if state.length >= state.limit:
                raise DoesNotFitError(f"{state.length} tokens and 1 more do not fit into the context of {state.limit}")
        out = np.empty((len(tokens), self.spec.vocab), np.float32)
        self._run(self._tokens(tokens), states, [1] * len(tokens), True, out)
        return out

    def _tokens(self, ids: Any) -> np.ndarray:
        array = np.asarray(ids)
        if array.ndim != 1 or array.size == 0 or array.dtype.kind not in "iu":
            raise ShapeError(f"ids must be a non-empty list of integers, not {array.dtype}{list(array.shape)}")
        if array.min() < 0 or array.max() >= self.spec.vocab:
            bad = int(array[(array < 0) | (array >= self.spec.vocab)][0])
            raise UsageError(f"token id {bad} is not in the vocabulary of {self.spec.vocab}")
        return np.ascontiguousarray(array, np.int32)

    def _run(self, ids: np.ndarray, states: Sequence[State], counts: list[int], all_logits: bool, out: np.ndarray) -> None:
        fault = self._decoder.forward(ids, [state.native for state in states], counts, all_logits, out)
        if fault is None:
            return
        layer, row, what, how = fault
        index = int(np.searchsorted(np.cumsum(counts), row, side="right"))
        token = states[index].length + row - sum(counts[:index])
        where = f"layer {layer}" if layer >= 0 else "after the last layer"
        sequence = f" of sequence {index}" if len(states) > 1 else ""
        raise NonFiniteError(f"{where}: {what} {how} at token {token}{sequence}")
