"""The container against its stock library as oracle: it reads what we write, we read what it writes."""

from __future__ import annotations

import hashlib
import json
import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from anybit.errors import FileFormatError, OutputError, ShapeError
from anybit.io.safetensors import ALIGN, DTYPES, PAD, SafeFile
from anybit.io.safetensors_writer import plan, write_safetensors

TAGS = {
    "F64": "f8",
    "F32": "f4",
    "F16": "f2",
    "I64": "i8",
    "I32": "i4",
    "I16": "i2",
    "I8": "i1",
    "U64": "u8",
    "U32": "u4",
    "U16": "u2",
    "U8": "u1",
}
SHAPES = [(), (1,), (0,), (3, 0, 2), (7,), (64,), (5, 33), (2, 3, 4, 5), (1, 129)]


def arrays(seed: int = 0) -> dict[str, tuple[str, np.ndarray[Any, Any]]]:
    """Random bits under every dtype and awkward shape, as raw unsigned integers where NumPy lacks the dtype."""
    rng = np.random.default_rng(seed)
    result = {}
    for tag, dtype in DTYPES.items():
        for shape in SHAPES:
            size = int(np.prod(shape)) * dtype.itemsize
            result[f"{tag}.{'x'.join(map(str, shape))}"] = (tag, np.frombuffer(rng.bytes(size), dtype).reshape(shape))
    return result


def write(path: Path, made: dict[str, tuple[str, np.ndarray[Any, Any]]], **options: Any) -> None:
    entries = [(name, tag, array.shape) for name, (tag, array) in made.items()]
    written = write_safetensors(path, entries, ((name, array) for name, (_, array) in made.items()), **options)
    assert written.size == path.stat().st_size
    assert written.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_stock_library_reads_what_we_write(tmp_path: Path) -> None:
    made = arrays()
    write(tmp_path / "a.safetensors", made, metadata={"format": "pt", "note": 'ü \u2028 "quoted" \\ 𝔘'})
    listed = dict(safetensors.deserialize((tmp_path / "a.safetensors").read_bytes()))
    assert {name for name in listed if not name.startswith(PAD)} == made.keys()
    for name, (tag, array) in made.items():
        assert (listed[name]["dtype"], tuple(listed[name]["shape"])) == (tag, array.shape)
        assert bytes(listed[name]["data"]) == array.tobytes()
    with safetensors.safe_open(tmp_path / "a.safetensors", "np") as file:
        assert file.metadata()["note"] == 'ü \u2028 "quoted" \\ 𝔘'


@pytest.mark.parametrize("tag", TAGS)
def test_we_read_what_the_stock_library_writes(tmp_path: Path, tag: str) -> None:
    rng = np.random.default_rng(1)
    made = {
        f"t{i}": np.frombuffer(rng.bytes(int(np.prod(s)) * np.dtype(TAGS[tag]).itemsize), TAGS[tag]).reshape(s)
        for i, s in enumerate(SHAPES)
    }
    safetensors.numpy.save_file(made, tmp_path / "s.safetensors", {"who": "stock"})
    with SafeFile(tmp_path / "s.safetensors") as file:
        assert file.metadata == {"who": "stock"} and file.tensors.keys() == made.keys() and file.padding == 0
        for name, array in made.items():
            view = file.tensor(name)
            assert view.dtype == array.dtype and view.shape == array.shape and view.tobytes() == array.tobytes()
            assert not view.flags.writeable


def test_bfloat16_is_raw_bits_that_ml_dtypes_understands(tmp_path: Path) -> None:
    values = np.array([[0.0, -0.0, 1.0], [3.140625, np.inf, 1e-40]], ml_dtypes.bfloat16)
    safetensors.numpy.save_file({"x": values}, tmp_path / "s.safetensors")
    with SafeFile(tmp_path / "s.safetensors") as file:
        assert file.info("x").dtype == "BF16" and file.tensor("x").dtype == np.uint16
        assert np.array_equal(file.tensor("x").view(ml_dtypes.bfloat16), values)
    write_safetensors(tmp_path / "w.safetensors", [("x", "BF16", (2, 3))], [("x", values)])
    assert np.array_equal(safetensors.numpy.load_file(tmp_path / "w.safetensors")["x"], values)


