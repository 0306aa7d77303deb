"""Bounds that hold without a tokenizer, which takes a second to import."""

from __future__ import annotations

SHORT_CHARACTERS = 1024
"""A text that is tokenized in less time than it takes to hand it to another thread."""

MAX_SPAN_CHARACTERS = 1 << 20
MAX_SPANS = 1 << 18
"""What Tokenize takes and tells: with any vocabulary its answer fits a message of 16 MiB."""
