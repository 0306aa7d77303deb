"""What a scheduler counts since the start."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Counters:
    num_prompt_tokens: int = 0
    num_prefix_hit_tokens: int = 0
    num_preemptions: int = 0
    num_hopeless: int = 0
    num_drafted: int = 0
    num_accepted: int = 0  # drafts that became tokens
