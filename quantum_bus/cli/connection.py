"""A command's connection to Redis: its options, and what it says when there is none.

::

    def lag(url: Url = None, prefix: Prefix = "", debug: Debug = False) -> None:
        with connected("lag", url, debug=debug) as client:
            ...
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Final

import redis
import typer
from redis.exceptions import NoPermissionError, RedisError
from redis.retry import Retry

from quantum_bus import driver, names
from quantum_bus.address import url_of
from quantum_bus.blocking_link import Link
from quantum_bus.cli.ending import EXIT_FAILED, EXIT_USAGE, fail
from quantum_bus.config import DEFAULT_REPLY_TIMEOUT, BusConfig, check_stream, masked_url
from quantum_bus.discovery import discover
from quantum_bus.errors import ConfigurationError, ConnectionLost, QuantumBusError
from quantum_bus.inquiry import answered

# What BusConfig wants to know of a service, and nothing shows.
_SERVICE: Final = "quantum-bus"


def _else_from_file(context: typer.Context, url: str | None) -> str | None:
    if url or context.resilient_parsing:
        return url
    try:
        return url_of(os.environ)
    except ConfigurationError as error:
        fail(f"{context.command_path.partition(' ')[2]}: {error}", EXIT_USAGE)


Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        metavar="URL",
        envvar=names.ENV_URL,
        callback=_else_from_file,
        help=f"The Redis, as redis://localhost:6379/0; else the file that {names.ENV_URL_FILE} names holds it.",
        show_default=False,
    ),
]
Prefix = Annotated[str, typer.Option("--prefix", metavar="TEXT", help="What the buses put before each stream's name.")]
Streams = Annotated[
    list[str] | None,
    typer.Option(
        "--stream", metavar="NAME", help="A stream to look at; may be repeated.  [default: all]", show_default=False
    ),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


@contextmanager
def connected(
    command: str, url: str | None, *, debug: bool = False, unreachable: int = EXIT_FAILED
) -> Iterator[redis.Redis]:
    """A client for the body of a command, closed behind it; see :func:`open_client`.

    Errors of the project's and of Redis, in connecting and in the body, end the process with one line on standard
    error: 2 where what was asked for cannot work, 1 where it could have.

    Args:
        command: its name, which the line begins with.
        url: None where neither the option nor the environment names one.
        debug: show the traceback before the line.
        unreachable: the exit code of what could have worked, where a command's own verdict has 1.
    """
    try:
        client = open_client(url)
        try:
            yield client
        finally:
            client.close()
    except ConfigurationError as error:
        fail(f"{command}: {error}", EXIT_USAGE, error=error if debug else None)
    except (QuantumBusError, RedisError) as error:  # no OSError: such is a closed pipe behind the command, as of `head`
        fail(f"{command}: {_text(error, url)}", unreachable, error=error if debug else None)


def open_client(url: str | None) -> redis.Redis:
    """A blocking client that answers bytes, speaks RESP2 and never sends a command again by itself.

    Raises:
        ConfigurationError: there is no URL, it cannot work, or Redis refuses its credentials.
        ConnectionLost: Redis cannot be reached.
    """
    client = make_client(url)
    assert url
    try:
        client.ping()
    except NoPermissionError:
        pass  # a user that may not PING is known, and may be allowed what the command needs
    except (RedisError, OSError) as error:
        client.close()
        raise driver.connect_error(error, masked_url(url)) from error
    return client


def make_client(url: str | None) -> redis.Redis:
    """As :func:`open_client`, but nothing is connected yet: for what waits until there is a Redis.

    Raises:
        ConfigurationError: there is no URL, or it cannot work.
    """
    if not url:
        raise ConfigurationError(f"no Redis to talk to: give --url redis://localhost:6379/0, or set {names.ENV_URL}")
    config = BusConfig(url=url, service=_SERVICE)
    driver.check_url(config, redis.ConnectionPool, Retry)
    return redis.Redis.from_url(url, **driver.connection_options(config, Retry))


def make_link(client: redis.Redis, url: str | None) -> Link:
    """A connection of the client's that answers as the server does, with nothing parsed on the way."""
    return Link(client.connection_pool, timeout=DEFAULT_REPLY_TIMEOUT, where=masked_url(url or ""))


@contextmanager
def linked(client: redis.Redis, url: str | None) -> Iterator[Link]:
    """As :func:`make_link`, closed behind the block."""
    link = make_link(client, url)
    try:
        yield link
    finally:
        link.close()


def wanted_streams(link: Link, streams: Sequence[str] | None, prefix: str, *, scheduled: bool = False) -> Sequence[str]:
    """The streams that were named, else those that are there.

    Args:
        scheduled: also those of which there is nothing but what waits for its time.

    Raises:
        ConfigurationError: no stream can have one of the names, or this user may not look for streams.
    """
    if streams:
        return list(dict.fromkeys(full_name(stream, prefix) for stream in streams))
    found = answered(discover(types=("stream", "zset") if scheduled else ("stream",)), link.execute)
    if found.refused:
        raise ConfigurationError(f"Redis does not let this user look for streams; name them ({found.refused})")
    return [stream for stream in found.streams if stream.startswith(prefix)]


def full_name(stream: str, prefix: str) -> str:
    """The key of a stream that was named on the command line.

    Raises:
        ConfigurationError: no stream can have that name.
    """
    name = prefix + stream if stream else stream
    check_stream(name)
    return name


def _text(error: BaseException, url: str | None) -> str:
    if isinstance(error, driver.CONNECTION_ERRORS) and not isinstance(error, QuantumBusError):
        return str(ConnectionLost(f"the connection to Redis at {masked_url(url or '')} broke: {error}"))
    return str(error)
