"""From the commit to the streams: every change reaches each of them in order, whatever NOTIFY loses."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sized
from contextlib import contextmanager
from functools import partial
from typing import Any, NoReturn
from uuid import UUID, uuid4

import aiohttp
import psycopg
import pytest
from tests.ears import BASE, Client, Ear, served
from tests.kit import Kit, until

from genctl.domain.model import Status
from genctl.edges import listener
from genctl.edges.db import connect_directly
from genctl.edges.db_errors import DatabaseGoneError
from genctl.services import bridge, feeds, stream


@pytest.fixture
async def client(kit: Kit) -> AsyncIterator[Client]:
    async with served(kit.settings) as client:
        yield client


async def fail(kit: Kit, user: str = "ann") -> UUID:
    session = await kit.enqueue("sensitive", user=user)
    await kit.work()
    return session.id


async def change(kit: Kit, status: Status = Status.FAILED, *, user: str = "ann", **facts: Any) -> UUID:
    """A row that has changed, as a settle or a redrive leaves it, without a NOTIFY."""
    session_id = uuid4()
    facts = {"model": "seedream-4-0-250828", "run": 1} | facts
    async with kit.db._pool.connection() as conn, conn.transaction():
        await conn.execute(
            "insert into credit_accounts (user_id, balance) values (%s, 1000) on conflict do nothing", [user]
        )
        await conn.execute(
            "with a as (update credit_accounts set event_seq = event_seq + 1 where user_id = %s returning *) "
            "insert into generation_sessions (id, user_id, model, prompt, status, run, version, "
            "completed_at) select %s, user_id, %s, 'x', %s, %s, event_seq, now() - interval '1 min' from a",
            [user, session_id, facts["model"], status, facts["run"]],
        )
    return session_id


async def notify(kit: Kit, payload: Any, channel: str = "session_completed") -> None:
    await kit.query(
        "select pg_notify(%s, %s)", channel, payload if isinstance(payload, str) else json.dumps(payload)
    )


async def kill_listeners(kit: Kit) -> None:
    await kit.query(
        "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() "
        "and application_name like 'genctl listener%%'"
    )


def sessions(ear: Ear) -> list[str]:
    return [event.data["sessionId"] for event in ear.told]


async def test_a_failure_reaches_every_stream_of_its_user_on_every_server(kit: Kit, client: Client) -> None:
    stranger_at = Client(client.url, "bob")
    async with served(kit.settings) as other, client.stream() as one, client.stream() as two:  # noqa: SIM117
        async with other.stream() as three, stranger_at.stream() as stranger:
            for ear in (one, two, three, stranger):
                await ear.ready()
            failed = await fail(kit)
            for ear in (one, two, three):
                await ear.until(lambda ear: ear.told)
                (event,) = ear.told
                assert (event.name, event.data["sessionId"], event.data["status"]) == (
                    "failed",
                    str(failed),
                    "failed",
                )
                assert event.data["error_details"]["refundedCredits"] == 4
                assert event.id == one.told[0].id
            await fail(kit, "bob")
            await stranger.until(lambda ear: ear.told)
            assert len(stranger.told) == 1
            assert str(failed) not in sessions(stranger)


async def test_a_success_is_done(kit: Kit, client: Client) -> None:
    async with client.stream() as ear:
        await ear.ready()
        await kit.enqueue("success")
        await kit.work()
        await ear.until(lambda ear: ear.named("done"))
        assert ear.told[0].data["result"]["images"][0]["url"].startswith("http")


async def test_the_first_bytes_come_at_once_and_tell_when_to_come_back(client: Client) -> None:
    async with client.stream() as ear:
        await ear.ready()
        assert ear.first.startswith(b"retry: ")
        assert ear.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert ear.headers["x-accel-buffering"] == "no"
        assert ear.headers["cache-control"] == "no-store, no-transform"


async def test_a_change_that_nobody_announced_comes_with_the_backstop_and_is_counted(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bridge, "BACKSTOP_S", (0.1, 0.2))
    async with served(kit.settings) as client, client.stream() as ear:
        await ear.ready()
        changed = await change(kit)
        await ear.until(lambda ear: ear.told)
        assert sessions(ear) == [str(changed)]
        assert b"genctl_sse_backstop_found_total 1.0" in client.api.metrics.text()


async def test_a_look_that_fails_is_made_again(kit: Kit, dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table that somebody has locked; no second NOTIFY comes, and no backstop."""
    monkeypatch.setattr(bridge, "BACKSTOP_S", (300.0, 300.0))
    async with served(kit.settings) as client, client.stream() as ear:
        await ear.ready()
        changed = await change(kit)
        with psycopg.connect(dsn) as person:
            person.execute("lock table generation_sessions in access exclusive mode")
            await notify(kit, {"user_id": "ann", "session_id": str(changed)})
            await until(some_trouble(client.api.bridge))
        await ear.until(lambda ear: ear.told)
        assert sessions(ear) == [str(changed)]


