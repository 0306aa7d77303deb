"""Tenants: what each may ask for."""
