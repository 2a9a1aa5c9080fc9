"""The one exception for input that cannot work; the command line prints its message alone and exits with 2."""


class InputError(ValueError):
    """Bad input: names the file or value, what was expected, and what to do."""
