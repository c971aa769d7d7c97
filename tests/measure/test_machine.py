import json
import mmap
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from anybit.formats import Format, Spec
from anybit.linear import Linear
from anybit.measure.machine import machine, summary
from anybit.measure.memory import memory, reset_peak
from anybit.measure.speed import BLOCK_CONFIG, generated_blocks, generated_weight, model_speed, times_s

SMALL = BLOCK_CONFIG | {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}


def test_the_machine_is_named() -> None:
    found = machine()
    assert found["cpu"]
    assert found["cores"] >= 1
    assert found["isa"] in found["isas"]
    assert found["packages"]["numpy"] == np.__version__
    assert found["cpu"] in summary(found)


PAGES = """
import mmap, sys
import numpy as np
from anybit.measure.memory import memory
size, found = 64 << 20, []
found.append(memory())
block = np.ones(size, np.uint8)
found.append(memory())
with open(sys.argv[1], "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
    total = int(np.frombuffer(view, np.uint8).sum())
    found.append(memory())
    print([total, *([m.anonymous_bytes, m.file_bytes, m.resident_bytes, m.peak_bytes] for m in found)])
"""


def test_anonymous_and_file_pages_are_told_apart(tmp_path: Path) -> None:
    # In a process of its own: what earlier tests mapped and let go of would be counted in between.
    size = 64 << 20
    path = tmp_path / "data"
    path.write_bytes(b"\1" * size)
    done = subprocess.run([sys.executable, "-c", PAGES, str(path)], capture_output=True, text=True, check=True)
    total, start, held, mapped = json.loads(done.stdout)
    # The kernel counts a few pages late, a few dozen a thread.
    assert total == size
    assert held[0] - start[0] == pytest.approx(size, rel=0.1)
    assert mapped[1] - held[1] == pytest.approx(size, rel=0.1)
    assert mapped[0] - held[0] < size * 0.1
    assert mapped[3] >= mapped[2] >= mapped[0] + mapped[1]


def test_the_peak_can_begin_anew() -> None:
    if not reset_peak():
        pytest.skip("this kernel does not let a process reset its peak")
    # Mapped, not allocated: an allocator may serve it from a hole in its heap, whose pages are resident all along.
    size = 64 << 20
    before = memory().peak_bytes
    with mmap.mmap(-1, size) as block:
        np.frombuffer(block, np.uint8)[:] = 1
        high = memory().peak_bytes
    assert high - before > size / 2
    assert memory().peak_bytes == pytest.approx(high, abs=size / 4)
    reset_peak()
    assert memory().peak_bytes < high - size / 2


@pytest.mark.parametrize(
    "expression", ["int4@32", "ternary@256", "nvfp4", "mxfp8", "int8@channel", "uint4@64+zp", "uint4@64+off", "fp8_e4m3fn@128x128", "bf16"]
)
def test_generated_weights_repeat_real_ones(expression: str) -> None:
    spec = Spec.parse(expression)
    weight = generated_weight(spec, (320, 96))
    first = generated_weight(spec, (128, 96)).dequantize()
    values = weight.dequantize()
    assert values.shape == (320, 96)
    assert np.array_equal(values, np.concatenate([first, first, first[:64]]))
    assert 0.01 < values.std() < 0.03


def test_generated_blocks_run_and_count_their_bytes() -> None:
    from anybit.engine.engine import Engine
    from anybit.models import describe

    config, weights = generated_blocks("int4@32", "int8", 3, SMALL)
    linears = [value for value in weights.values() if isinstance(value, Linear)]
    assert len(linears) == 1 + 3 * 7
    assert {linear.weight.format for linear in linears[1:]} == {Format("int4@32")}
    assert Engine(describe(config), weights).forward([1, 2, 3]).shape == (3, 256)


def test_times_leave_out_the_first_run() -> None:
    calls: list[int] = []
    assert len(times_s(lambda: calls.append(1), 4)) == 4
    assert len(calls) == 5


def test_model_speed_counts_what_decoding_reads() -> None:
    import anybit

    model = anybit.load("pycoder-5m")
    steps: list[int] = []
    found = model_speed(model, prompt=8, tokens=3, repeats=2, progress=lambda n, note: steps.append(n))
    assert len(steps) == 3
    assert found.read_gb_s == pytest.approx(model.nbytes * found.decode_tok_s / 1e9)  # tied: the embedding is the head, read in full
