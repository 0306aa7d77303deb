"""The typed channel between a data plane's frontend and its engine process.

Messages are msgspec structs, msgpack-encoded, over one ZeroMQ PAIR socket pair on a private ipc
address: the frontend binds, the engine connects. Order of events:

    engine   → Hello
    frontend → Start
    engine   → Ready | StartFailed (then the engine exits)
    frontend → Vocabulary
    engine   → Taught
    frontend → Submit, Abort …            engine → Outputs, Failed, Stats …
    frontend → Shutdown                   engine exits

While it has work an engine sends something every second at least: Alive if there is nothing else.
Without work it answers every Ping with Alive. A silent one hangs.

Times are `time.monotonic()` seconds, which all processes of one host share.
"""

from __future__ import annotations

from typing import Any

import msgspec

from dataplane.engine_options import EngineOptions
from dataplane.load_reports import (
    AdapterLoad,
    LoadUnderWay,
    Outlook,
    TierCounters,
    WaitingPin,
)
from storage.load_count import LoadCount

HIGH_WATER_MARK = 8192
"""Messages either side may have under way before a send blocks."""

ALIVE_INTERVAL_S = 1.0
"""An engine with work is never silent for longer, but for the length of one step."""


class Adapter(msgspec.Struct, frozen=True):
    """The adapter of a request: content digest and where to fetch it."""

    digest: str
    source: str
    name: str
    token: str = ""  # the caller's, for a private source
    invocation_tokens: tuple[int, ...] = ()  # of an activated LoRA, as its ticket tells them

    @property
    def origin(self) -> tuple[str, str]:
        """What decides whether the content can be had: the source and who asks it."""
        return self.source, self.token

    def __repr__(self) -> str:
        return f"Adapter({self.digest!r}, {self.source!r}, {self.name!r})"


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """Validated sampling parameters; the fields of chorale.v1.SamplingParameters, all filled in.

    Stop strings are not here: text is the frontend's business, which sends Abort when one is met.
    """

    max_tokens: int
    min_tokens: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int = -1  # -1: none
    prompt_logprobs: int = -1  # -1: none
    grammar: str = ""  # what the text must be, as dataplane.constraints.grammar writes it; "": any
    logit_bias: tuple[tuple[int, float], ...] = ()  # token ids, each once, and what is added

    @property
    def has_penalty(self) -> bool:
        return (
            self.repetition_penalty != 1.0
            or self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
        )


# Frontend to engine.


class Start(msgspec.Struct, frozen=True, tag=True):
    options: EngineOptions


