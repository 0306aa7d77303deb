"""The password of Redis, read anew for each connection, as secrets that are mounted change."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from redis.credentials import CredentialProvider

from chorale.secret_file import read_secret


class PasswordFile(CredentialProvider):
    """user: as the URL names it; empty: Redis' default one."""

    def __init__(self, path: Path, user: str) -> None:
        self._path = path
        self._user = user

    async def get_credentials_async(self) -> Any:
        """Raises: OSError when the file holds no password."""
        try:
            password = await asyncio.to_thread(read_secret, self._path)
        except ValueError as error:
            raise OSError(f"{self._path}: {error}") from error
        return (self._user, password) if self._user else (password,)
