"""Labels of adapters on the command line."""

from __future__ import annotations

from typing import Annotated

import typer

from controlplane.cli.errors import UsageError

Labels = Annotated[
    list[str] | None, typer.Option("--label", metavar="KEY=VALUE", help="Repeatable.")
]


def labels_of(pairs: list[str]) -> dict[str, str]:
    """Raises: UsageError."""
    labels: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals or key in labels:
            raise UsageError(
                "LABEL_INVALID",
                f"--label {pair[:200]!r}: labels are KEY=VALUE, each key once",
                metadata={"label": pair[:200]},
            )
        labels[key] = value
    return labels
