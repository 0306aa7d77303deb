"""From which token of a prompt on an adapter applies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from chorale.errors import InvalidArgumentError
from dataplane.text.invocation import last_place

if TYPE_CHECKING:
    from dataplane.text.tokenizer import Tokenizer

_SHOWN = 32


def active_from(
    prompt: Sequence[int], invocation: Sequence[int], tokenizer: Tokenizer, field: str
) -> int:
    """Position of the first token that the adapter applies to. invocation: of an activated LoRA,
    which begins with these; empty: it applies to all tokens. field: that the prompt came in.

    Raises: InvalidArgumentError (INVOCATION_MISSING), where PEFT would answer as the base model.
    """
    if not invocation:
        return 0
    place = last_place(prompt, invocation)
    if place < 0:
        shown = ", ".join(map(str, invocation[:_SHOWN]))
        shown += ", …" if len(invocation) > _SHOWN else ""
        text = repr(tokenizer.decode(invocation[:_SHOWN]))
        raise InvalidArgumentError(
            "INVOCATION_MISSING",
            f"{field} does not hold the invocation tokens [{shown}] ({text}) of this adapter, an"
            " activated LoRA that applies from them on: put them into it, as a rule at its end, as"
            " these very tokens, or ask the base model",
            metadata={"field": field, "invocation_tokens": shown},
        )
    return place
