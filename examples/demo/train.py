"""Trains the demo model and its adapters from a random start, on text that `voices` makes.

    python -m examples.demo.train [--out examples/demo] [--quick] [--keep-base] [--only VOICE ...]

Writes OUT/model and OUT/adapters/NAME and prints the held-out accuracy of each as loaded back from
the files. --keep-base trains adapters over the base that OUT/model already holds.
"""

import argparse
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from examples.demo.accuracy import format_table, measure
from examples.demo.lines import Batch, Lines
from examples.demo.recipes import BASE_MODEL_NAME, RECIPES, base_config
from examples.demo.tokenizer import build_tokenizer
from examples.demo.voices import VOICES

SEED = 20
LOG_EVERY = 200
ATTENTION = "eager"  # the fastest in training, at lines this short


@dataclass(frozen=True)
class Schedule:
    steps: int
    rows: int
    peak_lr: float
    weight_decay: float
    warmup: int = 50

    def lr(self, step: int) -> float:
        """Linear warm-up, then a cosine down to a fiftieth of the peak."""
        if step < self.warmup:
            return self.peak_lr * (step + 1) / self.warmup
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.peak_lr * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


BASE = Schedule(steps=6400, rows=64, peak_lr=3e-3, weight_decay=0.1)
ADAPTER = Schedule(steps=400, rows=64, peak_lr=5e-3, weight_decay=0.0, warmup=20)
QUICK_BASE = Schedule(steps=30, rows=32, peak_lr=3e-3, weight_decay=0.1, warmup=5)
QUICK_ADAPTER = Schedule(steps=6, rows=16, peak_lr=5e-3, weight_decay=0.0, warmup=2)


def fit(
    model: torch.nn.Module,
    batches: Iterator[Batch],
    schedule: Schedule,
    name: str,
) -> float:
    """Trains the parameters that require a gradient; returns the mean loss of the last steps."""
    weights = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in weights if p.ndim > 1], "weight_decay": schedule.weight_decay},
        {"params": [p for p in weights if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], betas=(0.9, 0.98))
    model.train()
    began, recent = time.monotonic(), 0.0
    for step in range(schedule.steps):
        for group in optimizer.param_groups:
            group["lr"] = schedule.lr(step)
        ids, labels = next(batches)
        loss = model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        recent = loss.item() if step == 0 else 0.95 * recent + 0.05 * loss.item()
        if step % LOG_EVERY == LOG_EVERY - 1:
            print(
                f"{name}: step {step + 1}/{schedule.steps} loss {recent:.4f} "
                f"{time.monotonic() - began:.0f} s",
                flush=True,
            )
    return recent


def train_base(out: Path, tokenizer: PreTrainedTokenizerFast, schedule: Schedule) -> None:
    torch.manual_seed(SEED)
    model = LlamaForCausalLM._from_config(base_config(tokenizer), attn_implementation=ATTENTION)
    fit(model, Lines(tokenizer).base_batches(SEED, schedule.rows), schedule, "base")
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.to(torch.bfloat16).save_pretrained(out / "model")
    tokenizer.save_pretrained(out / "model")


def train_adapter(
    out: Path, tokenizer: PreTrainedTokenizerFast, voice: str, schedule: Schedule
) -> None:
    """Trains in float32 over the base as it was stored, so that its rounding is learned around."""
    seed = SEED + 1 + list(RECIPES).index(voice)
    torch.manual_seed(seed)
    base = AutoModelForCausalLM.from_pretrained(
        out / "model", dtype=torch.float32, attn_implementation=ATTENTION
    )
    config = LoraConfig(task_type="CAUSAL_LM", **RECIPES[voice])
    model = get_peft_model(base, config)
    fit(model, Lines(tokenizer).voice_batches(voice, seed, schedule.rows), schedule, voice)
    model.peft_config["default"].base_model_name_or_path = BASE_MODEL_NAME
    folder = out / "adapters" / voice
    # Embeddings are never trained; saying so keeps PEFT from looking for the base on the hub.
    model.to(torch.bfloat16).save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--quick", action="store_true", help="a few steps each: shows it runs")
    parser.add_argument(
        "--only", nargs="+", choices=list(VOICES), metavar="VOICE", help="train these adapters only"
    )
    parser.add_argument("--keep-base", action="store_true", help="use the base that is in OUT")
    args = parser.parse_args()
    logging.disable_progress_bar()

    if args.keep_base:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(args.out / "model")
    else:
        tokenizer = build_tokenizer()
        train_base(args.out, tokenizer, QUICK_BASE if args.quick else BASE)
    voices = args.only or list(VOICES)
    for voice in voices:
        train_adapter(args.out, tokenizer, voice, QUICK_ADAPTER if args.quick else ADAPTER)
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    columns = {name: measure(args.out, dtype, voices) for name, dtype in dtypes.items()}
    print(format_table(columns))


if __name__ == "__main__":
    main()
