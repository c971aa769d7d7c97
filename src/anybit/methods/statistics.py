"""What calibration gathers about the input of a group of linear layers, and how it moves under transforms of that input."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from anybit.arrays import host_copy, is_torch, tensor_of
from anybit.errors import NonFiniteError, ShapeError

NEEDS = ("xtx", "cross", "absmax", "mean", "variance", "rows")
"""What a step may ask for: X^T X; (original X)^T X; the largest magnitude, mean and variance of each channel; some rows of X."""


@dataclass
class Statistics:
    """Sums over the tokens of one input x[tokens, k]; what nobody asked for stays None.

    `count` tokens seen; `xtx` float32[k, k] = sum x x^T; `cross` float32[k, k] = sum original x^T, the original model's input of the same
    tokens beside the quantized model's; `absmax` float32[k]; `mean` float64[k]; `m2` float64[k], the sum of squares about the mean
    (Welford, merged chunk by chunk after Chan et al. 1979); `rows` float32[r, k], evenly spread tokens, at most `most_rows`.

    A step that transforms the input calls `scaled`, `permuted` or `rotated` and gets what can be had by algebra; a rotation loses
    `absmax` where there are no rows, and takes it from the rows (a lower bound) where there are.

    Inputs may be torch tensors: sums are then tensors on their device, nothing but some rows leaves it, and `host` gives them as NumPy
    arrays, which is what methods take.

    `factored`: what curvature.py made of `xtx` last, and for which options: matrices that share an input share it. Further tokens drop it;
    sums that are written to from outside would not.
    """

    width: int
    needs: frozenset[str]
    most_rows: int = 1024
    expected: int = 0  # tokens that will come, for the even choice of rows
    count: int = 0
    xtx: np.ndarray | None = None
    cross: np.ndarray | None = None
    absmax: np.ndarray | None = None
    mean: np.ndarray | None = None
    m2: np.ndarray | None = None
    _rows: list[np.ndarray] = field(default_factory=list, repr=False)
    factored: tuple[Any, Any] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        unknown = self.needs - set(NEEDS)
        if unknown:
            raise ShapeError(f"no statistic named {', '.join(sorted(unknown))}; there is {', '.join(NEEDS)}")
        k = self.width
        if "xtx" in self.needs:
            self.xtx = np.zeros((k, k), np.float32)
        if "cross" in self.needs:
            self.cross = np.zeros((k, k), np.float32)
        if "absmax" in self.needs:
            self.absmax = np.zeros(k, np.float32)
        if self.needs & {"mean", "variance"}:
            self.mean, self.m2 = np.zeros(k), np.zeros(k)

    @property
    def nbytes(self) -> int:
        """Bytes held, the chosen rows included."""
        held = [a for a in (self.xtx, self.cross, self.absmax, self.mean, self.m2, *self._rows) if a is not None]
        return sum(a.nbytes for a in held)

    @property
    def missing(self) -> str:
        """Why there is no curvature of X^T X to go by, where there is none: the beginning of a note."""
        return "its statistics have no factor at any damping" if self.count else "no token reached it"

    @property
    def rows(self) -> np.ndarray | None:
        """float32[r, k] inputs of some tokens; None where nobody asked for them."""
        if "rows" not in self.needs:
            return None
        return np.concatenate(self._rows) if self._rows else np.zeros((0, self.width), np.float32)

    @property
    def importance(self) -> np.ndarray | None:
        """float64[k]: the mean of x^2, the diagonal of X^T X over the count; None where there is neither, or no token was seen."""
        if not self.count:
            return None
        if self.xtx is not None:
            return self.xtx.diagonal().astype(np.float64) / self.count
        return None if self.mean is None or self.m2 is None else self.m2 / self.count + self.mean**2

    @property
    def variance(self) -> np.ndarray | None:
        """float64[k] of each channel over the tokens."""
        return None if self.m2 is None or not self.count else self.m2 / self.count

    def add(self, x: Any, name: str, original: Any = None) -> None:
        """Takes the inputs float32[t, k] of further tokens, a NumPy array or torch tensor. NonFiniteError: NaN or infinity, with the
        layer's name."""
        if x.ndim != 2 or x.shape[1] != self.width:
            raise ShapeError(f"{name}: inputs are [tokens, {self.width}], not {list(x.shape)}")
        self.factored = None
        if is_torch(x):
            self._add_tensor(x, name, original)
            return
        total = x.sum(dtype=np.float64)
        if not np.isfinite(total) and not np.isfinite(x).all():
            token, channel = (int(i) for i in np.argwhere(~np.isfinite(x))[0])
            raise NonFiniteError(
                f"{name}: its input is not finite at calibration token {self.count + token}, channel {channel};"
                " the model or the text is damaged"
            )
        if self.xtx is not None:
            self.xtx += x.T @ x
        if self.cross is not None:
            if original is None or original.shape != x.shape:
                raise ShapeError(f"{name}: the original inputs are needed beside the quantized model's, {list(x.shape)}")
            self.cross += original.T @ x
        if self.absmax is not None:
            np.maximum(self.absmax, np.abs(x).max(axis=0, initial=0), out=self.absmax)
        if self.mean is not None and self.m2 is not None and len(x):
            mean = x.mean(axis=0, dtype=np.float64)
            m2 = np.square(x - mean).sum(axis=0)
            delta, both = mean - self.mean, self.count + len(x)
            self.mean += delta * (len(x) / both)
            self.m2 += m2 + delta**2 * (self.count * len(x) / both)
        if "rows" in self.needs:
            self._rows.append(np.array(x[self._kept(len(x))]))
        self.count += len(x)

    def _kept(self, count: int) -> np.ndarray:
        """bool[count]: which of the next tokens are kept as rows: i of all where i * most_rows / expected passes a whole number."""
        index = np.arange(self.count, self.count + count)
        if self.expected <= self.most_rows:
            return np.ones(count, bool)
        return np.asarray((index * self.most_rows) // self.expected != ((index - 1) * self.most_rows) // self.expected)

    def _add_tensor(self, x: Any, name: str, original: Any) -> None:
        """`add` for a torch tensor, on its device. Sums begin there; NumPy's so far are taken along."""
        x = x.detach().float()
        good = x.isfinite()
        if not bool(good.all()):
            token, channel = (int(i) for i in (~good).nonzero()[0])
            raise NonFiniteError(
                f"{name}: its input is not finite at calibration token {self.count + token}, channel {channel};"
                " the model or the text is damaged"
            )
        for field_name in ("xtx", "cross", "absmax", "mean", "m2"):
            held = getattr(self, field_name)
            if isinstance(held, np.ndarray):
                setattr(self, field_name, tensor_of(held, x))
        if self.xtx is not None:
            self.xtx += x.T @ x
        if self.cross is not None:
            if original is None or original.shape != x.shape:
                raise ShapeError(f"{name}: the original inputs are needed beside the quantized model's, {list(x.shape)}")
            self.cross += original.detach().float().T @ x
        if not len(x):
            return
        if self.absmax is not None:
            self.absmax = self.absmax.maximum(x.abs().amax(0))  # type: ignore[attr-defined]
        if self.mean is not None and self.m2 is not None:
            wide = x.double()
            mean, both = wide.mean(0), self.count + len(x)
            delta = mean - self.mean
            self.m2 += (wide - mean).square().sum(0) + delta.square() * (self.count * len(x) / both)
            self.mean += delta * (len(x) / both)
        if "rows" in self.needs:
            self._rows.append(host_copy(x[tensor_of(self._kept(len(x)), x)]))
        self.count += len(x)

    def host(self) -> Statistics:
        """The same with NumPy arrays: itself, or a copy where sums lie in tensors."""
        held = [self.xtx, self.cross, self.absmax, self.mean, self.m2]
        if not any(is_torch(each) for each in held):
            return self
        xtx, cross, absmax, mean, m2 = (host_copy(each) if is_torch(each) else each for each in held)
        return self._moved(xtx, cross, absmax, mean, m2, list(self._rows))

    # ------------------------------------------------------------------------------------------ under a transform of the input
    def scaled(self, by: np.ndarray) -> Statistics:
        """Those of x * by, `by` float[k]."""
        s = np.asarray(by, np.float64)
        outer = np.multiply.outer(s, s).astype(np.float32)
        return self._moved(
            xtx=None if self.xtx is None else self.xtx * outer,
            cross=None if self.cross is None else self.cross * outer,
            absmax=None if self.absmax is None else (self.absmax * np.abs(s)).astype(np.float32),
            mean=None if self.mean is None else self.mean * s,
            m2=None if self.m2 is None else self.m2 * s * s,
            rows=[(r * s).astype(np.float32) for r in self._rows],
        )

    def permuted(self, index: np.ndarray) -> Statistics:
        """Those of x[:, index]."""

        def take(a: np.ndarray | None) -> np.ndarray | None:
            return None if a is None else a[index]

        return self._moved(
            xtx=None if self.xtx is None else self.xtx[np.ix_(index, index)],
            cross=None if self.cross is None else self.cross[np.ix_(index, index)],
            absmax=take(self.absmax), mean=take(self.mean), m2=take(self.m2), rows=[r[:, index] for r in self._rows],
        )  # fmt: skip

    def rotated(self, rotate: Iterable[np.ndarray] | np.ndarray) -> Statistics:
        """Those of x Q^T, `rotate` float[k, k] or its diagonal blocks in order (one block may serve for all)."""
        blocks = [np.asarray(rotate)] if isinstance(rotate, np.ndarray) else [np.asarray(b) for b in rotate]
        size = blocks[0].shape[0]
        if len(blocks) == 1 and self.width % size == 0:
            blocks = blocks * (self.width // size)
        if sum(len(b) for b in blocks) != self.width:
            raise ShapeError(f"rotations of {[len(b) for b in blocks]} channels do not make up {self.width}")

        def turn(x: np.ndarray) -> np.ndarray:
            out, at = np.empty(x.shape, np.float64 if x.dtype == np.float64 else np.float32), 0
            for block in blocks:
                out[..., at : at + len(block)] = x[..., at : at + len(block)] @ block.T
                at += len(block)
            return out

        rows = [turn(r) for r in self._rows]
        xtx = None
        if self.xtx is not None:
            xtx = turn(turn(self.xtx).T)
            xtx = (xtx + xtx.T) / 2  # what roundings make of a symmetric matrix is not
        mean = None if self.mean is None else turn(self.mean)
        m2 = None
        if self.m2 is not None and mean is not None and xtx is not None:
            m2 = np.maximum(xtx.diagonal().astype(np.float64) - self.count * mean**2, 0)
        found = [np.abs(r).max(axis=0) for r in rows if len(r)]
        return self._moved(
            xtx=xtx, cross=None if self.cross is None else turn(turn(self.cross).T).T,
            absmax=np.max(found, axis=0) if self.absmax is not None and found else None, mean=mean, m2=m2, rows=rows,
        )  # fmt: skip

    def _moved(
        self, xtx: np.ndarray | None, cross: np.ndarray | None, absmax: np.ndarray | None, mean: np.ndarray | None, m2: np.ndarray | None,
        rows: list[np.ndarray],
    ) -> Statistics:  # fmt: skip
        made = Statistics(self.width, frozenset(), self.most_rows, self.expected, self.count, xtx, cross, absmax, mean, m2, rows)
        made.needs = self.needs
        return made
