"""Demand and predictions as people are shown them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from controlplane.errors import InvalidRequestError
from controlplane.prefetch import decay
from controlplane.prefetch.limits import DemandLimits
from controlplane.prefetch.model import Kind, Score
from controlplane.prefetch.snapshot import (
    Prediction,
    decode_predictions,
    decode_scores,
    numbers,
    pairs,
)
from controlplane.store.client import Store, as_dict

MAX_LISTED = 1000
_DEFAULT_LISTED = 100


@dataclass(frozen=True, slots=True)
class Follower:
    """share: of the visits to the adapter before it."""

    digest: str
    name: str
    share: float


@dataclass(frozen=True, slots=True)
class AdapterDemand:
    """rates: requests per second, by half-life."""

    digest: str
    base_model: str
    name: str
    rates: tuple[float, float, float]
    followers: Sequence[Follower]


@dataclass(frozen=True, slots=True)
class OpenPrediction:
    """age_s, left_s: since it was made, and until it must have come true."""

    data_plane_id: str
    digest: str
    name: str
    prediction: Prediction
    age_s: float
    left_s: float


@dataclass(frozen=True, slots=True)
class DemandView:
    """predicting: some control plane does. predictions: those that are open or have come true."""

    predicting: bool
    adapters: Sequence[AdapterDemand]
    predictions: Sequence[OpenPrediction]
    scores: Mapping[Kind, Score]


class Demand:
    def __init__(self, store: Store, limits: DemandLimits) -> None:
        self._store = store
        self._limits = limits

    async def view(self, limit: int = 0) -> DemandView:
        """The adapters asked for most, at most `limit`; 0: 100.

        Raises: InvalidRequestError (LIMIT_INVALID), StoreUnavailableError.
        """
        if limit > MAX_LISTED:
            raise InvalidRequestError(
                "LIMIT_INVALID",
                f"limit must be at most {MAX_LISTED}, not {limit}",
                metadata={"field": "limit"},
            )
        return self._decoded(await self._read(limit or _DEFAULT_LISTED))

    async def scores(self) -> Mapping[Kind, Score]:
        """Raises: StoreUnavailableError."""
        return decode_scores((await self._read(0))[4])

    async def _read(self, limit: int) -> list[Any]:
        return await self._store.run("demand", limit, self._limits.json)

    def _decoded(self, reply: list[Any]) -> DemandView:
        now_ms = int(reply[0])
        return DemandView(
            predicting=bool(reply[1]),
            adapters=[self._adapter(row, now_ms) for row in reply[2]],
            predictions=_predictions(reply[3], now_ms),
            scores=decode_scores(reply[4]),
        )

    def _adapter(self, row: list[Any], now_ms: int) -> AdapterDemand:
        identity, name, scores, followers, names = row
        digest, _, base_model = identity.partition(":")
        name_of = as_dict(names)
        shares = decay.shares(pairs(followers))
        return AdapterDemand(
            digest=digest,
            base_model=base_model,
            name=name,
            rates=decay.rates_per_s(numbers(scores), now_ms, self._limits),
            followers=[
                Follower(each.partition(":")[0], name_of[each], share)
                for each, share in sorted(shares.items(), key=lambda item: -item[1])
            ],
        )


def _predictions(rows: Sequence[str], now_ms: int) -> list[OpenPrediction]:
    fields, texts, names = rows[::3], rows[1::3], rows[2::3]
    flat = [text for pair in zip(fields, texts, strict=True) for text in pair]
    found: list[OpenPrediction] = []
    for (field, each), name in zip(decode_predictions(flat).items(), names, strict=True):
        data_plane_id, _, identity = field.partition(" ")
        if each.state != "held_off":
            digest = identity.partition(":")[0]
            age_s, left_s = (now_ms - each.made_ms) / 1000, (each.ends_ms - now_ms) / 1000
            found.append(OpenPrediction(data_plane_id, digest, name, each, age_s, max(left_s, 0.0)))
    return sorted(found, key=lambda each: (each.age_s, each.data_plane_id, each.digest))
