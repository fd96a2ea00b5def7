"""`genctl demo` and `genctl up`: the embedded stack."""

import click

from genctl.cli import terminal
from genctl.cli.command import Command
from genctl.cli.output import Output, write


@click.command(
    cls=Command, tool=True, within=None, examples=("genctl demo", "genctl demo --keep", "genctl demo -o json")
)
@click.option("--keep", is_flag=True, help="Leave the stack running until Ctrl-C.")
def demo(out: Output, *, keep: bool) -> int:
    """Watch a failing and a good job go through the embedded stack.

    It starts PostgreSQL, an SQS server, the provider simulator, the API and a worker in one private folder,
    sends a job that the provider refuses, and watches it hop by hop from outside. Then it sends a good one.
    The exit code is 0 only if everything holds.
    """
    from genctl.ops.demo import run

    work = run(out.settings, keep=keep, note=terminal.note, show=out.emit)
    return out.run(work, limit_s=None)  # it has a stack to stop


@click.command(
    cls=Command, tool=True, within=None, data=False, examples=("genctl up", "GENCTL_HOME=./stack genctl up")
)
@click.option("--user", default="demo", metavar="U", help="The user whom the printed link signs in.")
def up(out: Output, *, user: str) -> None:
    """Run the whole embedded stack: API, page, worker and sweeper.

    It runs in the foreground until Ctrl-C. Every genctl command in another terminal finds it. The link on
    stdout signs in to the page, once; `genctl token --link` makes another.
    """
    import sys

    from genctl.base.tokens import Tokens
    from genctl.ops.stack.stack import Stack

    async def run() -> None:
        async with Stack(out.settings, note=terminal.note) as stack:
            settings = stack.settings
            terminal.note(f"the API is at {settings.api_url}; Ctrl-C stops everything")
            write(f"Sign in: {Tokens(settings.secret).sign_in_url(settings.page_url, user)}\n")
            sys.stdout.flush()
            await stack.watch()

    out.serve(run())
