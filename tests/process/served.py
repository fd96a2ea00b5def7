"""API processes of a place, and a database of its own that a test may stop."""

import dataclasses
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from tests.ears import Client
from tests.kit import quick_logins, until
from tests.process.place import Place, Running

from genctl.base.tokens import Tokens
from genctl.edges import migrate
from genctl.ops.stack.postgres import Postgres

SECRET = "x" * 32  # of place's stack file


@dataclasses.dataclass
class Served:
    """An API process, and a client of it."""

    running: Running
    client: Client

    async def ready(self, status: int = 200) -> None:
        async def it() -> bool:
            assert self.running.process.poll() is None, self.running.log.read_text()
            return (await self.client.ask("GET", "/readyz"))[0] == status

        await until(it)


@contextmanager
def serve(place: Place, port: int = 0, user: str = "ann", **env: str) -> Iterator[Served]:
    with place.start("serve", "--port", str(port), **env) as running:
        client = Client(running.until("api.started")["url"], user)
        client.token = Tokens(SECRET).issue(user)
        yield Served(running, client)


@asynccontextmanager
async def own_postgres(folder: Path) -> AsyncIterator[Postgres]:
    """A server of this test's own, which it may stop."""
    server = Postgres(folder / "pg", settings={"fsync": "off"})
    await server.start()
    quick_logins(server.dsn)
    try:
        await migrate.up(server.dsn)
        yield server
    finally:
        await server.stop()


def move(place: Place, dsn: str) -> Place:
    """The same place, another database."""
    state = place.folder / "stack.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"database_url": dsn}))
    return dataclasses.replace(place, dsn=dsn)
