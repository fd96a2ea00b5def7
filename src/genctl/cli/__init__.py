"""Run the command line. Until we know the command, we import only click and the table of commands."""

import os
import sys
import threading
import warnings
from collections.abc import Sequence

import click

from genctl import __version__
from genctl.cli import signals, streams
from genctl.cli.command import LazyGroup

ASKED = "_GENCTL_COMPLETE"  # a shell's script sets it to ask for completions

TABLE = {
    "Run the pipeline": {
        "demo": ("run:demo", "Watch a failing and a good job go through the embedded stack."),
        "up": ("run:up", "Run the whole embedded stack: API, page, worker and sweeper."),
        "serve": ("run:serve", "Serve the API, the streams and the page."),
        "worker": ("run:worker", "Carry jobs from the queue to their settled rows."),
        "simulator": ("simulator:simulator", "Serve the provider's images API, with failures on request."),
        "sweep": ("run:sweep", "Run the safety net: settle runs and send messages that nothing else did."),
        "pause": ("run:pause", "Close the gate: jobs wait, none fails."),
        "resume": ("run:resume", "Open the gate, and forget what the provider's refusals have taught."),
    },
    "Send and watch": {
        "enqueue": ("enqueue:enqueue", "Reserve credits and send jobs."),
        "tail-failures": ("follow:tail_failures", "Show each failure in a line, as soon as it is committed."),
        "watch": ("follow:watch", "Show a user's events as their page gets them."),
        "sessions": ("sessions:sessions", "List sessions, show or trace one, run it again, cancel it."),
        "dlq": ("dlq:dlq", "Look at the dead-letter queue, and bring its jobs back."),
        "report": ("follow:report", "Report the failures of a period as Markdown."),
    },
    "Judge": {
        "workers": ("judge:workers", "List the workers that live, and what each waits for."),
        "status": ("judge:status", "Show how everything stands, and what needs a person."),
        "doctor": ("judge:doctor", "Check every dependency, and say how to mend what is wrong."),
        "health": ("judge:health", "Ask an API or a worker on this machine whether it is well."),
        "explain": (
            "explain:explain",
            "Explain a failure code: verdict, what users read, whether a redrive helps.",
        ),
        "classify": ("explain:classify", "Classify a recorded provider answer, as the worker would."),
        "verdicts": ("verdicts:verdicts", "Try exceptions from the rule on the failures that are stored."),
    },
    "Credits": {
        "credits": ("credits:credits_", "Show a user's credits, grant some, or mend them."),
        "refunds": ("credits:refunds", "Prove from the rows that every refund was made once."),
    },
    "Personal data": {
        "privacy": ("privacy:privacy", "Hand out what is stored about a user, or erase what it says."),
    },
    "Check": {
        "runbook": ("runbook:runbook", "Run the steps that an incident asks for, or read them."),
        "smoke": ("smoke:smoke", "Judge a deployment by one job that fails, hop by hop."),
    },
    "Set up": {
        "tools": ("setup:tools", "List the installed tools: provider, models, price, queue and gate."),
        "migrate": ("setup:migrate", "Apply or undo the migrations, or show their state."),
        "config": ("setup:config", "Show the settings and where they come from, or write a file."),
        "token": ("setup:token", "Issue a user token or a sign-in link, or revoke tokens."),
        "completion": (
            "setup:completion",
            "Write the script that completes genctl's command lines in a shell.",
        ),
        "version": ("setup:version", "Show the version."),
        "help": ("manual:help_", "Show a page of the docs, such as exit-codes or dlq; alone it lists them."),
    },
}


@click.group(
    cls=LazyGroup,
    table=TABLE,
    examples=(
        "genctl demo",
        "genctl enqueue --sensitive --wait",
        "genctl tail-failures --since 15m",
        "genctl COMMAND -h",
    ),
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
)
@click.version_option(__version__, message="%(prog)s %(version)s")
def genctl() -> None:
    """Make the failure of a queued AI image job propagate cleanly and at once."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line (without the program's name) and return its exit code. Raises nothing.

    With `argv` None we own the process: its arguments, streams and signals.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        if argv is None:
            _own_process()
        asked = os.environ.get(ASKED) if argv is None else None
        code = _completed(asked) if asked else _invoke(args)
        sys.stdout.flush()
    except BaseException as error:  # noqa: BLE001 - all commands end here
        from genctl.cli import ending

        return ending.of(error, args)
    return code


def _completed(asked: str) -> int:
    from genctl.cli import complete

    return complete.answer(genctl, asked)


def _invoke(args: list[str]) -> int:
    # not click's main(): it has other exit codes, also for broken pipes
    try:
        width = max(min(streams.columns(), 100) - 2, 30)  # of help
        with genctl.make_context("genctl", args, terminal_width=width) as context:
            code = genctl.invoke(context)
    except click.exceptions.Exit as done:
        return done.exit_code
    return code if isinstance(code, int) else 0


def _own_process() -> None:
    if not os.path.expanduser("~").startswith("/"):  # noqa: PTH111 - pathlib raises where there is none
        os.environ["HOME"] = "/"  # as container engines have it for a user without a name
    streams.guard()
    signals.remember()
    if "--debug" not in sys.argv:  # complaints of destructors, threads and libraries
        sys.unraisablehook = lambda _: None
        threading.excepthook = lambda _: None
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
