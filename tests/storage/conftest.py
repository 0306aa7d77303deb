from hypothesis import HealthCheck, settings

# No example database: tests leave nothing behind. No time either: machines differ.
settings.register_profile(
    "storage", database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("storage")
