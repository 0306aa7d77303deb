"""Held-out exact-match accuracy of a trained demo, as loaded back from its files.

    python -m examples.demo.accuracy [--root examples/demo] [--dtype float32 bfloat16]

An answer counts only if it is the voice's text exactly and the model then ends it with EOS.
"""

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from examples.demo.voices import BASE_VOICE, NUMBERS, PROMPT, VOICES, english, is_held_out

MAX_NEW_TOKENS = 32
DTYPES = ("float32", "bfloat16", "float16")


def held_out_accuracy(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    voice: Callable[[int], str],
) -> tuple[float, list[tuple[int, str]]]:
    """Share of held-out numbers answered exactly (0 to 1), and the wrong answers."""
    numbers = [n for n in NUMBERS if is_held_out(n)]
    wrong: list[tuple[int, str]] = []
    for width in sorted({len(str(n)) for n in numbers}):
        group = [n for n in numbers if len(str(n)) == width]
        answers = _greedy(model, tokenizer, [PROMPT.format(n=n) for n in group])
        expected = [f" {voice(n)}{tokenizer.eos_token}" for n in group]
        wrong += [
            (n, answer)
            for n, answer, right in zip(group, answers, expected, strict=True)
            if answer != right
        ]
    return 1 - len(wrong) / len(numbers), wrong


@torch.inference_mode()
def _greedy(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str]
) -> list[str]:
    """Answers up to and including EOS; the prompts must be equally long in tokens."""
    ids = torch.tensor(tokenizer(list(prompts)).input_ids)
    out = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=MAX_NEW_TOKENS,
        do_sample=False,
    )
    texts = tokenizer.batch_decode(out[:, ids.shape[1] :])
    return [text.replace(tokenizer.pad_token, "") for text in texts]


def measure(root: Path, dtype: torch.dtype, voices: Iterable[str] = VOICES) -> dict[str, float]:
    """Accuracy of the base under `root` and of its adapters for `voices`, computed in `dtype`."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(root / "model")
    base = AutoModelForCausalLM.from_pretrained(root / "model", dtype=dtype).eval()
    table = {BASE_VOICE: held_out_accuracy(base, tokenizer, english)[0]}
    for name in voices:
        base = AutoModelForCausalLM.from_pretrained(root / "model", dtype=dtype)
        adapted = PeftModel.from_pretrained(base, root / "adapters" / name).to(dtype).eval()
        table[name] = held_out_accuracy(adapted, tokenizer, VOICES[name])[0]
    return table


def format_table(columns: dict[str, dict[str, float]]) -> str:
    """Markdown: a row per voice, a column per dtype, in percent."""
    lines = [f"| voice | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for voice in next(iter(columns.values())):
        cells = (f"{100 * column[voice]:.1f}" for column in columns.values())
        lines.append(f"| {voice} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--root", type=Path, default=Path(__file__).parent)
    parser.add_argument(
        "--dtype",
        nargs="+",
        default=["float32", "bfloat16"],
        choices=DTYPES,
    )
    args = parser.parse_args()
    logging.disable_progress_bar()
    print(format_table({d: measure(args.root, getattr(torch, d)) for d in args.dtype}))


if __name__ == "__main__":
    main()
