"""taskiq on SQS, in one event loop."""

import asyncio
import logging
import os
from typing import Any

import aiohttp
from aiobotocore.session import get_session
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool
from python_peer import (
    CLAIM,
    DATABASE_URL,
    ENDPOINT,
    KEY,
    MARK,
    PROVIDER,
    SETTLE,
    asked,
    copy,
    given,
    settlement,
    told,
    waiting,
)
from taskiq import TaskiqEvents, TaskiqState
from taskiq_aio_sqs import SQSBroker

QUEUE = os.environ["QUEUE_URL"].rpartition("/")[2] + "-taskiq"

logging.basicConfig(level=logging.INFO)
logging.getLogger("taskiq").setLevel(logging.WARNING)
broker = SQSBroker(
    sqs_queue_name=QUEUE,
    endpoint_url=ENDPOINT,
    region_name="us-east-1",
    aws_access_key_id="benchmark",
    aws_secret_access_key="benchmark",
    max_number_of_messages=10,
    wait_time_seconds=1,
)


class Loop:
    """A job as a coroutine."""

    async def open(self) -> None:
        """Make its connections."""
        settings = {"row_factory": dict_row, "autocommit": True, "prepare_threshold": 0}
        self.pool: AsyncConnectionPool[Any] = AsyncConnectionPool(
            DATABASE_URL, min_size=1, max_size=16, open=False, kwargs=settings
        )
        await self.pool.open()
        self.http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=128))
        made = get_session().create_client("sqs", region_name="us-east-1", endpoint_url=ENDPOINT)
        self.sqs = await made.__aenter__()

    async def _ask(self, text: str, facts: dict[str, object]) -> dict[str, Any] | None:
        async with self.pool.connection() as conn:
            cursor = await conn.execute(text.encode(), facts)
            return await cursor.fetchone() if cursor.description else None

    async def job(self, session_id: str, run: int) -> None:
        """Carry it to its end."""
        if not (session := await self._ask(CLAIM, given(session_id, run))):
            return
        async with self.http.post(PROVIDER, data=asked(session), headers=KEY) as answer:
            code, facts = settlement(session, answer.status, await answer.read())
        await self._ask(SETTLE, facts)
        told(session, code)
        sent = await self.sqs.send_message(**copy(session, code))
        await self._ask(MARK, given([session["id"]], [sent["MessageId"]]))


loop = Loop()


@broker.on_event(TaskiqEvents.WORKER_STARTUP)
async def opened(_: TaskiqState) -> None:
    await loop.open()


@broker.task(task_name="job")
async def job(session_id: str, run: int) -> None:
    await loop.job(session_id, run)


async def filled() -> None:
    """Queue the sessions that wait."""
    ids = waiting(QUEUE)
    await broker.startup()
    await asyncio.gather(*(job.kiq(one, 1) for one in ids))
    await broker.shutdown()


if __name__ == "__main__":
    asyncio.run(filled())
