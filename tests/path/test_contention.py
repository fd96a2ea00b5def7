"""Many connections at the same few balances, and one that is locked: nothing deadlocks, nobody else waits, all
adds up, and no change is missed."""

import asyncio
import os
import random
from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime
from uuid import UUID, uuid4

import msgspec
import psycopg
from tests.kit import Kit
from tests.path.test_interleavings import AGES, Mailbox

from genctl import credits
from genctl.answers import RELEASE_REFUSED
from genctl.base.settings import Settings
from genctl.domain.classify import ours
from genctl.domain.deadletters import Choice, Terms
from genctl.domain.model import Image, Session, Status, Success
from genctl.edges.db import Database, as_json
from genctl.edges.db_errors import LockedError
from genctl.edges.sqs import Message
from genctl.enqueue import enqueue
from genctl.pipeline import Pipeline
from genctl.redrive import redrive
from genctl.run import Mark
from genctl.sweep import sweep
from genctl.tools.seedream4 import TOOL

USERS = ("ann", "bob", "cyd", "dan")
LANES = 12
ROUNDS = int(os.environ.get("GENCTL_TEST_CONTENTION", "5"))  # of each lane
LOCKED = "eve"  # whose account somebody holds all the time
OPENING = 10_000
IMAGE = Success((Image("https://images.example/1"),))


class Follower:
    """Reads the changes of all users by version, as the bridge does, while they are made."""

    def __init__(self, db: Database) -> None:
        self.db = db
        self.after = dict.fromkeys((*USERS, LOCKED), 0)
        self.seen: dict[UUID, int | None] = {}

    async def look(self) -> None:
        asked = [{"user_id": user, "after": after} for user, after in self.after.items()]
        for row in await self.db.rows("changes", asked=as_json(asked), limit=1000):
            if row["id"]:
                self.after[row["user_id"]] = row["version"]
                self.seen[row["id"]] = row["version"]

    async def run(self) -> None:
        while True:
            await self.look()


async def lane(kit: Kit, at: Pipeline, granted: Counter[str], chance: random.Random) -> None:
    """Jobs of several users in one transaction, in no order; then every kind of movement at once."""
    for _ in range(ROUNDS):
        users = chance.sample(USERS, 3)
        made = await enqueue(
            [kit.order(user=user) for user in users], db=at.db, queue=None, tool=TOOL.name, opening=OPENING
        )
        claimed = [await at.claim(session.id, 1) for session in made.sessions]
        good, bad, stuck = (session for session in claimed if session)
        chance.shuffle(users)
        granted.update(dict.fromkeys(users, 3))
        crashed = ours("WorkerCrashed")
        await asyncio.gather(
            at.settle(good, IMAGE, calls=1),
            at.settle(bad, crashed, calls=1),
            at.end(
                stuck,
                msgspec.structs.replace(
                    at._ending(stuck, crashed, 1), release=False, refund_error=RELEASE_REFUSED
                ),
            ),
            *(credits.grant(at.db, users, 1, "a test") for _ in range(3)),
        )
        assert stuck.reservation_id
        copies = [copy_of(kit, session) for session in chance.sample([bad, stuck], 2)]
        await asyncio.gather(
            marked(at, bad),
            marked(at, stuck),
            sweep(at, AGES),
            credits.release_reservation(at.db, stuck.reservation_id),
            redrive(copies, at, Choice(), Terms(), most=2),
            redrive(copies, at, Choice(), Terms(), most=2),
        )


async def marked(at: Pipeline, session: Session) -> None:
    with suppress(LockedError):  # the copy's message comes again
        await at.runs.mark(Mark(session.id, session.run, "a copy"))


def copy_of(kit: Kit, session: Session) -> Message:
    name = str(uuid4())
    return Message(name, name, kit.body(session), {}, 1, datetime.now(UTC))


async def test_all_movements_at_once_add_up_and_nothing_deadlocks(kit: Kit, settings: Settings) -> None:
    granted: Counter[str] = Counter()
    await kit.query("""
        do $$ begin execute format('alter database %%I set deadlock_timeout = 20', current_database()); end $$""")
    async with Database.open(settings.dsn(), size=LANES * 2) as db:
        at = Pipeline(db=db, queue=Mailbox("jobs"), dlq=Mailbox("jobs-dlq"), limits=kit.at.limits, tool=TOOL)
        follower = Follower(kit.db)
        following = asyncio.create_task(follower.run())
        late = [await at.claim((await kit.enqueue(user=LOCKED)).id, 1) for _ in range(LANES)]
        # nobody renews here, and the sweeps must not take what takes long
        await kit.query("update generation_sessions set lease_until = now() + interval '1 h'")
        with psycopg.connect(settings.dsn()) as person:
            person.execute("select from credit_accounts where user_id = %s for update", [LOCKED])
            hers = [asyncio.create_task(at.settle(one, IMAGE, calls=1)) for one in late if one]
            await asyncio.gather(*(lane(kit, at, granted, random.Random(n)) for n in range(LANES)))
            assert not any(task.done() for task in hers)
        assert {row.status for row in await asyncio.gather(*hers)} == {Status.COMPLETED}
        following.cancel()
        await asyncio.wait([following])
        assert following.cancelled()

    await follower.look()
    rows = await kit.query("select id, user_id, version from generation_sessions where version is not null")
    assert follower.seen == {row["id"]: row["version"] for row in rows}
    versions = Counter((row["user_id"], row["version"]) for row in rows)
    assert max(versions.values()) == 1
    for user in USERS:
        found = await credits.account(kit.db, user)
        captured = await kit.query(
            """select coalesce(sum(amount), 0)::int as credits from credit_reservations
            where user_id = %s and status = 'captured'""",
            user,
        )
        assert found["balance"] + found["held"] + captured[0]["credits"] == OPENING + granted[user]
    assert await kit.violations() == []
    # what backends have counted is there when they have ended
    with psycopg.connect(settings.dsn()) as conn:
        (deadlocks,) = conn.execute(
            "select deadlocks from pg_stat_database where datname = current_database()"
        ).fetchone() or (None,)
    assert deadlocks == 0
