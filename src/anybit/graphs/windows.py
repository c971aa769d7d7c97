"""Windows of images and products over them, for floats and integers alike: no operation here changes a dtype."""

from __future__ import annotations

import numpy as np

from anybit.models.operators import Pair


def windows(x: np.ndarray, kernel: Pair, stride: Pair, padding: Pair, fill: float = 0) -> np.ndarray:
    """Views of x [n, c, h, w], padded with `fill`, as [n, c, rows, columns, kernel height, kernel width]."""
    if padding != (0, 0):
        (up, left), (n, c, h, w) = padding, x.shape
        wide = np.full_like(x, fill, shape=(n, c, h + 2 * up, w + 2 * left))
        wide[:, :, up : up + h, left : left + w] = x
        x = wide
    found = np.lib.stride_tricks.sliding_window_view(x, kernel, axis=(2, 3), subok=True)
    return found[:, :, :: stride[0], :: stride[1]]


def matrix(found: np.ndarray, groups: int) -> np.ndarray:
    """Windows as the columns of one matrix a sample and group: [n, groups, c / groups * kernel, rows * columns]."""
    n, c, rows, columns, high, wide = found.shape
    ordered = found.reshape(n, groups, c // groups, rows, columns, high, wide).transpose(0, 1, 2, 5, 6, 3, 4)
    return ordered.reshape(n, groups, c // groups * high * wide, rows * columns)


def convolve(x: np.ndarray, weight: np.ndarray, stride: Pair, padding: Pair, groups: int) -> np.ndarray:
    """Cross-correlation of x [n, c, h, w] and weight [channels, c / groups, kernel], zeros around x: [n, channels, rows, columns]."""
    high, wide = weight.shape[2:]
    found = windows(x, (high, wide), stride, padding)
    n, _, rows, columns = found.shape[:4]
    product = weight.reshape(groups, weight.shape[0] // groups, -1) @ matrix(found, groups)
    return product.reshape(n, weight.shape[0], rows, columns)


def scatter(found: np.ndarray, size: Pair, stride: Pair, padding: Pair) -> np.ndarray:
    """The adjoint of `windows`: every number is added to the place that it was seen at, [n, c, *size]."""
    n, c, rows, columns, high, wide = found.shape
    total = np.zeros((n, c, size[0] + 2 * padding[0], size[1] + 2 * padding[1]), found.dtype)
    for i in range(high):
        for j in range(wide):
            total[:, :, i : i + stride[0] * rows : stride[0], j : j + stride[1] * columns : stride[1]] += found[:, :, :, :, i, j]
    return total[:, :, padding[0] : padding[0] + size[0], padding[1] : padding[1] + size[1]]
