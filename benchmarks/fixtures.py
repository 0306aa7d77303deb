"""Writes a random-weight model and adapters, for servers that are started by hand.

    python -m benchmarks.fixtures --shape small --adapters 32 --rank 16 --out DIR

makes DIR/model and DIR/adapters/a000 … With several ranks (--rank 8 16 32 64) the adapters take
them in turn. `chorale up`, vLLM, transformers and peft load the same files.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.models import ALL_LINEAR, SHAPES, Shape, write_adapter, write_model


@dataclass(frozen=True)
class Fixtures:
    """adapters: PEFT directories; their names are what servers call them."""

    shape: Shape
    model: Path
    adapters: tuple[Path, ...]

    @property
    def adapter_root(self) -> Path:
        return self.model.parent / "adapters"


def write_fixtures(
    directory: Path,
    shape: Shape,
    *,
    num_adapters: int,
    ranks: Sequence[int],
    targets: Sequence[str] = ALL_LINEAR,
    base_model: str = "bench",
) -> Fixtures:
    """Raises: FileExistsError when the directory holds fixtures already."""
    write_model(directory / "model", shape)
    adapters = tuple(directory / "adapters" / f"a{index:03}" for index in range(num_adapters))
    for index, path in enumerate(adapters):
        write_adapter(
            path,
            shape,
            rank=ranks[index % len(ranks)],
            seed=index,
            targets=targets,
            base_model=base_model,
        )
    return Fixtures(shape, directory / "model", adapters)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--adapters", type=int, default=32, help="how many")
    parser.add_argument("--rank", type=int, nargs="+", default=[16])
    parser.add_argument("--targets", nargs="+", choices=ALL_LINEAR, default=list(ALL_LINEAR))
    parser.add_argument("--base-model", default="bench", help="what adapters say they are of")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    if min(arguments.rank) < 1 or arguments.adapters < 0:
        parser.error("--rank must be at least 1, and --adapters at least 0")
    if (arguments.out / "model").exists():
        parser.error(f"--out {arguments.out} holds fixtures already: give another directory")
    fixtures = write_fixtures(
        arguments.out,
        SHAPES[arguments.shape],
        num_adapters=arguments.adapters,
        ranks=arguments.rank,
        targets=arguments.targets,
        base_model=arguments.base_model,
    )
    print(
        f"chorale up --model {fixtures.model} --model-name {arguments.base_model}"
        f" --adapter-root {fixtures.adapter_root}"
    )


if __name__ == "__main__":
    main()
