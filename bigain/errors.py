"""The one exception for input that cannot work; the command line prints its message alone and exits with 2."""

from __future__ import annotations

from collections.abc import Sequence


class InputError(ValueError):
    """Bad input: names the file or value, what was expected, and what to do."""


def check_choice(name: str, value: object, allowed: Sequence[str]) -> None:
    """Raise an InputError if a setting is none of the values that it can have."""
    if value not in allowed:
        raise InputError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")


def out_of_memory(error: Exception) -> bool:
    """Return whether memory of the processor or of a GPU ran out."""
    # On a CPU, and if a GPU library allocates memory itself, torch raises a plain RuntimeError.
    words = ("can't allocate memory", "out of memory", "ALLOC_FAILED")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )


def message_of(error: InputError) -> str:
    """The message alone: an error from a data-loading process arrives with that process's traceback around it."""
    marker = f"{InputError.__module__}.{InputError.__qualname__}: "
    return str(error).rpartition(marker)[2].strip()
