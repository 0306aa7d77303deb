"""What is measured: the shapes and numbers that the issue names, and tiny ones for a dry run."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.models import ALL_LINEAR, ATTENTION, SHAPES, Shape

LLAMA_2_7B = Shape(4096, 11008, 32, 32, 32, 32000)
LLAMA_3_8B = Shape(4096, 14336, 32, 32, 8, 128256)


@dataclass(frozen=True)
class Slora:
    """S-LoRA's S1 and S2 (ANCHORS: its tables 2 and 3): adapters of q/k/v/o. lengths: of input and
    output, [low, high), which are divided until a run fits its time, no further than by the last of
    `divisors`."""

    model: str
    settings: dict[str, tuple[int, ...]]  # part -> ranks, taken in turn
    num_adapters: tuple[int, ...]
    max_running: int
    lengths: tuple[int, int] = (8, 512)
    divisors: tuple[int, ...] = (1, 2, 4, 8, 16)
    targets: tuple[str, ...] = ATTENTION


@dataclass(frozen=True)
class Interference:
    """Of benchmarks.interference_cases; the churning adapters are of q/k/v/o."""

    model: str
    streams: int
    stream_tokens: int
    megabytes: int
    trickle_s: float
    churn_s: float
    adapters: int
    fits: int
    rounds: int


@dataclass(frozen=True)
class Scale:
    """streams: of the decode parts, each with `prompt_tokens` and `new_tokens`."""

    models: dict[str, Shape]
    decode: tuple[str, ...]  # models whose decode step is measured
    streams: int
    few: int
    prompt_tokens: int
    new_tokens: int
    slora: Slora
    truefoundry: str
    truefoundry_adapters: tuple[int, ...]
    truefoundry_requests: int  # a round
    cold: str
    cold_prompt_tokens: int
    interference: Interference
    graphs: str
    kernels: str  # of benchmarks.kernel_cases.SHAPES
    share: float = 1.0  # of the time that parts otherwise spend on their rounds
    rank: int = 16
    mixed_ranks: tuple[int, ...] = (8, 16, 32, 64)
    targets: tuple[str, ...] = ALL_LINEAR

    @property
    def even_rank(self) -> int:
        """The rank that gives the same total as the mixed ones."""
        return sum(self.mixed_ranks) // len(self.mixed_ranks)


SCALES = {
    "real": Scale(
        models={
            "llama-2-7b": LLAMA_2_7B,
            "llama-3-8b": LLAMA_3_8B,
            "tinyllama": SHAPES["tinyllama"],
        },
        decode=("llama-3-8b", "llama-2-7b"),
        streams=64,
        few=8,
        prompt_tokens=256,
        new_tokens=64,
        slora=Slora(
            "llama-2-7b",
            {"slora-s1": (8,), "slora-s2": (8, 16, 32, 64)},
            (5, 100, 1000, 2000),
            max_running=128,
        ),
        truefoundry="tinyllama",
        truefoundry_adapters=(1, 8, 100),
        truefoundry_requests=100,
        cold="llama-3-8b",
        cold_prompt_tokens=128,
        interference=Interference(
            "llama-3-8b",
            streams=16,
            stream_tokens=4096,
            megabytes=500,
            trickle_s=10.0,
            churn_s=5.0,
            adapters=60,
            fits=20,
            rounds=2,
        ),
        graphs="llama-3-8b",
        kernels="real",
    ),
    "tiny": Scale(
        models={"tiny": SHAPES["tiny"]},
        decode=("tiny",),
        streams=4,
        few=2,
        prompt_tokens=6,
        new_tokens=5,
        slora=Slora(
            "tiny",
            {"slora-s1": (4,), "slora-s2": (2, 4)},
            (2, 6),
            max_running=3,
            lengths=(2, 6),
            divisors=(1, 2),
        ),
        truefoundry="tiny",
        truefoundry_adapters=(1, 3),
        truefoundry_requests=3,
        cold="tiny",
        cold_prompt_tokens=6,
        interference=Interference(
            "tiny",
            streams=2,
            stream_tokens=1024,
            megabytes=1,
            trickle_s=0.3,
            churn_s=0.3,
            adapters=6,
            fits=3,
            rounds=1,
        ),
        graphs="tiny",
        kernels="tiny",
        share=0.01,
        rank=4,
        mixed_ranks=(2, 6),
    ),
}
