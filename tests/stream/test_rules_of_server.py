"""The API keeps the rules of the stream: each story happens to a process of it and to its database."""

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from uuid import uuid4

import pytest
from tests.ears import Client, Ear, Event
from tests.process.place import Place, Places
from tests.process.served import Served, serve
from tests.stream.cases import BACK, STATUS, Case, Step, of
from tests.stream.shop import Shop

from genctl.base.tokens import Tokens
from genctl.domain.model import Session, Status

SECRET = "x" * 32  # of place's stack file


@pytest.fixture(scope="module")
def place(places: Places) -> Iterator[Place]:
    with places() as place:
        yield place


@pytest.fixture(scope="module")
def api(place: Place) -> Iterator[Served]:
    with serve(place) as api:
        api.running.until("sse.listen.connected")
        yield api


@pytest.fixture
async def shop(place: Place) -> AsyncIterator[Shop]:
    async with Shop.open(place.dsn) as shop:
        yield shop


class Teller:
    """Has the story happen to a user of its own, and compares what the API writes word for word."""

    def __init__(self, url: str, shop: Shop) -> None:
        self.shop = shop
        self.user, self.other = (f"{who} {uuid4().hex}" for who in ("ann", "bob"))
        self.client, self.others = (as_user(url, user) for user in (self.user, self.other))
        self.sessions: dict[str, Session] = {}
        self.known: dict[str, str] = {}
        self.last_id: str | None = None
        self.ear: Ear | None = None
        self.heard = 0
        self._open = AsyncExitStack()

    async def tell(self, step: Step) -> None:
        match step.who:
            case "database" if step.is_elsewhere:
                await self.shop.fail(self.other)
            case "database":
                await self.happen(step)
            case "client":
                await self.connect(step.what.partition(" with ")[2])
            case "server":
                await self.hear(step)
            case "network":
                await self.leave()

    async def happen(self, step: Step) -> None:
        if step.what == BACK:
            await self.shop.go_back(self.user)
            self.sessions.clear()
        elif step.verb == "redriven":
            self.sessions[step.session] = await self.shop.redrive(self.sessions[step.session])
        else:
            waits = self.sessions.get(step.session) or (await self.shop.order(self.user))[0]
            ends = step.verb in (Status.FAILED, Status.COMPLETED)
            self.sessions[step.session] = await self.shop.end(waits, Status(step.verb)) if ends else waits

    async def connect(self, foreign: str) -> None:
        await self.leave()
        if foreign == "somebody else's id":
            await self.shop.fail(self.other)
            async with self.others.stream() as ear:
                await ear.ready()
                self.last_id = ear.ids[-1]
        elif foreign:
            self.last_id = foreign
        brings = {"Last-Event-ID": self.last_id} if self.last_id else {}
        self.ear = await self._open.enter_async_context(self.client.stream(**brings))
        self.heard = 0

    async def leave(self) -> None:
        await self._open.aclose()

    async def hear(self, step: Step) -> None:
        """The next event is the step's, and carries an id that none before it on this stream has."""
        assert self.ear
        await self.ear.until(lambda ear: len(self.words(ear)) > self.heard)
        event = self.words(self.ear)[self.heard]
        self.heard += 1
        assert event.name == step.verb, self.ear.events
        if step.verb in STATUS:
            session = self.sessions[step.session]
            told = {key: event.data[key] for key in ("sessionId", "status", "run")}
            assert told == {"sessionId": str(session.id), "status": STATUS[step.verb], "run": session.run}
            self.known[step.session] = f"{told['status']} {told['run']}"
        if step.verb == "reset":
            self.known = {name: f"{session.status} {session.run}" for name, session in self.sessions.items()}
        assert bool(event.id) == (step.verb in (*STATUS, "ready"))
        assert len(self.ear.ids) == len(set(self.ear.ids))
        self.last_id = event.id or self.last_id

    @staticmethod
    def words(ear: Ear) -> list[Event]:
        return [event for event in ear.events if event.name != "heartbeat"]


def as_user(url: str, user: str) -> Client:
    client = Client(url, user)
    client.token = Tokens(SECRET).issue(user)
    return client


@of("server")
async def test_the_server_keeps_the_rule(case: Case, api: Served, shop: Shop) -> None:
    teller = Teller(api.client.url, shop)
    try:
        for step in case.steps:
            await teller.tell(step)
        assert teller.known == case.knows
        for who, what in (("database", "last failed"), ("server", "failed last")):
            await teller.tell(Step(who, what))  # nothing else came before it
    finally:
        await teller.leave()
