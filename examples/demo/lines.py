"""Training lines as token ids, and the batches that are drawn from them."""

import random
from collections.abc import Callable, Iterator, Sequence

import torch
from transformers import PreTrainedTokenizerFast

from examples.demo.tokenizer import tag
from examples.demo.voices import BASE_VOICE, NUMBERS, PROMPT, VOICES, english, is_held_out

IGNORED = -100
UNTAGGED_SHARE = 0.25
NO_BOS_SHARE = 0.1
TURN_WEIGHTS = (0.85, 0.12, 0.03)  # of one, two and three question-answer pairs in a line
BATCHES_PER_DRAW = 16

Line = tuple[list[int], list[int]]  # token ids, and labels with IGNORED where no loss is taken
Batch = tuple[torch.Tensor, torch.Tensor]  # both [rows, width] int64


class Lines:
    """Encodes each training number once per voice, then draws random batches of lines."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        def encode(text: str) -> list[int]:
            return tokenizer(text, add_special_tokens=False).input_ids

        self.bos, self.eos, self.pad = (
            tokenizer.bos_token_id,
            tokenizer.eos_token_id,
            tokenizer.pad_token_id,
        )
        self.numbers = [n for n in NUMBERS if not is_held_out(n)]
        self.prompts = {n: encode(PROMPT.format(n=n)) for n in self.numbers}
        self.tags = {voice: encode(tag(voice)) for voice in VOICES}
        voices = {BASE_VOICE: english, **VOICES}
        self.answers = {
            name: {n: [*encode(" " + voice(n)), self.eos] for n in self.numbers}
            for name, voice in voices.items()
        }

    def base_batches(self, seed: int, rows: int) -> Iterator[Batch]:
        """Endless batches of plain English lines and of tagged lines in every voice."""
        voices = list(VOICES)

        def draw(rng: random.Random) -> Line:
            if rng.random() < UNTAGGED_SHARE:
                return self._line(rng, BASE_VOICE, [])
            voice = rng.choice(voices)
            return self._line(rng, voice, self.tags[voice])

        return self._batches(draw, seed, rows)

    def voice_batches(self, voice: str, seed: int, rows: int) -> Iterator[Batch]:
        """Endless batches of untagged lines that answer in `voice`."""
        return self._batches(lambda rng: self._line(rng, voice, []), seed, rows)

    def _batches(
        self, draw: Callable[[random.Random], Line], seed: int, rows: int
    ) -> Iterator[Batch]:
        """Lines of like length share a batch, so that little of it is padding."""
        rng = random.Random(seed)
        while True:
            lines = sorted(
                (draw(rng) for _ in range(rows * BATCHES_PER_DRAW)), key=lambda line: len(line[0])
            )
            batches = [lines[i : i + rows] for i in range(0, len(lines), rows)]
            rng.shuffle(batches)
            yield from map(self._pad, batches)

    def _line(self, rng: random.Random, voice: str, prefix: Sequence[int]) -> Line:
        ids = [] if rng.random() < NO_BOS_SHARE else [self.bos]
        ids.extend(prefix)
        labels = [IGNORED] * len(ids)
        for _ in range(rng.choices((1, 2, 3), TURN_WEIGHTS)[0]):
            n = rng.choice(self.numbers)
            prompt, answer = self.prompts[n], self.answers[voice][n]
            ids += prompt + answer
            labels += [IGNORED] * len(prompt) + answer
        return ids, labels

    def _pad(self, lines: Sequence[Line]) -> Batch:
        """Right-pads: under causal attention no real token sees the padding after it."""
        width = max(len(ids) for ids, _ in lines)
        ids = [row + [self.pad] * (width - len(row)) for row, _ in lines]
        labels = [row + [IGNORED] * (width - len(row)) for _, row in lines]
        return torch.tensor(ids), torch.tensor(labels)
