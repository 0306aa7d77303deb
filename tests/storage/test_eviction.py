import random

import pytest

from benchmarks import eviction
from storage import eviction as worth
from storage.eviction import Worth
from storage.host_tier import HostTier
from storage.reload_costs import ReloadCosts


def test_fewer_bytes_are_loaded_again_than_with_lru() -> None:
    report = eviction.compare(num_adapters=150, num_accesses=6000)
    means = report["mean_share_of_lru"]
    assert sum(mean <= 0.9 for mean in means.values()) >= 2, means
    for run in report["runs"]:
        assert run["clairvoyant_bytes"] <= run["host_tier_bytes"]
        assert run["share_of_lru"] <= 1.02, run
    assert report["held"]


def test_what_is_used_often_outlives_what_was_used_just_now() -> None:
    tier: HostTier[int] = HostTier(3)
    for name in "abc":
        tier.put(name, 0, 1)
    for _ in range(5):
        tier.get("a")
    tier.get("b")
    tier.put("d", 0, 1)
    tier.put("e", 0, 1)
    assert "a" in tier.digests() and "c" not in tier.digests()


def test_old_uses_fade() -> None:
    tier: HostTier[int] = HostTier(2)
    for name in "ab":
        tier.put(name, 0, 1)
    for _ in range(20):
        tier.get("a")
    for _ in range(400):
        tier.get("b")
    tier.get("c")
    tier.put("c", 0, 1)
    assert tier.digests() == {"b", "c"}


def test_uses_are_remembered_after_eviction() -> None:
    tier: HostTier[int] = HostTier(2)
    for name in "aaab":
        if tier.get(name) is None:
            tier.put(name, 0, 1)
    tier.discard("a")
    for name in "ac":
        tier.get(name)
        tier.put(name, 0, 1)
    assert tier.digests() == {"a", "c"}


def test_the_dear_one_stays() -> None:
    seconds = {"dear": 9.0, "cheap": 1.0}
    tier: HostTier[int] = HostTier(2, reload_s=lambda digest, _: seconds.get(digest, 5.0))
    tier.put("dear", 0, 1)
    tier.put("cheap", 0, 1)
    tier.put("new", 0, 1)
    assert tier.digests() == {"dear", "new"}


def test_of_equal_cost_the_small_one_stays() -> None:
    tier: HostTier[int] = HostTier(12, reload_s=lambda *_: 1.0)
    tier.put("small", 0, 2)
    tier.put("large", 0, 9)
    tier.put("new", 0, 3)
    assert tier.digests() == {"small", "new"}


def test_a_speculative_entry_displaces_nothing_of_more_worth() -> None:
    tier: HostTier[int] = HostTier(2)
    tier.put("a", 0, 1)
    tier.put("b", 0, 1)
    for _ in range(3):
        tier.get("b")
    assert not tier.put("guess", 0, 2, speculative=True)
    assert tier.digests() == {"a", "b"}
    assert tier.put("guess", 0, 1, speculative=True), "a was used less"
    assert tier.digests() == {"guess", "b"}


def test_a_guess_is_kept_as_if_it_were_used_now() -> None:
    tier: HostTier[int] = HostTier(3)
    tier.get("guess")  # long ago
    for name in "abc":
        tier.put(name, 0, 1)
        for _ in range(30):
            tier.get("x")
    assert tier.put("guess", 0, 1, speculative=True), "a was used no later, and once only"
    assert tier.digests() == {"guess", "b", "c"}
    tier.put("d", 0, 1)
    assert "guess" in tier.digests(), "which is what it is worth from then on"


def test_peek_counts_nothing() -> None:
    tier: HostTier[int] = HostTier(2)
    tier.put("a", 1, 1)
    tier.put("b", 2, 1)
    assert tier.peek("a") == 1 and tier.peek("x") is None
    tier.put("c", 3, 1)
    assert tier.digests() == {"b", "c"}
    assert (tier.stats().num_hits, tier.stats().num_misses) == (0, 0)


def test_the_order_is_that_of_the_formula() -> None:
    """Against sorting by key, through random uses, keeps and drops."""
    chance = random.Random(5)
    worth = Worth(lambda digest, size: 1.0 + int(digest) % 7 + size / 10)
    kept: dict[str, int] = {}
    for _ in range(3000):
        digest = str(chance.randrange(60))
        action = chance.random()
        if action < 0.6:
            worth.use(digest)
        elif action < 0.85:
            kept[digest] = chance.randrange(1, 50)
            worth.keep(digest, kept[digest])
        elif digest in kept:
            del kept[digest]
            worth.drop(digest)
        if chance.random() < 0.05:
            found = [each for each, _ in worth.least_first()]
            assert found == sorted(kept, key=lambda each: worth.key(each, kept[each]))


@pytest.mark.parametrize("capacity", [1_000, 5_000])
def test_the_bound_holds_whatever_comes(capacity: int) -> None:
    chance = random.Random(7)
    tier: HostTier[int] = HostTier(capacity)
    held: list[str] = []
    for _ in range(3000):
        digest = str(chance.randrange(300))
        if tier.get(digest) is None:
            tier.put(digest, 0, chance.randrange(1, capacity), speculative=chance.random() < 0.2)
        if chance.random() < 0.1 and tier.peek(digest) is not None and digest not in held:
            tier.pin(digest)
            held.append(digest)
        if held and chance.random() < 0.1:
            tier.unpin(held.pop())
        assert tier.stats().entry_bytes <= capacity
        assert set(held) <= tier.digests()


def test_reload_costs_follow_what_was_measured() -> None:
    costs = ReloadCosts()
    before = costs.seconds("source", 1000)
    assert before > costs.seconds("disk", 1000)
    for size in (1_000_000, 2_000_000, 4_000_000) * 5:
        costs.observe("disk", 0.01 + size * 1e-8, size)
    assert costs.seconds("disk", 3_000_000) == pytest.approx(0.04, rel=0.01)
    assert costs.seconds("disk", 0) == pytest.approx(0.01, rel=0.05)
    assert costs.seconds("source", 1000) == before


def test_reload_costs_of_one_size_go_by_bytes() -> None:
    costs = ReloadCosts()
    costs.observe("disk", 0.5, 1000)
    assert costs.seconds("disk", 2000) == pytest.approx(1.0)


def test_the_books_stay_small_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worth, "_MAX_REMEMBERED", 50)
    monkeypatch.setattr(worth, "_SLACK", 4)
    chance = random.Random(7)
    books = Worth(lambda digest, _: 10.0 ** (int(digest) % 7))
    kept: dict[str, int] = {}
    for turn in range(3000):
        digest = str(chance.randrange(200))
        books.use(digest)
        if digest not in kept:
            kept[digest] = chance.randrange(1, 9)
            books.keep(digest, kept[digest])
        if len(kept) > 20:
            oldest = next(iter(kept))
            books.drop(oldest)
            del kept[oldest]
        assert len(books._heap) <= 2 * 21 + 4 and len(books._log_uses) <= 51
        assert kept.keys() <= books._log_uses.keys(), "of those that are kept all uses are known"
        if turn % 100 == 0:
            order = list(books.least_first())
            assert {each for each, _ in order} == set(kept)
            assert [key for _, key in order] == sorted(key for _, key in order)
