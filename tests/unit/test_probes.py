"""The probes' server: what it answers, and that nobody can keep it from answering."""

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from quantum_bus import ConfigurationError, Health, names, probes
from quantum_bus.probes import MOST_CONNECTIONS, ProbeServer

HEALTH = Health(service="shop", state=names.HEALTH_RUNNING, redis="redis://***@localhost")


class Service:
    """What is asked: whether it was to ask Redis, and what it is to say."""

    def __init__(self) -> None:
        self.health = HEALTH
        self.asked: list[bool] = []

    def ask(self, redis: bool) -> Health:
        self.asked.append(redis)
        return self.health


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def port(service: Service) -> Iterator[int]:
    with ProbeServer("127.0.0.1:0", service.ask) as server:
        yield server.port


def request(port: int, path: str, method: str = "GET", host: str = "127.0.0.1") -> tuple[int, bytes, dict[str, str]]:
    connection = http.client.HTTPConnection(host, port, timeout=20)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read(), {name.lower(): value for name, value in answer.getheaders()}
    finally:
        connection.close()


def test_both_probes_are_answered_and_only_readiness_asks_redis(service: Service, port: int) -> None:
    assert request(port, "/livez")[0] == 200
    status, body, headers = request(port, "/readyz?verbose")
    assert (status, json.loads(body)["ready"], headers["content-type"]) == (200, True, "application/json")
    assert headers["cache-control"] == "no-store"
    assert service.asked == [False, True]
    service.health = Health(service="shop", state=names.HEALTH_DRAINING, redis="")
    assert (request(port, "/livez")[0], request(port, "/readyz")[0]) == (200, 503)


def test_head_has_the_same_head_and_no_body(service: Service, port: int) -> None:
    status, body, headers = request(port, "/readyz", "HEAD")
    assert (status, body) == (200, b"")
    assert headers["content-length"] == request(port, "/readyz")[2]["content-length"]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "BREW"])
def test_other_methods_are_not_allowed_and_nothing_is_asked(service: Service, port: int, method: str) -> None:
    status, _, headers = request(port, "/readyz", method)
    assert (status, headers["allow"], service.asked) == (405, "GET, HEAD", [])


@pytest.mark.parametrize("path", ["/", "/livez/", "/metrics", "/../livez"])
def test_other_paths_are_not_there(service: Service, port: int, path: str) -> None:
    assert request(port, path)[0] == 404
    assert service.asked == []


@pytest.mark.parametrize(
    "garbage",
    [
        b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n",
        b"GET\r\n\r\n",
        b"GET /livez HTTP/9.9\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /livez HTTP/1.1\r\n" + b"".join(b"h%d: v\r\n" % n for n in range(500)) + b"\r\n",
    ],
)
def test_garbage_is_refused_without_a_word_on_standard_error_and_the_next_is_answered(
    port: int, garbage: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    answer = b""
    # It may have hung up before all was sent.
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client, contextlib.suppress(OSError):
        client.sendall(garbage)
        client.shutdown(socket.SHUT_WR)
        answer = client.recv(65536)
    assert b" 200 " not in answer.partition(b"\r\n")[0]
    assert b"Traceback" not in answer
    assert request(port, "/livez")[0] == 200
    assert capfd.readouterr().err == ""


def test_clients_that_say_nothing_give_way_to_one_that_asks(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "CONNECTION_SECONDS", 600.0)
    monkeypatch.setattr(probes._Handler, "timeout", 600.0)
    with contextlib.ExitStack() as opened:
        held = [
            opened.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
            for _ in range(3 * MOST_CONNECTIONS)
        ]
        assert request(port, "/livez")[0] == 200
        assert [client.recv(1) for client in held[:MOST_CONNECTIONS]] == [b""] * MOST_CONNECTIONS


def test_a_client_that_never_ends_its_request_is_cut_off(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "CONNECTION_SECONDS", 0.5)
    deadline = time.monotonic() + 20
    with socket.create_connection(("127.0.0.1", port), timeout=20) as slow:
        slow.sendall(b"GET /livez HTTP/1.1\r\n")
        with pytest.raises((BrokenPipeError, ConnectionResetError)):  # noqa: PT012 - a byte at a time, each well within every timeout
            while time.monotonic() < deadline:
                slow.sendall(b"h")
                time.sleep(0.02)
    assert time.monotonic() < deadline
    assert request(port, "/livez")[0] == 200


def test_a_question_that_fails_is_no_answer_and_ends_nothing(
    service: Service, port: int, capfd: pytest.CaptureFixture[str]
) -> None:
    service.health = None  # type: ignore[assignment]
    with pytest.raises(http.client.HTTPException):
        request(port, "/readyz")
    service.health = HEALTH
    assert request(port, "/readyz")[0] == 200
    assert capfd.readouterr().err == ""


def test_a_taken_port_and_a_strange_address_are_told_at_once(port: int, service: Service) -> None:
    with pytest.raises(
        ConfigurationError, match=rf"probes='127\.0\.0\.1:{port}': cannot listen there: Address already"
    ):
        ProbeServer(f"127.0.0.1:{port}", service.ask)
    with pytest.raises(ConfigurationError, match="cannot listen there"):
        ProbeServer("no-such-host.invalid:0", service.ask)
    with pytest.raises(ConfigurationError, match=r"give an address and a port, as '127\.0\.0\.1:8080'"):
        ProbeServer("8080", service.ask)


def test_it_is_gone_with_its_block(service: Service) -> None:
    before = threading.active_count()
    with ProbeServer("127.0.0.1:0", service.ask) as server:
        assert request(server.port, "/livez")[0] == 200
    with pytest.raises(ConnectionRefusedError):
        request(server.port, "/livez")
    assert threading.active_count() <= before + 1  # the last answer's thread may be ending


def test_it_listens_on_ipv6(service: Service) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        with pytest.raises(ConfigurationError, match="cannot listen there"):
            ProbeServer("[::1]:0", service.ask)
        return
    with ProbeServer("[::1]:0", service.ask) as server:
        answered: Any = request(server.port, "/livez", host="::1")
        assert answered[0] == 200
