"""Which Redis the environment names: a URL, or a file that holds one, to keep its password out of the environment."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from . import names
from .errors import ConfigurationError

# No URL is longer; whatever else the variable names, a device or a log, is not read to its end.
_MOST_BYTES: Final = 8_192


def url_of(env: Mapping[str, str]) -> str | None:
    """``QUANTUM_BUS_URL``, else what stands in the file that ``QUANTUM_BUS_URL_FILE`` names; None where neither is set.

    Raises:
        ConfigurationError: the file cannot be read, or there is no line of text in it.
    """
    if url := env.get(names.ENV_URL):
        return url
    if not (path := env.get(names.ENV_URL_FILE)):
        return None
    wrong = f"{names.ENV_URL_FILE}={path!r}"
    right = "name a file with nothing but the URL in it, readable by this user"
    try:
        with Path(path).open("rb") as file:
            lines = file.read(_MOST_BYTES).decode().split()
    except (OSError, ValueError) as error:  # a UnicodeDecodeError's text and cause would show what is in the file
        reason = error.strerror if isinstance(error, OSError) else "it holds no text"
        raise ConfigurationError(f"{wrong} cannot be read: {reason}; {right}") from None
    if len(lines) != 1:
        raise ConfigurationError(f"{wrong} {'holds more than one word' if lines else 'is empty'}; {right}")
    return lines[0]
