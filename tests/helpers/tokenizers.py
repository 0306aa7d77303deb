"""Small tokenizers of each decoder kind, made on the spot."""

from __future__ import annotations

import json
import random
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

SPECIAL_TOKENS = ("<s>", "</s>", "<pad>")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'forbidden' %}{{ raise_exception('no such role here') }}{% endif %}"
    "{{ message.role }}: {{ message.content }}\n"
    "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
_LINES = (
    "hello world, this is a stop word",
    "the quick brown fox jumps over the lazy dog",
    "größe café naïve 你好 世界 👩‍👩‍👧 é",
)


def byte_level(*, vocab_size: int = 400) -> Tokenizer:
    """Byte-level BPE as GPT-2, Llama 3 and Qwen have it, with a BOS that prompts begin with."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_LINES, trainer)
    tokenizer.add_tokens([AddedToken("\u2063plain", normalized=False), "tool call"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    return tokenizer


def large_byte_level(vocab_size: int) -> Tokenizer:
    """Byte-level BPE of the size of real ones, made in a second: words of common letters, some with
    a space before them, and 256 special tokens at the end, the second of which ends texts."""
    choose = random.Random(0)
    letters = "etaoinshrdlucmfwypvbgkqjxz"
    words = [*letters, *(f"Ġ{letter}" for letter in letters)]
    pieces = dict.fromkeys([*sorted(pre_tokenizers.ByteLevel.alphabet()), *words])
    while len(pieces) < vocab_size - 256:
        word = words[int(len(words) * choose.random() ** 2)] + choose.choice(letters)
        if word not in pieces:
            pieces[word] = None
            words.append(word)
    ids = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(ids, [], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(f"<|{i}|>", normalized=False) for i in range(256)])
    return tokenizer


def sentencepiece(*, strip: bool) -> Tokenizer:
    """Byte-fallback BPE; with `strip` as Llama 2 and Mistral have it, without as Gemma."""
    pieces = [*SPECIAL_TOKENS, *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", "▁▁", "▁hello", "▁wor", "ld", "é", "你好", ".", "▁�", "👩", "\u200d", "a"]
    ids = {piece: index for index, piece in enumerate(pieces)}
    model = models.BPE(ids, [], byte_fallback=True, unk_token="<s>")
    tokenizer = Tokenizer(model)
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if strip:
        steps.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def metaspace() -> Tokenizer:
    """A word vocabulary whose decoder turns ▁ into spaces but for the first one."""
    pieces = [*SPECIAL_TOKENS, "▁hello", "▁world", "s", "▁", "é", "�"]
    tokenizer = Tokenizer(models.WordLevel(dict(zip(pieces, range(9), strict=True)), "<pad>"))
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def wordpiece() -> Tokenizer:
    pieces = [*SPECIAL_TOKENS, "hello", "##s", "world", ".", "##,", "n't", "'s"]
    vocabulary = dict(zip(pieces, range(10), strict=True))
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="<pad>"))
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def write_tokenizer(
    model_dir: Path, tokenizer: Tokenizer, *, chat_template: str | None = CHAT_TEMPLATE
) -> Path:
    """Writes what a Hugging Face model directory holds of a tokenizer; returns `model_dir`."""
    model_dir.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(model_dir / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    if chat_template is not None:
        config["chat_template"] = chat_template
    (model_dir / "tokenizer_config.json").write_text(json.dumps(config))
    return model_dir
