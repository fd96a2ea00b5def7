"""`python manner_program.py COMMAND...`: genctl with some commands more, to try the manner of the CLI on."""

import asyncio
import sys
import threading
import time

import click

from genctl import cli
from genctl.cli import terminal
from genctl.cli.command import DURATION, WHEN, Command, yes_option
from genctl.cli.output import Output
from genctl.domain.model import GenctlError

HOSTILE = "\x1b[31m\x9b1m\u202eevil\ud800"


@click.command(cls=Command, examples=("genctl rows --count 3",))
@click.option("--count", type=int, default=3)
def rows(out: Output, count: int) -> None:
    """Print many."""
    out.emit({"id": number, "text": HOSTILE + "x" * 60, "more": {"a": None}} for number in range(count))


@click.command(cls=Command, examples=("genctl thing",))
@click.option("--every", type=DURATION, default="30s")
@click.option("--since", type=WHEN)
def thing(out: Output, every: float, since: object) -> int:
    """Print one, and end with 1."""
    out.emit({"every": every, "since": since, "text": HOSTILE})
    return 1


@click.command(cls=Command, examples=("genctl follow",))
@click.option("--first", type=int, default=1)
@click.option("--hang", is_flag=True)
def follow(out: Output, first: int, *, hang: bool) -> None:
    """Print some rows and wait for more, which never come."""

    async def wait() -> None:
        with out.stream({"id": 4, "text": 0}) as put:
            for number in range(first):
                put({"id": number, "text": HOSTILE})
            terminal.note("waiting")
            try:
                await asyncio.sleep(600)
            finally:
                if hang:
                    await asyncio.to_thread(time.sleep, 600)

    out.run(wait(), follow=True)


@click.command(cls=Command, examples=("genctl work",))
@click.option("--stubborn", is_flag=True)
def work(out: Output, *, stubborn: bool) -> None:
    """Work until a signal, clean up, say so."""

    async def wait() -> None:
        terminal.note("waiting")
        try:
            await asyncio.sleep(600)
        finally:
            terminal.note("cleaning up")
            await asyncio.sleep(600 if stubborn else 0)

    out.run(wait())


@click.command(cls=Command, data=False, examples=("genctl service",))
def service(out: Output) -> None:
    """Serve until a signal."""

    async def wait() -> None:
        terminal.note("waiting")
        await asyncio.sleep(600)

    out.serve(wait())


class Leaky:
    def __del__(self) -> None:
        raise RuntimeError("leak")


@click.command(cls=Command, examples=("genctl fail bug",))
@click.argument("how")
def fail(out: Output, how: str) -> None:
    """Fail in one of many ways."""

    async def bug() -> None:
        raise RuntimeError(f"no\n{HOSTILE}")

    async def group() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(foreseen())
            tasks.create_task(bug())

    async def foreseen() -> None:
        raise GenctlError("NotFound", f"no session {HOSTILE}", "list\nthem", exit_code=4)

    async def forgotten() -> None:
        asyncio.get_running_loop().create_task(bug())
        await asyncio.sleep(0)
        threading.Thread(target=lambda: 1 / 0).start()
        Leaky()

    async def after_rows() -> None:
        with out.stream({"id": 4}) as put:
            put({"id": 1})
            await foreseen()

    async def before_rows() -> None:
        with out.stream({"id": 4}):
            await foreseen()

    ways = {way.__name__: way for way in (bug, group, foreseen, forgotten, after_rows, before_rows)}
    out.run(ways[how]())


@click.command(cls=Command, examples=("genctl drop",))
@click.option("--late", is_flag=True)
@click.argument("name", required=False)
@yes_option
def drop(out: Output, name: str | None, yes: str | None, *, late: bool) -> None:
    """Destroy something, if told so."""

    async def asked_late() -> None:
        out.confirm("Drop it?", yes)

    if late:
        out.run(asked_late())
    else:
        out.confirm("Drop it?", yes)
    out.target(queue=True)
    with terminal.progress(3, "dropping") as advance:
        advance(3)
    out.emit({"dropped": name})


if __name__ == "__main__":
    for command in (rows, thing, follow, work, service, fail, drop):
        cli.genctl.add_command(command)
    sys.exit(cli.main())
