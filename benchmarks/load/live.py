"""The live view: what runs now, on a terminal; elsewhere a line when a phase ends."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from benchmarks.load.progress import Progress

FRAMES_PER_S = 4
_BARS = "▁▂▃▄▅▆▇█"

ShowPhase = Callable[[Progress], None]


@contextmanager
def live_view(console: Console, title: str) -> Generator[ShowPhase]:
    """Yields the function to call when a phase begins; the view follows it from then on."""
    if not console.is_terminal:
        with _lines(console, title) as show:
            yield show
        return
    current: list[Progress] = []

    def frame() -> Group:
        return _frame(title, current[-1]) if current else Group(Text(title))

    with Live(
        get_renderable=frame, console=console, refresh_per_second=FRAMES_PER_S, transient=True
    ):
        yield current.append


@contextmanager
def _lines(console: Console, title: str) -> Generator[ShowPhase]:
    begun: list[Progress] = []

    def show(progress: Progress) -> None:
        if begun:
            _line(console, title, begun[-1])
        begun.append(progress)

    yield show
    if begun:
        _line(console, title, begun[-1])


def _line(console: Console, title: str, progress: Progress) -> None:
    console.print(
        f"{title} {progress.position} {progress.phase.name}: {progress.num_completed} completed,"
        f" {progress.errors.total()} failed, {progress.num_tokens} tokens in"
        f" {progress.elapsed_s:.1f} s",
        highlight=False,
        soft_wrap=True,
    )


def _frame(title: str, progress: Progress) -> Group:
    phase = progress.phase
    total = len(phase.requests)
    ended = progress.num_completed + progress.errors.total()
    loop = f"closed, {phase.concurrency} at a time" if phase.concurrency else "open"
    table = Table.grid(padding=(0, 2))
    table.add_row("", ProgressBar(total=total, completed=ended, width=60))
    table.add_row("requests", f"{ended} of {total} ended, {progress.num_running} under way")
    rate = progress.tokens_per_s[-1] if progress.tokens_per_s else 0.0
    table.add_row("tokens/s", f"{rate:8.1f}  {_sparkline(list(progress.tokens_per_s))}")
    table.add_row("first token", _milliseconds(progress))
    for reason, count in progress.errors.most_common(4):
        table.add_row(Text("failed", style="red"), f"{count} of {reason}")
    heading = Text.assemble(
        (title, "bold"), f"  {progress.position} {phase.name} ({loop})  {progress.elapsed_s:.0f} s"
    )
    return Group(heading, table)


def _milliseconds(progress: Progress) -> str:
    shown = []
    for share in (0.5, 0.9, 0.99):
        value = progress.percentile(share)
        shown.append(f"p{share * 100:.0f} " + ("-" if value is None else f"{value * 1e3:.0f} ms"))
    return "  ".join(shown)


def _sparkline(values: list[float]) -> str:
    top = max(values, default=0.0)
    if not top:
        return ""
    return "".join(_BARS[min(7, int(value / top * 8))] for value in values)
