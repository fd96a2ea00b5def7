"""Receive job messages and carry each through the pipeline, until a signal: the worker."""

import asyncio
import gc
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, nullcontext, suppress

import msgspec
import structlog

from genctl import gate
from genctl.base import children
from genctl.base.settings import Settings
from genctl.domain.model import GenctlError, LeaseLostError, Status
from genctl.edges import migrate
from genctl.edges.sqs_shapes import BATCH, Message
from genctl.enqueue import send_jobs
from genctl.pipeline import Pipeline, carry, carry_unasked
from genctl.run import LEASE_S
from genctl.services.capacity import open_enough, usual_jobs
from genctl.services.ending import TOLD, Ending, cancel
from genctl.services.gatekeeper import LOOK_S, Gatekeeper
from genctl.services.hands import Hands, Taken
from genctl.services.liveness import Liveness
from genctl.services.metrics import WorkerMetrics
from genctl.services.presence import Presence
from genctl.services.processes import Forked
from genctl.services.turns import Turns
from genctl.sweep import check_timeout, sweep_every
from genctl.tools.found import Tools

WAIT_S = 2  # of a long poll; a stop awaits it, as SQS would hide what a cancelled one finds
DRAIN_WAIT_S = 1
TROUBLE_PAUSE_S = 2.0
YOUNG = 50_000  # objects between two searches for garbage cycles, as a job leaves few
COMPANY_S = 0.1  # a trouble waits so long, so that we log it once for all jobs that meet it
CLOSE_S = 0.5  # how long connections may take to close once nothing is left to do
SHARES = 10  # a user who holds a tenth of the hands lets users with less go first
MORE = 2  # receives at once beside the first, while the answers are full: a backlog waits
POOL_SIZE = 16
MOST_WAITING = 256  # answers that wait for their rows, about 10 KB each, before we stop receiving
TELL_WAITING_S = 10.0

log = structlog.stdlib.get_logger()


class Until(msgspec.Struct, frozen=True, kw_only=True):
    """Say when a worker ends by itself; without any of these it runs until a signal."""

    once: bool = False  # after one receive
    max_jobs: int | None = None  # after so many messages
    drain: bool = False  # when the queue is empty


