"""Progress on stderr: a bar with a time estimate on a terminal, one plain line every ten seconds elsewhere, nothing if asked."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

Step = Callable[[int, str], None]


class Reporter:
    """Shows how far the stages of a command are.

        with Reporter(enabled=True) as progress:
            step = progress.stage("evaluate", total=64)
            step(1, "window 1")        # one unit done, and what it was

    A stage ends when the next begins. Time estimates assume that units of one stage take equally long.
    """

    EVERY_S = 10.0

    def __init__(self, enabled: bool = True, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._enabled = enabled
        self._clock = clock
        self._bars: Progress | None = None
        self._task: TaskID | None = None
        self._name, self._total, self._done = "", 0, 0
        self._begun = self._said = clock()

    def __enter__(self) -> Reporter:
        if self._enabled and self._stream.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

            self._bars = Progress(
                TextColumn("{task.description:<22}"),
                BarColumn(bar_width=30),
                TextColumn("{task.percentage:>3.0f} %"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(file=self._stream),
            )
            self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bars is not None:
            self._bars.stop()

    def stage(self, name: str, total: int) -> Step:
        """Begins a stage of `total` units; the function that it returns counts them: step(units, note)."""
        self._finish()
        self._name, self._total, self._done, self._begun = name, max(total, 1), 0, self._clock()
        if self._bars is not None:
            self._task = self._bars.add_task(name, total=self._total, note="")
        return self.step

    def step(self, units: int = 1, note: str = "") -> None:
        """Counts `units` more of the stage that runs."""
        self._done = min(self._done + units, self._total)
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, completed=self._done, note=note)
        elif self._enabled and self._bars is None and self._clock() - self._said >= self.EVERY_S:
            self._say(note)

    def _say(self, note: str) -> None:
        now = self._clock()
        self._said = now
        left = (now - self._begun) * (self._total - self._done) / max(self._done, 1)
        share = 100 * self._done // self._total
        detail = f", {note}" if note else ""
        print(f"anybit: {self._name}: {share} %, about {left:.0f} s left{detail}", file=self._stream, flush=True)

    def _finish(self) -> None:
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, completed=self._total, note="")
            self._task = None
