"""`chorale` with all of its commands, which import what they need when they run."""

from __future__ import annotations

from controlplane.cli import demand, generate, health, pool, roles, status, top, up
from controlplane.cli.adapters import adapters
from controlplane.cli.bench import bench
from controlplane.cli.empty_app import empty_app
from controlplane.cli.keys import keys
from controlplane.cli.tenants import tenants

app = empty_app()
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
