"""The float model that a recipe works on: a directory on disk, read tensor by tensor."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from anybit.errors import UsageError
from anybit.io.hf import CONFIG, Source, open_model
from anybit.models import describe
from anybit.stored import check_dtype, check_finite, float32_of, resolve


class FloatSource:
    """A Hugging Face directory with float weights; `spec` describes it. Pages of the mapped files are given back as they are read.

    Raises: UsageError: it is quantized already. FileFormatError: as `anybit.load`.
    """

    def __init__(self, path: str | Path) -> None:
        self.source: Source = open_model(resolve(path))
        if self.source.quantization is not None:
            raise UsageError(f"{path} is quantized already; give the original model")
        self.where = self.source.path
        self.spec, place = describe(self.source.config, str(self.where / CONFIG), self.source.field), self.source.place
        self.spec.check_tensors({name: self.source.tensors[name].shape for name in self.source.dense}, str(self.where), place)
        for tensor in self.spec.tensors:
            check_dtype(self.source.tensors[tensor.name].dtype, tensor.name, self.where, place)

    def array(self, name: str) -> np.ndarray:
        """float32 values, a copy. NonFiniteError: NaN or infinity, with tensor, index and count."""
        array, dtype = self.source.get(name)
        check_finite(array, dtype, name, self.where, self.source.place)
        values = float32_of(array, dtype, name, self.where)
        if np.may_share_memory(values, array):
            values = values.copy()
        self.source.release(name)
        return values

    def rows(self, name: str, index: np.ndarray) -> np.ndarray:
        """float32 values of some of a matrix' rows. NonFiniteError: one of them holds NaN or infinity."""
        array, dtype = self.source.get(name)
        values = float32_of(array[index], dtype, name, self.where)
        if not np.isfinite(values).all():
            check_finite(array, dtype, name, self.where, self.source.place)
        self.source.release(name)
        return values

    def dtype(self, name: str) -> str:
        """As safetensors spells it."""
        return self.source.tensors[name].dtype

    @property
    def digest(self) -> str:
        """SHA-256 of what the files' headers and sizes say: another model, or another version of it, has another."""
        parts = [f"{t.name} {self.source.tensors[t.name].dtype} {t.shape}" for t in self.spec.tensors]
        for file in sorted(self.source.files):
            stat = file.stat()
            parts.append(f"{file.name} {stat.st_size} {stat.st_mtime_ns}")
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()
