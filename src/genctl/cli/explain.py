"""`genctl explain` and `genctl classify`."""

from typing import BinaryIO

import click

from genctl.cli.command import Command
from genctl.cli.output import Output
from genctl.domain.envelopes import ENVELOPES

NAMES = click.Choice(list(ENVELOPES))
MOST_BYTES = 2**20  # as much as the worker reads of an answer


@click.command(
    cls=Command,
    examples=("genctl explain OutputImageSensitiveContentDetected", "genctl explain HTTP429 -o json"),
)
@click.argument("code")
@click.option(
    "--provider", type=NAMES, metavar="NAME", help="Whose code it is; default: the first that knows it."
)
def explain(out: Output, code: str, provider: str | None) -> None:
    """Explain a failure code: what is done, what users read, whether a redrive helps.

    CODE is what follows `DLQ:`: a provider's code, one of ours, HTTP<status>, Timeout and the like.
    """
    from genctl.ops import meaning

    out.emit(meaning.explain(code, provider, out.settings.verdicts))


@click.command(
    cls=Command,
    examples=(
        "genctl classify answer.txt",
        "genctl classify - --provider openai --status 429 < body.json",
        "genctl classify answer.txt -o json | jq .providerMessage",
    ),
)
@click.argument("file", type=click.File("rb"))
@click.option("--provider", type=NAMES, metavar="NAME", default="ark", help="Whose answer it is.")
@click.option("--status", type=click.IntRange(100, 599), metavar="N", help="HTTP status of a body alone.")
def classify(out: Output, file: BinaryIO, *, provider: str, status: int | None) -> None:
    """Classify a recorded provider answer, as the worker would.

    FILE (- is stdin) holds what `curl -i` writes, a body alone, a line of tests/corpus, or error_details.
    """
    from datetime import UTC, datetime

    from genctl.ops import meaning, recorded

    answer = recorded.answer_of(file.read(MOST_BYTES), provider, status)
    out.emit(meaning.of_answer(answer, provider, out.settings.verdicts, datetime.now(UTC)))