def some_trouble(bridge: bridge.Bridge) -> Callable[[], Awaitable[str | None]]:
    async def found() -> str | None:
        return bridge.trouble()

    return found


async def test_a_look_that_began_before_the_backstop_leaves_the_finding_to_it(
    kit: Kit, client: Client
) -> None:
    """A slow query, and the backstop in the middle of it: what the next one finds is the backstop's."""
    bridge = client.api.bridge
    answers: list[Callable[[], None]] = []

    async with client.stream() as ear:
        await ear.ready()
        with held_back(bridge, answers):
            bridge._want(["ann"])
            await until(some(answers))
            await change(kit)
            bridge._unannounced.add("ann")
            bridge._want(["ann"])
        answers[0]()
        await ear.until(lambda ear: ear.told)
        assert b"genctl_sse_backstop_found_total 1.0" in client.api.metrics.text()


def some(found: Sized) -> Callable[[], Awaitable[bool]]:
    async def it() -> bool:
        return bool(found)

    return it


@contextmanager
def held_back(bridge: Any, answers: list[Callable[[], None]]) -> Iterator[None]:
    """Answers to the bridge's questions come when they are called."""
    listener = bridge._listener
    ask = listener.ask

    def slow(params: Any, then: Callable[[Any], None]) -> None:
        ask(params, lambda answer: answers.append(partial(then, answer)))

    listener.ask = slow
    try:
        yield
    finally:
        listener.ask = ask


async def test_without_listen_the_backstop_is_enough(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bridge, "BACKSTOP_S", (0.1, 0.2))
    async with served(kit.settings, listen_url="off") as client, client.stream() as ear:
        await ear.ready()
        failed = await fail(kit)
        await ear.until(lambda ear: ear.told)
        assert sessions(ear) == [str(failed)]
        assert b"genctl_sse_backstop_found_total 0.0" in client.api.metrics.text()
        assert await client.ask("GET", "/readyz") == (200, {"ready": True})


async def test_without_listen_readiness_follows_the_database(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bridge, "SILENCE_S", 0.1)

    async def gone(*_: object, **__: object) -> NoReturn:
        raise DatabaseGoneError("DatabaseUnreachable", "away")

    async with served(kit.settings, listen_url="off") as client:
        await until(lambda: answered(client, 200))
        with monkeypatch.context() as away:
            away.setattr(client.api.bridge.db, "rows", gone)
            await until(lambda: answered(client, 503))
        await until(lambda: answered(client, 200))


async def test_a_payload_is_a_hint_and_the_row_decides(kit: Kit, client: Client) -> None:
    """Forged and foreign payloads move nothing, lead nowhere, and take the listener down in no case."""
    async with client.stream() as ear, Client(client.url, "mallory").stream() as mallory:
        await ear.ready()
        await mallory.ready()
        failed = await fail(kit)
        await ear.until(lambda ear: ear.told)
        for payload in (
            "", "{}", "no json", "[1]", '"x"', "null", "[" * 3000,
            {"user_id": "mallory", "session_id": str(failed), "status": "failed"},
            {"user_id": ["mallory"], "session_id": {}},
            {"user_id": "mallory", "session_id": "x\nevent: failed"},
            {"user_id": "\u202e", "session_id": str(uuid4())},
        ):  # fmt: skip
            await notify(kit, payload)
        await fail(kit, "mallory")
        await mallory.until(lambda ear: ear.told)
        assert str(failed) not in sessions(mallory)
        assert len(ear.told) == 1


async def test_commits_out_of_their_order_come_in_the_order_of_versions(
    kit: Kit, client: Client, dsn: str
) -> None:
    """A version is drawn under the account's lock: the second waits for the first's commit."""
    draw = (
        "with a as (update credit_accounts set event_seq = event_seq + 1 where user_id = 'ann' returning *) "
        "update generation_sessions s set version = a.event_seq, run = run + 1, status = 'queued' "
        "from a where s.id = %s"
    )
    slow, fast = await fail(kit), await fail(kit)
    async with client.stream() as ear:
        await ear.ready()
        async with await psycopg.AsyncConnection.connect(dsn) as one:
            await one.execute(draw, [slow])
            async with await psycopg.AsyncConnection.connect(dsn) as two:
                waits = asyncio.create_task(two.execute(draw, [fast]))
                done, _ = await asyncio.wait([waits], timeout=0.2)
                assert not done
                async with client.stream() as late:
                    await late.ready()
                    await one.commit()
                    await waits
                    await two.commit()
                    await notify(kit, {"user_id": "ann", "session_id": str(fast)}, "session_requeued")
                    for stream in (ear, late):
                        await stream.until(lambda ear: len(ear.told) == 2)
                        assert sessions(stream) == [str(slow), str(fast)]
                        assert [event.data["run"] for event in stream.told] == [2, 2]


