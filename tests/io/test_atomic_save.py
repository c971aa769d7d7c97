"""The save protocol: killed or failing at any system call, it leaves the whole new directory or nothing, and never touches the old."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import anybit
from anybit.errors import FileFormatError, OutputError
from anybit.io import save
from anybit.io.manifest import contents_digest, verify_directory
from anybit.io.output import create
from anybit.io.safetensors_writer import write_safetensors
from anybit.io.save import atomic_directory, atomic_file, remove_stale, scratch

CALLS = ("mkdir", "open", "write", "fsync", "rename", "close")


def fill(temp: Path) -> None:
    """What a save does: a streamed tensor file, a plain one, a folder."""
    write_safetensors(temp / "model.safetensors", [("a", "U8", (100,)), ("b", "U8", (70,))], [("a", bytes(100)), ("b", bytes(range(70)))])
    (temp / "config.json").write_text("{}")
    (temp / "sub").mkdir()
    with create(temp / "sub" / "x") as file:
        file.write(b"x" * 10)


def save_directory(target: Path) -> None:
    with atomic_directory(target) as temp:
        fill(temp)


def save_file(target: Path) -> None:
    with atomic_file(target) as file:
        file.write(b"new" * 5000)


@contextlib.contextmanager
def nth_call(n: int, what: Callable[[], Any]) -> Iterator[list[int]]:
    """Runs `what` in place of the n-th of the protocol's system calls; yields the count of calls so far."""
    count = [0]
    real = {name: getattr(os, name) for name in CALLS}

    def wrapped(name: str) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            count[0] += 1
            if count[0] == n:
                if name == "close":
                    real[name](*args, **options)
                what()
            return real[name](*args, **options)

        return call

    for name in CALLS:
        setattr(os, name, wrapped(name))
    try:
        yield count
    finally:
        for name, function in real.items():
            setattr(os, name, function)


def calls_of(run: Callable[[Path], None], target: Path) -> int:
    with nth_call(0, lambda: None) as count:
        run(target)
    return count[0]


def contents(root: Path) -> dict[str, bytes | None]:
    return {p.relative_to(root).as_posix(): p.read_bytes() if p.is_file() else None for p in sorted(root.rglob("*"))}


