"""Choosing each token's experts on CPU, and adding up what they gave: one row at a time, in an
order that no other row has a part in."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch

from kernels.cpu import threads
from kernels.cpu.compile import compiled
from kernels.cpu.exponential import exp
from kernels.cpu.floats import BITS, FLOATS, load, store

EXPERTS_AT_ONCE = 16  # rows of the router that a thread takes

(
    L_NEXT,
    _,
    L_NUM_TOKENS,
    L_NUM_EXPERTS,
    L_FEATURES,
    L_X,
    L_ROUTER,
    L_LOGITS,
    L_NUM_ARGUMENTS,
) = range(9)


@compiled
def _dot(row: Any, weights: Any) -> Any:  # pragma: no cover - compiled
    total = np.float32(0.0)
    for k in range(row.size):
        total += load(row[k]) * load(weights[k])
    return total


def _like(dtype: torch.dtype) -> Any:
    return BITS if dtype is torch.bfloat16 else FLOATS


@cache
def logits_worker(dtype: torch.dtype) -> Any:
    """logits[num_tokens, experts] = x[num_tokens, features] @ router[experts, features].T, all of
    one dtype."""
    like = _like(dtype)

    @threads.worker
    def work(pointer: Any) -> None:  # pragma: no cover - compiled
        a = threads.told(pointer, L_NUM_ARGUMENTS)
        num_tokens, num_experts, features = a[L_NUM_TOKENS], a[L_NUM_EXPERTS], a[L_FEATURES]
        x = threads.array(a[L_X], like, (num_tokens, features))
        router = threads.array(a[L_ROUTER], like, (num_experts, features))
        logits = threads.array(a[L_LOGITS], like, (num_tokens, num_experts))
        parts = (num_experts + EXPERTS_AT_ONCE - 1) // EXPERTS_AT_ONCE
        while True:
            task = threads.take(a, L_NEXT)
            if task >= num_tokens * parts:
                return
            token, first = task // parts, task % parts * EXPERTS_AT_ONCE
            for expert in range(first, min(first + EXPERTS_AT_ONCE, num_experts)):
                store(logits[token], expert, _dot(x[token], router[expert]))

    return work


(
    C_NEXT,
    _,
    C_NUM_TOKENS,
    C_NUM_EXPERTS,
    C_TOP_K,
    C_NORMALIZES,
    C_LOGITS,
    C_SHARES,
    C_CHOSEN,
    C_WEIGHTS,
    C_NUM_ARGUMENTS,
) = range(11)


@compiled
def _softmax(logits: Any, shares: Any) -> None:  # pragma: no cover - compiled
    largest = load(logits[0])
    for k in range(logits.size):
        value = load(logits[k])
        largest = value if value > largest else largest
    total = np.float32(0.0)
    for k in range(logits.size):
        shares[k] = exp(load(logits[k]) - largest)
        total += shares[k]
    for k in range(logits.size):
        shares[k] = shares[k] / total


@compiled
def _choose(shares: Any, chosen: Any, weights: Any) -> None:  # pragma: no cover - compiled
    """The largest, those of lower number first among equal ones, then in ascending order."""
    count = chosen.size
    for place in range(count):
        best = -1
        for expert in range(shares.size):
            is_taken = False
            for before in range(place):
                is_taken |= chosen[before] == expert
            # Where none is larger, as of shares that are no numbers, the first one that is left.
            if not is_taken and (best < 0 or shares[expert] > shares[best]):
                best = expert
        chosen[place] = best
    for end in range(1, count):
        value, at = chosen[end], end
        while at > 0 and chosen[at - 1] > value:
            chosen[at] = chosen[at - 1]
            at -= 1
        chosen[at] = value
    for place in range(count):
        weights[place] = shares[chosen[place]]


@cache
def choose_worker(dtype: torch.dtype) -> Any:
    """chosen [num_tokens, top_k] int64 and weights, float32, of logits [num_tokens, experts].
    shares: as many float32 to compute in."""
    like = _like(dtype)

    @threads.worker
    def work(pointer: Any) -> None:  # pragma: no cover - compiled
        a = threads.told(pointer, C_NUM_ARGUMENTS)
        num_tokens, num_experts, top_k = a[C_NUM_TOKENS], a[C_NUM_EXPERTS], a[C_TOP_K]
        logits = threads.array(a[C_LOGITS], like, (num_tokens, num_experts))
        shares = threads.array(a[C_SHARES], FLOATS, (num_tokens, num_experts))
        chosen = threads.array(a[C_CHOSEN], a, (num_tokens, top_k))
        weights = threads.array(a[C_WEIGHTS], FLOATS, (num_tokens, top_k))
        while True:
            token = threads.take(a, C_NEXT)
            if token >= num_tokens:
                return
            _softmax(logits[token], shares[token])
            _choose(shares[token], chosen[token], weights[token])
            if a[C_NORMALIZES] != 0:
                total = np.float32(0.0)
                for place in range(top_k):
                    total += weights[token, place]
                for place in range(top_k):
                    weights[token, place] = weights[token, place] / total

    return work


(
    M_NEXT,
    M_THREAD,
    M_NUM_TOKENS,
    M_FEATURES,
    M_TOP_K,
    M_SLOTS,
    M_WEIGHTS,
    M_GIVEN,
    M_X,
    M_SHARED_GATE,
    M_SHARED,
    M_TOTALS,
    M_OUT,
    M_NUM_ARGUMENTS,
) = range(14)


@compiled
def _add(total: Any, row: Any, weight: Any) -> None:  # pragma: no cover - compiled
    for k in range(row.size):
        total[k] += load(row[k]) * weight


@compiled
def _round(total: Any, out: Any) -> None:  # pragma: no cover - compiled
    for k in range(out.size):
        store(out, k, total[k])


@cache
def combine_worker(dtype: torch.dtype) -> Any:
    """out[t] = the sum over a token's places of weights[t, place] * given[slots[t, place]], and
    sigmoid(x[t] · shared_gate) * shared[t] where SHARED is not 0; in float32, rounded once.
    totals: [threads, features] float32 to compute in."""
    like = _like(dtype)

    @threads.worker
    def work(pointer: Any) -> None:  # pragma: no cover - compiled
        a = threads.told(pointer, M_NUM_ARGUMENTS)
        num_tokens, features, top_k = a[M_NUM_TOKENS], a[M_FEATURES], a[M_TOP_K]
        slots = threads.array(a[M_SLOTS], a, (num_tokens, top_k))
        weights = threads.array(a[M_WEIGHTS], FLOATS, (num_tokens, top_k))
        given = threads.array(a[M_GIVEN], like, (num_tokens * top_k, features))
        out = threads.array(a[M_OUT], like, (num_tokens, features))
        has_shared = a[M_SHARED] != 0
        x = threads.array(a[M_X], like, (num_tokens, features))
        gate = threads.array(a[M_SHARED_GATE] if has_shared else a[M_X], like, (features,))
        shared = threads.array(a[M_SHARED] if has_shared else a[M_X], like, (num_tokens, features))
        one = np.float32(1.0)
        thread = threads.take(a, M_THREAD)
        total = threads.array(a[M_TOTALS] + thread * features * 4, FLOATS, (features,))
        while True:
            token = threads.take(a, M_NEXT)
            if token >= num_tokens:
                return
            total[:] = np.float32(0.0)
            for place in range(top_k):
                _add(total, given[slots[token, place]], weights[token, place])
            if has_shared:
                share = one / (one + exp(-_dot(x[token], gate)))
                _add(total, shared[token], share)
            _round(total, out[token])

    return work
