"""Codes that a weight keeps lie where the system may serve them by large pages."""

import gc
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from anybit.layouts.tile import pack_codes, unpack_codes

LARGE = 2 << 20
THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's mappings")
@pytest.mark.parametrize(("n", "k", "bits"), [(1024, 4096, 4), (1025, 4100, 4), (513, 9000, 8), (2047, 2080, 8)])
def test_large_codes_begin_at_a_large_page_and_come_back(n: int, k: int, bits: int) -> None:
    codes = np.random.default_rng(n).integers(0, 1 << bits, (n, k)).astype(np.uint8)
    stored = pack_codes(codes, bits)
    assert stored.nbytes >= LARGE and stored.ctypes.data % LARGE == 0 and stored.flags.writeable
    assert np.array_equal(unpack_codes(stored, bits, (n, k)), codes)
    rows = stored[3:5].copy()
    view = stored[3:5]
    del stored
    gc.collect()
    assert np.array_equal(view, rows), "a view keeps the mapping"


def test_small_codes_and_none() -> None:
    for n, k in ((0, 32), (16, 0), (17, 33), (15, 4096)):
        codes = np.random.default_rng(k).integers(0, 16, (n, k)).astype(np.uint8)
        assert np.array_equal(unpack_codes(pack_codes(codes, 4), 4, (n, k)), codes)


@pytest.mark.skipif(not THP.exists(), reason="no large pages")
def test_memory_goes_back() -> None:
    codes = np.ones((4096, 8192), np.uint8)
    pack_codes(codes, 8)
    before = resident()
    for _ in range(8):
        stored = pack_codes(codes, 8)
        assert resident() - before < 1.1 * stored.nbytes + LARGE, "nothing is rounded up to large pages"
        del stored
    assert resident() - before < LARGE * 4
