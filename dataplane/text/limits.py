"""Bounds that hold without a tokenizer, which takes a second to import."""

from __future__ import annotations

SHORT_CHARACTERS = 1024
"""A text that is tokenized in less time than it takes to hand it to another thread."""

MAX_SPANS = 1 << 18
"""Tokens that Tokenize tells: of the longest text that it takes, and with any vocabulary, they fit
a message of 16 MiB."""
