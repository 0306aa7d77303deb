from __future__ import annotations

from controlplane.tenants.metrics import TenantAdmissions


def rows(counts: TenantAdmissions) -> dict[tuple[str, ...], float]:
    samples = counts.family("x").samples
    return {(each.labels["tenant"], each.labels["outcome"]): each.value for each in samples}


def test_rows_are_bounded() -> None:
    counts = TenantAdmissions(max_rows=2)
    for tenant in ("a", "b", "a", "c"):
        counts.count(tenant, "admitted", "")
    counts.count("c", "refused", "TENANT_QUOTA")
    counts.count("c", "refused", "FLEET_FULL")
    assert rows(counts) == {
        ("a", "admitted"): 2,
        ("c", "admitted"): 1,
        ("c", "over_quota"): 1,
        ("c", "refused"): 1,
        ("(other)", "admitted"): 1,  # b, which asked longest ago
    }
    counts.count("(other)", "admitted", "")  # who calls itself that has no second row
    counts.count("d", "admitted", "")
    assert rows(counts)["(other)", "admitted"] == 4 and len(counts.family("x").samples) == 5
