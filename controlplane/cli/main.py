"""The console script `chorale`."""

from __future__ import annotations

import sys


def main() -> None:
    # Containers ask every few seconds, and all other commands take longer to import than to answer.
    if sys.argv[1:2] == ["health"]:
        from controlplane.cli import health
        from controlplane.cli.empty_app import empty_app

        app = empty_app()
        health.install(app)
    else:
        from controlplane.cli.app import app
    app()


if __name__ == "__main__":
    main()
