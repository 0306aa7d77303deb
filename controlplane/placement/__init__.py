"""Which data plane serves a request: pure policy."""
