"""Data planes that are replaced while they serve: streams finish there, or go on elsewhere."""

from __future__ import annotations

import contextlib
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

import chorale
from tests.helpers.up import ChoraleUp
from tests.helpers.waiting import PATIENCE_S, until

NUM_TRIES = 4


def num_lost_streams(up: ChoraleUp) -> float:
    return up.metrics()("chorale_gateway_lost_streams_total")


def incarnations(client: chorale.Client) -> dict[str, int]:
    """Of the data planes that are there, by their ids."""
    return {plane.data_plane_id: plane.incarnation for plane in client.data_planes()}


@pytest.mark.parametrize(("drain_s", "num_lost"), [(PATIENCE_S, 0), (0.05, 1)])
def test_a_data_plane_that_is_told_to_stop(tmp_path: Path, drain_s: float, num_lost: int) -> None:
    arguments = ["--data-planes=2", "--num-threads=1", f"--drain-timeout={drain_s}"]
    with ChoraleUp(tmp_path / "data", *arguments) as up, chorale.Client(up.grpc_address) as client:
        whole = client.complete("1", max_tokens=900, ignore_eos=True)
        for _ in range(NUM_TRIES):
            leaving, tokens = replaced(up, client, num_lost)
            assert tokens == list(whole.token_ids)
            if num_lost_streams(up) == num_lost:
                break
            # On a busy machine all of it may be there before its engine is held.
            until(lambda: len(incarnations(client)) == 2)
        else:
            pytest.fail(f"{num_lost_streams(up)} streams were lost, not {num_lost}")
        psutil.wait_procs([leaving], timeout=PATIENCE_S)
        assert not leaving.is_running()
        assert up.stop() == 0


def replaced(
    up: ChoraleUp, client: chorale.Client, num_lost: int
) -> tuple[psutil.Process, list[int]]:
    """The data plane that was told to stop in the middle of a stream, and the stream's tokens."""
    with (
        ThreadPoolExecutor(1) as reader,
        client.generate("1", max_tokens=900, ignore_eos=True) as events,
    ):
        accepted = next(events)
        assert isinstance(accepted, chorale.Accepted)
        leaving, engine = up.part(accepted.data_plane_id), up.engine(accepted.data_plane_id)
        incarnation = incarnations(client)[accepted.data_plane_id]
        first = next(events)
        if num_lost:  # or it may finish before the signal is heard
            engine.suspend()
        rest = reader.submit(list, events)
        leaving.send_signal(signal.SIGTERM)
        until(lambda: incarnation not in incarnations(client).values())
        other = client.complete("2", max_tokens=5).accepted.data_plane_id
        # On a slow machine it may be back by now, as another one.
        assert other != accepted.data_plane_id or other in incarnations(client)
        until(lambda: num_lost_streams(up) >= num_lost or rest.done())
        with contextlib.suppress(psutil.NoSuchProcess):  # nobody waits for it for long
            engine.resume()
        got = (first, *rest.result(PATIENCE_S))
    return leaving, [token for event in got for token in getattr(event, "token_ids", ())]
