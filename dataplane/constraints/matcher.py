"""Following a grammar token by token: the one place that knows llguidance's matchers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from dataplane.channel import Vocabulary
from dataplane.constraints.limits import MAX_LEXER_STATES
from dataplane.errors import ConstraintError, ConstraintsUnsupportedError

FAILED = "the constraint cannot be followed: "
_MAX_SAID = 300
# llguidance's names for what it found, where that is all that it says.
_IN_WORDS = {
    "NoExtensionBias": "no text holds to it, as when a reference or a rule leads back to itself"
    " and nowhere else; give that another way to go on",
}
_BITS = 32

# The vocabulary in parts, each token in the first one that it fits: where a grammar allows all
# texts of a part, its tokens are not looked at one by one. llguidance's own parts are those of
# JSON's strings; those of letters make other regular expressions' masks two to five times as fast.
_JSON = LLTokenizer.general_slices()
_LETTERS = [rf"{space}[a-zA-Z]{{1,{most}}}" for space in ("", r"\x20") for most in (10, 30)]
_PARTS = [_JSON[0], *_LETTERS, r'[^"\\<>\[\]{}\x00-\x1F\x7F]{1,10}', *_JSON[1:]]

Words = np.ndarray[Any, np.dtype[np.int32]]


class GrammarTokens:
    """A tokenizer as grammars see it: the bytes of each token.

    Raises: ConstraintsUnsupportedError. Takes a second and more for a large one, and keeps all
    other threads from running meanwhile.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.num_words = -(-vocabulary.vocab_size // _BITS)
        try:
            self.tokenizer = LLTokenizer(
                vocabulary.tokenizer.decode(),
                n_vocab=max(vocabulary.vocab_size, vocabulary.num_tokens),
                eos_token=vocabulary.eos_token_ids or None,
                slices=_PARTS,
            )
        except Exception as error:  # whatever it cannot read
            raise ConstraintsUnsupportedError(
                "CONSTRAINTS_UNSUPPORTED",
                "the base model's tokenizer does not allow constraints:"
                f" {' '.join(str(error).split())[:_MAX_SAID]}",
            ) from error
        self._limits = LLParserLimits(verbose_errors=False, max_lexer_states=MAX_LEXER_STATES)

    def matcher(self, grammar: str) -> Matcher:
        """At the beginning of a text. Raises: ConstraintError."""
        found = LLMatcher(self.tokenizer, grammar, log_level=0, limits=self._limits)
        return Matcher(found, self)


class Matcher:
    """Where one text is in its grammar. Not thread-safe. Methods raise ConstraintError."""

    def __init__(self, matcher: LLMatcher, tokens: GrammarTokens) -> None:
        self._matcher = matcher
        self._tokens = tokens
        self._num_words = -(-tokens.tokenizer.vocab_size // _BITS)
        self._check()

    def copy(self) -> Matcher:
        return Matcher(self._matcher.deep_copy(), self._tokens)

    @property
    def is_complete(self) -> bool:
        """Nothing but the text's end can follow."""
        return self._matcher.is_stopped()

    def push(self, token_ids: Sequence[int]) -> None:
        """Goes on by tokens that may follow. One that may not is an error."""
        if not self._matcher.consume_tokens(list(token_ids)):
            self._check()

    def fill(self, words: Words) -> None:
        """Sets a mask, [ceil(vocab / 32)] contiguous: a bit for each token, 1 where it may follow.
        The end-of-sequence tokens may where the text may end."""
        if self._num_words == len(words):
            self._fill(words)
        else:
            # The tokenizer has tokens that the model has not.
            every = np.empty(self._num_words, dtype=np.int32)
            self._fill(every)
            words[:] = every[: len(words)]
        self._check()

    def _fill(self, words: Words) -> None:
        assert words.flags.c_contiguous
        self._matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)

    def _check(self) -> None:
        if self._matcher.is_error():
            said = " ".join(self._matcher.get_error().removesuffix("<non-verbose/>").split())
            raise ConstraintError(
                "CONSTRAINT_INVALID",
                f"{FAILED}{_IN_WORDS.get(said, said)[:_MAX_SAID]}",
                {"field": "sampling.constraint"},
            )
