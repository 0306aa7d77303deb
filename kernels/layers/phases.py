"""The kernels of a program of layers, in their order."""

from __future__ import annotations

import enum


class Phase(enum.IntEnum):
    """Of one layer, in order. LoRA, norms of outputs and a kind of attention may be left out."""

    NORM = 0
    SPREAD_NORMED = 1
    QKV = 2
    LORA_QKV = 3
    ROPE = 4
    PREFILL = 5
    DECODE = 6
    SPREAD_ATTENDED = 7
    O = 8  # noqa: E741 - the projection's name
    LORA_O = 9
    ATTENTION_OUT_NORM = 10
    MLP_NORM = 11
    SPREAD_MLP = 12
    GATE_UP = 13
    LORA_GATE_UP = 14
    ACTIVATION = 15
    SPREAD_ACTIVATED = 16
    DOWN = 17
    LORA_DOWN = 18
    MLP_OUT_NORM = 19


class Last(enum.IntEnum):
    """After the layers, of the rows whose next token is asked for."""

    NORM = 0
    SPREAD = 1
    HEAD = 2


LORA_PHASES = [Phase.LORA_QKV, Phase.LORA_O, Phase.LORA_GATE_UP, Phase.LORA_DOWN]
