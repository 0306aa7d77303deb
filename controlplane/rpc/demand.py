"""Between the domain's view of demand and ListDemand's messages."""

from __future__ import annotations

from chorale.v1 import fleet_pb2 as pb
from controlplane.prefetch.demand import AdapterDemand, DemandView, OpenPrediction
from controlplane.prefetch.limits import HALF_LIVES_S
from controlplane.prefetch.restraint import precision
from controlplane.rpc import translate

_KINDS = {
    "follow": pb.PREDICTION_KIND_FOLLOW,
    "warm_up": pb.PREDICTION_KIND_WARM_UP,
    "rate": pb.PREDICTION_KIND_RATE,
}
_TIERS = {"host": pb.ADAPTER_TIER_HOST, "pool": pb.ADAPTER_TIER_POOL}


def demand_to_pb(view: DemandView) -> pb.ListDemandResponse:
    return pb.ListDemandResponse(
        predicting=view.predicting,
        adapters=[_adapter(each) for each in view.adapters],
        predictions=[_prediction(each) for each in view.predictions],
        scores=[
            pb.PredictionScore(
                kind=_KINDS[kind],
                num_made=score.num_made,
                num_hits=score.num_hits,
                num_late=score.num_late,
                num_misses=score.num_misses,
                asked_bytes=score.asked_bytes,
                precision=precision(score),
            )
            for kind, score in view.scores.items()
        ],
    )


def _adapter(demand: AdapterDemand) -> pb.AdapterDemand:
    return pb.AdapterDemand(
        digest=demand.digest,
        base_model=demand.base_model,
        name=demand.name,
        rates=[
            pb.RequestRate(half_life=translate.duration(half_life_s), requests_per_s=rate)
            for half_life_s, rate in zip(HALF_LIVES_S, demand.rates, strict=True)
        ],
        followers=[
            pb.Follower(digest=each.digest, name=each.name, share=each.share)
            for each in demand.followers
        ],
    )


def _prediction(each: OpenPrediction) -> pb.Prediction:
    return pb.Prediction(
        data_plane_id=each.data_plane_id,
        digest=each.digest,
        name=each.name,
        kind=_KINDS.get(each.prediction.kind, pb.PREDICTION_KIND_UNSPECIFIED),
        tier=_TIERS.get(each.prediction.tier, pb.ADAPTER_TIER_UNSPECIFIED),
        size_bytes=each.prediction.size_bytes,
        age=translate.duration(each.age_s),
        left=translate.duration(each.left_s),
        hit=each.prediction.state == "hit",
    )
