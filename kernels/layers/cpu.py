"""All layers of a decoder as one program of CPU kernels: between two of them no Python runs.

The same kernels, in the same order and with the same roundings, as the ops that
`dataplane.models.decoder` calls one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from kernels.attention import cpu as attention
from kernels.attention import cpu_prefill
from kernels.attention.metadata import AttentionMetadata
from kernels.cpu.floats import aligned_floats
from kernels.cpu.program import Program
from kernels.fused import cpu as fused
from kernels.kv import cpu as kv
from kernels.layers import weights
from kernels.layers.phases import LORA_PHASES, Last, Phase
from kernels.layers.weights import Layer, address
from kernels.linear import arguments as gemm
from kernels.linear import cpu as linear
from kernels.lora import cpu as lora
from kernels.lora.layered import LayeredSegments


class LayerStack:
    """For one engine thread: buffers are kept between calls."""

    def __init__(
        self,
        layers: Sequence[Layer],
        norm: torch.Tensor,
        head: torch.Tensor,
        ropes: Sequence[tuple[torch.Tensor, torch.Tensor]],
        sliding_windows: Sequence[int | None],
        *,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        eps: float,
        attention_scale: float,
        attention_soft_cap: float | None,
        activation: str,
        gated: bool = True,
        interleaved_rope: bool = False,
        parallel_residual: bool = False,
    ) -> None:
        """norm, head: the last norm, and lm_head, packed. ropes: of each layer, cos and sin
        [max_context, rotary]. parallel_residual: the MLP reads what attention does, and both are
        added to the residual stream. All tensors bfloat16, norms also float32; they must live as
        long as the stack, and stay where they are."""
        assert weights.supports(layers, head)
        assert len({cos.shape for cos, _ in ropes}) == 1  # one model rotates so many dimensions
        self._layers, self._norm, self._head, self._ropes = layers, norm, head, ropes
        self._num_heads, self._num_kv_heads, self._head_dim = num_heads, num_kv_heads, head_dim
        first = layers[0]
        self._hidden = norm.shape[-1]
        self._norm_kind = kv.norm_kind(first.q_norm, head_dim)
        self._gated, self._interleaved = gated, interleaved_rope
        self._parallel = parallel_residual
        assert isinstance(first.down, torch.Tensor)
        self._intermediate = linear.features_of(first.down)[0]
        # Each as the columns of a program's arguments: one address per layer.
        self._addresses = {
            name: np.array([address(getattr(layer, name)) for layer in layers], dtype=np.int64)
            for name in weights.NAMES
        }
        self._shifts = {
            name: np.array(
                [fused.shift_address(getattr(layer, name)) for layer in layers], dtype=np.int64
            )
            for name in weights.NORMS
        }
        self._cos, self._sin = (
            np.array([tables[part].data_ptr() for tables in ropes], dtype=np.int64)
            for part in (0, 1)
        )
        self._windows = np.array(
            [window or cpu_prefill.NO_WINDOW for window in sliding_windows], dtype=np.int64
        )
        self._layer_numbers = np.arange(len(layers), dtype=np.int64)
        self._eps = np.array([eps], dtype=np.float32)
        self._factors = np.array([attention_scale, attention_soft_cap or 0.0], dtype=np.float32)
        self._program = Program(len(layers), len(Phase))
        self._last = Program(1, len(Last))
        self._fixed_workers(activation)
        self._told: tuple[int, ...] = ()  # what the fixed part of the arguments is for
        # What LoRA's part is for, kept as an object: what it points to lives as long.
        self._told_lora: tuple[LayeredSegments, tuple[int, ...], tuple[int, ...]] | None = None
        self._buffers: dict[str, torch.Tensor] = {}
        self._spread = aligned_floats(0)

    def run(
        self,
        x: torch.Tensor,
        positions: torch.Tensor,
        page_index: torch.Tensor,
        page_offset: torch.Tensor,
        pool: torch.Tensor,
        page_tokens: int,
        metadata: AttentionMetadata,
        segments: LayeredSegments | None,
        wait: Callable[[int], None] | None,
        logit_rows: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """x: [num_tokens, hidden], num_tokens > 0, contiguous; is overwritten.

        pool: [num_layers, num_pages, page_elems], contiguous. segments: by the groups' names, None
        where no row has an adapter. wait: called with a layer's number before it runs.
        logit_rows: [num_logits], each once; indices are int64.
        Returns the normed outputs of these rows, [num_logits, hidden], and the base model's logits,
        [num_logits, vocab_size].
        """
        num_tokens = x.shape[0]
        told = (num_tokens, pool.data_ptr(), page_tokens, torch.get_num_threads())
        if told != self._told:
            self._tell_fixed(num_tokens, pool, page_tokens)
            self._told = told
        arguments = self._program.arguments
        arguments[:, Phase.NORM, fused.X] = arguments[:, Phase.MLP_NORM, fused.X] = x.data_ptr()
        if self._parallel:  # there, it is only added up
            arguments[:, Phase.MLP_NORM, fused.OUT] = x.data_ptr()
        rope = arguments[:, Phase.ROPE]
        rope[:, kv.POSITIONS] = positions.data_ptr()
        rope[:, kv.PAGE_INDEX] = page_index.data_ptr()
        rope[:, kv.PAGE_OFFSET] = page_offset.data_ptr()
        self._tell_attention(metadata, num_tokens, pool, page_tokens)
        self._tell_lora(segments, num_tokens, pool)
        if wait is None:
            self._program.run(0, len(self._layers))
        else:
            for index in range(len(self._layers)):
                wait(index)
                self._program.run(index, index + 1)
        return self._logits(x, logit_rows)

    def _logits(self, x: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        num_rows = rows.shape[0]
        normed = x.new_empty(num_rows, self._hidden)
        logits = x.new_empty(num_rows, linear.features_of(self._head)[1])
        if num_rows == 0:
            return normed, logits
        projected, spread = self._buffers["projected"].data_ptr(), self._spread.ctypes.data
        told = fused.norm_arguments(
            num_rows,
            self._hidden,
            x.data_ptr(),
            projected,
            self._norm.data_ptr(),
            self._eps.ctypes.data,
            normed.data_ptr(),
            fused.shift_address(self._norm),
        )
        arguments = self._last.arguments[0]
        arguments[Last.NORM, : len(told)] = told
        arguments[Last.NORM, fused.ROWS] = rows.data_ptr()
        told = gemm.interleave_arguments(num_rows, self._hidden, normed.data_ptr(), spread)
        arguments[Last.SPREAD, : len(told)] = told
        told = gemm.multiply_arguments(
            num_rows,
            self._hidden,
            self._head.shape[0],
            spread if linear.layout_of(self._head).interleave else normed.data_ptr(),
            self._head.data_ptr(),
            0,
            logits.data_ptr(),
        )
        arguments[Last.HEAD, : len(told)] = told
        self._last.run(0, 1)
        return normed, logits

    def _fixed_workers(self, activation: str) -> None:
        layer, workers = self._layers[0], self._program.workers
        norm = fused.norm_worker(torch.bfloat16, self._norm.dtype)().address
        activate = fused.activation_worker(torch.bfloat16, activation, is_gated=self._gated)
        head_norm = layer.q_norm.dtype if layer.q_norm is not None else torch.bfloat16
        for phase, worker in (
            (Phase.NORM, norm),
            (Phase.ROPE, kv.rope_worker(torch.bfloat16, head_norm)().address),
            (Phase.MLP_NORM, norm),
            (Phase.ACTIVATION, activate().address),
        ):
            workers[:, phase] = worker
        for spread, phase, name in (
            (Phase.SPREAD_NORMED, Phase.QKV, "qkv"),
            (Phase.SPREAD_ATTENDED, Phase.O, "o"),
            (Phase.SPREAD_MLP, Phase.GATE_UP, "gate_up"),
            (Phase.SPREAD_ACTIVATED, Phase.DOWN, "down"),
        ):
            layout = linear.layout_of(getattr(layer, name))  # which its shape decides
            workers[:, spread], workers[:, phase] = linear.workers_of(layout)
        self._last.workers[0] = norm, *linear.workers_of(linear.layout_of(self._head))
        for phase, name in (
            (Phase.ATTENTION_OUT_NORM, "attention_out_norm"),
            (Phase.MLP_OUT_NORM, "mlp_out_norm"),
        ):
            workers[:, phase] = np.where(self._addresses[name] != 0, norm, 0)

    def _tell_fixed(self, num_tokens: int, pool: torch.Tensor, page_tokens: int) -> None:
        """What is the same for all steps of so many tokens."""
        hidden, inter = self._hidden, self._intermediate
        heads, kv_heads, head_dim = self._num_heads, self._num_kv_heads, self._head_dim
        q_size, qkv_size = heads * head_dim, (heads + 2 * kv_heads) * head_dim
        normed, qkv, q, attended, projected, gate_up, activated = (
            self._buffer(name, num_tokens, width)
            for name, width in (
                ("normed", hidden),
                ("qkv", qkv_size),
                ("q", q_size),
                ("attended", q_size),
                ("projected", hidden),
                ("gate_up", 2 * inter if self._gated else inter),
                ("activated", inter),
            )
        )
        widest = max(hidden, q_size, inter)
        size = gemm.interleaved_size(num_tokens, widest)
        if self._spread.size < size:
            self._spread = aligned_floats(size)
        spread, eps = self._spread.ctypes.data, self._eps.ctypes.data

        def norm(phase: Phase, of: int, addend: int, weight: str, out: int) -> None:
            told = fused.norm_arguments(num_tokens, hidden, of, addend, 0, eps, out, 0)
            columns = {fused.WEIGHT: self._addresses[weight], fused.SHIFT: self._shifts[weight]}
            self._set(phase, told, columns)

        def project(spread_phase: Phase, phase: Phase, name: str, of: int, out: int) -> None:
            weight: torch.Tensor = getattr(self._layers[0], name)
            panels, (features, _) = weight.shape[0], linear.features_of(weight)
            told = gemm.interleave_arguments(num_tokens, features, of, spread)
            self._set(spread_phase, told, {})
            inputs = spread if linear.layout_of(weight).interleave else of
            told = gemm.multiply_arguments(num_tokens, features, panels, inputs, 0, 0, out)
            columns = {
                gemm.WEIGHTS: self._addresses[name],
                gemm.BIAS: self._addresses[f"{name}_bias"],
            }
            self._set(phase, told, columns)

        norm(Phase.NORM, 0, projected, "input_norm", normed)
        self._program.arguments[0, Phase.NORM, fused.ADDEND] = 0
        project(Phase.SPREAD_NORMED, Phase.QKV, "qkv", normed, qkv)
        rope = kv.rope_arguments(
            num_tokens,
            heads,
            kv_heads,
            head_dim,
            self._ropes[0][0].shape[1],
            page_tokens,
            pool.shape[1],
            self._norm_kind,
            self._interleaved,
            qkv,
            0,
            0,
            self._ropes[0][0].shape[0],
            0,
            0,
            0,
            0,
            0,
            0,
            eps,
            q,
        )
        columns = {
            kv.COS: self._cos,
            kv.SIN: self._sin,
            kv.KV_PAGES: self._pages(pool),
            kv.Q_NORM: self._addresses["q_norm"],
            kv.K_NORM: self._addresses["k_norm"],
        }
        self._set(Phase.ROPE, rope, columns)
        project(Phase.SPREAD_ATTENDED, Phase.O, "o", attended, projected)
        norm(Phase.ATTENTION_OUT_NORM, projected, 0, "attention_out_norm", projected)
        norm(Phase.MLP_NORM, 0, projected, "mlp_norm", normed)
        project(Phase.SPREAD_MLP, Phase.GATE_UP, "gate_up", normed, gate_up)
        told = fused.activation_arguments(num_tokens, inter, gate_up, activated)
        self._set(Phase.ACTIVATION, told, {})
        project(Phase.SPREAD_ACTIVATED, Phase.DOWN, "down", activated, projected)
        norm(Phase.MLP_OUT_NORM, projected, 0, "mlp_out_norm", projected)

    def _tell_attention(
        self,
        metadata: AttentionMetadata,
        num_tokens: int,
        pool: torch.Tensor,
        page_tokens: int,
    ) -> None:
        num_pages, pages = pool.shape[1], self._pages(pool)
        q, attended = self._buffers["q"].data_ptr(), self._buffers["attended"].data_ptr()
        heads, kv_heads, head_dim = self._num_heads, self._num_kv_heads, self._head_dim
        group, workers = heads // kv_heads, self._program.workers
        factors = self._factors.ctypes.data
        workers[:, Phase.PREFILL] = workers[:, Phase.DECODE] = 0
        if metadata.prefill:
            assert metadata.ragged is not None
            blocks = cpu_prefill.query_blocks(metadata, group)
            self._blocks = blocks  # the program reads it
            told = cpu_prefill.prefill_arguments(
                blocks,
                num_tokens,
                heads,
                kv_heads,
                head_dim,
                num_pages,
                page_tokens,
                metadata.ragged.block_tables,
                0,
                attended,
                q,
                0,
                factors,
            )
            columns = {cpu_prefill.WINDOW: self._windows, cpu_prefill.KV_PAGES: pages}
            self._set(Phase.PREFILL, told, columns)
            workers[:, Phase.PREFILL] = cpu_prefill.prefill_worker(head_dim, group)().address
        if metadata.decode_rows.numel():
            told = attention.decode_arguments(
                metadata,
                num_tokens,
                heads,
                kv_heads,
                head_dim,
                num_pages,
                page_tokens,
                None,
                attended,
                q,
                0,
                factors,
            )
            columns = {attention.WINDOW: self._windows, attention.KV_PAGES: pages}
            self._set(Phase.DECODE, told, columns)
            worker = attention.decode_worker(head_dim, group, torch.bfloat16)
            workers[:, Phase.DECODE] = worker().address

    def _tell_lora(
        self, segments: LayeredSegments | None, num_tokens: int, pool: torch.Tensor
    ) -> None:
        workers = self._program.workers
        if segments is None:
            workers[:, LORA_PHASES] = 0
            self._told_lora = None
            return
        width = max(buffer.shape[1] for buffer in self._buffers.values())
        for phase, name, x, y in (
            (Phase.LORA_QKV, "qkv", "normed", "qkv"),
            (Phase.LORA_O, "o", "attended", "projected"),
            (Phase.LORA_GATE_UP, "gate_up", "normed", "gate_up"),
            (Phase.LORA_DOWN, "down", "activated", "projected"),
        ):
            source, target = self._buffers[x], self._buffers[y]
            told = lora.lora_arguments(
                segments.common,
                segments.max_rank,
                width,
                num_tokens,
                source.shape[1],
                target.shape[1],
                source.shape[1],
                pool.shape[1],
                pool.shape[2],
                target.data_ptr(),
                source.data_ptr(),
                0,
                0,
            )
            if phase == Phase.LORA_QKV:
                # The same segments, and the buffers, the pool and the scratch where they were: the
                # other groups' arguments are the same, too.
                before, self._told_lora = self._told_lora, (segments, self._told, told)
                if before and before[0] is segments and before[1:] == (self._told, told):
                    return
            addresses = segments.addresses(name)
            self._set(phase, told, {lora.PAGES: self._pages(pool), lora.PLANS: addresses})
            worker = lora.lora_worker(torch.bfloat16)().address
            workers[:, phase] = np.where(addresses != 0, worker, 0)

    def _pages(self, pool: torch.Tensor) -> np.ndarray[Any, Any]:
        """The address of each layer's pages."""
        return pool.data_ptr() + self._layer_numbers * (pool.stride(0) * 2)

    def _set(
        self, phase: Phase, told: tuple[int, ...], columns: Mapping[int, np.ndarray[Any, Any]]
    ) -> None:
        """In all layers; columns: what differs between them."""
        rows = self._program.arguments[:, phase]
        rows[:, : len(told)] = told
        for column, values in columns.items():
            rows[:, column] = values

    def _buffer(self, name: str, rows: int, columns: int) -> int:
        """The address of at least [rows, columns] bfloat16."""
        buffer = self._buffers.get(name)
        if buffer is None or buffer.shape[0] < rows:
            buffer = torch.empty(rows, columns, dtype=torch.bfloat16)
            self._buffers[name] = buffer
        return buffer.data_ptr()
