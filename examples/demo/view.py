"""What the demo shows: a live row for each voice on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from examples.demo.chorus import Voice

FRAMES_PER_S = 20


@contextmanager
def live_rows(
    console: Console, voices: Sequence[Voice], prompt: str
) -> Generator[Callable[[Voice], None]]:
    """Yields the function to call when a voice has changed."""
    if not console.is_terminal:
        yield lambda voice: _print_line(voice) if voice.done else None
        return
    with Live(
        _rows(voices, prompt), console=console, refresh_per_second=FRAMES_PER_S, transient=True
    ) as live:
        yield lambda voice: live.update(_rows(voices, prompt))


def _print_line(voice: Voice) -> None:
    print(f"{voice.name:>16} | {voice.text.strip()}", flush=True)


def _rows(voices: Sequence[Voice], prompt: str) -> Table:
    table = Table(title=Text(prompt), title_justify="left", box=None)
    table.add_column(justify="right", style="bold cyan")
    table.add_column(overflow="fold")
    for voice in voices:
        table.add_row(voice.name, Text(_clean(voice.text) + ("" if voice.done else " ▌")))
    return table


def print_summary(console: Console, voices: Sequence[Voice], elapsed_s: float) -> None:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    for name in ("voice", "answer", "rank", "targets", "TTFT ms", "load ms", "tokens/s"):
        right = name in ("rank", "TTFT ms", "load ms", "tokens/s")
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    for voice in voices:
        first, speed = voice.time_to_first_token_s, voice.tokens_per_s
        table.add_row(
            voice.name,
            Text(_clean(voice.text)),
            str(voice.rank or "-"),
            voice.targets,
            "-" if first is None else f"{first * 1e3:.0f}",
            f"{voice.adapter_load_s * 1e3:.0f}",
            "-" if speed is None else f"{speed:.0f}",
        )
    console.print()
    console.print(table)
    tokens = sum(voice.num_tokens for voice in voices)
    console.print(
        f"{len(voices)} voices answered at once: {tokens} tokens in {elapsed_s:.2f} s "
        f"({tokens / elapsed_s:.0f} tokens/s together)",
        highlight=False,
    )


def _clean(text: str) -> str:
    return "".join(c for c in text.strip() if c.isprintable())
