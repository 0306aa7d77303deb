"""The console script `chorale`. Commands import what they need when they run."""

from __future__ import annotations

import typer

from controlplane.cli import connection, demand, generate, health, pool, roles, status, top, up
from controlplane.cli.adapters import adapters
from controlplane.cli.bench import bench
from controlplane.cli.exit_codes import help_text
from controlplane.cli.keys import keys
from controlplane.cli.tenants import tenants

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
up.install(app)
roles.install(app)
generate.install(app)
status.install(app)
demand.install(app)
top.install(app)
health.install(app)
pool.install(app)
app.add_typer(adapters, name="adapters")
app.add_typer(tenants, name="tenants")
app.add_typer(keys, name="keys")
app.add_typer(bench, name="bench")


def main() -> None:
    app()


if __name__ == "__main__":
    main()
