"""Files of mutual TLS between the planes, for tests."""

from __future__ import annotations

import datetime
from pathlib import Path

import trustme

from chorale.fleet_tls import FLEET_NAME
from chorale.fleet_tls_files import FleetTlsFiles

LONG_AGO = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)


def write_files(
    directory: Path,
    authority: trustme.CA,
    *trusted: trustme.CA,
    name: str = FLEET_NAME,
    not_after: datetime.datetime | None = None,
) -> FleetTlsFiles:
    """A certificate by `authority`, and `trusted` as authorities: left out, that one alone."""
    directory.mkdir(exist_ok=True)
    made = authority.issue_cert(name, not_after=not_after)
    (directory / "cert.pem").write_bytes(b"".join(one.bytes() for one in made.cert_chain_pems))
    made.private_key_pem.write_to_path(directory / "key.pem")
    trust = trusted or (authority,)
    (directory / "ca.pem").write_bytes(b"".join(one.cert_pem.bytes() for one in trust))
    return files_in(directory)


def files_in(directory: Path) -> FleetTlsFiles:
    return FleetTlsFiles(*(str(directory / f"{name}.pem") for name in ("cert", "key", "ca")))
