"""An engine that says what a script tells it to.

    python -m tests.helpers.fake_engine ADDRESS PARENT_PID

The script is a JSON file (FAKE_ENGINE_SCRIPT, see FakeScript); every message that
arrives is appended to the file FAKE_ENGINE_LOG as a line of JSON, for tests to look at.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import zmq

from dataplane import channel
from dataplane.engine.parent import die_with
from dataplane.load_reports import AdapterLoad

ROOT = Path(__file__).resolve().parents[2]


@dataclass(kw_only=True)
class FakeScript:
    """`tokens` is what every request generates, from token len(generated) on, `burst` at a time."""

    tokens: list[int] = field(default_factory=lambda: [10, 11, 12])
    burst: int = 1
    interval_s: float = 0.0
    finish: str = "length"
    first_token_s: float = 0.5  # what it says that one took
    stop_token_id: int = -1
    logprobs: bool = False
    hang_after: int | None = None  # tokens of a request after which nothing more comes
    pause_after: int | None = None  # tokens of a request after which the rest waits for `go_on`
    first_requests: int = 1  # nobody gets a token before so many have come
    crash_after: int | None = None
    freeze_after: int | None = None  # the whole process stops, as SIGSTOP does
    mishap_lives: int = 1_000  # crash, freeze and garbage befall only so many engines on one log
    alive: bool = False  # says Alive while it has work
    garbage_after: int | None = None
    fail_after: int | None = None
    fail: dict[str, Any] = field(default_factory=dict)
    start_failed: dict[str, Any] | None = None
    exit_before_ready: int | None = None
    ready_delay_s: float = 0.0  # unless it is told to go before
    taught_delay_s: float = 0.0
    crash_when_taught: bool = False
    stubborn: bool = False  # heeds neither Shutdown nor SIGTERM
    ready: dict[str, Any] = field(default_factory=dict)
    stats: dict[str, Any] | None = None
    owners: list[str] = field(default_factory=lambda: ["", "sequence:1"])
    problem: str = ""
    loads: list[dict[str, Any]] = field(default_factory=list)


def environment(script: FakeScript, log: Path) -> dict[str, str]:
    """For the process; its import roots included. The script is written beside `log`."""
    script_file = log.with_suffix(".script")
    script_file.write_bytes(msgspec.json.encode(asdict(script)))
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "protos"))),
        "FAKE_ENGINE_SCRIPT": str(script_file),
        "FAKE_ENGINE_LOG": str(log),
    }


def go_on(log: Path) -> None:
    """What was paused goes on."""
    log.with_suffix(".go").touch()


COMMAND = (sys.executable, "-P", "-m", "tests.helpers.fake_engine")


def ready_message(**changes: Any) -> channel.Ready:
    fields: dict[str, Any] = {
        "model_name": "base",
        "fingerprint": "f" * 64,
        "num_layers": 2,
        "layer_modules": [channel.ModuleShape("self_attn.q_proj", 64, 64)],
        "outer_modules": [channel.ModuleShape("lm_head", 64, 400)],
        "mixture_modules": [],
        "vocab_size": 400,
        "max_context_tokens": 64,
        "eos_token_ids": [1],
        "num_pages": 100,
        "page_bytes": 4096,
        "max_running": 4,
        "device": "cpu",
        "dtype": "float32",
    }
    return channel.Ready(**{**fields, **changes})


class _Engine:
    def __init__(self, address: str, script: FakeScript, log: Path) -> None:
        self.script = script
        self.log = log
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.PAIR)
        self.socket.connect(address)
        self.running: dict[int, tuple[channel.Submit, int, float]] = {}
        self.alive_due = 0.0
        self.num_requests = 0
        lives = log.read_bytes().count(b'"type":"Start"') if log.exists() else 0
        self.is_cursed = lives < script.mishap_lives

    def send(self, message: object) -> None:
        self.socket.send(channel.encode(message))

    def flush(self) -> None:
        """Returns once all that was sent has left this process; nothing can be sent any more."""
        self.socket.close()
        self.context.term()

    def receive(self, timeout_ms: int) -> channel.ToEngine | None:
        if not self.socket.poll(timeout_ms):
            return None
        message = channel.decode_to_engine(self.socket.recv())
        with self.log.open("ab") as file:
            file.write(msgspec.json.encode(message) + b"\n")
        return message

    def run(self) -> int:
        script = self.script
        if script.exit_before_ready is not None:
            return script.exit_before_ready
        self.send(channel.Hello(os.getpid()))
        while not isinstance(self.receive(1000), channel.Start):
            pass
        if self.told_to_go(script.ready_delay_s):
            return 0
        if script.start_failed is not None:
            self.send(channel.StartFailed(**script.start_failed))
            self.flush()
            return 1
        self.send(ready_message(**script.ready))
        if script.stats is not None:
            self.send(channel.Stats(**script.stats))
        while True:
            match self.receive(1):
                case channel.Submit(handle=handle) as submit:
                    self.num_requests += 1
                    self.running[handle] = (submit, len(submit.generated), time.monotonic())
                case channel.Abort(handle=handle):
                    self.running.pop(handle, None)
                case channel.Inspect(ticket=ticket):
                    self.send(
                        channel.PoolReport(
                            ticket=ticket,
                            owners=self.script.owners,
                            num_used_pages=1,
                            problem=self.script.problem,
                        )
                    )
                case channel.AskLoads(ticket=ticket):
                    loads = [AdapterLoad(**load) for load in self.script.loads]
                    self.send(channel.LoadsReport(ticket=ticket, loads=loads))
                case channel.Vocabulary():
                    time.sleep(script.taught_delay_s)
                    if script.crash_when_taught:
                        os._exit(3)
                    self.send(channel.Taught())
                case channel.Ping():
                    self.send(channel.Alive())
                case channel.Shutdown() if not script.stubborn:
                    return 0
                case _:
                    pass
            self.step()
            if self.script.alive and self.running and time.monotonic() >= self.alive_due:
                self.send(channel.Alive())
                self.alive_due = time.monotonic() + 0.02

    def told_to_go(self, within_s: float) -> bool:
        end_s = time.monotonic() + within_s
        while (left_s := end_s - time.monotonic()) > 0:
            if isinstance(self.receive(int(left_s * 1000) + 1), channel.Shutdown):
                return True
        return False

    def step(self) -> None:
        if self.num_requests < self.script.first_requests:
            return
        outputs = []
        for handle, (submit, position, due) in list(self.running.items()):
            if time.monotonic() < due or position == self.script.hang_after:
                continue
            if position == self.script.pause_after and not self.log.with_suffix(".go").exists():
                continue
            self.mishap(handle, position)
            if handle not in self.running:
                continue
            end = min(position + self.script.burst, len(self.script.tokens))
            end = min(end, submit.sampling.max_tokens)
            last = end in (len(self.script.tokens), submit.sampling.max_tokens)
            outputs.append(self.output(submit, position, end, last))
            if last:
                del self.running[handle]
            else:
                self.running[handle] = (submit, end, time.monotonic() + self.script.interval_s)
        if outputs:
            self.send(channel.Outputs(outputs))

    @property
    def timings(self) -> channel.Timings:
        return channel.Timings(0.25, 0.125, self.script.first_token_s, 3)

    def output(self, submit: channel.Submit, position: int, end: int, last: bool) -> channel.Output:
        tokens = self.script.tokens[position:end]
        first = position == len(submit.generated)
        return channel.Output(
            handle=submit.handle,
            token_ids=tokens,
            logprobs=[channel.TokenLogprobs(-0.5, [token, 9], [-0.5, -1.5]) for token in tokens]
            if self.script.logprobs
            else [],
            finish=self.script.finish if last else "",
            stop_token_id=self.script.stop_token_id if last else -1,
            timings=self.timings if first or last else None,
            prompt_logprobs=_prompt_logprobs(submit) if first else [],
        )

    def mishap(self, handle: int, position: int) -> None:
        script = self.script
        if self.is_cursed and position == script.crash_after:
            self.flush()
            os._exit(3)
        if self.is_cursed and position == script.freeze_after:
            self.flush()
            os.kill(os.getpid(), signal.SIGSTOP)
        if self.is_cursed and position == script.garbage_after:
            self.socket.send(b"\xc1garbage")
            del self.running[handle]
        if position == script.fail_after:
            self.send(channel.Failed(handle=handle, **script.fail))
            del self.running[handle]


def _prompt_logprobs(submit: channel.Submit) -> list[channel.TokenLogprobs]:
    if (most := submit.sampling.prompt_logprobs) < 0:
        return []
    top = list(range(most))
    return [channel.TokenLogprobs(-each / 8, top, [-0.5] * most) for each in submit.prompt[1:]]


def main() -> int:
    script_file = Path(os.environ["FAKE_ENGINE_SCRIPT"])
    script = msgspec.json.decode(script_file.read_bytes(), type=FakeScript)
    if script.stubborn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    die_with(int(sys.argv[2]))
    return _Engine(sys.argv[1], script, Path(os.environ["FAKE_ENGINE_LOG"])).run()


if __name__ == "__main__":
    sys.exit(main())
