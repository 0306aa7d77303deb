from __future__ import annotations

import json

from chorale.v1 import fleet_pb2 as pb
from tests.cli.conftest import Chorale
from tests.helpers.scripted_gateway import ScriptedGateway

DEMAND = pb.ListDemandResponse(
    predicting=True,
    adapters=[
        pb.AdapterDemand(
            digest="a" * 64,
            base_model="base",
            name="pirate@2",
            rates=[
                pb.RequestRate(half_life={"seconds": seconds}, requests_per_s=rate)
                for seconds, rate in ((30, 0.5), (300, 0.25), (3600, 0.125))
            ],
            followers=[pb.Follower(digest="b" * 64, name="parrot@1", share=0.75)],
        )
    ],
    predictions=[
        pb.Prediction(
            data_plane_id="dp-7",
            digest="b" * 64,
            name="parrot@1",
            kind=pb.PREDICTION_KIND_FOLLOW,
            tier=pb.ADAPTER_TIER_POOL,
            size_bytes=2048,
            age={"seconds": 3},
            left={"seconds": 21},
            hit=True,
        )
    ],
    scores=[
        pb.PredictionScore(
            kind=pb.PREDICTION_KIND_FOLLOW,
            num_made=31,
            num_hits=17,
            num_late=5,
            num_misses=9,
            asked_bytes=4096,
            precision=0.625,
        )
    ],
)


def test_demand(chorale: Chorale, gateway: ScriptedGateway) -> None:
    gateway.answers["ListDemand"] = DEMAND
    shown = chorale("demand", "--limit", "7").stdout
    assert gateway.requests == [pb.ListDemandRequest(limit=7)]
    for text in ("pirate@2", "30.00", "15.00", "7.50", "in 5 min", "parrot@1 75%", "dp-7"):
        assert text in shown
    for text in ("pool", "follow", "2.0 KiB", "21", "yes", "31", "17", "62%"):
        assert text in shown
    assert "no control plane predicts" not in shown
    view = json.loads(chorale("demand", "--json").stdout)
    assert view["predicting"] is True
    (adapter,) = view["adapters"]
    assert adapter["rates"][1] == {"half_life_s": 300.0, "requests_per_s": 0.25}
    assert adapter["followers"] == [{"name": "parrot@1", "digest": "b" * 64, "share": 0.75}]
    (prediction,) = view["predictions"]
    assert (prediction["kind"], prediction["tier"], prediction["left_s"]) == ("follow", "pool", 21)
    (score,) = view["scores"]
    assert (score["num_made"], score["num_late"], score["precision"]) == (31, 5, 0.625)


def test_no_demand(chorale: Chorale, gateway: ScriptedGateway) -> None:
    gateway.answers["ListDemand"] = pb.ListDemandResponse()
    shown = chorale("demand").stdout  # as with --no-prefetch, whatever is asked for
    assert "no demand is counted" in shown and "no control plane predicts" in shown
    assert "no adapter was asked for" not in shown
    gateway.answers["ListDemand"] = pb.ListDemandResponse(predicting=True)
    assert "no adapter was asked for lately" in chorale("demand").stdout
