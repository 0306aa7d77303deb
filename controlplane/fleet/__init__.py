"""Membership of data planes: leases, load, residency, ticket keys."""
