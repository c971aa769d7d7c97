"""The command as a user starts it: real processes, their exit codes, one line for each failure."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from anybit.cli import main as cli

RUN = [sys.executable, "-m", "anybit.cli.main"]
COMMANDS = ("bench", "demo", "doctor", "eval", "formats", "inspect", "quantize", "run", "verify")


Lines = Callable[..., None]


def anybit(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*RUN, *args], capture_output=True, text=True, timeout=120, env={**os.environ, **environment})


def check_line(code: int, out: str, err: str, expected: int, parts: tuple[str, ...]) -> None:
    assert code == expected, err
    assert out == ""
    assert len(err.splitlines()) == 1, err
    assert err.startswith("anybit: error: ")
    for part in parts:
        assert part in err


@pytest.fixture
def one_line(capsys: pytest.CaptureFixture[str]) -> Lines:
    """one_line(exit code, parts of the line)(arguments): the entry point itself, in this process because that is quicker."""

    def check(code: int, *parts: str) -> Callable[..., None]:
        def call(*args: str) -> None:
            with pytest.raises(SystemExit) as left:
                cli.run(args)
            found = capsys.readouterr()
            assert isinstance(left.value.code, int)
            check_line(left.value.code, found.out, found.err, code, parts)

        return call

    return check


def modules_after(*args: str) -> set[str]:
    code = f"""
import sys
from anybit.cli.main import run
try:
    run({list(args)!r})
except SystemExit:
    pass
print(*sys.modules, file=sys.stderr)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    return set(found.stderr.split())


@pytest.mark.parametrize("args", [("--version",), ("--help",), ("quantize", "--help")])
def test_the_fast_path_imports_nothing_slow(args: tuple[str, ...]) -> None:
    loaded = modules_after(*args)
    assert loaded.isdisjoint({"numpy", "rich", "tokenizers", "safetensors", "anybit.formats", "anybit.kernels.cpu"})


def test_version_imports_no_command() -> None:
    assert not any(name.startswith("anybit.cli.commands") for name in modules_after("--version"))


def test_version_and_help() -> None:
    from anybit import __version__

    found = anybit("--version")
    assert (found.returncode, found.stdout) == (0, f"anybit {__version__}\n")
    assert anybit().stdout == anybit("--help").stdout
    for name in COMMANDS:
        assert name in anybit("--help").stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_ends_with_an_example(name: str) -> None:
    found = CliRunner().invoke(cli.main, [name, "--help"])
    assert found.exit_code == 0
    last = found.output.rstrip().rsplit("\n\n", 1)[-1]
    assert " ".join(last.split()).startswith(f"Example: anybit {name}")
    assert "--json" in found.output


def test_misspelt_commands_and_options_get_near_misses(one_line: Lines) -> None:
    one_line(2, "no command named 'quantise'; did you mean quantize?", "anybit --help")("quantise", "a", "b")
    one_line(2, "'--formt'", "--format", "anybit quantize --help")("quantize", "a", "b", "--formt", "int4")
    one_line(2, "OUT")("quantize", "a")
    one_line(2, "--temperature", "-1")("run", "pycoder-5m", "x", "--temperature", "-1")


@pytest.mark.parametrize(
    ("expression", "parts"),
    [
        ("int4@", ["position"]),
        ("fp4_e2m", ["fp4_e2m", "did you mean fp4_e2m1"]),
        ("int4@128:bf17", ["bf17", "position 9", "bf16"]),
        ("int4@128+zap", ["zap"]),
        ("int4@128+scale=mes", ["mes"]),
    ],
)
def test_bad_formats(expression: str, parts: list[str], tmp_path: Path, one_line: Lines) -> None:
    out = tmp_path / "out"
    one_line(2, *parts)("quantize", "pycoder-5m", str(out), "--format", expression)
    assert not out.exists()


def test_bad_paths_and_options(tmp_path: Path, one_line: Lines) -> None:
    out = tmp_path / "out"
    one_line(4, "no-such-model")("quantize", "no-such-model", str(out), "--format", "int4@32")
    one_line(2, "rnt")("quantize", "pycoder-5m", str(out), "--format", "int4@32", "--method", "rnt")
    one_line(2, "--keep", "(")("quantize", "pycoder-5m", str(out), "--format", "int4@32", "--keep", "(")
    one_line(2, "nothing is left to quantize")("quantize", "pycoder-5m", str(out), "--format", "int4@32", "--keep", ".")
    one_line(4, "deep")("quantize", "pycoder-5m", str(out / "deep"), "--format", "int4@32")
    one_line(2, "none.txt")("eval", "pycoder-5m", "--text", str(tmp_path / "none.txt"))
    one_line(3, "context", "1024")("eval", "pycoder-5m", "--window", "4096")
    one_line(3, "context", "1024")("bench", "pycoder-5m", "--prompt", "4096")
    one_line(4, "config.json")("inspect", str(tmp_path))
    one_line(4, "no-such-model: no such file")("convert", "no-such-model", str(out), "--to", "anybit")
    one_line(2, "nothing to convert")("convert", "pycoder-5m", str(out), "--to", "anybit")
    for bits in ("nan", "inf", "0", "-1"):
        one_line(2, "--bits", bits)("recommend", "pycoder-5m", "--bits", bits)
    one_line(2, "none of 1 recipes stays within 2 bits")("compare", "pycoder-5m", "--recipes", "gptq-int4", "--budget-bits", "2")
    one_line(2, "--threads")("doctor", "--threads", "0")
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_exists_is_left_alone(tmp_path: Path, one_line: Lines) -> None:
    (tmp_path / "out").mkdir()
    one_line(4, "exists")("quantize", "pycoder-5m", str(tmp_path / "out"), "--format", "int4@32")
    assert list((tmp_path / "out").iterdir()) == []
    (tmp_path / "file").write_text("mine")
    one_line(4, "--out")("demo", "--out", str(tmp_path / "file"), "--tokens", "2")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_prompt_that_does_not_fit_is_an_error(one_line: Lines) -> None:
    one_line(3, "context", "1024")("run", "pycoder-5m", "x = 1\n" * 1000)
    one_line(2, "empty")("run", "pycoder-5m", "")