def test_every_tensor_is_aligned_in_file_and_memory(tmp_path: Path) -> None:
    made = arrays()
    write(tmp_path / "a.safetensors", made)
    with SafeFile(tmp_path / "a.safetensors") as file:
        assert list(file.tensors) == list(made)
        for name, info in file.tensors.items():
            assert info.offset % ALIGN == 0
            assert not info.nbytes or file.tensor(name).ctypes.data % ALIGN == 0
        assert (
            file.padding
            + sum(info.nbytes for info in file.tensors.values())
            + int.from_bytes((tmp_path / "a.safetensors").read_bytes()[:8], "little")
            + 8
            == file.size
        )
        assert all(
            set(file.path.read_bytes()[i.offset + i.nbytes : -(-(i.offset + i.nbytes) // ALIGN) * ALIGN]) <= {0}
            for i in file.tensors.values()
        )


def test_bytes_depend_on_the_arguments_alone(tmp_path: Path) -> None:
    made = arrays()
    write(tmp_path / "a", made, metadata={"k": "v"})
    entries = [(name, tag, array.shape) for name, (tag, array) in made.items()]
    pieces = ((name, array.tobytes()[i : i + 13]) for name, (_, array) in made.items() for i in range(0, max(array.nbytes, 1), 13))
    write_safetensors(tmp_path / "b", entries, pieces, {"k": "v"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_strided_and_big_endian_arrays_are_written_by_value(tmp_path: Path) -> None:
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    write_safetensors(tmp_path / "a", [("t", "F32", (6, 4)), ("b", "F32", (4, 6))], [("t", base.T), ("b", base.astype(">f4"))])
    read = safetensors.numpy.load_file(tmp_path / "a")
    assert np.array_equal(read["t"], base.T) and np.array_equal(read["b"], base)


@pytest.mark.parametrize(
    ("entries", "data"),
    [
        ([("a", "F32", (2,))], []),
        ([("a", "F32", (2,))], [("a", bytes(7))]),
        ([("a", "F32", (2,))], [("a", bytes(9))]),
        ([("a", "F32", (2,))], [("a", bytes(8)), ("a", bytes(1))]),
        ([("a", "F32", (2,))], [("b", bytes(8))]),
        ([("a", "U8", (2,)), ("b", "U8", (2,))], [("a", bytes(1)), ("b", bytes(2))]),
        ([("a", "U8", (2,)), ("a", "U8", (2,))], [("a", bytes(2)), ("a", bytes(2))]),
        ([("a", "F31", (2,))], [("a", bytes(8))]),
        ([("a", "U8", (-1,))], []),
        ([("", "U8", (1,))], [("", bytes(1))]),
        ([("../a", "U8", (1,))], [("../a", bytes(1))]),
        ([("__metadata__", "U8", (1,))], [("__metadata__", bytes(1))]),
        ([("__pad__.0", "U8", (1,))], [("__pad__.0", bytes(1))]),
    ],
)
def test_writer_refuses_data_that_do_not_match(tmp_path: Path, entries: list[Any], data: list[Any]) -> None:
    with pytest.raises(ShapeError):
        write_safetensors(tmp_path / "a", entries, data)


def test_writer_never_overwrites(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"precious")
    with pytest.raises(OutputError, match="exists"):
        write_safetensors(tmp_path / "a", [], [])
    assert (tmp_path / "a").read_bytes() == b"precious"


def test_writer_holds_one_tensor_at_a_time(tmp_path: Path) -> None:
    size, count = 8 << 20, 5
    made = ((f"t{i}", np.full(size, i, np.uint8)) for i in range(count))
    tracemalloc.start()
    write_safetensors(tmp_path / "a", [(f"t{i}", "U8", (size,)) for i in range(count)], made)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.5 * size  # one tensor, and the 2 MiB at most that wait for a whole page to write; two would be 2.0


def resident(path: Path) -> int:
    """Bytes of the file's maps that are in memory now, as the system counts them."""
    total, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ")[0] and not line.split(" ")[0].endswith(":"):
            ours = line.endswith(str(path))
        elif ours and line.startswith("Rss:"):
            total += int(line.split()[1]) << 10
    return total


def test_release_gives_pages_back_and_keeps_the_data(tmp_path: Path) -> None:
    path, size = tmp_path / "a", 4 << 20
    write_safetensors(path, [("x", "U8", (size,)), ("y", "U8", (size,))], [(n, np.full(size, 7, np.uint8)) for n in "xy"])
    with SafeFile(path) as file:
        assert resident(path) < size // 4  # opening reads nothing
        x = file.tensor("x")
        assert int(x.sum()) == 7 * size and resident(path) >= size
        file.release("x")
        assert resident(path) < size // 4
        assert int(x.sum()) == 7 * size
    assert int(x[-1]) == 7  # a view outlives close()
    with pytest.raises(ValueError, match="closed"):
        file.tensor("x")


def test_unaligned_tensors_of_other_writers_are_read(tmp_path: Path) -> None:
    header = json.dumps(
        {"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}, "b": {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]}}
    )
    (tmp_path / "a").write_bytes(len(header).to_bytes(8, "little") + header.encode() + b"\x05" + np.array([1.5, -2], "<f4").tobytes())
    with SafeFile(tmp_path / "a") as file:
        assert file.tensor("b").tolist() == [1.5, -2.0] and not file.tensor("b").flags.aligned


def test_what_is_no_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none", tmp_path / "a\0b", Path("/dev/null")):
        with pytest.raises(FileFormatError):
            SafeFile(path)


def test_missing_tensor_is_named(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "a", [], [])
    with SafeFile(tmp_path / "a") as file, pytest.raises(FileFormatError, match="no tensor 'x'"):
        file.tensor("x")


def test_only_real_fillers_are_hidden(tmp_path: Path) -> None:
    made = {
        "__pad__.0": np.zeros(64, np.uint8),
        "__pad__.1": np.zeros(3, np.int8),
        "__pad__.2": np.zeros(3, np.uint8),
        "x": np.zeros(1, np.uint8),
    }
    safetensors.numpy.save_file(made, tmp_path / "a")
    with SafeFile(tmp_path / "a") as file:
        assert set(file.tensors) == {"__pad__.0", "__pad__.1", "x"} and file.padding == 3


def test_plan_knows_the_size_before_any_data() -> None:
    head, gaps, size = plan([("a", "U8", (1,)), ("b", "BF16", (3, 5)), ("c", "U8", (1,))])
    assert gaps == [63, 34, 0] and size == len(head) + 64 + 64 + 1 and len(head) % ALIGN == 0
