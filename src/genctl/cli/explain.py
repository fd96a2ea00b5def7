"""`genctl explain` and `genctl classify`."""

from typing import TYPE_CHECKING, BinaryIO

import click

from genctl.cli.command import Command
from genctl.cli.output import Output, write

if TYPE_CHECKING:
    from genctl.domain.providers import Provider

MOST_BYTES = 2**20  # as much as the worker reads of an answer


@click.command(
    cls=Command,
    examples=("genctl explain OutputImageSensitiveContentDetected", "genctl explain HTTP429 -o json"),
)
@click.argument("code")
@click.option("--provider", metavar="NAME", help="Whose code it is; default: the first that knows it.")
def explain(out: Output, code: str, provider: str | None) -> None:
    """Explain a failure code: what is done, what users read, whether a redrive helps.

    CODE is what follows `DLQ:`: a provider's code, one of ours, HTTP<status>, Timeout and the like.
    """
    from genctl.ops import meaning
    from genctl.tools.found import Tools

    every = [*Tools.of(out.settings).providers.values()]
    known = [_provider(out, provider)] if provider else every
    out.emit(meaning.explain(code, known, out.settings.verdicts))


@click.command(
    cls=Command,
    examples=(
        "genctl classify answer.txt",
        "genctl classify - --provider openai --status 429 < body.json",
        "genctl classify answer.txt --corpus >> tests/corpus/openai.jsonl",
    ),
)
@click.argument("file", type=click.File("rb"))
@click.option("--provider", metavar="NAME", help="Whose answer it is; default: the tool's.")
@click.option("--status", type=click.IntRange(100, 599), metavar="N", help="HTTP status of a body alone.")
@click.option("--corpus", is_flag=True, help="Print a line for tests/corpus, redacted.")
@click.option("--name", metavar="TEXT", default="", help="The name of that line.")
def classify(
    out: Output, file: BinaryIO, *, provider: str | None, status: int | None, corpus: bool, name: str
) -> None:
    """Classify a recorded provider answer, as the worker would.

    FILE (- is stdin) holds what `curl -i` writes, a body alone, a line of tests/corpus, or error_details.
    """
    from datetime import UTC, datetime

    import msgspec

    from genctl.cli import formats
    from genctl.domain.model import GenctlError
    from genctl.ops import meaning, recorded

    if corpus and out.form not in {"table", "json", "jsonl"}:
        raise GenctlError("BadForm", f"a line for the corpus is JSON, not {out.form}", exit_code=2)
    whose, now = _provider(out, provider), datetime.now(UTC)
    answer = recorded.answer_of(file.read(MOST_BYTES), whose, status)
    if corpus:
        line = recorded.corpus_line(answer, whose, now, name)
        write(formats.to_json(msgspec.to_builtins(line)) + "\n")
    else:
        out.emit(meaning.of_answer(answer, whose, out.settings.verdicts, now))


def _provider(out: Output, name: str | None) -> "Provider":
    """The one of this name, else that of the tool. Raises click.BadParameter."""
    from genctl.tools.found import Tools

    tools = Tools.of(out.settings)
    if name is None:
        return tools.named(out.settings.tool).provider
    if (known := tools.providers.get(name)) is None:
        raise click.BadParameter(
            f"{name!r} is not one of {', '.join(tools.providers)}.", param_hint="--provider"
        )
    return known