def test_directory_appears_whole_and_verifies(tmp_path: Path) -> None:
    save_directory(tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    found = verify_directory(tmp_path / "out")
    assert (found.files, found.unlisted) == (3, ())
    save_directory(tmp_path / "again")
    assert contents(tmp_path / "out") == contents(tmp_path / "again")
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o777 & ~umask()


def umask() -> int:
    old = os.umask(0)
    os.umask(old)
    return old


def test_everything_is_synced_before_the_rename_and_the_parent_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    sync, rename = os.fsync, os.rename
    monkeypatch.setattr(os, "fsync", lambda fd: (log.append(os.readlink(f"/proc/self/fd/{fd}")), sync(fd))[1])
    monkeypatch.setattr(os, "rename", lambda a, b: (log.append("rename"), rename(a, b))[1])
    with atomic_directory(tmp_path / "out") as temp:
        fill(temp)
        (temp / "deep" / "er").mkdir(parents=True)
        (temp / "deep" / "er" / "file").write_text("x")
    monkeypatch.undo()
    at = log.index("rename")
    wanted = {str(temp), *(str(temp / p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*"))}
    assert set(log[:at]) == wanted and log[at + 1 :] == [str(tmp_path)]
    assert log.index(f"{temp}/manifest.json") > max(
        log.index(name) for name in wanted if (tmp_path / "out" / name[len(str(temp)) + 1 :]).is_file() and "manifest" not in name
    )


@pytest.mark.parametrize("make", [lambda p: p.mkdir(), lambda p: p.write_text("old"), lambda p: p.symlink_to("nowhere")])
def test_existing_target_is_refused_before_work_starts(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "out")
    with pytest.raises(OutputError, match="exists; remove it"), atomic_directory(tmp_path / "out"):
        pytest.fail("the block ran")
    assert len(list(tmp_path.iterdir())) == 1


def test_target_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="exists"), atomic_directory(tmp_path / "out") as temp:
        fill(temp)
        (tmp_path / "out").mkdir()
    assert contents(tmp_path) == {"out": None}


@pytest.mark.parametrize("target", ["none/out", "a\0b", "x" * 300])
def test_impossible_targets(tmp_path: Path, target: str) -> None:
    for block in (atomic_directory, atomic_file):
        with pytest.raises(OutputError), block(tmp_path / target):  # type: ignore[operator]
            pytest.fail("the block ran")
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("run", [save_directory, save_file])
def test_every_failing_call_leaves_nothing(tmp_path: Path, run: Callable[[Path], None], code: int) -> None:
    def fail() -> None:
        raise OSError(code, os.strerror(code))

    (tmp_path / "bystander").write_text("old")
    before = contents(tmp_path)
    count = calls_of(run, tmp_path / "out")
    (tmp_path / "gone").mkdir()
    (tmp_path / "out").rename(tmp_path / "gone" / "out")
    save._remove(tmp_path / "gone")
    assert count > (20 if run is save_directory else 5)
    for n in range(1, count + 1):
        raised = False
        with nth_call(n, fail):
            try:
                run(tmp_path / "out")
            except OutputError as error:
                raised = True
                assert ("disk is full" if code == errno.ENOSPC else "input/output error") in str(error), n
                assert str(tmp_path / "out") in str(error) and "tmp-" not in str(error).replace(str(tmp_path), ""), n
        if not raised:  # what failed did not matter
            if run is save_file:
                assert (tmp_path / "out").read_bytes() == b"new" * 5000
            else:
                assert verify_directory(tmp_path / "out").files == 3
            save._remove(tmp_path / "out")
        assert contents(tmp_path) == before, n


def test_interrupt_at_every_call_leaves_nothing(tmp_path: Path) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    count = calls_of(save_directory, tmp_path / "first")
    before = contents(tmp_path)
    for n in range(1, count + 1):
        with nth_call(n, interrupt), pytest.raises(KeyboardInterrupt):
            save_directory(tmp_path / "out")
        assert {k: v for k, v in contents(tmp_path).items() if not k.startswith("out")} == before, n
        if (tmp_path / "out").exists():  # the interrupt came when all was done
            verify_directory(tmp_path / "out")
            save._remove(tmp_path / "out")


def test_errors_of_the_block_pass_through(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_directory(tmp_path / "out"):
        (tmp_path / "input that is missing").read_bytes()
    with pytest.raises(ZeroDivisionError), atomic_file(tmp_path / "out"):
        raise ZeroDivisionError
    assert contents(tmp_path) == {}


def test_short_writes_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, bytes(data)[:7]))
    save_directory(tmp_path / "short")
    monkeypatch.undo()
    save_directory(tmp_path / "whole")
    assert contents(tmp_path / "short") == contents(tmp_path / "whole")


def in_child(run: Callable[[], None]) -> int:
    """Runs in a forked process and returns its wait status; 0 when nothing was raised."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            run()
            code = 0
        finally:
            os._exit(code)
    return os.waitpid(pid, 0)[1]


@pytest.mark.parametrize("run", [save_directory, save_file])
def test_killed_at_every_call(tmp_path: Path, run: Callable[[Path], None]) -> None:
    """SIGKILL before each system call: the target is absent (or old) or whole, and the next save removes what was left."""
    target = tmp_path / "out"
    count = calls_of(run, target)
    whole = contents(tmp_path)
    for n in range(1, count + 1):
        if run is save_directory:
            save._remove(target)
        else:
            target.write_bytes(b"old")
        with nth_call(n, lambda: os.kill(os.getpid(), signal.SIGKILL)):
            assert in_child(lambda: run(target)) == signal.SIGKILL
        left = {k: v for k, v in contents(tmp_path).items() if not k.startswith(".anybit-tmp-")}
        assert left == whole or left == ({} if run is save_directory else {"out": b"old"}), n
        remove_stale(tmp_path)
        assert {k: v for k, v in contents(tmp_path).items() if k.startswith(".")} == {}, n


def test_killed_at_random_times_in_a_real_process(tmp_path: Path) -> None:
    """A loop of saves in a fresh interpreter, killed a few times; every directory that exists verifies."""
    source = (
        "import sys, itertools\nfrom pathlib import Path\n"
        "from anybit.io.output import create\nfrom anybit.io.save import atomic_directory\n"
        "print('ready', flush=True)\n"
        "for i in itertools.count():\n"
        "    with atomic_directory(Path(sys.argv[1]) / f'{sys.argv[2]}-{i}') as temp:\n"
        "        for name in 'abc':\n"
        "            with create(temp / name) as file:\n"
        "                for piece in range(50): file.write(bytes([i % 256]) * 4096)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(anybit.__file__).parents[1])}
    for run, delay in enumerate((0.03, 0.07, 0.11, 0.17)):
        process = subprocess.Popen([sys.executable, "-c", source, str(tmp_path), str(run)], stdout=subprocess.PIPE, env=environment)
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        time.sleep(delay)
        process.kill()
        process.wait()
        process.stdout.close()
        for path in tmp_path.iterdir():
            if not path.name.startswith("."):
                assert verify_directory(path).files == 3
    remove_stale(tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_file_size_limit_is_an_output_error(tmp_path: Path) -> None:
    def run() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        with pytest.raises(OutputError, match="allowed file size"), atomic_directory(tmp_path / "out") as temp:
            write_safetensors(temp / "m", [("a", "U8", (1 << 20,))], [("a", bytes(1 << 20))])
        with pytest.raises(OutputError, match="allowed file size"), atomic_file(tmp_path / "out") as file:
            file.write(bytes(1 << 20))

    assert in_child(run) == 0
    assert contents(tmp_path) == {}


def test_scratch_is_gone_afterwards_or_with_the_next_save(tmp_path: Path) -> None:
    def killed() -> None:
        with scratch(tmp_path) as folder:
            (folder / "hidden").write_bytes(bytes(4096))
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(KeyError), scratch(tmp_path) as folder:
        (folder / "hidden").write_bytes(b"1")
        assert folder.parent == tmp_path and folder.stat().st_mode & 0o77 == 0
        save_directory(tmp_path / "meanwhile")
        assert (folder / "hidden").exists()
        raise KeyError
    assert [path.name for path in tmp_path.iterdir()] == ["meanwhile"]
    assert in_child(killed) == signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2
    with scratch(tmp_path) as folder:
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([folder.name, "meanwhile"])
    assert [path.name for path in tmp_path.iterdir()] == ["meanwhile"]
    with pytest.raises(OutputError, match=r"none does not exist; create it first"), scratch(tmp_path / "none"):
        pass


def test_living_saves_are_left_alone(tmp_path: Path) -> None:
    with atomic_directory(tmp_path / "outer") as temp:
        fill(temp)
        save_directory(tmp_path / "inner")
        assert in_child(lambda: save_directory(tmp_path / "child")) == 0
        assert (temp / "config.json").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["child", "inner", "outer"]


def test_without_a_lock_a_temporary_is_abandoned_whatever_its_process_id_says(tmp_path: Path) -> None:
    """A save holds the lock for as long as it lives, so an id that is in use again protects nothing."""
    start = save._start(os.getpid())
    names = [f"{os.getpid()}", f"{os.getpid()}-{start}", f"1-{save._start(1)}", "4194304999", "4194304999-77"]
    for i, name in enumerate(names):
        (tmp_path / f".anybit-tmp-{name}-{i:012}").mkdir()
    os.mkfifo(tmp_path / f".anybit-tmp-4194304999-{'3' * 12}")
    kept = [".anybit-tmp-notes", ".anybit-tmp-1-xyz", f".anybit-tmp-1-{'A' * 12}"]
    for name in kept:
        (tmp_path / name).mkdir()
    link = tmp_path / f".anybit-tmp-4194304999-{'4' * 12}"
    link.symlink_to(tmp_path / kept[0])
    assert len(remove_stale(tmp_path)) == len(names) + 1
    assert {p.name for p in tmp_path.iterdir()} == {*kept, link.name}, "a link is never followed"


def test_where_there_are_no_locks_the_start_of_the_process_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(fd: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(save.fcntl, "flock", no_locks)
    start = save._start(os.getpid())
    assert start and start > 0
    living, unknown = f"{os.getpid()}-{start}", f"{os.getpid()}"
    reused, dead, fresh = f"{os.getpid()}-{start + 1}", "4194304999-5", "4194304999-6"
    for name in (living, unknown, reused, dead, fresh):
        path = tmp_path / f".anybit-tmp-{name}-{'0' * 12}"
        path.mkdir()
        (path / "part").write_text("x")
        if name != fresh:
            os.utime(path / "part", (0, 0))
            os.utime(path, (0, 0))
    gone = {path.name.split("tmp-")[1][:-13] for path in remove_stale(tmp_path)}
    assert gone == {reused, dead}
    save_directory(tmp_path / "out")
    save_file(tmp_path / "file")
    assert verify_directory(tmp_path / "out").files == 3


def test_start_of_a_process_whose_name_is_odd(tmp_path: Path) -> None:
    """The name in /proc/PID/stat may hold spaces and parentheses."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        Path("/proc/self/comm").write_text("a) (b) 1 2")
        os.write(write, b"x")
        time.sleep(60)
        os._exit(0)
    os.read(read, 1)
    mine, other = save._start(os.getpid()), save._start(pid)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(read)
    os.close(write)
    assert mine is not None and other is not None and mine <= other < mine + 10**7
    assert save._start(pid) is None


def test_a_new_temporary_that_another_save_removes_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between mkdir and lock a save looks abandoned."""
    lock, seen = save._lock, []

    def removed_first(path: Path) -> int | None:
        seen.append(path)
        if len(seen) == 1:
            path.rmdir()
        if len(seen) == 2:
            path.rmdir()
            path.mkdir()
            held = lock(path)
            path.rmdir()
            path.mkdir()
            return held
        if len(seen) == 3:
            return None
        return lock(path)

    monkeypatch.setattr(save, "_lock", removed_first)
    save_directory(tmp_path / "out")
    assert len(set(seen)) == 4 and verify_directory(tmp_path / "out").files == 3
    monkeypatch.setattr(save, "_lock", lambda path: None)
    with pytest.raises(OutputError, match="other saves"):
        save_directory(tmp_path / "again")


def test_a_lock_protects_whatever_the_process_id_says(tmp_path: Path) -> None:
    """A save in another container shares the disk but not the process ids."""
    elsewhere = tmp_path / f".anybit-tmp-4194304999-1-{'5' * 12}"
    elsewhere.mkdir()
    lock = save._lock(elsewhere)
    assert lock is not None and remove_stale(tmp_path) == [] and elsewhere.exists()
    os.close(lock)
    assert remove_stale(tmp_path) == [elsewhere] and not elsewhere.exists()


def test_a_file_is_locked_until_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put = save._put_in_place

    def others_first(temp: Path, target: Path, replace: bool) -> None:
        assert in_child(lambda: (save._MINE.clear(), remove_stale(tmp_path))) == 0  # type: ignore[func-returns-value, arg-type, return-value]
        put(temp, target, replace)

    monkeypatch.setattr(save, "_put_in_place", others_first)
    save_file(tmp_path / "out")
    assert contents(tmp_path) == {"out": b"new" * 5000}


@pytest.mark.parametrize("has_links", [True, False])
@pytest.mark.parametrize("old", [None, b"old"])
def test_a_failing_sync_of_the_folder_brings_the_old_file_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: bytes | None, has_links: bool
) -> None:
    def fail(path: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    if old is not None:
        (tmp_path / "out").write_bytes(old)
    def no_links(source: Path, link: Path) -> None:
        os.stat(source)
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    if not has_links:
        monkeypatch.setattr(os, "link", no_links)
    with monkeypatch.context() as patch, pytest.raises(OutputError, match="input/output error"):
        patch.setattr(save, "sync", fail)
        save_file(tmp_path / "out")
    kept = old if has_links or old is None else b"new" * 5000  # without links there is no way back
    assert contents(tmp_path) == ({} if kept is None else {"out": kept})
    save_file(tmp_path / "out")
    assert contents(tmp_path) == {"out": b"new" * 5000}


def test_a_folder_is_never_replaced_by_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("x")
    before = contents(tmp_path)
    with pytest.raises(OutputError, match="is a directory"):
        save_file(tmp_path / "out")
    assert contents(tmp_path) == before


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="exists"), atomic_file(tmp_path / "out", replace=False) as file:
        file.write(b"new")
        (tmp_path / "out").write_bytes(b"theirs")
    assert contents(tmp_path) == {"out": b"theirs"}
    (tmp_path / "out").unlink()
    with atomic_file(tmp_path / "out", replace=False) as file:
        file.write(b"new")
    assert contents(tmp_path) == {"out": b"new"}


def test_file_is_replaced_or_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"old")
    with pytest.raises(OutputError, match="exists"), atomic_file(tmp_path / "out", replace=False):
        pytest.fail("the block ran")
    save_file(tmp_path / "out")
    assert contents(tmp_path) == {"out": b"new" * 5000}


def test_links_and_devices_are_not_saved(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="neither a file nor a directory"), atomic_directory(tmp_path / "out") as temp:
        (temp / "link").symlink_to("/etc/passwd")
    assert contents(tmp_path) == {}


def damage_size(root: Path) -> None:
    os.truncate(root / "model.safetensors", 100)


def damage_bytes(root: Path) -> None:
    data = bytearray((root / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (root / "model.safetensors").write_bytes(data)


def edit_manifest(**changes: Any) -> Callable[[Path], None]:
    def edit(root: Path) -> None:
        content = json.loads((root / "manifest.json").read_text())
        (root / "manifest.json").write_text(json.dumps({**content, **changes}))

    return edit


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (damage_size, "manifest.json says"),
        (damage_bytes, "SHA-256"),
        (lambda root: (root / "config.json").unlink(), "config.json: listed"),
        (lambda root: ((root / "config.json").unlink(), os.mkfifo(root / "config.json")), "not a regular file"),
        (lambda root: (root / "manifest.json").unlink(), "manifest.json: no such file"),
        (lambda root: (root / "manifest.json").write_text("{"), "at byte 1"),
        (lambda root: (root / "manifest.json").write_text("[]"), "no anybit manifest"),
        (edit_manifest(version=2), "version 2"),
        (edit_manifest(version=[1]), "version"),
        (edit_manifest(files={}), "digest"),
        (edit_manifest(files=[]), "files"),
        (edit_manifest(files={"../x": {"size": 1, "sha256": ""}}), "leaves the directory"),
        (edit_manifest(files={"/etc/passwd": {"size": 1, "sha256": ""}}), "leaves the directory"),
        (edit_manifest(files={"x": {"size": "1", "sha256": ""}}), "size"),
        (edit_manifest(files={"x": 1}), "size"),
        (edit_manifest(digest=None), "digest"),
    ],
)
def test_verify_names_what_changed(tmp_path: Path, damage: Callable[[Path], Any], says: str) -> None:
    save_directory(tmp_path / "out")
    damage(tmp_path / "out")
    with pytest.raises(FileFormatError, match=says):
        verify_directory(tmp_path / "out")


def test_digest_does_not_depend_on_order() -> None:
    item = {"size": 1, "sha256": "0" * 64}
    assert contents_digest({"a": item, "b": item}) == contents_digest({"b": item, "a": item}) != contents_digest({"a": item})


def test_verify_reports_files_that_were_added(tmp_path: Path) -> None:
    save_directory(tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    assert verify_directory(tmp_path / "out").unlisted == ("notes.txt",)
