from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest
from prometheus_client import CollectorRegistry

from chorale.errors import CancelledError, NotFoundError
from chorale.request_metrics import RequestMetrics
from chorale.v1 import inference_pb2 as pb
from tests.helpers.prometheus import Metrics


class Bench:
    def __init__(self, max_models: int = 256) -> None:
        self.now_s = 10.0
        self.metrics = RequestMetrics("x", max_models=max_models, clock=lambda: self.now_s)
        self.registry = CollectorRegistry()
        self.registry.register(self.metrics)

    def seen(self) -> Metrics:
        return Metrics.of(self.registry)

    def run(
        self,
        model: str = "pirate",
        *,
        version: int = 2,
        gaps: tuple[float, ...] = (0.3, 0.04, 0.06),
    ) -> None:
        with self.metrics.request() as watch:
            accepted = pb.Accepted(model=model, adapter_version=version, num_prompt_tokens=7)
            watch.note(pb.GenerateResponse(accepted=accepted))
            for gap_s in gaps:
                self.now_s += gap_s
                watch.note(pb.GenerateResponse(tokens=pb.TokenChunk(token_ids=[1, 2])))
            finished = pb.Finished(
                usage=pb.Usage(num_prompt_tokens=7, num_completion_tokens=99, num_cached_tokens=4),
                timings=pb.Timings(queue_s=0.02, adapter_load_s=0.011),
            )
            event = pb.GenerateResponse(finished=finished)
            assert watch.note(event) is event


def test_a_scored_prompt_is_no_token() -> None:
    bench = Bench()
    prompt = pb.TokenChunk(prompt_logprobs=[pb.TokenLogprobs()])
    with bench.metrics.request() as watch:
        for _ in range(2):
            watch.note(pb.GenerateResponse(tokens=prompt))
            bench.now_s += 0.3
        watch.note(pb.GenerateResponse(tokens=pb.TokenChunk(token_ids=[1])))
    seen = bench.seen()
    assert seen("x_time_to_first_token_seconds_sum") == pytest.approx(0.6)
    assert seen("x_inter_token_seconds_count") == 0


def test_a_whole_generation() -> None:
    bench = Bench()
    bench.run()
    seen = bench.seen()
    assert seen("x_requests_total", outcome="ok", reason="") == 1
    assert seen("x_requests_running") == 0
    assert seen("x_model_requests_total", model="pirate", version="2", outcome="ok") == 1
    for kind, count in (("prompt", 7), ("completion", 6), ("cached", 4)):
        assert seen("x_model_tokens_total", model="pirate", version="2", kind=kind) == count
    first = "x_time_to_first_token_seconds"
    assert seen(f"{first}_sum") == pytest.approx(0.3)
    assert seen(f"{first}_bucket", le="0.25") == 0
    assert seen(f"{first}_bucket", le="0.5") == seen(f"{first}_bucket", le="+Inf") == 1
    assert seen("x_inter_token_seconds_count") == 2
    assert seen("x_inter_token_seconds_bucket", le="0.05") == 1
    assert seen("x_inter_token_seconds_sum") == pytest.approx(0.1)
    assert seen("x_queue_seconds_sum") == pytest.approx(0.02)
    assert seen("x_adapter_wait_seconds_sum") == pytest.approx(0.011)
    by_model = "x_model_time_to_first_token_seconds"
    assert seen(f"{by_model}_count", model="pirate", version="2") == 1
    assert seen(f"{by_model}_sum", model="pirate", version="2") == pytest.approx(0.3)
    waits = seen("x_model_adapter_wait_seconds_total", model="pirate", version="2")
    assert waits == pytest.approx(0.011)


@pytest.mark.parametrize(
    ("error", "outcome", "reason"),
    [
        (NotFoundError("MODEL_NOT_FOUND", "no"), "error", "MODEL_NOT_FOUND"),
        (RuntimeError("odd"), "error", "INTERNAL"),
        (CancelledError("CANCELLED", "gone"), "cancelled", ""),
        (asyncio.CancelledError(), "cancelled", ""),
        (GeneratorExit(), "cancelled", ""),
    ],
)
def test_how_it_ends_is_counted(error: BaseException, outcome: str, reason: str) -> None:
    bench = Bench()
    with pytest.raises(type(error)), bench.metrics.request():
        assert bench.seen()("x_requests_running") == 1
        raise error
    assert bench.seen()("x_requests_total", outcome=outcome, reason=reason) == 1
    assert bench.seen()("x_requests_running") == 0
    assert bench.seen().values("model") == set(), "no name that was never accepted"


def test_a_stream_that_breaks_off_keeps_its_tokens() -> None:
    bench = Bench()
    with bench.metrics.request() as watch:
        watch.note(pb.GenerateResponse(accepted=pb.Accepted(model="a", num_prompt_tokens=3)))
        watch.note(pb.GenerateResponse(tokens=pb.TokenChunk(token_ids=[5])))
    seen = bench.seen()
    assert seen("x_model_requests_total", model="a", version="", outcome="cancelled") == 1
    assert seen("x_model_tokens_total", model="a", version="", kind="completion") == 1
    assert seen("x_queue_seconds_count") == 0


def test_names_are_bounded_and_nothing_is_lost() -> None:
    bench = Bench(max_models=3)
    for name in ("a", "b", "a", "c", "a", "d", "e"):
        bench.run(name)
    seen = bench.seen()
    assert seen.values("model") == {"a", "d", "e", "(other)"}
    assert seen("x_model_requests_total", model="(other)", version="", outcome="ok") == 2
    assert seen("x_model_tokens_total", model="(other)", version="", kind="completion") == 12
    assert seen("x_model_time_to_first_token_seconds_count", model="(other)", version="") == 2
    assert seen("x_model_requests_total", model="a", version="2", outcome="ok") == 3


def test_versions_have_rows_of_their_own() -> None:
    bench = Bench()
    for version in (1, 2, 2):
        bench.run(version=version)
    seen = bench.seen()
    rows = [
        seen("x_model_requests_total", model="pirate", version=version, outcome="ok")
        for version in ("1", "2")
    ]
    assert rows == [1, 2]


def test_reasons_are_bounded() -> None:
    bench = Bench()
    for number in range(200):
        bench.metrics.ended("error", f"R{number}", "")
    assert len(bench.seen().values("reason")) <= 65
    assert bench.seen()("x_requests_total", outcome="error", reason="(other)") == 136


def test_clients_do_not_need_prometheus() -> None:
    code = "import sys, chorale, chorale.server; assert 'prometheus_client' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
