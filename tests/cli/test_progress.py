import io

from anybit.cli.progress import Reporter


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_one_plain_line_every_ten_seconds_without_a_terminal() -> None:
    clock, out = Clock(), io.StringIO()
    with Reporter(True, out, clock) as progress:
        step = progress.stage("evaluate", 100)
        for _ in range(50):
            clock.now += 1
            step(1, "int4@32")
    lines = out.getvalue().splitlines()
    assert len(lines) == 5
    assert lines[0] == "anybit: evaluate: 10 %, about 90 s left, int4@32"
    assert lines[-1] == "anybit: evaluate: 50 %, about 50 s left, int4@32"


def test_quick_work_says_nothing_and_neither_does_no_progress() -> None:
    for enabled, seconds in ((True, 0.1), (False, 60)):
        clock, out = Clock(), io.StringIO()
        with Reporter(enabled, out, clock) as progress:
            step = progress.stage("load", 10)
            for _ in range(10):
                clock.now += seconds
                step(1, "")
        assert out.getvalue() == ""


def test_a_terminal_gets_bars() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    with Reporter(True, out) as progress:
        step = progress.stage("quantize", 2)
        step(1, "layer")
        progress.stage("evaluate", 3)(3, "")
    assert "quantize" in out.getvalue()
    assert "100 %" in out.getvalue()
