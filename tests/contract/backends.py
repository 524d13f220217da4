"""What the bus is tested against: fakeredis where it is faithful, and every real Redis at hand."""

from dataclasses import dataclass
from typing import Any

import fakeredis
import redis
import redis.asyncio

from tests.servers import RedisPool

FAKE = "fakeredis"


@dataclass(frozen=True)
class Backend:
    """One Redis.

    Attributes:
        name: `fakeredis`, or a release series.
        url: None where there is no server to connect to.
        block: seconds an idle read waits. fakeredis cannot unblock a read, so there it is short.
    """

    name: str
    url: str | None
    fake: fakeredis.FakeServer | None = None

    @property
    def block(self) -> float:
        return 0.05 if self.fake else 2.0

    def asyncio_client(self, **options: Any) -> redis.asyncio.Redis:
        if self.fake:
            return fakeredis.FakeAsyncRedis(server=self.fake, **options)
        assert self.url is not None
        return redis.asyncio.Redis.from_url(self.url, **options)

    def threads_client(self, **options: Any) -> redis.Redis:
        if self.fake:
            return fakeredis.FakeRedis(server=self.fake, **options)
        assert self.url is not None
        return redis.Redis.from_url(self.url, **options)


def backend_of(name: str, pool: RedisPool) -> Backend:
    if name == FAKE:
        return Backend(FAKE, None, fakeredis.FakeServer())
    return Backend(name, pool.of(name).url)
