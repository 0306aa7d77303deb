"""The base model's tokenizer and chat template.

Everything here blocks: `encode`, `encode_chat` and `spans` belong in a worker thread (the tokenizer
itself runs without the interpreter lock there). All methods may be called from several threads at
once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import tokenizers

from chorale.errors import FailedPreconditionError, InvalidArgumentError
from dataplane.errors import CheckpointError, UnsupportedModelError
from dataplane.text.detokenizer import Detokenizer, detokenizer_for
from dataplane.text.limits import SHORT_CHARACTERS
from dataplane.text.parts import as_parts, wants_parts
from dataplane.text.tool_format import ToolCallFormatName, tool_call_format
from dataplane.text.vocabulary import vocabulary_of

_MAX_ERROR_CHARACTERS = 200


class Span(NamedTuple):
    """A token of a text. start, stop: its characters there; 0 and 0 when it was added."""

    token_id: int
    piece: str
    start: int
    stop: int


class TooManyTokensError(Exception):
    """A text has more tokens than asked for; `length` says how long it is."""

    def __init__(self, length: str) -> None:
        super().__init__(f"the text has {length}")
        self.length = length


class Tokenizer:
    """Text to token ids and back.

    hf_tokenizer: a transformers tokenizer that is backed by the `tokenizers` library.
    calls: how the model writes calls of functions; "auto": as its chat template tells.
    """

    def __init__(self, hf_tokenizer: Any, calls: ToolCallFormatName = "auto") -> None:
        self._hf_tokenizer = hf_tokenizer
        self._backend: tokenizers.Tokenizer = hf_tokenizer.backend_tokenizer
        # Set once here: encoding through transformers would set them in each call, which is no
        # read-only use of the backend and fails when two threads do it.
        self._backend.no_truncation()
        self._backend.no_padding()
        self._vocabulary = vocabulary_of(self._backend)
        form = self.tool_call_format = tool_call_format(calls, _templates(hf_tokenizer))
        """None where none is known."""
        self._wants_parts: dict[str, bool] = {}  # by template
        # Tokens that begin and end calls: special ones in some models, but text all the same.
        marks = set(form.marks if form is not None else ())
        self._added_ids = {
            token.content: id_ for id_, token in self._backend.get_added_tokens_decoder().items()
        }
        self._vocabulary_with_calls = vocabulary_of(self._backend, marks)
        # A normalizer may shorten a text before it is cut into tokens, if not by much.
        slack = 1 if self._backend.normalizer is None else 2
        ids = self._backend.get_vocab(with_added_tokens=True)  # a list of a large one takes 0.1 s
        self._max_token_characters = slack * max(map(len, ids), default=1)
        self.num_tokens = 1 + max(ids.values(), default=-1)
        """All ids are below it."""

    def encode(self, text: str, *, max_tokens: int) -> list[int]:
        """Token ids of a prompt with the special tokens (BOS) that the tokenizer adds.

        Raises: TooManyTokensError.
        """
        return self._encode(text, max_tokens, add_special_tokens=True)

    def spans(self, text: str, *, max_tokens: int, add_special_tokens: bool) -> Iterator[Span]:
        """The tokens of `text`, each with its piece of the vocabulary and its part of `text`.

        Raises: TooManyTokensError, at once.
        """
        self._check_length(text, max_tokens)
        # Unlike `encode`, and unlike the lists of an encoding, this does not keep the interpreter
        # lock throughout.
        (encoding,) = self._backend.encode_batch([text], add_special_tokens=add_special_tokens)
        ids = self._checked(encoding, max_tokens)
        return (self._span(encoding, index, token_id) for index, token_id in enumerate(ids))

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        max_tokens: int,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> list[int]:
        """Token ids of a conversation, ending where the assistant's turn begins.

        messages, tools: as transformers' chat templates take them.
        Raises: FailedPreconditionError when the model has no chat template, or one that passes over
        `tools`; InvalidArgumentError when it refuses the conversation; TooManyTokensError.
        """
        text = self._render(messages, tools)
        if tools and text == self._render(messages, ()):
            raise FailedPreconditionError(
                "TOOLS_UNSUPPORTED",
                "chat.tools: the base model's chat template does not show tools to the model; leave"
                " them out, or serve the model with a template that does",
                metadata={"field": "chat.tools"},
            )
        return self._encode(text, max_tokens, add_special_tokens=False)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of all tokens at once, special tokens left out."""
        return self._vocabulary.decode(token_ids)

    def token_text(self, token_id: int) -> str:
        """One token alone, special or not; incomplete UTF-8 becomes U+FFFD."""
        return self._vocabulary.token_text(token_id)

    def to_json(self) -> str:
        """As a tokenizer.json has it. Takes a while."""
        return self._backend.to_str()

    def detokenizer(self, *, shows_calls: bool = False) -> Detokenizer:
        """For one text, from its first token. shows_calls: whether the tokens that begin and end
        calls of functions are text even if they are special."""
        return detokenizer_for(self._vocabulary_with_calls if shows_calls else self._vocabulary)

    def added_token_id(self, text: str) -> int | None:
        """Of a text that was added to the vocabulary as one token; None when it was not."""
        return self._added_ids.get(text)

    def _encode(self, text: str, max_tokens: int, *, add_special_tokens: bool) -> list[int]:
        self._check_length(text, max_tokens)
        if len(text) <= SHORT_CHARACTERS:
            encoding = self._backend.encode(text, add_special_tokens=add_special_tokens)
            return self._checked(encoding, max_tokens)
        # The call for one text keeps the interpreter lock throughout.
        (encoding,) = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return self._checked(encoding, max_tokens)

    def _check_length(self, text: str, max_tokens: int) -> None:
        # Known before any work: handing over millions of tokens holds the interpreter lock.
        if len(text) > max_tokens * self._max_token_characters:
            raise TooManyTokensError(f"{len(text)} characters")

    def _span(self, encoding: tokenizers.Encoding, index: int, token_id: int) -> Span:
        start, stop = encoding.token_to_chars(index) or (0, 0)
        return Span(token_id, self._backend.id_to_token(token_id) or "", start, stop)

    def _checked(self, encoding: tokenizers.Encoding, max_tokens: int) -> list[int]:
        if len(encoding) > max_tokens:
            raise TooManyTokensError(f"{len(encoding)} tokens")
        return encoding.ids

    def _render(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
    ) -> str:
        if not self._hf_tokenizer.chat_template:
            raise FailedPreconditionError(
                "CHAT_TEMPLATE_MISSING",
                "chat: the base model has no chat template; send prompt or prompt_token_ids",
            )
        shown = list(tools) or None
        try:
            template: str = self._hf_tokenizer.get_chat_template(None, shown)
            render = partial(
                self._hf_tokenizer.apply_chat_template,
                chat_template=template,
                tools=shown,
                tokenize=False,
                add_generation_prompt=True,
            )
            if template not in self._wants_parts:
                self._wants_parts[template] = wants_parts(render)
            known = _with_known_roles(messages, template)
            text = render(as_parts(known) if self._wants_parts[template] else known)
        except Exception as error:  # a template is code: it may raise anything
            said = str(error)[:_MAX_ERROR_CHARACTERS] or type(error).__name__
            raise InvalidArgumentError(
                "CHAT_TEMPLATE_FAILED",
                f"chat: the base model's chat template refuses these messages: {said}",
                metadata={"field": "chat", "error": type(error).__name__},
            ) from error
        return cast("str", text)


