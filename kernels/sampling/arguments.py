"""What choosing tokens is told about rows of logits, checked and on their device."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Histories:
    """The tokens of rows with penalties, end to end. All on the logits' device.

    Repetition divides positive and multiplies negative logits of all tokens (Keskar et al. 2019);
    presence and frequency are subtracted once, or per occurrence, for tokens of the output (as
    OpenAI's API defines them). 1, 0 and 0 change nothing.
    """

    rows: torch.Tensor  # [n] int64: which rows of the logits, each once
    tokens: torch.Tensor  # [total] int64, below the vocabulary's size
    indptr: torch.Tensor  # [n + 1] int64: where each row's tokens begin and end
    num_prompt: torch.Tensor  # [n] int64: how many of them are no output
    unread: torch.Tensor  # [n] int64: which of `previous_ids` follows them; -1: none
    repetition: torch.Tensor  # [n] float32, above 0
    presence: torch.Tensor  # [n] float32
    frequency: torch.Tensor  # [n] float32


@dataclass(frozen=True)
class Filters:
    """How rows are drawn from, in the order of transformers: temperature, top_k, top_p, min_p. A
    filter is None when no row has it. All on the logits' device."""

    temperature: torch.Tensor  # [n] float32, above 0
    top_k: torch.Tensor | None = None  # [n] int64; 0 keeps all
    top_p: torch.Tensor | None = None  # [n] float32, above 0; 1 keeps all
    min_p: torch.Tensor | None = None  # [n] float32, 0 to 1
