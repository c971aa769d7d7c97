"""The pool of threads: what it leaves alone, what it survives, what it may use. Timings are in bench/pool.py."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anybit.kernels.cpu import native, set_threads
from anybit.tensor import quantize

NONE = 2**63 - 1


@pytest.fixture(autouse=True)
def threads_restored() -> Any:
    before = native.threads()
    yield
    set_threads(before)


def product() -> tuple[Any, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    w = quantize(rng.standard_normal((512, 256), np.float32), "int4@32")
    x = rng.standard_normal((4, 256), np.float32)
    return w, x, w.matmul(x, "int8")


def test_no_processor_time_after_a_call() -> None:
    """Workers spin for a tenth of a millisecond and then sleep."""
    w, x, want = product()
    set_threads(4)
    assert np.array_equal(w.matmul(x, "int8"), want)
    time.sleep(0.02)
    begun = time.process_time()
    time.sleep(0.25)
    assert time.process_time() - begun < 0.02, "four spinning workers would use up to a second"
    assert np.array_equal(w.matmul(x, "int8"), want), "they wake up again"


def test_it_survives_a_fork() -> None:
    """The child has none of its parent's workers, and starts its own."""
    w, x, want = product()
    set_threads(3)
    assert np.array_equal(w.matmul(x, "int8"), want)
    child = os.fork()
    if child == 0:
        good = all(np.array_equal(w.matmul(x, "int8"), want) for _ in range(20))
        os._exit(0 if good else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert np.array_equal(w.matmul(x, "int8"), want)


def test_a_fork_in_the_middle_of_a_job() -> None:
    """Another thread is inside the pool when the process forks: the child's pool is free."""
    w, x, want = product()
    set_threads(2)
    stop = threading.Event()

    def busy() -> None:
        while not stop.is_set():
            native.fork_join(16, 5_000_000)

    other = threading.Thread(target=busy)
    other.start()
    try:
        time.sleep(0.01)
        for _ in range(5):
            child = os.fork()
            if child == 0:
                os._exit(0 if np.array_equal(w.matmul(x, "int8"), want) else 1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        stop.set()
        other.join()


def test_two_callers_do_not_wait_for_each_other() -> None:
    """One has the pool, the other goes on by itself; both get their bits."""
    w, x, want = product()
    set_threads(4)
    wrong: list[int] = []

    def work(count: int) -> None:
        for _ in range(count):
            if not np.array_equal(w.matmul(x, "int8"), want):
                wrong.append(1)

    callers = [threading.Thread(target=work, args=(50,)) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
        assert not caller.is_alive(), "a caller waits for ever"
    assert not wrong
    done = threading.Event()
    holder = threading.Thread(target=lambda: (native.fork_join(1000, 500_000_000), done.set()))
    holder.start()
    time.sleep(0.05)
    assert np.array_equal(w.matmul(x, "int8"), want) and not done.is_set(), "while the pool is another's"
    holder.join()


def test_threads_are_as_many_as_asked() -> None:
    for count in (1, 3, 2):
        set_threads(count)
        native.fork_join(8, 1000)
        assert native.threads() == count
    script = (
        "import os; from anybit.kernels.cpu import native; native.fork_join(64, 1000)\n"
        "print(native.threads(), len(os.listdir('/proc/self/task')))"
    )
    for given, most in (("1", 1), ("3", 3)):
        done = subprocess.run([sys.executable, "-c", script], env=os.environ | {"ANYBIT_THREADS": given, "OPENBLAS_NUM_THREADS": "1"},
                              capture_output=True, text=True, check=True)  # fmt: skip
        assert done.stdout.split() == [given, str(most)], "the caller is one of them"


def test_quotas_of_control_groups(tmp_path: Path) -> None:
    """Versions 1 and 2, the least of a group and those around it, rounded up; no quota and nonsense are none."""
    membership = tmp_path / "self"

    def cores(lines: str, **files: str) -> int:
        membership.write_text(lines)
        root = tmp_path / str(len(list(tmp_path.iterdir())))
        root.mkdir()
        for name, text in files.items():
            path = root / name.replace("__", "/").replace("_DOT_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return int(native.cgroup_cores(str(root), str(membership)))

    own = "0::/a/b\n"
    assert cores(own) == NONE
    assert cores(own, a__b__cpu_DOT_max="max 100000\n") == NONE
    assert cores(own, a__b__cpu_DOT_max="250000 100000\n") == 3
    assert cores(own, a__b__cpu_DOT_max="50000 100000\n") == 1
    assert cores(own, a__b__cpu_DOT_max="400000 100000\n", a__cpu_DOT_max="200000 100000\n") == 2, "the group around it"
    assert cores(own, cpu_DOT_max="100000 100000\n") == 1, "in a container: the root that is seen"
    assert cores("0::/\n", cpu_DOT_max="700000 100000\n") == 7
    old = "5:cpu,cpuacct:/x\n1:name=systemd:/\n"
    assert cores(old, cpu__x__cpu_DOT_cfs_quota_us="150000\n", cpu__x__cpu_DOT_cfs_period_us="100000\n") == 2
    assert cores(old, cpu__x__cpu_DOT_cfs_quota_us="-1\n", cpu__x__cpu_DOT_cfs_period_us="100000\n") == NONE
    assert cores("6:cpuset:/x\n", cpu__x__cpu_DOT_cfs_quota_us="150000\n", cpu__x__cpu_DOT_cfs_period_us="100000\n") == NONE
    assert cores("nonsense\n", a__b__cpu_DOT_max="100000 100000\n") == NONE
    assert native.cgroup_cores("/nowhere", "/nowhere") == NONE
    assert 1 <= native.usable_cores() <= len(os.sched_getaffinity(0))
