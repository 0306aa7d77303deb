"""What a data plane may say of itself."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from controlplane.errors import InvalidRequestError
from controlplane.registry.model import BaseModelRecord, ModuleRecord
from controlplane.registry.names import check_name

MAX_ID_CHARS = 128
MAX_ENDPOINT_CHARS = 255
MAX_MODULES = 1024
MAX_MODULE_CHARS = 200
MAX_MIXTURE_MODULES = 16
MAX_DIGESTS = 50_000  # of all tiers; Redis stands still while it takes them
MAX_EXPERTS = 1024  # a data plane serves no more
_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)
_ID = re.compile(r"[!-~]+", re.ASCII)
_ENDPOINT = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})", re.ASCII)


def check_identity(data_plane_id: str, incarnation: int) -> None:
    """Raises: InvalidRequestError (DATA_PLANE_ID_INVALID, INCARNATION_INVALID)."""
    if len(data_plane_id) > MAX_ID_CHARS or not _ID.fullmatch(data_plane_id):
        raise _invalid(
            "DATA_PLANE_ID_INVALID",
            "data_plane_id",
            f"must be 1 to {MAX_ID_CHARS} printable ASCII characters without spaces, not "
            f"{data_plane_id[:200]!r}",
        )
    if incarnation == 0:
        raise _invalid("INCARNATION_INVALID", "incarnation", "must be greater than 0")


def check_endpoint(endpoint: str) -> None:
    """Raises: InvalidRequestError (ENDPOINT_INVALID) unless HOST:PORT that others can dial."""
    found = _ENDPOINT.fullmatch(endpoint) if len(endpoint) <= MAX_ENDPOINT_CHARS else None
    if not found or not 1 <= int(found[2]) <= 65535 or found[1] in ("0.0.0.0", "[::]"):
        raise _invalid(
            "ENDPOINT_INVALID",
            "endpoint",
            "must be HOST:PORT as gateways and clients can reach it, not an any-address: "
            f"{endpoint[:200]!r}",
        )


def check_base_model(base: BaseModelRecord) -> None:
    """Raises: InvalidRequestError (NAME_INVALID, BASE_MODEL_INVALID)."""
    check_name("base_model.name", base.name)
    if not _DIGEST.fullmatch(base.fingerprint):
        raise _base_model("fingerprint", "must be 64 lower-case hex digits")
    for field, value in (
        ("num_layers", base.num_layers),
        ("max_context_tokens", base.max_context_tokens),
        ("vocab_size", base.vocab_size),
    ):
        if value == 0:
            raise _base_model(field, "must be greater than 0")
    for field, modules, most in (
        ("layer_modules", base.layer_modules, MAX_MODULES),
        ("outer_modules", base.outer_modules, MAX_MODULES),
        ("mixture_modules", base.mixture_modules, MAX_MIXTURE_MODULES),
    ):
        names = [module.module for module in modules]
        if len(names) > most or len(set(names)) != len(names):
            raise _base_model(field, f"must be at most {most}, each named once")
        for module in modules:
            if not 1 <= len(module.module) <= MAX_MODULE_CHARS:
                raise _base_model(field, f"names have 1 to {MAX_MODULE_CHARS} characters")
            if not module.in_features or not module.out_features:
                raise _base_model(field, f"{module.module[:80]!r} has a size of 0")
            if module.num_experts > (MAX_EXPERTS if field == "mixture_modules" else 0):
                raise _base_model(
                    field, f"{module.module[:80]!r} has {module.num_experts} experts, too many"
                )
            _check_layers(field, module, 0 if field == "outer_modules" else base.num_layers)


def _check_layers(field: str, module: ModuleRecord, num_layers: int) -> None:
    """Ascending and below num_layers: so there are at most as many."""
    in_order = all(low < high for low, high in pairwise(module.layers))
    if module.layers and (not in_order or module.layers[-1] >= num_layers):
        raise _base_model(
            field, f"{module.module[:80]!r} must name its layers in order, each below {num_layers}"
        )


def check_num_digests(num_digests: int) -> None:
    """Raises: InvalidRequestError (RESIDENCY_TOO_LARGE)."""
    if num_digests > MAX_DIGESTS:
        raise _invalid(
            "RESIDENCY_TOO_LARGE",
            "residency",
            f"holds {num_digests:,} digests; at most {MAX_DIGESTS:,}: leave out some of the disk's",
        )


def check_digests(tier: str, digests: Sequence[str]) -> None:
    """Raises: InvalidRequestError (DIGEST_INVALID)."""
    for digest in digests:
        if not _DIGEST.fullmatch(digest):
            raise _invalid(
                "DIGEST_INVALID",
                f"residency.{tier}_digests",
                f"must hold hex SHA-256 digests, not {digest[:80]!r}",
            )


def _base_model(field: str, problem: str) -> InvalidRequestError:
    return _invalid("BASE_MODEL_INVALID", f"base_model.{field}", problem)


def _invalid(reason: str, field: str, problem: str) -> InvalidRequestError:
    return InvalidRequestError(reason, f"{field} {problem}", metadata={"field": field})
