"""compose.yaml as Docker reads it, and its services as plain processes of this machine."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from controlplane.cli.supervisor.ports import free_port
from controlplane.die_with_parent import dying_with_parent
from controlplane.store.embedded import find_redis_server
from tests.helpers.up import ROOT, chorale_environment
from tests.helpers.waiting import PATIENCE_S

HEALTHY_TIMEOUT_S = 150.0  # kernels may have to be compiled first
_POLL_S = 1.0  # a check is a process of its own
_VARIABLE = re.compile(r"\$(?:(\$)|\{(\w+):([-+])([^{}]*)\})|\$")
# Where each service listens in its container.
PORTS = {
    "redis": (6379,),
    "control-plane": (50050, 9090),
    "gateway": (50051, 8000),
    "data-plane": (50052, 9090),
}


def load(name: str = "compose.yaml", variables: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The file at the top of the repository, its variables filled in; unset where not given."""
    return _filled(yaml.safe_load((ROOT / name).read_text()), variables or {})


def seconds(duration: str) -> float:
    """Of a duration in one unit, such as "10s" or "5m"."""
    number, unit = re.fullmatch(r"(\d+)(s|m)", duration).groups()  # type: ignore[union-attr]
    return int(number) * {"s": 1.0, "m": 60.0}[unit]


def entrypoint() -> list[str]:
    """Of the image."""
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()
    (line,) = re.findall(r"^ENTRYPOINT (.*)$", dockerfile, re.MULTILINE)
    return json.loads(line)


def mounts(service: Mapping[str, Any]) -> dict[str, str]:
    """The service's volumes: path in the container → volume or path of the host."""
    split = (volume.split(":") for volume in service.get("volumes", ()))
    return {target: source for source, target, *_ in split}


