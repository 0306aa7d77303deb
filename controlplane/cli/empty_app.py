"""What `chorale` is before it has commands."""

from __future__ import annotations

import typer

from controlplane.cli import connection
from controlplane.cli.exit_codes import help_text


def empty_app() -> typer.Typer:
    app = typer.Typer(
        name="chorale",
        help="Serves many LoRA adapters of one base model.",
        epilog=help_text(),
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        # Every option has its variable: those without one of their own CHORALE_COMMAND_OPTION.
        context_settings={"auto_envvar_prefix": "CHORALE"},
    )
    app.callback()(connection.common)
    return app