class Worker:
    """Run a receiver, a keeper of leases and visibility, and a task for each message, in one process."""

    def __init__(
        self,
        pipeline: Pipeline,
        settings: Settings,
        *,
        metrics: WorkerMetrics,
        concurrency: int,
        grace_s: float,
        until: Until,
        is_forked: bool = False,
    ) -> None:
        """Take the parts; `metrics` are the pipeline's meters."""
        self.pipeline = pipeline
        # a job makes one call at a time, so the limit of calls is one of jobs
        self.concurrency = min(concurrency, settings.max_in_flight or concurrency)
        self.until = until
        self._changed = asyncio.Event()  # a job or a receive has ended, or a signal came
        self._received = 0
        self._asked = 0  # messages that receives under way may bring
        self._full = asyncio.Event()  # the last answer was full, so there are more messages
        self._over = False  # the first receiver has ended
        self._troubles: dict[tuple[str, str], list[str]] = {}  # the jobs that have met each, not yet logged
        self.liveness = Liveness()
        self.metrics = metrics
        self.gatekeeper = Gatekeeper(
            pipeline.db,
            pipeline.tool.name,
            failures=settings.breaker_failures if settings.breaker else None,
            call_s=settings.provider_timeout_s,
            send_back=self._send_back,
            default_model=pipeline.tool.default_model,
        )
        share = max(1, self.concurrency // SHARES)
        self.hands = Hands(pipeline, share=self.concurrency if self._counts else share)
        self.ending = Ending(
            pipeline, self.hands, grace_s=grace_s, is_forked=is_forked, changed=self._changed.set
        )
        who = {"worker": pipeline.worker, "tool": pipeline.tool.name}
        self._turns = Turns(
            pipeline.db,
            **who,
            gatekeeper=self.gatekeeper,
            unsent=lambda: self.hands.unsent,
            changed=self._changed.set,
        )
        self.presence = Presence(
            pipeline.db,
            **who,
            settings=settings,
            concurrency=self.concurrency,
            turns=self._turns,
            gatekeeper=self.gatekeeper,
            liveness=self.liveness,
            hands=self.hands,
        )
        self.metrics.follow(
            jobs=lambda: len(self.hands.jobs),
            calls=lambda: sum(hold.calling and hold.sent for hold in pipeline.runs),
            answers=lambda: len(pipeline.answers.waiting),
            silent_s=lambda: self.liveness.silent_s,
            gate=lambda: self.gatekeeper.gate.stands,
        )

    async def run(self) -> None:
        """Work until `until` or a signal; then give the calls under way `grace_s` seconds.

        A second signal lets them go at once and ends the process, even if something hangs. A cancellation
        lets them go, too, and waits for their last writes.
        """
        try:
            await self.presence.begin()
            async with asyncio.TaskGroup() as side:
                receiver = side.create_task(self._receive())
                keeping = (
                    self.hands.keep_leases(),
                    self.hands.keep_hidden(),
                    self.gatekeeper.watch(),
                    self.presence.keep(),
                    self._tell_waiting(),
                )
                keepers = [side.create_task(keep) for keep in keeping]
                self.ending.heed_signals(receiver)
                queues = {"queue": self.pipeline.queue.name, "dlq": self.pipeline.dlq.name}
                who = {"worker": self.pipeline.worker, "tool": self.pipeline.tool.name}
                log.info("worker.started", **who, **queues)
                await asyncio.wait([receiver])
                self.liveness.rest("nothing more is received")
                await self.hands.put_back()
                while self.hands.jobs:
                    await self._change()
                for keeper in keepers:
                    keeper.cancel()
        finally:
            self.ending.let_go()
            await self.hands.put_back()
            while self.hands.jobs:
                await self._change()
            await self.presence.leave()
            await self.gatekeeper.leave()
            self.ending.over()
        log.info("worker.stopped", received=self._received)

    async def _tell_waiting(self) -> None:
        """Log how many answers wait for their rows, and why, while any do."""
        while True:
            await asyncio.sleep(TELL_WAITING_S)
            if waiting := self.pipeline.answers.waiting:
                sessions = [held.session.id for held in waiting[:TOLD]]
                why = Counter(held.why for held in waiting).most_common(1)[0][0]
                log.warning("worker.answers.waiting", answers=len(waiting), sessions=sessions, why=why)

    @property
    def _counts(self) -> bool:
        """Tell whether it takes so many messages and ends, so that it takes just what these name."""
        return self.until.once or self.until.max_jobs is not None

    async def _receive(self) -> None:
        """Receive until a signal, or until `until` says so."""
        async with asyncio.TaskGroup() as more:
            for _ in range(0 if self._counts else MORE):
                more.create_task(self._ask_for_more())
            await self._ask()
            self._over = True
            self._full.set()

    async def _ask(self) -> None:
        wait_s = DRAIN_WAIT_S if self.until.drain else WAIT_S
        while not self.ending.is_told and (left := self._jobs_left()) > 0:
            if self._free() > 0 and self.gatekeeper.is_open:
                self.liveness.ask()
            try:
                wanted = await self._room(min(BATCH, left))
                if not wanted:
                    self.liveness.rest(self._why_no_room())
                    if not self.gatekeeper.is_open or self._turns.has_none:
                        await self.hands.put_back()
                    await self._change(LOOK_S)  # an answer that begins to wait for its row makes room, too
                    continue
                found = await self._take(wanted, wait_s)
                drained = self.until.drain and found == 0 and await self._is_drained()
            except GenctlError as error:
                self.liveness.ran_into(error)
                await self._change(TROUBLE_PAUSE_S)
                continue
            if found is not None and (self.until.once or drained):
                return

    async def _ask_for_more(self) -> None:
        """Receive beside the first receiver, while all receives come back full."""
        while not self._over:
            await self._full.wait()
            if self.ending.is_told or self._over:
                return
            try:
                wanted = min(BATCH, self._free())
                if wanted == BATCH and await self._room(BATCH) == BATCH and self.gatekeeper.is_open:
                    await self._take(BATCH, DRAIN_WAIT_S)
                else:
                    self._full.clear()
            except GenctlError:  # the first receiver will meet it, and log it
                self._full.clear()

    async def _take(self, wanted: int, wait_s: int) -> int | None:
        """Receive at most so many and start jobs. Return how many; None if we gave them back, or asked not.

        What we have set aside comes first, and then we receive nothing.
        """
        if self.ending.is_told:
            return None
        self._asked += wanted
        try:
            if self.hands.aside:
                await self._begin([], wanted)
                return None
            messages = await self.pipeline.queue.receive(wanted, wait_s=wait_s, visibility_s=LEASE_S)
            self.liveness.answered()
            if len(messages) < BATCH:
                self._full.clear()
            elif not self._over:
                self._full.set()
            return len(messages) if not messages or await self._begin(messages, len(messages)) else None
        finally:  # only now, as another receiver would ask for as many before they are jobs
            self._asked -= wanted
            self._changed.set()

    async def _begin(self, messages: Sequence[Message], hands: int) -> bool:
        """Deal so many hands and start their jobs; if we may not, give the messages back and return False."""
        named, others = await self.hands.look(messages, hands)
        if not await self._may_begin(hands):
            await self.hands.show(named)
            return False
        for taken in self.hands.deal(named, others, hands):
            self._start(taken)
        return True

    async def _may_begin(self, many: int) -> bool:
        """Tell whether so many received messages may become jobs; False if we cannot read the gate."""
        with suppress(GenctlError):
            return not self.ending.is_told and await self.gatekeeper.allowance(BATCH) >= many
        return False

    def _free(self) -> int:
        """Count the jobs that may still begin. A job whose answer waits for its row does not count."""
        waiting = len(self.pipeline.answers.waiting)
        if waiting >= MOST_WAITING:
            return 0
        return self.concurrency + waiting - len(self.hands.jobs) - self._asked

    def _jobs_left(self) -> int:
        return BATCH if self.until.max_jobs is None else self.until.max_jobs - self._received

    async def _room(self, most: int) -> int:
        """Count the messages, at most so many, that we may receive now."""
        if self._free() <= 0:
            return 0
        allowed = min(await self.gatekeeper.allowance(most), self._free())  # others may have asked meanwhile
        return self._turns.room(self.hands.unsent + self._asked, allowed)

    def _why_no_room(self) -> str:
        waiting = self.pipeline.answers.waiting
        if len(waiting) >= MOST_WAITING:
            return f"{len(waiting)} answers wait for their rows: {waiting[0].why}"
        if self._free() > 0 and not self.gatekeeper.is_open:
            return "the gate is closed"
        if self._free() > 0 and self._turns.keeps_back:
            return self._turns.why()[1]
        return "as many jobs as can begin soon are in its hands"

    def _send_back(self) -> None:
        """Cancel the jobs whose request is not sent, as the gate is closed; they use no attempt."""
        cancel(task for task in self.pipeline.unsent() if task is not self.gatekeeper.probe)

    async def _is_drained(self) -> bool:
        """Tell whether no message waits, is hidden or is a job of ours; ask SQS last, as it counts roughly"""
        if self.hands.jobs:
            await self._change()
            return False
        return not any(await self.pipeline.queue.depth())

    def _start(self, taken: Taken) -> None:
        if taken.message:
            self._received += 1
            self.metrics.received.inc()
        task = asyncio.create_task(self._handle(taken))
        self.hands.jobs[task] = taken
        self.gatekeeper.started(task)
        self._turns.expect()
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.hands.jobs.pop(task, None)
        self._changed.set()

    async def _handle(self, taken: Taken) -> None:
        try:
            await self._carry(taken)
        except asyncio.CancelledError:
            await self.hands.show([taken])
            raise
        except LeaseLostError:
            self.metrics.lease_losses.inc()  # leave job and message alone
        except GenctlError as error:  # the message comes back, and the row says what to do
            if self.ending.is_told:
                await self.hands.show([taken])
            await self._tell(error, taken.name)
        except Exception:  # a bug in one job must not end the others
            log.exception("job.bug", messageId=taken.name)

    async def _carry(self, taken: Taken) -> None:
        if taken.message:
            await carry(taken.message, self.pipeline, self._turns.take)
            return
        assert taken.job  # noqa: S101 - a hand takes a message or a run
        row = await carry_unasked(taken.job, self.pipeline, self._turns.take)
        if row and row.status is Status.QUEUED:  # its message may be hidden for longer than it has to wait
            await send_jobs([row], db=self.pipeline.db, queue=self.pipeline.queue, tool=taken.job.tool)

    async def _tell(self, error: GenctlError, job: str) -> None:
        """Log the error once, however many jobs have met it meanwhile."""
        met = error.message, error.fix
        self._troubles.setdefault(met, []).append(job)
        try:
            await asyncio.sleep(COMPANY_S)
        finally:
            if jobs := self._troubles.pop(met, []):  # the first of them
                told = {"jobs": len(jobs), "messageIds": jobs[:TOLD], "error": met[0], "fix": met[1]}
                log.warning("job.trouble", **told)

    async def _change(self, timeout_s: float | None = None) -> None:
        """Wait until a job or a receive ends or a signal comes, at most so long."""
        self._changed.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()


def _shown(worker: Worker, port: int | None, forked: Forked | None) -> AbstractAsyncContextManager[None]:
    """Show how a worker stands: a forked one tells its parent, another one whoever asks on the port."""
    if forked:
        return forked.joined(worker.liveness, worker.metrics)
    if port is None:
        return nullcontext()
    from genctl.services.telling import telling  # noqa: PLC0415 (5 MB, and mostly there is no port)

    return telling(port, worker.liveness.report, worker.metrics)


async def serve(
    settings: Settings,
    *,
    concurrency: int | None,
    grace_s: float,
    until: Until,
    sweeps: bool,
    metrics_port: int | None = None,
    forked: Forked | None = None,
) -> None:
    """Run a worker, and with `sweeps` a sweeper beside it; a `forked` one is one of many processes.

    With `concurrency` None it has as many jobs as suit it.

    Raises GenctlError when it cannot start: exit 3, or 2 for a queued time-out that would fail good runs, or
    for more jobs than this process may have files.
    """
    concurrency = concurrency or usual_jobs(forked.count if forked else 1)
    open_enough(min(concurrency, settings.max_in_flight or concurrency))
    check_timeout(settings)  # even without a sweeper here, as others sweep by the same settings
    tool = Tools.of(settings).named(settings.tool)
    metrics = WorkerMetrics(tool.provider, tool.name)
    async with Pipeline.open(settings, size=POOL_SIZE, meters=metrics) as pipeline:
        await gate.read(pipeline.db, tool.name)  # so that a database without migrations fails now
        await migrate.check(pipeline.db)
        gc.collect()  # what the start has left, such as botocore's models, or it would stay, too
        gc.freeze()  # the modules stay, so do not walk them again and again
        gc.set_threshold(YOUNG)
        worker = Worker(
            pipeline,
            settings,
            metrics=metrics,
            concurrency=concurrency,
            grace_s=grace_s,
            until=until,
            is_forked=forked is not None,
        )
        await worker.presence.note()  # so that a role without the rights fails now
        async with _shown(worker, metrics_port, forked), asyncio.TaskGroup() as side:
            beside = [sweep_every(pipeline, settings)] if sweeps else []
            if metrics_port is not None:
                beside.append(metrics.watch(pipeline, queued_timeout_s=settings.queued_timeout_s))
            tasks = [side.create_task(one) for one in beside]
            await worker.run()
            cancel(tasks)
            asyncio.get_running_loop().call_later(CLOSE_S, children.leave, 0)
