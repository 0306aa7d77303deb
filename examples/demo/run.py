"""`python -m examples.demo.run`: the whole system on this machine, one prompt, all voices at once.

Starts `chorale up` with the demo model, registers every demo adapter, streams one prompt through
all of them and the base model at the same time, shows what each answered and how fast, and stops
everything again.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import tempfile
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console

from chorale.errors import ChoraleError
from examples.demo.chorus import answer_all, register
from examples.demo.serving import DemoError, Serving, serving
from examples.demo.view import live_rows, print_summary
from examples.demo.voices import MAX_NUMBER, PROMPT

T = TypeVar("T")
ADAPTERS = Path(__file__).with_name("adapters")


def demo(
    number: Annotated[
        int, typer.Option(min=0, max=MAX_NUMBER, help="The number that the voices read out.")
    ] = 407,
    prompt: Annotated[
        str | None, typer.Option(help="Any other prompt, instead of a number.")
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Go on serving until Ctrl-C instead of stopping.")
    ] = False,
) -> None:
    """All demo voices answer one prompt at once."""
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    started_s = time.monotonic()
    # The kernel's signal would leave the data dir behind; as an exception it runs the clean-up.
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with tempfile.TemporaryDirectory(prefix="chorale-demo-") as data_dir:
            console.print("starting redis, control plane, gateway and data plane …")
            with serving(Path(data_dir)) as up:
                _perform(console, up, prompt or PROMPT.format(n=number), keep)
                stop_s = up.stop()
        console.print(
            f"stopped cleanly in {stop_s:.1f} s; {time.monotonic() - started_s:.1f} s in all"
        )
    except DemoError as error:
        sys.exit(f"error: {error}")
    except ChoraleError as error:
        sys.exit(f"error: {error.reason}: {error.message}")
    except KeyboardInterrupt:
        sys.exit(130)


def _perform(console: Console, up: Serving, prompt: str, keep: bool) -> None:
    console.print(f"ready after {up.start_s:.1f} s: grpc={up.grpc_address} http={up.http_address}")
    started_s = time.monotonic()
    voices = _run(register(up.grpc_address, ADAPTERS))
    if len(voices) == 1:
        raise DemoError(f"{ADAPTERS} holds no adapters; examples/demo/train.py makes them")
    console.print(f"registered {len(voices) - 1} adapters in {time.monotonic() - started_s:.1f} s")
    with live_rows(console, voices, prompt) as changed:
        elapsed_s = _run(answer_all(up.grpc_address, voices, prompt, changed))
    print_summary(console, voices, elapsed_s)
    if keep:
        _keep(console, up, prompt, voices[-1].adapter)


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Raises the first error of a group as itself."""
    try:
        return asyncio.run(work)
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None


def _keep(console: Console, up: Serving, prompt: str, adapter: str) -> None:
    try:
        console.print(
            f"\nserving until Ctrl-C; try\n"
            f"  chorale generate --address {up.grpc_address} --adapter {adapter} '{prompt}'\n"
            f"  curl -s http://{up.http_address}/v1/completions "
            "-H 'content-type: application/json' "
            f"""-d '{{"model": "{adapter}", "prompt": "{prompt}", "max_tokens": 64}}'""",
            markup=False,
            soft_wrap=True,
        )
        status = up.process.wait()
    except KeyboardInterrupt:
        return
    raise DemoError(f"`chorale up` ended by itself with status {status}")


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    typer.run(demo)