class Vocabulary(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """What grammars need of the tokenizer; sent once, before the first Submit: making use of a
    large one takes a second or more, in which no step runs. Answered by Taught.
    `tokenizer` is its tokenizer.json, in UTF-8. `num_tokens`: all its ids are below; they may be
    more or less than the model's `vocab_size`."""

    tokenizer: bytes
    num_tokens: int
    vocab_size: int
    eos_token_ids: list[int]

    def __repr__(self) -> str:
        return f"Vocabulary(num_tokens={self.num_tokens}, …)"


class Submit(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """A new request. `handle` is unique while the engine lives. `generated` continues a request:
    those tokens count as output that was delivered before. `active_from`: position of the prompt's
    first token that the adapter applies to; the base model computes those before."""

    handle: int
    prompt: list[int]
    generated: list[int] = []
    sampling: Sampling
    adapter: Adapter | None = None
    active_from: int = 0
    tenant: str = "default"
    arrival_s: float
    deadline_s: float | None = None
    first_token_by_s: float | None = None  # an objective: the request is failed when out of reach
    priority: int = 0  # -10 to 10, higher first
    cache_scope: str = ""  # cached blocks are shared within one


class Abort(msgspec.Struct, frozen=True, tag=True):
    """Forget the request and free what it holds. Nothing is sent for it any more; unknown handles
    are ignored, as an Abort may cross the last Output."""

    handle: int


class Ping(msgspec.Struct, frozen=True, tag=True):
    """Ask for one Alive."""


class Shutdown(msgspec.Struct, frozen=True, tag=True):
    pass


class Inspect(msgspec.Struct, frozen=True, tag=True):
    """Ask for one PoolReport; `ticket` comes back with it."""

    ticket: int


class AskLoads(msgspec.Struct, frozen=True, tag=True):
    """Ask for one LoadsReport; `ticket` comes back with it."""

    ticket: int


class Prefetch(msgspec.Struct, frozen=True, tag=True):
    """Bring an adapter to `tier` ("host" or "pool") if it is worth the room it takes there. With
    `pin` it is brought there whatever is there, and never evicted until Unpin or Unload; pinned
    adapters together take at most half of the pool."""

    adapter: Adapter
    tier: str
    pin: bool = False


class Unpin(msgspec.Struct, frozen=True, tag=True):
    digest: str


class Unload(msgspec.Struct, frozen=True, tag=True):
    """Free an adapter in pool and host memory: at once when nobody uses it, else after the last
    token. Requests that still run `within_s` from now fail with ADAPTER_UNLOADED."""

    digest: str
    within_s: float


Directive = Prefetch | Unpin | Unload
ToEngine = Start | Vocabulary | Submit | Abort | Ping | Shutdown | Inspect | AskLoads | Directive


# Engine to frontend.


class Hello(msgspec.Struct, frozen=True, tag=True):
    pid: int


class ModuleShape(msgspec.Struct, frozen=True):
    module: str
    in_features: int
    out_features: int
    layers: tuple[int, ...] = ()  # that have it; empty: all
    num_experts: int = 0  # of a part of mixtures


class Ready(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """The engine serves. Shapes are what adapters are checked against."""

    model_name: str
    fingerprint: str
    num_layers: int
    layer_modules: list[ModuleShape]
    outer_modules: list[ModuleShape]
    mixture_modules: list[ModuleShape]
    vocab_size: int
    max_context_tokens: int
    eos_token_ids: list[int]
    num_pages: int
    page_bytes: int
    max_running: int
    device: str
    dtype: str


class Taught(msgspec.Struct, frozen=True, tag=True):
    """The Vocabulary was read. Where it is of a kind that grammars cannot use, requests with one
    fail."""


class StartFailed(msgspec.Struct, frozen=True, tag=True):
    reason: str
    message: str
    metadata: dict[str, str]


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Of one position: the chosen token's log-probability and the top ones, likeliest first."""

    logprob: float
    top_ids: list[int]
    top_logprobs: list[float]


class Timings(msgspec.Struct, frozen=True, array_like=True):
    """When the first token was scheduled and made, and how long the adapter was waited for."""

    queue_s: float
    adapter_load_s: float
    time_to_first_token_s: float
    num_cached_tokens: int = 0  # of the tokens it began with, spared by the prefix cache


class Output(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """New tokens of one request. `finish` is "", "stop" or "length"; "stop" with
    `stop_token_id` >= 0 names the token (an end-of-sequence or stop token, which is the last of
    `token_ids`). `timings` come with the first Output and with the last, `prompt_logprobs`, of the
    prompt's tokens from the second on, with the first."""

    handle: int
    token_ids: list[int]
    logprobs: list[TokenLogprobs] = []
    finish: str = ""
    stop_token_id: int = -1
    timings: Timings | None = None
    prompt_logprobs: list[TokenLogprobs] = []


class Outputs(msgspec.Struct, frozen=True, tag=True):
    """Everything that one step made."""

    outputs: list[Output]


class Failed(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """One request ended with an error. `code` is a canonical gRPC code name."""

    handle: int
    code: str
    reason: str
    message: str
    metadata: dict[str, str] = {}
    retry_after_s: float | None = None


class Stats(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Load and residency; sent on every change of substance, at most ten times a second."""

    num_running: int
    num_waiting: int
    num_pages: int
    num_available_pages: int  # free, or of idle adapters and cached blocks nobody uses
    num_used_pages: int  # held by running sequences and by adapters in use
    num_generated_tokens: int
    pool_digests: list[str]
    host_digests: list[str]
    disk_digests: list[str]
    # Since the start, but for num_cached_blocks:
    num_cached_blocks: int = 0  # pages with keys and values that other requests can share
    num_prefix_hit_tokens: int = 0  # prompt tokens that needed no computing
    num_prompt_tokens: int = 0  # of requests that began to run
    num_preemptions: int = 0
    num_drafted_tokens: int = 0  # by speculation: guessed and computed
    num_accepted_tokens: int = 0  # of those: what would have been generated
    num_hopeless: int = 0  # failed in the queue because their objective was out of reach
    # Measured; 0 until it was.
    prefill_tokens_per_s: float = 0.0
    decode_step_s: float = 0.0  # at the present number of running sequences
    # Prefetches since the start (dataplane/lora/prefetch.py says what each counts).
    num_prefetch_hits: int = 0
    num_prefetch_late: int = 0
    prefetch_late_s: float = 0.0
    prefetch_wasted_bytes: int = 0
    num_prefetch_failed: int = 0
    num_prefetch_refused: int = 0
    num_prefetch_asked: int = 0
    num_adapter_pages: int = 0
    num_free_pages: int = 0
    tiers: list[TierCounters] = []
    # Adapters that were copied into the pool to the end, and how long that took all together.
    num_copies: int = 0
    copy_s: float = 0.0
    loads: list[LoadCount] = []
    # The first REPORTED_LOADS of `num_loading`, oldest first.
    loading: list[LoadUnderWay] = []
    num_loading: int = 0
    waiting_pins: list[WaitingPin] = []  # at most REPORTED_LOADS of num_waiting_pins
    num_waiting_pins: int = 0
    # CUDA graphs: how many decode steps are captured as, what that took, and steps that used one.
    num_graphs: int = 0
    graph_capture_s: float = 0.0
    graph_bytes: int = 0
    num_graph_steps: int = 0
    # Constraints: grammars compiled, on a thread of their own, and masks filled in the step loop.
    num_grammars: int = 0
    grammar_s: float = 0.0
    num_masks: int = 0
    mask_s: float = 0.0
    outlook: Outlook | None = None  # None until steps were measured


class Alive(msgspec.Struct, frozen=True, tag=True):
    """The step loop goes round; sent when nothing else was for ALIVE_INTERVAL_S, and for a Ping."""


class PoolReport(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Owner of every page: "" free, "adapter:DIGEST", "sequence:HANDLE", "prefix:DIGEST" (cached
    block of an adapter, of the base model where DIGEST is empty). `problem` is empty when
    the pool's integrity holds, else what is wrong."""

    ticket: int
    owners: list[str]
    num_used_pages: int
    problem: str


class LoadsReport(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """The last loads, oldest first."""

    ticket: int
    loads: list[AdapterLoad]


FromEngine = (
    Hello
    | Ready
    | StartFailed
    | Taught
    | Outputs
    | Failed
    | Stats
    | Alive
    | PoolReport
    | LoadsReport
)


def encode(message: Any) -> bytes:
    return _encoder.encode(message)


def decode_to_engine(data: bytes) -> ToEngine:
    return _to_engine.decode(data)


def decode_from_engine(data: bytes) -> FromEngine:
    return _from_engine.decode(data)


_encoder = msgspec.msgpack.Encoder()
_to_engine = msgspec.msgpack.Decoder(ToEngine)
_from_engine = msgspec.msgpack.Decoder(FromEngine)