async def test_a_client_that_comes_back_gets_what_has_changed_since(kit: Kit, client: Client) -> None:
    """The latest state of each session, ids rising, none twice; the header wins over the query."""
    known = (await client.get("/sessions"))["lastEventId"]
    missed = [await fail(kit) for _ in range(3)]
    async with client.stream(f"?lastEventId={known}") as ear:
        await ear.ready()
        assert sessions(ear) == [str(session) for session in missed]
        assert [event.name for event in ear.events] == ["failed", "failed", "failed", "ready"]
        assert len(set(ear.ids)) == 4
        first, newest = ear.told[0].id, ear.events[-1].id
    assert first and newest
    async with client.stream(f"?lastEventId={known}", **{"Last-Event-ID": first}) as ear:
        await ear.ready()
        assert sessions(ear) == [str(session) for session in missed[1:]]
    async with client.stream(f"?lastEventId={newest}") as ear:
        await ear.ready()
        assert [event.name for event in ear.events] == ["ready"]


async def test_without_a_cursor_a_stream_begins_now(kit: Kit, client: Client) -> None:
    await fail(kit)
    async with client.stream() as ear:
        await ear.ready()
        assert ear.told == []


@pytest.mark.parametrize("whose", ["rubbish", "bob", "ahead", "\u00e9", "x" * 10_000])
async def test_a_cursor_that_means_nothing_here_gets_a_reset(kit: Kit, client: Client, whose: str) -> None:
    """Of rubbish, another user's, or ahead of the database: never silence, and the stream goes on."""
    await fail(kit)
    cursors = {"bob": client.api.cursors.write("bob", 1), "ahead": client.api.cursors.write("ann", 2**60)}
    async with client.stream(**{"Last-Event-ID": cursors.get(whose, whose)}) as ear:
        await ear.ready()
        assert [event.name for event in ear.events] == ["reset", "ready"]
        assert ear.events[0].id is None
        failed = await fail(kit)
        await ear.until(lambda ear: ear.told)
        assert sessions(ear) == [str(failed)]


async def test_a_database_that_went_back_resets_open_streams(kit: Kit, client: Client) -> None:
    """A restored backup under a living server. The stream ends, since its ids would come again."""
    await fail(kit)
    async with client.stream() as ear:
        await ear.ready()
        await kit.query("update credit_accounts set event_seq = 0")
        await kit.query("update generation_sessions set version = null")
        await notify(kit, {"user_id": "ann", "session_id": str(uuid4())})
        await ear.until(lambda ear: ear.named("reset"))
        assert ear.task
        await ear.task
    async with client.stream(**{"Last-Event-ID": ear.ids[-1]}) as again:
        await again.ready()
        assert again.named("reset")
        changed = await change(kit)
        await notify(kit, {"user_id": "ann", "session_id": str(changed)})
        await again.until(lambda ear: ear.told)
        assert sessions(again) == [str(changed)]


