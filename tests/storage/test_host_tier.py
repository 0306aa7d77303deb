import pytest

from storage.errors import TierFullError
from storage.host_tier import HostTier


def test_least_recently_used_leaves_first() -> None:
    tier: HostTier[str] = HostTier(30)
    for name in "abc":
        assert tier.put(name, name.upper(), 10)
    assert tier.get("a") == "A"
    assert tier.put("d", "D", 10)
    assert tier.digests() == {"a", "c", "d"}
    assert tier.get("b") is None
    stats = tier.stats()
    assert (stats.entry_bytes, stats.num_entries) == (30, 3)
    assert (stats.num_hits, stats.num_misses, stats.num_evictions) == (1, 1, 1)


def test_contains_does_not_count_as_use() -> None:
    tier: HostTier[int] = HostTier(2)
    tier.put("a", 1, 1)
    tier.put("b", 2, 1)
    assert tier.peek("a") is not None
    tier.put("c", 3, 1)
    assert tier.peek("a") is None
    assert tier.stats().num_hits == 0


def test_pinned_entries_stay() -> None:
    tier: HostTier[str] = HostTier(30)
    tier.pin("a")  # before it is there
    for name in "abc":
        tier.put(name, name, 10)
    tier.pin("b")
    assert tier.put("d", "d", 10)
    assert tier.digests() == {"a", "b", "d"}
    assert not tier.put("e", "e", 20)
    assert tier.digests() == {"a", "b", "d"}, "a put that cannot succeed evicts nothing"
    tier.unpin("b")
    assert tier.put("e", "e", 20)
    assert tier.digests() == {"a", "e"}
    tier.unpin("a")
    assert tier.put("f", "f", 30)
    assert tier.digests() == {"f"}


def test_entries_are_replaced_and_discarded_pinned_or_not() -> None:
    tier: HostTier[str] = HostTier(10)
    tier.put("a", "old", 5)
    tier.pin("a")
    assert tier.put("a", "new", 7)
    assert tier.get("a") == "new"
    assert tier.stats().entry_bytes == 7
    assert tier.discard("a")
    assert not tier.discard("a")
    assert tier.stats().entry_bytes == 0


def test_what_can_never_fit_is_an_error() -> None:
    tier: HostTier[str] = HostTier(10)
    tier.put("a", "a", 10)
    with pytest.raises(TierFullError) as caught:
        tier.put("b", "b", 11)
    assert caught.value.metadata == {"size_bytes": "11", "max_bytes": "10"}
    assert tier.digests() == {"a"}
