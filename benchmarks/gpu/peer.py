"""The LoRA of one decode step beside a peer's Triton kernels, on the same weights in one run."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch

from benchmarks.errors import PeerError
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.parts import Skipped
from benchmarks.gpu.peer_import import PeerOps, import_peer
from benchmarks.gpu.timing import measure_on
from benchmarks.kernel_cases import SHAPES as KERNEL_SHAPES
from benchmarks.kernel_cases import ModelShape
from benchmarks.kernel_lora_cases import elems, group_plan, groups_of, on_device
from kernels.lora.op import lora_apply
from kernels.lora.plan import PageRun, Segment

_ROUNDS = 7
_TOLERANCE = 0.05  # of the largest value: both add up in float32, the peer rounds in between


class Case(NamedTuple):
    """One projection group of a model, a token of each of so many adapters."""

    in_features: int
    outs: tuple[int, ...]
    ranks: tuple[int, ...]
    page_elems: int


class Calls(NamedTuple):
    """ours and peers add their result to the two outputs."""

    ours: Callable[[], object]
    peers: Callable[[], object]
    our_output: torch.Tensor
    peer_output: torch.Tensor


def peer_lora(bench: Bench) -> dict[str, Any]:
    """Seconds of each projection group, ours and the peer's, and of all of a layer's.

    Raises: Skipped without a peer; PeerError when it gives other results.
    """
    if bench.peer is None:
        raise Skipped("no --peer-lora DIR, a folder with vLLM's vllm/lora/ops/triton_ops")
    ops = import_peer(bench.peer)
    if bench.dtype is torch.float32 and bench.device.type == "cuda":
        raise Skipped("the peer's kernels take bfloat16 and float16 only")
    measure = measure_on(bench.device, _ROUNDS)
    scale = bench.scale
    cases: list[dict[str, Any]] = []
    for name, model in KERNEL_SHAPES[scale.kernels].models.items():
        for label, ranks in (("equal", (scale.rank,)), ("mixed", scale.mixed_ranks)):
            seconds = {"ours": 0.0, "peer": 0.0}
            groups: dict[str, dict[str, float]] = {}
            for group, (in_features, outs) in groups_of(model).items():
                case = Case(in_features, outs, _ranks(ranks, scale.streams), _page_elems(model))
                make = partial(calls, case, ops, bench.device, bench.dtype)
                difference = _difference(make())
                num_bytes = bench.dtype.itemsize * sum(
                    elems(group_plan(rank, in_features, outs)) for rank in case.ranks
                )
                groups[group] = {
                    "ours": measure(lambda make=make: make().ours, num_bytes),
                    "peer": measure(lambda make=make: make().peers, num_bytes),
                    "difference": difference,
                }
                for who in seconds:
                    seconds[who] += groups[group][who]
            ratio = seconds["ours"] / seconds["peer"]
            cases.append(
                {
                    "model": name,
                    "adapters": scale.streams,
                    "ranks": list(ranks),
                    "kind": label,
                    "groups_s": groups,
                    "layer_s": seconds,
                    "ratio": ratio,
                }
            )
            print(
                f"{f'{name}, {scale.streams} adapters of rank {ranks}, a layer':<56}"
                f"{seconds['ours'] * 1e6:>8.1f} us, the peer's {seconds['peer'] * 1e6:.1f}:"
                f" {ratio:.3f}"
            )
    return {"peer": "vllm", "cases": cases}


def calls(case: Case, ops: PeerOps, device: torch.device, dtype: torch.dtype) -> Calls:
    """Over new random weights: ours in pages, the peer's in stacks padded to the largest rank."""
    ops.forget()
    count, widest = len(case.ranks), max(case.ranks)
    x = torch.randn(count, case.in_features, device=device).to(dtype)
    plans = [group_plan(rank, case.in_features, case.outs) for rank in case.ranks]
    needed = [-(-elems(plan) // case.page_elems) for plan in plans]
    pages = torch.zeros(sum(needed), case.page_elems, device=device, dtype=dtype)
    ids = torch.randperm(sum(needed)).tolist()
    stacks_a = [x.new_zeros(count, widest, case.in_features) for _ in case.outs]
    stacks_b = [x.new_zeros(count, out, widest) for out in case.outs]
    segments: list[Segment] = []
    for row, (plan, num_pages, rank) in enumerate(zip(plans, needed, case.ranks, strict=True)):
        own, ids = ids[:num_pages], ids[num_pages:]
        a = torch.randn(plan.total_rank, case.in_features, device=device).to(dtype)
        parts = [a.flatten()]
        for at, out in enumerate(case.outs):
            b = (torch.randn(rank, out, device=device) / case.in_features).to(dtype)
            parts.append(b.flatten())
            stacks_a[at][row, :rank] = a[at * rank : (at + 1) * rank]
            stacks_b[at][row, :, :rank] = b.t()
        flat = torch.cat(parts)
        padded = torch.zeros(num_pages * case.page_elems, device=device, dtype=dtype)
        padded[: flat.numel()] = flat
        pages[own] = padded.view(num_pages, -1)
        segments.append(Segment(row, row + 1, PageRun.of(own), plan))
    taken = on_device(segments, x)
    our_output, peer_output = (x.new_zeros(count, sum(case.outs)) for _ in range(2))
    meta = _meta(ops, count, device)
    hidden = torch.zeros(len(case.outs), count, widest, dtype=torch.float32, device=device)

    def peers() -> None:
        ops.lora_shrink(x, stacks_a, hidden, *meta, 1.0)
        ops.lora_expand(hidden, stacks_b, peer_output, *meta, add_inputs=True)

    return Calls(lambda: lora_apply(our_output, x, pages, taken), peers, our_output, peer_output)


def _meta(ops: PeerOps, count: int, device: torch.device) -> tuple[torch.Tensor, ...]:
    """The peer's description of a batch of `count` tokens, each of an adapter of its own. Of its
    variants the one that launches for the adapters that there are."""
    meta = ops.kernel_meta.make(count, count, device)
    meta.prepare_tensors(torch.arange(count, dtype=torch.int32, device=device))
    if "specialize_active_lora" in inspect.signature(meta.meta_args).parameters:
        return meta.meta_args(count, True)
    return meta.meta_args(count)


@torch.inference_mode()
def _difference(made: Calls) -> float:
    """Largest difference of the two results to the largest value."""
    made.ours()
    made.peers()
    ours, theirs = made.our_output.float(), made.peer_output.float()
    difference = float((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-12))
    if not difference <= _TOLERANCE:  # NaN, too
        raise PeerError(
            "PEER_DIFFERS",
            f"the peer's result differs from ours by {difference:.3g} of the largest value",
        )
    return difference


def _ranks(ranks: tuple[int, ...], count: int) -> tuple[int, ...]:
    return tuple(ranks[at % len(ranks)] for at in range(count))


def _page_elems(model: ModelShape) -> int:
    return 2 * model.page_tokens * model.kv_heads * model.head_dim