async def test_rows_that_are_none_of_ours_are_passed_over(
    kit: Kit, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An adopted table may hold another status, or details of another shape; a page may hold nothing else."""
    monkeypatch.setattr(feeds, "PAGE", 2)
    odd = [await change(kit) for _ in range(3)]
    await kit.query("update generation_sessions set status = 'cancelled'")
    text = await change(kit)
    await kit.query("update generation_sessions set error_details = '\"text\"' where id = %s", text)
    cursor = client.api.cursors.write("ann", 0)
    async with client.stream(**{"Last-Event-ID": cursor}) as ear:
        await ear.ready()
        assert sessions(ear) == [str(text)]
        assert ear.told[0].data["error_details"] is None
        failed = await fail(kit)
        await ear.until(lambda ear: sessions(ear)[-1] == str(failed))
    listed = await client.get("/sessions?limit=2")
    assert [item["sessionId"] for item in listed["sessions"]] == [str(failed), str(text)]
    end = await client.get(f"/sessions?before={listed['next']}")
    assert (end["sessions"], end["next"]) == ([], None)
    assert (await client.ask("GET", f"{BASE}/sessions/{odd[0]}"))[0] == 404


async def test_readiness_comes_back_though_nobody_is_left_to_look_for(
    kit: Kit, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with client.stream() as ear:
        await ear.ready()
        with monkeypatch.context() as away:

            def gone(_: Any, then: Callable[[Any], None]) -> None:
                then(DatabaseGoneError("DatabaseUnreachable", "away"))

            away.setattr(client.api.bridge._listener, "ask", gone)
            await notify(kit, {"user_id": "ann", "session_id": str(uuid4())})
            await until(lambda: answered(client, 503))
    await until(lambda: answered(client, 200))


async def answered(client: Client, status: int) -> bool:
    return (await client.ask("GET", "/readyz"))[0] == status


async def test_a_long_history_is_replayed_whole_and_beside_what_happens(
    kit: Kit, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Far more than a page and than one write: nothing is lost, doubled or out of order."""
    monkeypatch.setattr(feeds, "PAGE", 7)
    monkeypatch.setattr(stream, "PIECE_BYTES", 500)
    start = (await client.get("/sessions"))["lastEventId"]
    expected = [str(await change(kit)) for _ in range(60)]
    async with client.stream() as live, client.stream(f"?lastEventId={start}") as ear:
        await live.ready()
        expected += [str(await fail(kit)) for _ in range(2)]
        await ear.until(lambda ear: len(ear.told) == 62)
        await ear.ready()
        assert [event.name for event in ear.events].index("ready") >= 60  # its id stands for all of them
        assert sessions(ear) == expected
        assert len(set(ear.ids)) == len(ear.ids)
        await live.until(lambda ear: len(ear.told) == 2)
        assert sessions(live) == expected[60:]


async def test_rows_of_other_tools_are_left_out(kit: Kit, client: Client) -> None:
    async with client.stream() as ear:
        await ear.ready()
        await change(kit, model="other-1")
        ours = await change(kit)
        await notify(kit, {"user_id": "ann", "session_id": str(ours)})
        await ear.until(lambda ear: ear.told)
        assert sessions(ear) == [str(ours)]
        cursor = ear.told[0].id
    async with client.stream(f"?lastEventId={cursor}") as ear:
        await ear.ready()
        assert ear.told == []


async def test_a_redriven_session_is_told_as_queued(kit: Kit, client: Client) -> None:
    async with client.stream() as ear:
        await ear.ready()
        changed = await change(kit, Status.PROCESSING, run=2)
        await notify(kit, {"user_id": "ann", "session_id": str(changed)}, "session_requeued")
        await ear.until(lambda ear: ear.told)
        (event,) = ear.told
        assert (event.name, event.data["status"], event.data["run"]) == ("queued", "processing", 2)
        assert "error_details" not in event.data


async def test_a_late_refund_is_told_again(kit: Kit, client: Client) -> None:
    async with client.stream() as ear:
        await ear.ready()
        failed = await fail(kit)
        await ear.until(lambda ear: ear.told)
        await kit.query(
            "with a as (update credit_accounts set event_seq = event_seq + 1 where user_id = 'ann' "
            "returning *) update generation_sessions s set version = a.event_seq from a where s.id = %s",
            failed,
        )
        await notify(kit, {"user_id": "ann", "session_id": str(failed)})
        await ear.until(lambda ear: len(ear.told) == 2)
        assert sessions(ear) == [str(failed)] * 2
        assert ear.told[0].id != ear.told[1].id


async def test_only_users_with_a_stream_here_are_looked_up(kit: Kit, client: Client) -> None:
    asked: list[str] = []
    async with client.stream() as ear:
        await ear.ready()
        line = client.api.bridge._listener
        ask = line.ask

        def watched(params: Any, then: Any) -> None:
            asked.extend(one["user_id"] for one in json.loads(params[0]))
            ask(params, then)

        line.ask = watched
        await fail(kit, "bob")
        before = len(asked)
        many = [await change(kit) for _ in range(20)]
        async with kit.db._pool.connection() as conn, conn.transaction():
            for one in many:
                payload = json.dumps({"user_id": "ann", "session_id": str(one)})
                await conn.execute("select pg_notify('session_completed', %s)", [payload])
        await ear.until(lambda ear: len(ear.told) == 20)
        assert len(asked) - before <= 3
        assert set(asked) == {"ann"}


async def test_readiness_is_red_while_the_listener_is_away_and_green_again_by_itself(
    kit: Kit, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ready(status: int) -> None:
        async def it() -> bool:
            assert (await client.ask("GET", "/healthz"))[0] == 200
            return (await client.ask("GET", "/readyz"))[0] == status

        await until(it)

    await ready(200)
    connect = connect_directly

    async def refused(dsn: str) -> Any:
        return await connect("postgresql://127.0.0.1:1/x")

    monkeypatch.setattr(listener, "connect_directly", refused)
    await kill_listeners(kit)
    await ready(503)
    monkeypatch.setattr(listener, "connect_directly", connect)
    await ready(200)
    monkeypatch.setattr(bridge, "STALE_S", -1.0)
    async with aiohttp.ClientSession() as http, http.get(f"{client.url}/readyz") as answer:
        assert (answer.status, answer.headers["Retry-After"]) == (503, "2")
