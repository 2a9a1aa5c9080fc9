"""The one exception for input that cannot work; the command line prints its message alone and exits with 2."""


class InputError(ValueError):
    """Bad input: names the file or value, what was expected, and what to do."""


def message_of(error: InputError) -> str:
    """The message alone: an error from a data-loading process arrives with that process's traceback around it."""
    marker = f"{InputError.__module__}.{InputError.__qualname__}: "
    return str(error).rpartition(marker)[2].strip()
