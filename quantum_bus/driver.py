"""What both twins know of redis-py: how a client is made, and what its errors mean here."""

from __future__ import annotations

import os
import re
import secrets
import socket
import ssl
from typing import Any, Final

import redis
import redis.asyncio
import redis.retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ClusterDownError,
    MasterDownError,
    MaxConnectionsError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry as ThreadsRetry

from .config import BusConfig, masked_url
from .errors import BackPressure, ConfigurationError, ConnectionLost, PublishError, QuantumBusError

CONNECTION_ERRORS: Final = (RedisConnectionError, RedisTimeoutError, OSError, EOFError)
"""What a broken or absent connection raises; TimeoutError is an OSError."""

REFUSALS: Final = (ResponseError, BusyLoadingError)
"""What the server answers where it says no. redis-py takes LOADING for a broken connection; it is an answer."""

TIMEOUT_ERROR: Final = RedisTimeoutError
"""What a reply that does not come in time raises; the connection may stand."""

_BLOCKING_KINDS: Final[dict[type, type]] = {
    redis.asyncio.Connection: redis.Connection,
    redis.asyncio.SSLConnection: redis.SSLConnection,
    redis.asyncio.UnixDomainSocketConnection: redis.UnixDomainSocketConnection,
}
_SHARED_OPTIONS: Final = ("host", "port", "path", "db", "username", "password", "credential_provider", "client_name")

CREDENTIAL_ERRORS: Final = (AuthenticationError, AuthorizationError)


def connection_options(config: BusConfig, retry: type[Any]) -> dict[str, Any]:
    """Keyword arguments for redis-py's ``from_url``.

    No retry of its own: redis-py would send an XADD again after a lost reply, blindly. A socket timeout for threads
    only, where it bounds the handshake of a new connection: every request has a deadline of its own, which is what
    counts while a reply is read; asyncio's link bounds its handshake itself. RESP2 is what every supported server
    speaks.

    Args:
        retry: ``redis.asyncio.retry.Retry`` or ``redis.retry.Retry``.
    """
    return {
        "socket_connect_timeout": config.connect_timeout,
        "socket_timeout": config.reply_timeout if retry is ThreadsRetry else None,
        "socket_keepalive": True,
        "health_check_interval": 0,
        "retry": retry(NoBackoff(), 0),
        "decode_responses": False,
        "protocol": 2,
    }


def consumer_name(service: str) -> str:
    """A consumer's name: unique for each start, so that what a dead one held is never taken for a living one's."""
    return f"{service}@{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"


def blocking_pool(config: BusConfig, client: Any) -> redis.ConnectionPool | None:
    """Blocking connections to where an asyncio client connects, for a thread of their own.

    Args:
        client: the one that the caller handed in; None where the bus has a url.

    Returns:
        None where a client is of a kind whose connections cannot be made again, such as Sentinel's or a fake.
    """
    retry = connection_options(config, redis.retry.Retry)
    if config.url is not None:
        return redis.Redis.from_url(config.url, **retry).connection_pool
    pool = client.connection_pool
    kind = _BLOCKING_KINDS.get(pool.connection_class)
    if kind is None or type(pool) not in (redis.asyncio.ConnectionPool, redis.asyncio.BlockingConnectionPool):
        return None
    wanted = {k: v for k, v in pool.connection_kwargs.items() if k in _SHARED_OPTIONS or k.startswith("ssl_")}
    return redis.ConnectionPool(connection_class=kind, **(retry | wanted))


def check_url(config: BusConfig, pool_class: Any, retry: type[Any]) -> None:
    """Try what the URL asks for, without connecting: its options are redis-py's to know.

    Raises:
        ConfigurationError: an option behind the ``?`` is unknown, or its value cannot be.
    """
    if config.url is None:
        return
    try:
        pool = pool_class.from_url(config.url, **connection_options(config, retry))
        pool.connection_class(**pool.connection_kwargs)
    except (ValueError, TypeError, RedisError) as error:
        raise ConfigurationError(
            f"url={masked_url(config.url)!r}: {error}; behind the ? stand options of redis-py's connections"
        ) from error


def server_address(client: Any) -> tuple[str, int | None] | None:
    """Host and port that a client connects to, for spans; a Unix socket's path has no port."""
    options = client.connection_pool.connection_kwargs
    host = options.get("host") or options.get("path")
    return None if host is None else (str(host), options.get("port") if "host" in options else None)


