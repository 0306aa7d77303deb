from __future__ import annotations

from tests.controlplane.conftest import plane

__all__ = ["plane"]
