"""Files of API keys, and callers with keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from controlplane.gateway.access.keys import hash_of


def entry(key: str, tenant: str = "acme", *scopes: str, **more: Any) -> dict[str, Any]:
    """An entry of the file, named as its key; without scopes it is good for generations."""
    rest = {"scopes": list(scopes)} if scopes else {}
    return {"name": key, "sha256": hash_of(key), "tenant": tenant, **rest, **more}


def write_keys(path: Path, *entries: dict[str, Any]) -> Path:
    path.write_text(json.dumps({"keys": entries}))
    return path
