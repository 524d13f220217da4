"""What the collector writes into files, read while it writes."""

from pathlib import Path


def whole_lines(file: Path) -> list[str]:
    """The lines that are there to their end; none while there is no file."""
    text = file.read_text() if file.exists() else ""
    return text[: text.rfind("\n") + 1].splitlines()
