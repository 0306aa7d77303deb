"""Everything that touches Redis: connection, key names, scripts, the embedded server."""
