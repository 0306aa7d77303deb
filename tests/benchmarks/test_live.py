from __future__ import annotations

import io

from rich.console import Console

from benchmarks.load.live import live_view
from benchmarks.load.progress import Progress
from benchmarks.load.records import Record
from benchmarks.load.workload import Phase, Request


def followed() -> Progress:
    """A phase of four requests: one complete, one failed, one under way, one not sent."""
    progress = Progress(Phase("slora", tuple(Request(i, "", 1, 2) for i in range(4))), "1/2")
    records = [Record(index, "", 1, 2, due_s=0.0) for index in range(3)]
    for record in records:
        progress.observe(record)
    records[0].token_s, records[0].token_counts = [0.05], [1]
    progress.observe(records[0])
    records[0].token_s, records[0].token_counts = [0.05, 0.06], [1, 1]
    records[0].done_s = 0.06
    progress.observe(records[0])
    records[1].error = "QUEUE_FULL"
    progress.observe(records[1])
    return progress


def test_a_terminal_sees_the_phase_that_runs() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100, color_system=None)
    with live_view(console, "bench slora") as show:
        show(followed())
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    text = "\n".join(lines)
    assert "bench slora  1/2 slora (open)" in text
    assert any(line.endswith("2 of 4 ended, 1 under way") for line in lines)
    assert "p50 50 ms" in text and "1 of QUEUE_FULL" in text


def test_elsewhere_a_phase_is_a_line_when_it_ends() -> None:
    out = io.StringIO()
    with live_view(Console(file=out, width=40), "bench slora") as show:
        show(followed())
        assert out.getvalue() == ""
        show(followed())
        assert out.getvalue().count("\n") == 1
    first, second = out.getvalue().splitlines()
    assert first.startswith("bench slora 1/2 slora: 1 completed, 1 failed, 2 tokens in ")
    assert second.startswith("bench slora 1/2 slora: 1 completed")


def test_tokens_are_counted_once() -> None:
    progress = followed()
    assert (progress.num_tokens, progress.num_running) == (2, 1)
    assert progress.ttft_s == [0.05]
