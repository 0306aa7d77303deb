"""Fields of a config.json's quantization_config, each of the type that it must have."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, cast

from dataplane.errors import UnsupportedModelError
from dataplane.models.fields import unsupported

_MAX_NAMES = 20_000
_MAX_NAME_CHARS = 2048


class Fields:
    """Every method refuses what it does not take, by the field's path and its value.

    Raises: UnsupportedModelError, each method.
    """

    def __init__(self, values: object, path: str = "quantization_config") -> None:
        if not isinstance(values, Mapping):
            raise unsupported(path, values, "an object")
        self._values = cast("Mapping[str, Any]", values)
        self._path = path

    def __contains__(self, name: str) -> bool:
        return self._values.get(name) is not None

    def refusal(self, name: str, wanted: str) -> UnsupportedModelError:
        return unsupported(f"{self._path}.{name}", self._values.get(name, "(missing)"), wanted)

    def only(self, known: Collection[str]) -> None:
        """Whatever else there is must be null, false or empty."""
        for name, value in self._values.items():
            if name not in known and value:
                raise self.refusal(name[:200], "absent")

    def absent(self, *names: str) -> None:
        """These may be there if they are null, false or empty."""
        for name in names:
            if self._values.get(name):
                raise self.refusal(name, "absent")

    def choice(self, name: str, options: Sequence[str], default: str | None = None) -> str:
        """In any case of letters. default: None: it must be there."""
        value = self._values.get(name)
        if value is None and default is not None:
            return default
        if not isinstance(value, str) or value.lower() not in options:
            raise self.refusal(name, " or ".join(options))
        return value.lower()

    def number(self, name: str, options: Sequence[int], default: int | None = None) -> int:
        value = self._values.get(name)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or value not in options:
            raise self.refusal(name, " or ".join(map(str, options)))
        return value

    def group_size(self, name: str, default: int | None = None) -> int | None:
        """None: a whole row, which is stored as -1."""
        value = self._values.get(name)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or (value < 1 and value != -1):
            raise self.refusal(name, "a whole number above 0, or -1 for whole rows")
        return None if value == -1 else value

    def flag(self, name: str, *, default: bool) -> bool:
        value = self._values.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.refusal(name, "true or false")
        return value

    def block(self, name: str) -> tuple[int, int] | None:
        """Rows and columns; None where it is not there."""
        value = self._values.get(name)
        if value is None:
            return None
        sizes = cast("list[Any]", value) if isinstance(value, list) else []
        if len(sizes) != 2 or not all(
            isinstance(each, int) and not isinstance(each, bool) and each > 0 for each in sizes
        ):
            raise self.refusal(name, "two whole numbers above 0, rows and columns")
        return (sizes[0], sizes[1])

    def names(self, name: str) -> tuple[str, ...] | None:
        """A list of modules, sorted; None where it is not there."""
        value = self._values.get(name)
        if value is None:
            return None
        found = cast("list[Any]", value) if isinstance(value, list) else []
        if (
            not isinstance(value, list)
            or len(found) > _MAX_NAMES
            or not all(isinstance(x, str) and 0 < len(x) <= _MAX_NAME_CHARS for x in found)
        ):
            raise self.refusal(name, f"a list of at most {_MAX_NAMES} modules' names")
        return tuple(sorted(found))

    def objects(self, name: str) -> dict[str, Fields]:
        value = self._values.get(name)
        if not isinstance(value, Mapping) or not value:
            raise self.refusal(name, "an object with objects")
        path = f"{self._path}.{name}"
        items = cast("Mapping[str, Any]", value).items()
        return {key: Fields(each, f"{path}.{key[:100]}") for key, each in items}

    def object(self, name: str) -> Fields:
        return Fields(self._values.get(name), f"{self._path}.{name}")

    def keys(self, name: str) -> tuple[str, ...]:
        """Those of an object; none where it is not there."""
        value = self._values.get(name)
        if value is None:
            return ()
        if not isinstance(value, Mapping) or len(cast("Mapping[str, Any]", value)) > _MAX_NAMES:
            raise self.refusal(name, "an object")
        return tuple(cast("Mapping[str, Any]", value))

    def value(self, name: str) -> Any:
        """As it is, unchecked."""
        return self._values.get(name)
