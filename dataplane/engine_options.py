"""What the engine of a data plane is started with."""

from __future__ import annotations

import msgspec

from chorale.fleet_tls_files import FleetTlsFiles

MAX_SPECULATIVE_TOKENS = 8
"""Drafts of a sequence in one step, at the most."""


class EngineOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes in bytes, 0 where a default is to be derived."""

    model_dir: str
    model_name: str
    device: str = "auto"  # auto | cpu | cuda
    dtype: str = "auto"  # auto | float32 | bfloat16 | float16
    pool_bytes: int = 0
    page_tokens: int = 16
    max_running: int = 64
    max_batch_tokens: int = 512
    max_waiting: int = 4096
    speculative_tokens: int = 0  # drafts of a sequence in one step; 0: none
    prefix_cache: bool = True
    max_cluster_delay_s: float = 0.25  # a request may be passed over for one whose adapter is here
    priority_ageing_s: float = 10.0  # waiting so long lifts a request by one priority
    max_context_tokens: int = 0  # 0: the model's own
    num_threads: int = 0  # 0: torch's default
    cuda_graphs: bool | None = None  # None: where there is a GPU
    tensor_parallel: int = 1  # devices, and processes, that share each layer
    host_cache_bytes: int | None = None  # None: what fits
    disk_cache_bytes: int = 8 << 30
    disk_cache_dir: str = ""
    max_adapter_bytes: int = 4 << 30  # largest weights file
    adapter_roots: tuple[str, ...] = ()
    allowed_sources: tuple[str, ...] = ()
    private_hosts: tuple[str, ...] = ()
    control_plane: str = ""  # HOST:PORT, for uploaded adapters
    fleet_token: str = ""
    fleet_tls: FleetTlsFiles | None = None  # of the control plane; None: plaintext

    def __repr__(self) -> str:
        return f"EngineOptions(model_name={self.model_name!r}, …)"  # the token is for no log