# Redis 6.2 puts a script's own place, once or twice, before the code of an error that a command in it met.
_IN_SCRIPT: Final = re.compile(r"^.*@user_script: ?[0-9]+: -?")


def _says(error: object, *beginnings: str) -> bool:
    """Whether it is a refusal whose text, wherever in a script it arose, begins with one of these."""
    return isinstance(error, ResponseError) and _IN_SCRIPT.sub("", str(error)).startswith(beginnings)


# Refusals that pass by themselves, and what to look at where they do not. redis-py makes some codes a class, and strips
# them from the text; MASTERDOWN's is a subclass of CLUSTERDOWN's.
_PASSING: Final[tuple[tuple[type[RedisError] | None, str, str], ...]] = (
    (ReadOnlyError, "READONLY", "it is a read-only replica; give the master's address, or promote it"),
    (BusyLoadingError, "LOADING", "it is loading its data from disk; wait until INFO persistence says loading:0"),
    (MasterDownError, "MASTERDOWN", "it is a replica that has lost its master; give the master's address"),
    (ClusterDownError, "CLUSTERDOWN", "slots of the cluster are not served; look at CLUSTER INFO"),
    (TryAgainError, "TRYAGAIN", "the slot is being moved in the cluster; look at CLUSTER NODES"),
    (None, "NOREPLICAS", "fewer replicas are connected than its min-replicas-to-write asks for; look at them"),
    (None, "UNBLOCKED", "it was a master, and is a replica now; give the master's address"),
    (None, "WAIT cannot be used with replica", "it was a master, and is a replica now; give the master's address"),
)
_DISK: Final = (
    "it cannot write to its disk, and takes no writes meanwhile; look whether the disk of CONFIG GET dir is full, at "
    "INFO persistence (rdb_last_bgsave_status: the last RDB save failed; aof_last_write_status: an AOF error), and at "
    "its log"
)


def _passing(error: object) -> str | None:
    for kind, code, advice in _PASSING:
        if (kind is not None and isinstance(error, kind)) or _says(error, code):
            return advice
    return None


def is_transient(error: object) -> bool:
    """Whether the server refused a command for a reason that passes by itself: a replica before its promotion."""
    return _passing(error) is not None


def is_disk_failing(error: object) -> bool:
    """MISCONF: the server could not save, and takes no writes until it can."""
    return _says(error, "MISCONF")


def is_no_group(error: object) -> bool:
    """NOGROUP: the stream or its group is not there (any more). From a script, 6.2 says it in the midst of its text."""
    if not isinstance(error, ResponseError):
        return False
    return str(error).startswith("NOGROUP") or ("running script" in str(error) and ": NOGROUP " in str(error))


def is_busy_group(error: object) -> bool:
    """BUSYGROUP: the group is there already."""
    return isinstance(error, ResponseError) and str(error).startswith("BUSYGROUP")


def is_out_of_memory(error: object) -> bool:
    """OOM: the server is at ``maxmemory``."""
    return isinstance(error, OutOfMemoryError) or _says(error, "OOM")


def is_no_script(error: object) -> bool:
    """NOSCRIPT: the server does not know a script's digest; redis-py strips the code from the text."""
    return isinstance(error, ResponseError) and (
        type(error).__name__ == "NoScriptError" or str(error).startswith("NOSCRIPT")
    )


def is_wrong_type(error: object) -> bool:
    """WRONGTYPE: the key holds something else."""
    return _says(error, "WRONGTYPE")


def publish_error(error: RedisError, stream: str) -> PublishError:
    """A reply to XADD, or to the script that stands for it, that says no."""
    if is_out_of_memory(error):
        return BackPressure(
            f"Redis is at its maxmemory and did not store the message for {stream!r}; publish later, trim streams, or "
            f"give it more memory ({error})"
        )
    if is_wrong_type(error):
        return PublishError(
            f"the key {stream!r} is not a stream, or a side key of it is of another type; publish to another name, or "
            f"remove that key ({error})"
        )
    if is_not_permitted(error):
        return PublishError(f"this Redis user may not XADD to {stream!r}: ACL SETUSER … +xadd ~{stream} ({error})")
    if is_disk_failing(error):
        return PublishError(f"Redis refused the message for {stream!r}, and it is not stored: {_DISK} ({error})")
    if (advice := _passing(error)) is not None:
        return PublishError(
            f"Redis refused the message for {stream!r} each time until the timeout, and it is not stored: {advice} "
            f"({error})"
        )
    return PublishError(f"Redis refused the message for {stream!r}: {error}")


