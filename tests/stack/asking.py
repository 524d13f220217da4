"""Asks the parts of the stack over HTTP, with patience: the machine may be busy with much else."""

from __future__ import annotations

import ssl
from collections.abc import Callable

import httpx

from scripts import stack

SECONDS = 60.0  # that an answer may take


class CannotAnswer(AssertionError):
    """A part is there and says, by a status from 500 on, that it cannot answer now."""


def get(url: str, *, verify: ssl.SSLContext | bool = True, **parameters: str | int) -> httpx.Response:
    """What is answered, with a good status or not."""
    answer = httpx.get(url, params=parameters or None, verify=verify, timeout=SECONDS)
    if answer.is_server_error:
        raise CannotAnswer(f"{answer.url}: {answer.status_code} {answer.text}")
    return answer


def get_good(url: str, *, verify: ssl.SSLContext | bool = True, **parameters: str | int) -> httpx.Response:
    """What is answered with a good status."""
    answer = get(url, verify=verify, **parameters)
    assert answer.is_success, f"{answer.url}: {answer.status_code} {answer.text}"
    return answer


def wait_until(condition: Callable[[], bool], *, timeout: float, what: str, interval: float = 0.1) -> None:
    """As in scripts/stack.py; a part that cannot answer yet is asked again, and at the end it is said what it said."""
    said: list[str] = []

    def holds() -> bool:
        said.clear()
        try:
            return condition()
        except CannotAnswer as error:
            said.append(str(error))
            return False

    try:
        stack.wait_until(holds, timeout=timeout, what=what, interval=interval)
    except stack.StackError as error:
        raise stack.StackError("\n".join([str(error), *said])) from error
