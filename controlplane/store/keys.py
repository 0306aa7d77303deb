"""Every Redis key that Chorale uses. The scripts see the same names as Lua locals.

All carry the hash tag `{chorale}`: they share one slot of a Redis Cluster, so that a script may
touch any of them.
"""

from __future__ import annotations

PREFIX = "{chorale}:"

# Whole keys.
ADAPTERS = PREFIX + "adapters"  # zset, all scores 0: names in lexical order
NEXT_VERSIONS = PREFIX + "next_versions"  # hash name -> last version given; outlives removal
BASE_MODELS = PREFIX + "base_models"  # hash name -> BaseModelRecord JSON
DATA_PLANES = PREFIX + "data_planes"  # set of ids; those whose lease ran out are pruned on reading
TICKET_KEYS = PREFIX + "ticket_keys"  # hash key id -> key in hex
PINS = PREFIX + "pins"  # hash digest -> Pin JSON, for data planes that join later
ADMISSIONS = PREFIX + "admissions"  # hash: begun, ended; begins anew after 2 s without any
SIGNING_KEY_ID = PREFIX + "signing_key_id"  # string: the ticket key that signs
TENANTS = PREFIX + "tenants"  # hash tenant, or "*" for all others -> TenantLimits JSON
DEFAULT_BUCKETS = PREFIX + "default_buckets"  # zset: tenants with the limits of "*" -> expiry, ms
LAST_CHECK = PREFIX + "last_check"  # string, expires: written to see whether Redis takes writes
# Demand and predictions; an `identity` is digest:base_model, and :base_model all of its requests.
DEMAND_CLOCK = PREFIX + "demand_clock"  # hash: seen (Redis' time), now (never goes back)
DEMANDED = PREFIX + "demanded"  # hash identity -> "when it was asked for last name@version"
SESSIONS = PREFIX + "sessions"  # zset tenant -> when it last asked for an adapter
SESSION_LAST = PREFIX + "session_last"  # hash tenant -> "when it came to it identity"
VISITED = PREFIX + "visited"  # zset identity -> when a session came to it, since the last tick
PREDICTOR = PREFIX + "predictor"  # string, expires: the control plane that predicts
PREDICTIONS = PREFIX + "predictions"  # hash "data plane identity" -> prediction JSON
PREDICTION_ENDS = PREFIX + "prediction_ends"  # zset of those fields, scores when they are over
PREDICTION_SCORES = PREFIX + "prediction_scores"  # hash what:kind -> count; gap_ms, of visits

# Prefixes, completed by a name or an id.
ADAPTER = PREFIX + "adapter:"  # hash: current, count, version:N, source:N, labels:N, identity:N ...
HISTORY = PREFIX + "history:"  # list: versions that were current before, newest last
ALIAS = PREFIX + "alias:"  # hash: adapter, version; of several targets also: targets (JSON)
ALIASES_OF = PREFIX + "aliases_of:"  # set of alias names that have a target in the adapter
MERGES_OF = PREFIX + "merges_of:"  # set: "version merge@version" of merges made of the adapter
DATA_PLANE = PREFIX + "data_plane:"  # hash, expires with the lease: report and placements since
DIRECTIVES = PREFIX + "directives:"  # zset of Directive JSON, scores its numbers: not yet received
RESIDENCY_POOL = PREFIX + "residency:pool:"  # set of digests
RESIDENCY_HOST = PREFIX + "residency:host:"
RESIDENCY_DISK = PREFIX + "residency:disk:"
DEMAND = PREFIX + "demand:"  # and 1, 2, 3, a zset by half-life: identity -> logarithm of its count
FOLLOWERS = PREFIX + "followers:"  # zset, expires: identity -> the same, "" for all visits
TENANT_BUCKET = PREFIX + "tenant_bucket:"  # string, expires: what a tenant has used of its limits
TENANT_RUNNING = PREFIX + "tenant_running:"  # zset, expires: request -> until when it counts, ms
TENANT_HOLDERS = PREFIX + "tenant_holders:"  # hash, expires: request that goes on -> its ticket
SENT_PREFIXES = PREFIX + "sent_prefixes:"  # and id:incarnation, zset, expires: keyed -> when, ms
CONTINUED = PREFIX + "continued:"  # integer, expires: admissions by a first ticket beside its own

_NAMES = (
    "ADAPTERS",
    "NEXT_VERSIONS",
    "BASE_MODELS",
    "DATA_PLANES",
    "TICKET_KEYS",
    "PINS",
    "ADMISSIONS",
    "SIGNING_KEY_ID",
    "TENANTS",
    "DEFAULT_BUCKETS",
    "DEMAND_CLOCK",
    "DEMANDED",
    "SESSIONS",
    "SESSION_LAST",
    "VISITED",
    "PREDICTOR",
    "PREDICTIONS",
    "PREDICTION_ENDS",
    "PREDICTION_SCORES",
    "ADAPTER",
    "HISTORY",
    "ALIAS",
    "ALIASES_OF",
    "MERGES_OF",
    "DATA_PLANE",
    "DIRECTIVES",
    "RESIDENCY_POOL",
    "RESIDENCY_HOST",
    "RESIDENCY_DISK",
    "DEMAND",
    "FOLLOWERS",
    "TENANT_BUCKET",
    "TENANT_RUNNING",
    "TENANT_HOLDERS",
    "SENT_PREFIXES",
    "CONTINUED",
)


def lua_locals() -> str:
    """`local NAME = "key"` for each of them."""
    return "\n".join(f'local {name} = "{globals()[name]}"' for name in _NAMES)
