"""Secrets: found by name and by form, and never shown."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantum_bus.jsonlog import (
    CaptureSink,
    Logger,
    is_secret_name,
    mask_exception,
    mask_text,
    masking,
    setup_json_logging,
)
from quantum_bus.jsonlog.masking import HINT
from quantum_bus.jsonlog.plain import LONGEST_SEARCHED

from .conftest import Output

S = "hunter2-Zq"


@pytest.mark.parametrize(
    "name",
    [
        "password", "PASSWORD", "db_password", "userPassword", "passwd", "pwd", "secret", "client_secret", "token",
        "access_token", "accessToken", "csrftoken", "api_key", "apikey", "apiKey", "X-Api-Key", "API-KEY",
        "authorization", "Proxy-Authorization", "cookie", "Set-Cookie", "private_key", "privateKey",
        "credential", "credentials",
        "aws_secret_access_key", "dsn", "sentry_dsn", "SENTRY_DSN", "sentryDsn", "passphrase", "jwt", "auth",
    ],
)  # fmt: skip
def test_a_name_that_says_secret_is_one(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "order_id", "symbol", "author", "authority", "authorized", "max_tokens", "total_tokens", "prompt_tokens",
        "tokens_used", "token_count", "key", "compass", "bypass", "keyboard", "friendsname", "monkey", "session", "",
    ],
)  # fmt: skip
def test_an_innocent_name_is_none(name: str) -> None:
    assert not is_secret_name(name)


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        (f"redis://:{S}@cache:6379/0", "redis://:***@cache:6379/0"),
        (f"to redis://app:{S}@cache:6379/0 now", "to redis://app:***@cache:6379/0 now"),
        (f"rediss://app:{S}@h", "rediss://app:***@h"),
        (f"redis://app:p@ss/{S}?@cache:6379/0", "redis://app:***@cache:6379/0"),
        (f"postgresql+asyncpg://u:{S}@db/x", "postgresql+asyncpg://u:***@db/x"),
        (f"https://u:{S}@h/p?a=b", "https://u:***@h/p?a=b"),
        (f"https://{S}{S}@sentry.io/1", "https://***@sentry.io/1"),
        (f"a redis://a:{S}@h1 b redis://b:{S}@h2 c", "a redis://a:***@h1 b redis://b:***@h2 c"),
        (f"redis://h1:6379/0,redis://b:{S}@h2", "redis://h1:6379/0,redis://b:***@h2"),
        (f"password={S}", "password=***"),
        (f"password={S}&user=x", "password=***&user=x"),
        (f"https://h/p?token={S}&x=1", "https://h/p?token=***&x=1"),
        (f"Password: {S}", "Password: ***"),
        (f"api_key = '{S} with spaces' x", "api_key = '***' x"),
        (f'{{"password": "{S}", "user": "x"}}', '{"password": "***", "user": "x"}'),
        (f"{{'token': '{S}'}}", "{'token': '***'}"),
        (f"Authorization: Bearer {S}", "Authorization: ***"),
        (f"Authorization: Basic {S}", "Authorization: ***"),
        (f"sent Bearer {S}", "sent Bearer ***"),
        (f"AWS_SECRET_ACCESS_KEY={S}", "AWS_SECRET_ACCESS_KEY=***"),
        (f"-----BEGIN RSA PRIVATE KEY-----\n{S}\n-----END RSA PRIVATE KEY-----", None),
        (f"-----BEGIN PRIVATE KEY-----\n{S}\ncut off", None),
    ],
)
def test_a_secret_in_a_text_is_masked_and_the_rest_stays(text: str, masked: str | None) -> None:
    assert S not in mask_text(text)
    if masked is not None:
        assert mask_text(text) == masked


@pytest.mark.parametrize(
    "text",
    [
        "", "plain", "redis://cache:6379/0", "https://example.org/a?b=c", "me@example.org", "max_tokens=4096",
        "Intent received: BTCUSDT", "a: b", "10:15:23", "https://h:80/@user", "no secrets here", "x=1, y=2",
    ],
)  # fmt: skip
def test_a_text_without_secrets_stays_as_it_is(text: str) -> None:
    assert mask_text(text) == text


@pytest.mark.parametrize(
    "text",
    [
        '{"password":"%s"}',
        "password:%s",
        "{'token':'%s'}",
        "a\tpassword:%s",
        "[password:%s]",
        "https:password:%s",
        "Bearer\t%s",
    ],
)
def test_a_pair_in_a_fields_text_is_masked_in_every_record(text: str, output: Output) -> None:
    # fails without: counting the colons. The second record of its kind, and all behind it, showed the secret
    for _ in range(3):
        output.log.info("m", body=text % S, at="10:15")
    assert len(output.lines) == 3
    assert S not in "".join(output.lines)


@given(
    st.lists(
        st.sampled_from(
            ["://", "redis", ":", "@", "=", "password", "token", " ", "bearer ", "x", "'", '"', "/", "\\",
             "-----BEGIN ", "PRIVATE KEY-----", "longlonglonglonglong", "https", "\n", "&", "api_key"]
        ),
        max_size=12,
    ).map("".join)
)  # fmt: skip
def test_the_quick_look_misses_nothing_that_masking_would_change(text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masking, "HINT", re.compile(""))  # found everywhere
        masked = mask_text(text)
    if masked != text:
        assert HINT.search(text.lower())


@pytest.mark.timeout(20, method="signal")  # a regular expression at work is stopped by a signal, not by a thread
@pytest.mark.parametrize(
    "part",
    [
        "a", ":", "://", "://a:", "://a:b", "redis://a:b", "password", "password=", "password='", "token token:", "@",
        "a@", "redis://", "bearer ", "-----BEGIN PRIVATE KEY-----", "-----BEGIN ", "password \\\"", "https://aaaaaaaaaaaaaaaa",
        "=", " =", "api_key   ", "password: bearer ", "x'", "tokentokentoken", "redis+a",
    ],
)  # fmt: skip
def test_masking_takes_time_in_proportion_to_the_text(part: str) -> None:
    text = part * (800_000 // len(part))
    mask_text(text)
    HINT.search(text)


@pytest.mark.parametrize(
    "fields",
    [
        {"password": S},
        {"API_KEY": S},
        {"config": {"db": {"password": S}}},
        {"items": [{"token": S}, ({"secret": [S]},)]},
        {"url": f"redis://u:{S}@h/0"},
        {"nested": {"url": f"redis://u:{S}@h/0"}},
        {"items": [f"redis://u:{S}@h/0"]},
        {"note": f"password={S}"},
        {"note": f"Bearer {S}"},
        {"note": f"token: {S}"},
        {"raw": f"redis://u:{S}@h/0".encode()},
        {"set": {f"password={S}"}},
        {"error": ValueError(f"redis://u:{S}@h/0")},
        {"extra": {"password": S}},
        {f"redis://u:{S}@h/0": 1},
        {"event": f"password={S}"},
        {"correlation_id": f"password={S}"},
        {"stack_info": f"password={S}"},
        {"exc_info": ValueError(f"cannot reach redis://u:{S}@h/0")},
    ],
    ids=str,
)
@pytest.mark.parametrize("text_format", [False, True])
def test_no_secret_reaches_a_line(fields: dict[str, Any], text_format: bool) -> None:
    stream = io.StringIO()
    log = setup_json_logging("svc", stream=stream, format="text" if text_format else "json", announce=False)
    for _ in range(2):
        log.info("x", **fields)
        log.bind(**{name: value for name, value in fields.items() if name not in ("extra", "exc_info")}).info("y")
    written = stream.getvalue()
    assert len(written.splitlines()) >= 4
    assert S not in written


@pytest.mark.parametrize("msg", [f"redis://u:{S}@h/0", f"password={S}", f"password: {S}", f"password:{S}"])
def test_no_secret_reaches_a_message(msg: str, log: Logger, logs: CaptureSink) -> None:
    log.info(msg)
    log.info("%s", msg)
    log.info("%d %s", msg)  # noqa: PLE1206
    log.info(ValueError(msg))
    assert S not in "".join(logs.lines)


def test_a_cause_and_its_stack_are_masked_too(log: Logger, logs: CaptureSink) -> None:
    try:
        try:
            raise ConnectionError(f"redis://u:{S}@h/0")
        except ConnectionError as error:
            raise RuntimeError("no redis") from error
    except RuntimeError:
        log.exception("failed")
    [record] = logs.records
    assert "redis://u:***@h/0" in record["stack"]
    assert S not in logs.lines[0]


def test_a_secret_that_is_cut_in_the_middle_is_not_shown(log: Logger, logs: CaptureSink) -> None:
    for before in range(LONGEST_SEARCHED - 40, LONGEST_SEARCHED + 10, 5):
        log.info("x", text="a " * (before // 2) + f"redis://u:{S}@h/0")
        assert S[:3] not in logs.lines[-1][-200_000:]
        logs.clear()


def test_none_under_a_secret_name_stays_null(log: Logger, logs: CaptureSink) -> None:
    log.info("x", password=None)
    assert logs.records[0]["password"] is None


def test_an_exception_is_masked_for_other_rooms() -> None:
    error = mask_exception(ValueError(f"redis://u:{S}@h/0"))
    assert (error.type, error.message) == ("ValueError", "redis://u:***@h/0")
    assert S not in error.stack
    assert mask_exception(OSError(), stack=False).stack == ""


def test_an_exception_that_cannot_be_shown_is_named() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no str")

        __repr__ = __str__

    assert mask_exception(Mute()).message.startswith("<unprintable ")