def start_order(services: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Each service after those that it depends on."""
    order: list[str] = []

    def visit(name: str) -> None:
        for other in services[name].get("depends_on", {}):
            visit(other)
        if name not in order:
            order.append(name)

    for name in services:
        visit(name)
    return order


def _filled(node: Any, variables: Mapping[str, str]) -> Any:
    def value(match: re.Match[str]) -> str:
        dollar, name, kind, other = match.groups()
        assert dollar or name, f"a lone $ in {match.string!r}"
        if dollar:
            return "$"
        given = variables.get(name, "")
        return given or other if kind == "-" else given and other

    if isinstance(node, dict):
        return {key: _filled(one, variables) for key, one in node.items()}
    if isinstance(node, list):
        return [_filled(one, variables) for one in node]
    return _VARIABLE.sub(value, node) if isinstance(node, str) else node


@dataclass
class Process:
    """A service's container, as a process. `here` turns the container's words into this machine's:
    paths, names of services and ports."""

    service: str
    definition: Mapping[str, Any]
    words: Mapping[str, str]
    directory: Path
    log: Path
    running: subprocess.Popen[bytes] | None = None

    def here(self, text: str) -> str:
        longest_first = sorted(self.words, key=len, reverse=True)
        pattern = "|".join(re.escape(word) for word in longest_first)
        return re.sub(rf"(?<![\w.])(?:{pattern})(?!\d)", lambda m: self.words[m[0]], text)

    @property
    def environment(self) -> dict[str, str]:
        own = {k: self.here(v) for k, v in self.definition.get("environment", {}).items()}
        path = f"{self.directory / 'bin'}{os.pathsep}{os.environ['PATH']}"
        return chorale_environment({"PATH": path, **own})

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """As `docker compose exec` does."""
        return subprocess.run(
            [self.here(word) for word in command],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def start(self) -> None:
        definition = self.definition
        image = [] if self.service == "redis" else entrypoint()
        command = [*definition.get("entrypoint", image), *definition["command"]]
        command = [self.here(word) for word in command]
        environment = self.environment
        program = shutil.which(command[0], path=environment["PATH"])
        assert program is not None, command[0]
        with self.log.open("wb") as log:
            self.running = subprocess.Popen(
                dying_with_parent([program, *command[1:]]),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    def healthy(self) -> bool:
        kind, *test = self.definition["healthcheck"]["test"]
        return self.run(*(["sh", "-c", *test] if kind == "CMD-SHELL" else test)).returncode == 0

    def wait_until(self, condition: str) -> None:
        """Raises: AssertionError, with the log, when the condition of `depends_on` never holds."""
        assert self.running is not None
        end = time.monotonic() + HEALTHY_TIMEOUT_S
        if condition == "service_completed_successfully":
            assert self.running.wait(HEALTHY_TIMEOUT_S) == 0, self.output()
        elif condition == "service_healthy":
            while not self.healthy():
                assert self.running.poll() is None, f"{self.service} ended\n{self.output()}"
                assert time.monotonic() < end, f"{self.service} is not healthy\n{self.output()}"
                time.sleep(_POLL_S)

    def stop(self) -> int:
        """SIGTERM; the exit status. Raises: subprocess.TimeoutExpired long after the grace period,
        within which it ends unless the machine is busy."""
        assert self.running is not None
        if self.running.poll() is None:
            self.running.send_signal(signal.SIGTERM)
        return self.running.wait(seconds(self.definition["stop_grace_period"]) + PATIENCE_S)

    def kill(self) -> None:
        if self.running is not None:
            self.running.kill()
            self.running.wait()

    def output(self) -> str:
        return self.log.read_text(errors="replace")[-3000:]


@dataclass
class Deployment:
    """`with Deployment(directory, …) as deployed:` has all services healthy inside, and kills what
    still runs at the end. Volumes lie in `directory`, services listen on free ports of 127.0.0.1.

    variables: those of compose.yaml.
    """

    directory: Path
    variables: Mapping[str, str] = field(default_factory=dict[str, str])
    processes: dict[str, list[Process]] = field(default_factory=dict[str, "list[Process]"])
    ports: dict[tuple[str, int], int] = field(default_factory=dict[tuple[str, int], int])

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self._kill()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._kill()

    def address(self, service: str, port: int) -> str:
        """HOST:PORT here of the first container's port."""
        return f"127.0.0.1:{self.ports[service, port]}"

    def start(self) -> None:
        self._make_programs()
        services = load(variables=self.variables)["services"]
        for service, ports in PORTS.items():
            self.ports |= {(service, port): self._port() for port in ports}
        for name in start_order(services):
            definition = services[name]
            for other, wanted in definition.get("depends_on", {}).items():
                for process in self.processes[other]:
                    process.wait_until(wanted["condition"])
            self.processes[name] = [
                self._process(name, definition, index)
                for index in range(int(definition.get("scale", 1)))
            ]
            for process in self.processes[name]:
                process.start()
        for process in self:
            if "healthcheck" in process.definition:
                process.wait_until("service_healthy")

    def stop(self) -> dict[str, list[int]]:
        """Exit statuses by service, stopped in the order that compose stops them in."""
        return {
            name: [process.stop() for process in processes]
            for name, processes in reversed(self.processes.items())
            if "stop_grace_period" in processes[0].definition
        }

    def __iter__(self) -> Iterator[Process]:
        for processes in self.processes.values():
            yield from processes

    def _kill(self) -> None:
        for process in self:
            process.kill()

    def _process(self, name: str, definition: Mapping[str, Any], index: int) -> Process:
        log = self.directory / f"{name}-{index}.log"
        words = self._words(name, definition, index)
        return Process(name, definition, words, self.directory, log)

    def _port(self) -> int:
        return free_port("127.0.0.1", set(self.ports.values()))

    def _words(self, name: str, definition: Mapping[str, Any], index: int) -> dict[str, str]:
        words = {"0.0.0.0": "127.0.0.1"}
        words |= {
            f"{service}:{port}": f"127.0.0.1:{here}" for (service, port), here in self.ports.items()
        }
        for port in PORTS.get(name, ()):
            here = self.ports[name, port] if index == 0 else self._port()
            words |= {str(port): str(here), f"127.0.0.1:{port}": f"127.0.0.1:{here}"}
        for path, source in mounts(definition).items():
            volume = Path(source) if source.startswith("/") else self.directory / "volumes" / source
            volume.mkdir(parents=True, exist_ok=True)
            words[path] = str(volume)
        words["/opt/chorale/demo"] = str(self.directory / "demo")
        return words

    def _make_programs(self) -> None:
        """What the images have on their PATH, and the demo files where the image has them."""
        programs = self.directory / "bin"
        programs.mkdir()
        for name, command in {
            "chorale": f"{sys.executable} -P -m controlplane.cli.main",
            "python": sys.executable,
        }.items():
            (programs / name).write_text(f'#!/bin/sh\nexec {command} "$@"\n')
            (programs / name).chmod(0o755)
        server = find_redis_server()
        (programs / "redis-server").symlink_to(server)
        (programs / "redis-cli").symlink_to(server.with_name("redis-cli"))
        demo = ROOT / "examples" / "demo"
        shutil.copytree(demo / "model", self.directory / "demo" / "chorale-demo")
        shutil.copytree(demo / "adapters", self.directory / "demo" / "adapters")
