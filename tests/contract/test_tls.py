"""rediss://: both twins over TLS, with the server's certificate checked and with one of their own."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, quote_plus, urlencode

import pytest
import redis
import trustme

from quantum_bus import ConfigurationError, ConnectionLost, Message, QuantumBusError
from quantum_bus.demo.redis_server import RedisProcess, RedisServerError, start_redis
from tests.certificates import Certificates
from tests.contract.backends import Backend
from tests.contract.conditions import eventually, pause
from tests.contract.terminals import Ended, Terminals
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
        await publisher.publish(stream, {}, timeout=20.0)
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


# Arguments, and what each shows of the stream, on standard output.
COMMANDS = {
    "status": (["status"], "of-tls "),
    "status --json": (["status", "--json"], '"of-tls"'),
    "lag": (["lag"], "of-tls "),
    "tail": (["tail", "of-tls", "--last", "1", "--count", "1"], "TLS_EVENT"),
    "trace": (["trace", "flow-of-tls"], "TLS_EVENT"),
    "publish": (["publish", "of-tls", "{}", "--event", "TLS_EVENT", "--correlation-id", "flow-of-tls"], "flow-of-tls"),
    "dlq list": (["dlq", "list", "of-tls"], "TLS_EVENT"),
    "doctor": (["doctor", "--stream", "of-tls"], "1 streams"),
}
# What no URL can hold as it is; in both its forms it is a secret.
AWKWARD = "tls s3cret/@:#%"


@pytest.fixture(scope="module")
def terminals() -> Iterator[Terminals]:
    made = Terminals()
    yield made
    made.close()


@dataclass(frozen=True)
class Operator:
    """A user with a password, who may do what the commands need and nothing else."""

    terminals: Terminals
    url: str
    file: Path | None

    def run(self, command: str, url: str) -> Ended:
        arguments, _ = COMMANDS[command]
        if self.file is None:
            return self.terminals.run(*arguments, "--url", url)
        self.file.write_text(f"{url}\n")
        return self.terminals.run(*arguments, QUANTUM_BUS_URL_FILE=str(self.file))


@pytest.fixture(params=["option", "file"])
def operators(
    request: pytest.FixtureRequest, tls: TlsRedis, terminals: Terminals, tmp_path: Path
) -> Iterator[Operator]:
    """Whose URL is an option, and who has no certificate; and whose is in a file, with a certificate as well."""
    by_file = request.param == "file"
    with redis.Redis.from_url(tls.process.url) as admin:
        admin.config_set("tls-auth-clients", "yes" if by_file else "no")
        rights = ("~of-tls", "~{of-tls}:*", "resetchannels", "-@all", "+@read", "+@scripting", "+@connection", "+xadd")
        more = ("+time", "+info", "+xinfo", "+config|get", "+memory")
        admin.execute_command("ACL", "SETUSER", "operator", "reset", "on", f">{AWKWARD}", *rights, *more)
        admin.delete("of-tls", "{of-tls}:dlq")
        fields = {"v": "1", "data": "{}", "event": "TLS_EVENT", "correlation_id": "flow-of-tls", "message_id": "m"}
        admin.xadd("of-tls", fields)
        admin.xgroup_create("of-tls", "shop", "0")
        admin.xadd("{of-tls}:dlq", fields | {"dlq.reason": "max_attempts"})
        url = tls.url(certificate=by_file).replace(f"executor:{PASSWORD}", f"operator:{quote(AWKWARD, safe='')}")
        yield Operator(terminals, url, tmp_path / "url" if by_file else None)
        admin.acl_deluser("operator")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_works_over_tls_for_a_user_with_few_rights(operators: Operator, command: str) -> None:
    ended = operators.run(command, operators.url)
    assert COMMANDS[command][1] in ended.out, ended
    assert ended.code == (1 if command == "doctor" else 0), ended  # nobody reads for the group
    assert ended.err == ""
    assert "s3cret" not in ended.out


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_wrong_with_tls_or_its_user_is_one_line_of_a_command_and_no_secret(
    operators: Operator, tls: TlsRedis, tmp_path: Path, command: str
) -> None:
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(other)
    authority = quote_plus(str(tls.files.authority))
    wrong = {
        "shows a certificate that is not trusted": operators.url.replace(authority, quote_plus(str(other))),
        "ssl_ca_certs, ssl_certfile or ssl_keyfile is not there": operators.url.replace(authority, "nowhere.pem"),
        "refused the credentials": operators.url.replace("s3cret", "s3cret-of-old"),
    }
    for says, url in wrong.items():
        assert url != operators.url
        ended = operators.run(command, url)
        assert (ended.code, ended.out) == (2, ""), ended
        [line] = ended.err.splitlines()
        name = command.removesuffix(" --json")
        assert line.startswith(f"quantum-bus: {name}: Redis at rediss://operator:***@localhost:{tls.port}/0")
        assert says in line
        assert "s3cret" not in line
