"""What redis-py's errors mean, and how its clients are made."""

import pytest
import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    MasterDownError,
    MaxConnectionsError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry as ThreadsRetry

from quantum_bus import BackPressure, ConfigurationError, ConnectionLost, PublishError, driver
from quantum_bus.config import BusConfig

CONFIG = BusConfig(url="redis://user:hunter2@db.example:6380/3", service="svc", reply_timeout=7.0)

# What Redis 6.2 puts before the error of a command that a script called.
IN_SCRIPT = f"Error running script (call to f_{'0' * 40}): @user_script:18: "


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (OutOfMemoryError("command not allowed"), BackPressure, "maxmemory"),
        (ResponseError("OOM command not allowed"), BackPressure, "maxmemory"),
        (ResponseError(f"{IN_SCRIPT}@user_script: 18: -OOM command not allowed"), BackPressure, "maxmemory"),
        (ResponseError(f"{IN_SCRIPT}WRONGTYPE Operation against a key"), PublishError, "not a stream"),
        (ResponseError("no OOM"), PublishError, "refused the message"),
        (ResponseError("WRONGTYPE Operation against a key"), PublishError, "not a stream"),
        (NoPermissionError("this user has no permissions"), PublishError, r"\+xadd ~orders"),
        (ResponseError("ERR something new"), PublishError, "something new"),
        (ResponseError("MISCONF Errors writing to the AOF file: No space left"), PublishError, "full.*AOF error"),
        (ResponseError(f"{IN_SCRIPT}-MISCONF Redis is configured to save"), PublishError, "rdb_last_bgsave_status"),
        (ReadOnlyError("You can't write"), PublishError, "not stored: it is a read-only replica"),
        (BusyLoadingError("Redis is loading"), PublishError, "not stored: it is loading"),
    ],
)
def test_a_refused_publish_says_what_to_do(error: RedisError, kind: type[PublishError], text: str) -> None:
    translated = driver.publish_error(error, "orders")
    assert type(translated) is kind
    with pytest.raises(kind, match=text):
        raise translated
    assert "orders" in str(translated)


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (ResponseError("WRONGTYPE Operation"), ConfigurationError, "not a stream"),
        (NoPermissionError("no permissions"), ConfigurationError, r"\+xgroup .*~orders"),
        (OutOfMemoryError("command not allowed"), ConnectionLost, "cannot be made now: .*more memory"),
        (ResponseError("MISCONF Redis is configured to save"), ConnectionLost, "rdb_last_bgsave_status"),
        (MasterDownError("Link with MASTER is down"), ConnectionLost, "lost its master"),
        (ResponseError("ERR something new"), ConnectionLost, "cannot be made now: ERR something new"),
    ],
)
def test_a_refused_group_says_what_to_do(error: RedisError, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        raise driver.group_error(error, "orders", "svc")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (AuthenticationError("invalid username-password pair"), ConfigurationError),
        (RedisConnectionError("WRONGPASS invalid"), ConfigurationError),
        (RedisConnectionError("NOAUTH Authentication required"), ConfigurationError),
        (RedisConnectionError("Connection refused"), ConnectionLost),
        (OSError("no route"), ConnectionLost),
        (RedisTimeoutError("Timeout connecting"), ConnectionLost),
        (MaxConnectionsError("Too many connections"), ConnectionLost),
    ],
)
def test_what_keeps_a_connection_from_being_made_is_told_apart(error: BaseException, kind: type[Exception]) -> None:
    translated = driver.connect_error(error, "redis://db:6379/0")
    assert type(translated) is kind
    assert "redis://db:6379/0" in str(translated)


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (ReadOnlyError("You can't write against a read only replica."), True),
        (ResponseError("LOADING Redis is loading the dataset in memory"), True),
        (ResponseError("MASTERDOWN Link with MASTER is down"), True),
        (ResponseError("CLUSTERDOWN The cluster is down"), True),
        (ResponseError("TRYAGAIN Multiple keys request during rehashing"), True),
        (BusyLoadingError("Redis is loading the dataset in memory"), True),  # as redis-py has them: without the code
        (MasterDownError("Link with MASTER is down"), True),
        (ClusterDownError("The cluster is down"), True),
        (TryAgainError("Multiple keys request during rehashing"), True),
        (ResponseError("NOREPLICAS Not enough good replicas to write."), True),
        (ResponseError("MISCONF Redis is configured to save RDB snapshots"), False),
        (RedisConnectionError("LOADING, it seems"), False),
        (ResponseError("UNBLOCKED force unblock from blocking operation, instance state changed"), True),
        (ResponseError("WAIT cannot be used with replica instances."), True),
        (ResponseError(f"{IN_SCRIPT}@user_script: 18: -READONLY You can't write against a read only replica."), True),
        (OutOfMemoryError("command not allowed"), False),
        (ResponseError("WRONGTYPE Operation"), False),
    ],
)
def test_what_passes_by_itself_is_told_from_what_does_not(error: RedisError, passes: bool) -> None:
    assert driver.is_transient(error) is passes


def test_server_errors_are_known_by_their_codes() -> None:
    assert driver.is_no_group(ResponseError("NOGROUP No such key"))
    in_script = "Error running script (call to f_5a): @user_script:1: NOGROUP No such key 's' or consumer group 'g'"
    assert driver.is_no_group(ResponseError(in_script)), "as 6.2 puts it"
    assert not driver.is_no_group(ResponseError("ERR NOGROUP"))
    assert not driver.is_no_group("NOGROUP in a reply")
    assert driver.is_no_script(NoScriptError("No matching script."))
    assert driver.is_no_script(ResponseError("NOSCRIPT No matching script."))
    assert driver.is_wrong_type(ResponseError("WRONGTYPE Operation"))
    assert driver.is_busy_group(ResponseError("BUSYGROUP Consumer Group name already exists"))


@pytest.mark.parametrize(("client", "retry"), [(redis.Redis, ThreadsRetry), (redis.asyncio.Redis, AsyncRetry)])
def test_a_client_does_not_retry_by_itself_and_gives_bytes(client: type, retry: type) -> None:
    made = client.from_url(CONFIG.url, **driver.connection_options(CONFIG, retry))
    options = made.connection_pool.connection_kwargs
    connection = made.connection_pool.connection_class(**options)
    assert connection.retry._retries == 0
    assert options["decode_responses"] is False
    assert options["socket_timeout"] == (7.0 if client is redis.Redis else None)
    assert driver.server_address(made) == ("db.example", 6380)


def test_the_address_of_a_unix_socket_has_no_port() -> None:
    client = redis.Redis.from_url("unix:///run/redis.sock")
    assert driver.server_address(client) == ("/run/redis.sock", None)


@pytest.mark.parametrize("query", ["?socket_timeout=soon", "?no_such_option=1"])
def test_a_url_option_that_cannot_be_is_refused_without_connecting(query: str) -> None:
    config = BusConfig(url=f"redis://user:hunter2@db.example:6380/3{query}", service="svc")
    for pool, retry in ((redis.ConnectionPool, ThreadsRetry), (redis.asyncio.ConnectionPool, AsyncRetry)):
        with pytest.raises(ConfigurationError, match=r"soon|no_such_option") as refused:
            driver.check_url(config, pool, retry)
        assert "hunter2" not in str(refused.value)
        driver.check_url(CONFIG, pool, retry)


def test_a_consumers_name_is_unique_and_says_whose_it_is() -> None:
    assert driver.consumer_name("svc").startswith("svc@")
    assert driver.consumer_name("svc") != driver.consumer_name("svc")