def test_a_prompt_that_is_not_utf8_is_an_error(one_line: Lines) -> None:
    """As Python hands over arguments and standard input: each byte that is none of UTF-8's is half a surrogate pair."""
    one_line(2, "character 3", r"'\udcff'", "UTF-8")("run", "pycoder-5m", "x =\udcff")


@pytest.mark.parametrize(
    ("code", "args", "environment"),
    [
        (2, ("formats", "int4@"), {}),
        (3, ("run", "pycoder-5m", "x = 1\n" * 1000), {}),
        (4, ("inspect", "no-such-model"), {}),
        (6, ("doctor",), {"ANYBIT_ISA": "sse9"}),
    ],
)
def test_exit_codes_of_real_processes(code: int, args: tuple[str, ...], environment: dict[str, str]) -> None:
    found = anybit(*args, **environment)
    check_line(found.returncode, found.stdout, found.stderr, code, ())


def test_a_full_disk_is_one_line() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    with open("/dev/full", "w") as full:
        found = subprocess.run([*RUN, "formats"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert found.returncode == 4
    assert found.stderr.startswith("anybit: error: ")
    assert len(found.stderr.splitlines()) == 1


def test_a_reader_that_leaves_is_quiet() -> None:
    process = subprocess.Popen([*RUN, "formats"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(60) == 141
    process.stderr.close()


@pytest.mark.parametrize(("number", "code", "line"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")])
def test_signals(number: int, code: int, line: str, tmp_path: Path) -> None:
    text = tmp_path / "long.txt"
    text.write_text("value = other + 1\n" * 100_000)
    args = ["eval", "pycoder-5m", "--tokens", "400000", "--text", str(text), "--no-progress"]
    process = subprocess.Popen(
        [*RUN, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # a background job of a shell starts with SIGINT ignored
    )  # fmt: skip
    _wait_until_it_works(process)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    # Where the interrupt hits inside exec(), Python itself ends by SIGINT afterwards, which a shell shows as 130 as well.
    assert process.returncode in (code, -number)
    assert out == ""
    assert err == f"anybit: {line}\n"


def _wait_until_it_works(process: subprocess.Popen[str]) -> None:
    """Until the model is mapped: the command is past its imports."""
    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        if "model.safetensors" in Path(f"/proc/{process.pid}/maps").read_text():
            return
        time.sleep(0.02)
    raise AssertionError("the command never began to work")


@pytest.mark.parametrize(
    "args", [("quantize", "pycoder-5m", "out", "--format", "int4@32"), ("demo", "--out", "out"),
             ("compare", "pycoder-5m", "--recipes", "nearest-int2", "--out", "out")],
)  # fmt: skip
def test_an_interrupt_leaves_nothing_half_written(
    args: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from anybit.cli.progress import Reporter

    def stop(self: Reporter, units: int = 1, note: str = "") -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Reporter, "step", stop)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        cli.run(args)
    assert left.value.code == 130
    assert capsys.readouterr().err == "anybit: interrupted\n"
    assert list(tmp_path.iterdir()) == []


def test_a_bug_saves_its_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    import anybit.cli.commands.formats as formats

    def broken(as_json: bool) -> None:
        raise ZeroDivisionError("seven\nlines")

    monkeypatch.setattr(formats, "listing", broken)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    with pytest.raises(SystemExit) as left:
        cli.run(["formats"])
    assert left.value.code == 1
    line = capsys.readouterr().err
    saved = list(tmp_path.glob("anybit-traceback-*.txt"))
    assert len(saved) == 1
    assert str(saved[0]) in line
    assert line.count("\n") == 1
    assert "ZeroDivisionError: seven" in line
    assert "Traceback" in saved[0].read_text()


def test_json_is_exactly_one_object(tmp_path: Path) -> None:
    found = anybit("quantize", "pycoder-5m", str(tmp_path / "q"), "--format", "int4@32", "--json")
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("\n") == 1
    assert json.loads(found.stdout)["format"] == "int4@32:bf16"
