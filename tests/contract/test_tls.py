"""rediss://: both twins over TLS, with the server's certificate checked and with one of their own."""

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

import pytest
import redis
import trustme

from quantum_bus import ConfigurationError, ConnectionLost, Message, QuantumBusError
from quantum_bus.demo.redis_server import RedisProcess, RedisServerError, start_redis
from tests.certificates import Certificates
from tests.contract.backends import Backend
from tests.contract.conditions import eventually, pause
from tests.contract.twins import Buses
from tests.servers import series_to_test, server_of

PASSWORD = "tls-s3cret"


@dataclass(frozen=True)
class TlsRedis:
    """A Redis with a TLS port that asks for a client's certificate; one user, with a password."""

    process: RedisProcess
    port: int
    files: Certificates

    def url(self, *, authority: Path | None = None, certificate: bool = True) -> str:
        query = {"ssl_ca_certs": str(authority or self.files.authority)}
        if certificate:
            query |= {"ssl_certfile": str(self.files.client_certificate), "ssl_keyfile": str(self.files.client_key)}
        return f"rediss://executor:{PASSWORD}@localhost:{self.port}/0?{urlencode(query)}"


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsRedis]:
    files = Certificates.make(tmp_path_factory.mktemp("tls"))
    server = server_of(series_to_test()[-1])
    with start_redis(server) as probe:  # a port that is free now
        port = probe.port
    options = {
        "tls-port": str(port),
        "tls-cert-file": str(files.server_certificate),
        "tls-key-file": str(files.server_key),
        "tls-ca-cert-file": str(files.authority),
        "tls-auth-clients": "yes",
    }
    try:
        with start_redis(server, options=options) as process:
            with redis.Redis.from_url(process.url) as admin:
                admin.execute_command("ACL", "SETUSER", "executor", "on", f">{PASSWORD}", "~*", "&*", "+@all")
            yield TlsRedis(process, port, files)
    except RedisServerError as error:
        if "tls-port" not in str(error):
            raise
        pytest.skip(f"{server.path} is built without TLS: `make system-packages` installs one with it")


@pytest.fixture
async def on_tls(twin: str, tls: TlsRedis) -> AsyncIterator[Buses]:
    buses = Buses(twin, Backend("tls", tls.url()))
    yield buses
    await buses.stop()


def clients_of(admin: redis.Redis) -> list[dict[str, str]]:
    return [client for client in admin.client_list() if client["user"] == "executor"]


@pytest.mark.parametrize("certificate", ["of the client's own", "none"])
async def test_a_message_is_published_and_handled_over_tls_and_its_lease_renewed(
    on_tls: Buses, tls: TlsRedis, stream: str, certificate: str
) -> None:
    own = certificate != "none"
    with redis.Redis.from_url(tls.process.url) as admin:
        admin.config_set("tls-auth-clients", "yes" if own else "no")
        bus = on_tls(url=tls.url(certificate=own))
        attempts: list[int] = []

        @bus.subscriber(stream, ack_wait=0.3)
        async def handle(payload: dict[str, int], message: Message) -> None:
            attempts.append(message.attempt)
            await pause(1.0)  # without the heartbeat's own TLS connection another run would begin meanwhile

        async with bus:
            assert (await bus.publish(stream, {"n": 1})).id
            await eventually(lambda: attempts)
            # Publishing, reading, and the heartbeat once it beats.
            clients = await eventually(lambda: found if len(found := clients_of(admin)) >= 3 else None)
            assert {client["laddr"].rpartition(":")[2] for client in clients} == {str(tls.port)}
            await eventually(lambda: admin.xpending(stream, "svc")["pending"] == 0)
        assert attempts == [1]


async def test_a_server_of_another_authority_is_one_typed_error_without_a_secret(
    on_tls: Buses, tls: TlsRedis, stream: str, tmp_path: Path
) -> None:
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(other)
    bus = on_tls(url=tls.url(authority=other))
    with pytest.raises(ConfigurationError, match=r"certificate that is not trusted: .*ssl_ca_certs=") as raised:
        await bus.start()
    assert PASSWORD not in str(raised.value)
    assert f"localhost:{tls.port}" in str(raised.value)
    publisher = on_tls(url=tls.url(authority=other))
    with pytest.raises(QuantumBusError, match="not trusted") as refused:
        await publisher.publish(stream, {}, timeout=1.0)
    assert PASSWORD not in str(refused.value)


async def test_an_authority_that_is_not_there_is_named_and_a_missing_certificate_is_no_hang(
    on_tls: Buses, tls: TlsRedis, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match=r"ssl_ca_certs, ssl_certfile or ssl_keyfile is not there"):
        await on_tls(url=tls.url(authority=tmp_path / "nowhere.pem")).start()
    with redis.Redis.from_url(tls.process.url) as admin:
        admin.config_set("tls-auth-clients", "yes")
    with pytest.raises(ConnectionLost) as raised:
        await on_tls(url=tls.url(certificate=False), connect_timeout=0.5).start()
    assert PASSWORD not in str(raised.value)


def test_commands_take_the_same_url_from_a_file(tls: TlsRedis, tmp_path: Path) -> None:
    file = tmp_path / "redis_url"
    file.write_text(tls.url())
    with redis.Redis.from_url(tls.process.url) as admin:
        admin.config_set("tls-auth-clients", "yes")
        admin.xadd("of-tls", {"data": "{}"})
    env = {name: value for name, value in os.environ.items() if not name.startswith(("QUANTUM_", "OTEL_"))}
    command = [sys.executable, "-m", "quantum_bus", "lag", "--json"]
    ended = subprocess.run(
        command, env=env | {"QUANTUM_BUS_URL_FILE": str(file)}, capture_output=True, text=True, timeout=30, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert "of-tls" in json.dumps(json.loads(ended.stdout))
