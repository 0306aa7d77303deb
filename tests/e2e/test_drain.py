"""Data planes that are replaced while they serve: streams finish there, or go on elsewhere."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import httpx
import psutil
import pytest

import chorale
from tests.helpers.prometheus import Metrics
from tests.helpers.up import ChoraleUp


def num_lost_streams(up: ChoraleUp) -> float:
    seen = Metrics(httpx.get(f"http://{up.http_address}/metrics").text)
    return seen("chorale_gateway_lost_streams_total")


@pytest.mark.parametrize(("drain_s", "num_lost"), [(10, 0), (0.05, 1)])
def test_a_data_plane_that_is_told_to_stop(tmp_path: Path, drain_s: float, num_lost: int) -> None:
    arguments = ["--data-planes=2", "--num-threads=1", f"--drain-timeout={drain_s}"]
    with ChoraleUp(tmp_path / "data", *arguments) as up, chorale.Client(up.grpc_address) as client:
        whole = client.complete("1", max_tokens=900, ignore_eos=True)
        with client.generate("1", max_tokens=900, ignore_eos=True) as events:
            accepted = next(events)
            assert isinstance(accepted, chorale.Accepted)
            leaving = up.part(accepted.data_plane_id)
            first = next(events)
            (engine,) = leaving.children()
            if num_lost:  # or it may finish before the signal is heard
                engine.suspend()
            leaving.send_signal(signal.SIGTERM)
            other = client.complete("2", max_tokens=5)
            assert other.accepted.data_plane_id != accepted.data_plane_id
            until_s = time.monotonic() + 10
            while num_lost_streams(up) < num_lost and time.monotonic() < until_s:
                time.sleep(0.02)
            if num_lost:
                engine.resume()
            tokens = [
                token for event in (first, *events) for token in getattr(event, "token_ids", ())
            ]
        assert tokens == list(whole.token_ids)
        assert num_lost_streams(up) == num_lost
        psutil.wait_procs([leaving], timeout=10)
        assert not leaving.is_running()
        assert up.stop() == 0
