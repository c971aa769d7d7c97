"""`python -m malformed.worker KIND FIRST COUNT FOLDER`: reads COUNT variants under limits; prints what was found as JSON.

A reading that takes more than TIMEOUT seconds kills the process, and so does one that crashes it: then FOLDER/current says which. Memory is
the peak over what the process needed before the first variant, so that leaks count too.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

from anybit.errors import FileFormatError, NonFiniteError

TIMEOUT = 20.0  # a machine may be busy; the processor's time is what is judged
ALLOWED = 64 << 20
HEADROOM = 2 << 30
PLACE = re.compile(r"\bat byte \d+")
"""What a refusal names; a kind of lines has a PLACE of its own."""
ABSENT = re.compile(r": no tokenizer\.json; ")
"""What has no place: a file that is not there."""


def memory() -> dict[str, int]:
    lines = Path("/proc/self/status").read_text().splitlines()
    return {line.split(":")[0]: int(line.split()[1]) << 10 for line in lines if line.startswith(("VmHWM", "VmRSS", "VmSize"))}


def fresh_peak() -> None:
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def name_of(kind: str, index: int) -> str:
    return f"{kind}/{index}"


def files_of(kind: str, index: int) -> tuple[str, dict[str, bytes]]:
    """Variant number `index` of a kind; -1 is the undamaged base."""
    module = importlib.import_module(f"malformed.{kind}")
    if index < 0:
        return "nothing", module.base()
    made: tuple[str, dict[str, bytes]] = module.variant(random.Random(name_of(kind, index)))
    return made


def write(folder: Path, files: dict[str, bytes]) -> int:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return sum(map(len, files.values()))


def run(kind: str, first: int, count: int, folder: Path) -> dict[str, Any]:
    module = importlib.import_module(f"malformed.{kind}")
    place = folder / "m"
    current = os.open(folder / "current", os.O_RDWR | os.O_CREAT)
    for _ in range(3):
        write(place, module.base())
        module.read(place)
    start = memory()
    resource.setrlimit(resource.RLIMIT_AS, (start["VmSize"] + HEADROOM,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    found: dict[str, Any] = {
        "refused": 0,
        "accepted": 0,
        "slowest": 0.0,
        "slowest_wall": 0.0,
        "peak": 0,
        "without_place": 0,
        "problems": [],
    }
    for index in range(first, first + count):
        what, files = files_of(kind, index)
        size = write(place, files)
        os.pwrite(current, f"{index:12}".encode(), 0)
        fresh_peak()
        signal.setitimer(signal.ITIMER_REAL, TIMEOUT)
        wall, cpu = time.perf_counter(), time.process_time()
        problem = ""
        try:
            module.read(place)
            found["accepted"] += 1
        except (FileFormatError, NonFiniteError) as error:
            found["refused"] += 1
            message = str(error)
            if not message.startswith(str(place)) or "\n" in message or ";" not in message or len(message) > 5000:
                problem = f"message {message[:300]!r}"
            elif getattr(module, "PLACE", PLACE).search(message) is None and ABSENT.search(message) is None:
                found["without_place"] += 1
                if os.environ.get("ANYBIT_SHOW"):
                    print(message, file=sys.stderr)
        except BaseException as error:
            problem = f"{type(error).__name__}: {str(error)[:300]}"
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        signal.setitimer(signal.ITIMER_REAL, 0)
        peak = memory()["VmHWM"] - start["VmRSS"]
        if cpu > 1:
            problem = f"{cpu:.1f} s"
        if peak > ALLOWED + 2 * size:
            problem = f"{peak >> 20} MB for a file of {size} bytes"
        if cpu > found["slowest"]:
            found["slowest"], found["slowest_what"] = cpu, f"{name_of(kind, index)}: {what}"[:200]
        found["slowest_wall"] = max(found["slowest_wall"], wall)
        if peak > found["peak"]:
            found["peak"], found["peak_what"] = peak, f"{name_of(kind, index)}: {what}"[:200]
        if problem:
            found["problems"].append(f"{name_of(kind, index)} ({what[:120]}): {problem}")
    return found


if __name__ == "__main__":
    sys.setrecursionlimit(1000)
    print(json.dumps(run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))))