def _with_known_roles(
    messages: Sequence[Mapping[str, Any]], template: str
) -> list[Mapping[str, Any]]:
    """OpenAI's role "developer" is "system" by another name to models that were not trained on it:
    a template that does not name it would refuse it, drop it or show the model a word it does not
    know."""
    if "developer" in template:
        return list(messages)
    return [
        {**message, "role": "system"} if message.get("role") == "developer" else message
        for message in messages
    ]


def _templates(hf_tokenizer: Any) -> list[str]:
    """A model may have several, by name: one of them for chats with tools."""
    template: Any = hf_tokenizer.chat_template
    if isinstance(template, dict):
        return list(cast("dict[str, str]", template).values())
    return [template] if template else []


def load_tokenizer(model_dir: Path, calls: ToolCallFormatName = "auto") -> Tokenizer:
    """Reads the tokenizer of a Hugging Face model directory. Takes a second or more. calls: as
    Tokenizer has it.

    Raises: CheckpointError when its files cannot be read, UnsupportedModelError when it has no
    implementation in the `tokenizers` library.
    """
    try:
        if (model_dir / "tokenizer.json").is_file():
            from transformers import PreTrainedTokenizerFast

            hf_tokenizer: Any = PreTrainedTokenizerFast.from_pretrained(
                model_dir, local_files_only=True
            )
        else:
            from transformers import AutoTokenizer

            hf_tokenizer = AutoTokenizer.from_pretrained(
                model_dir, local_files_only=True, trust_remote_code=False
            )
        if not hf_tokenizer.chat_template:
            hf_tokenizer.chat_template = _processor_template(model_dir)
    except Exception as error:  # whatever the parsers of these files raise
        said = " ".join(str(error).split())[:_MAX_ERROR_CHARACTERS] or type(error).__name__
        raise CheckpointError(
            "TOKENIZER_UNREADABLE",
            f"the tokenizer in {model_dir} cannot be read: {said}",
            {"model_dir": str(model_dir)},
        ) from error
    if not isinstance(getattr(hf_tokenizer, "backend_tokenizer", None), tokenizers.Tokenizer):
        raise UnsupportedModelError(
            "TOKENIZER_UNSUPPORTED",
            f"the tokenizer in {model_dir} is a {type(hf_tokenizer).__name__}, which has no "
            "tokenizer.json form; convert it to one",
            {"model_dir": str(model_dir)},
        )
    return Tokenizer(hf_tokenizer, calls)


def _processor_template(model_dir: Path) -> str | None:
    """Where models that see have their chat template, if it is not the tokenizer's, too. Raises
    what reading and parsing raises."""
    try:
        fields: Any = json.loads((model_dir / "chat_template.json").read_bytes())
    except FileNotFoundError:
        return None
    template = fields["chat_template"]
    if not isinstance(template, str):
        raise TypeError("chat_template.json: chat_template is no text")
    return template
