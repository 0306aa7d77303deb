"""Which files a process of the fleet speaks mutual TLS by."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

VARIABLES = tuple(f"CHORALE_FLEET_TLS_{name}_FILE" for name in ("CERT", "KEY", "CA"))


@dataclass(frozen=True, slots=True)
class FleetTlsFiles:
    """In PEM. cert_file: its certificate, for FLEET_NAME, and those between it and its authority.
    key_file: the private key, without a passphrase. ca_file: the fleet's authorities."""

    cert_file: str
    key_file: str
    ca_file: str


def fleet_tls_files(
    cert_file: Path | None, key_file: Path | None, ca_file: Path | None
) -> FleetTlsFiles | None:
    """None where none is given, and the fleet speaks plaintext.

    Raises: ValueError, naming what is missing, where some are given.
    """
    given = {"cert": cert_file, "key": key_file, "ca": ca_file}
    missing = [f"--fleet-tls-{name}-file" for name, path in given.items() if path is None]
    if len(missing) == len(given):
        return None
    if cert_file is None or key_file is None or ca_file is None:
        raise ValueError(
            f"{' and '.join(missing)} is missing: mutual TLS between the planes wants the "
            "certificate, its key and the authorities, or none of the three"
        )
    return FleetTlsFiles(str(cert_file), str(key_file), str(ca_file))


def from_environment() -> FleetTlsFiles | None:
    """By $CHORALE_FLEET_TLS_CERT_FILE, …_KEY_FILE and …_CA_FILE. Raises: ValueError."""
    cert, key, ca = (Path(value) if (value := os.environ.get(name)) else None for name in VARIABLES)
    return fleet_tls_files(cert, key, ca)
