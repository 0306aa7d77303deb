import inspect
import pickle
import re

from storage import errors
from storage.errors import AdapterMismatchError, StorageError, excerpt


def all_errors() -> list[type[StorageError]]:
    return [
        value
        for value in vars(errors).values()
        if inspect.isclass(value) and issubclass(value, StorageError)
    ]


def test_reasons_are_stable_and_distinct() -> None:
    reasons = [error("x").reason for error in all_errors()]
    assert len(set(reasons)) == len(reasons)
    assert all(re.fullmatch(r"[A-Z]+(_[A-Z]+)*", reason) for reason in reasons)


def test_the_drawing_names_every_error() -> None:
    assert errors.__doc__ is not None
    for error in all_errors():
        assert error.__name__ in errors.__doc__


def test_errors_cross_processes_whole() -> None:
    error = AdapterMismatchError("text", reason="SHAPE_MISMATCH", metadata={"a": "b"})
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), copy.message, copy.reason, copy.metadata, str(copy)) == (
        AdapterMismatchError,
        "text",
        "SHAPE_MISMATCH",
        {"a": "b"},
        "text",
    )


def test_excerpts_are_short_whatever_they_are_of() -> None:
    for value in ("x" * 10**6, b"x" * 10**6, ["x" * 10**6], {"x": "y" * 10**6}, 10**5000, 1.5):
        assert len(excerpt(value)) <= 204
    assert excerpt("\ud800\n") == repr("\ud800\n")