def is_not_permitted(error: object) -> bool:
    """NOPERM: this user may not do that; of a script's own command servers tell it in words."""
    return isinstance(error, NoPermissionError) or (
        isinstance(error, ResponseError) and "user executing the script can't" in str(error)
    )


def group_error(error: RedisError, stream: str, group: str) -> QuantumBusError:
    """A reply to XGROUP CREATE that says no."""
    if is_wrong_type(error) or "wrong kind of value" in str(error):
        return ConfigurationError(
            f"the key {stream!r} is not a stream, so {group!r} cannot subscribe to it; name another stream, or remove "
            f"that key ({error})"
        )
    if is_not_permitted(error):
        return ConfigurationError(
            f"this Redis user may not make the group {group!r} on {stream!r}; grant it: ACL SETUSER … "
            f"+xgroup +evalsha +eval ~{stream} ~{{{stream}}}:* ({error})"
        )
    if is_out_of_memory(error):
        reason = f"Redis is at its maxmemory; trim streams, or give it more memory ({error})"
    elif (advice := _DISK if is_disk_failing(error) else _passing(error)) is not None:
        reason = f"{advice} ({error})"
    else:
        reason = str(error)
    return ConnectionLost(f"the group {group!r} on {stream!r} cannot be made now: {reason}")


def not_ready(reply: object, where: str) -> ConnectionLost | None:
    """What a first round trip came to, where the server is there and does not serve yet."""
    advice = _passing(reply)
    return None if advice is None else ConnectionLost(f"Redis at {where} does not serve yet: {advice} ({reply})")


def check_free(pool: Any) -> None:
    """Do not wait where a pool would: whoever asks has a deadline that the pool does not know, and asks again.

    Raises:
        MaxConnectionsError: all of its connections are taken.
    """
    if isinstance(pool, redis.asyncio.BlockingConnectionPool):
        taken = not pool.can_get_connection()
    else:
        taken = isinstance(pool, redis.BlockingConnectionPool) and pool.pool.empty()
    if taken:
        raise MaxConnectionsError("No connection available.")


def check_size(pool: Any, needed: int, why: str) -> None:
    """Whether a pool can give as many connections as a bus keeps.

    Raises:
        ConfigurationError: it cannot; the text says how many it should.
    """
    most = getattr(pool, "max_connections", None)
    if most is not None and most < needed:
        raise ConfigurationError(
            f"max_connections={most}: this bus keeps {needed} connections, {why}, and more while publishes wait for "
            f"replicas; let the pool give at least {needed}, and what else its client uses"
        )


def connect_error(error: BaseException, where: str) -> QuantumBusError:
    """Connecting failed."""
    if isinstance(error, MaxConnectionsError):
        return ConnectionLost(
            f"all connections of the pool to Redis at {where} are taken; give it a larger max_connections ({error})"
        )
    if isinstance(error, CREDENTIAL_ERRORS) or "WRONGPASS" in str(error) or "NOAUTH" in str(error):
        return ConfigurationError(
            f"Redis at {where} refused the credentials; put them in the URL: redis://user:password@… ({error})"
        )
    if (refused := _of_kind(error, ssl.SSLCertVerificationError)) is not None:
        reason = getattr(refused, "verify_message", None) or "certificate verify failed"
        return ConfigurationError(
            f"Redis at {where} shows a certificate that is not trusted: {reason}; name the authority that signed it: "
            "rediss://…?ssl_ca_certs=/path/ca.pem"
        )
    if (missing := _of_kind(error, FileNotFoundError)) is not None and where.startswith("rediss:"):
        return ConfigurationError(
            f"Redis at {where} cannot be asked: a file of its ssl_ca_certs, ssl_certfile or ssl_keyfile is not there "
            f"({missing})"
        )
    return ConnectionLost(f"Redis at {where} cannot be reached: {str(error) or type(error).__name__}")


def _of_kind(error: BaseException | None, kind: type[BaseException]) -> BaseException | None:
    """The first of this kind among an error and what it came from."""
    while error is not None and not isinstance(error, kind):
        error = error.__cause__ or error.__context__
    return error
