"""`genctl explain` and `genctl classify`."""

from collections.abc import Callable
from typing import TYPE_CHECKING, BinaryIO

import click

from genctl.cli import complete
from genctl.cli.command import Command
from genctl.cli.output import Output

if TYPE_CHECKING:
    from genctl.domain.providers import Provider

PROVIDERS = complete.names("providers")
MOST_BYTES = 2**20  # as much as the worker reads of an answer


def provider_option(default: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add the option that names a provider."""
    told = f"The provider; default: {default}."
    return click.option("--provider", metavar="NAME", shell_complete=PROVIDERS, help=told)


@click.command(
    cls=Command,
    within=None,
    examples=("genctl explain OutputImageSensitiveContentDetected", "genctl explain HTTP429 -o json"),
)
@click.argument("code", shell_complete=complete.names("codes"))
@provider_option("the first that knows the code")
def explain(out: Output, code: str, provider: str | None) -> None:
    """Explain a failure code: verdict, what users read, whether a redrive helps.

    CODE is what follows `DLQ:`: a provider's code, one of ours, HTTP<status>, Timeout and the like.
    """
    from genctl.ops import meaning
    from genctl.tools.found import Tools

    every = [*Tools.of(out.settings).providers.values()]
    known = [_provider(out, provider)] if provider else every
    out.emit(meaning.explain(code, known, out.settings.verdicts))


@click.command(
    cls=Command,
    within=None,
    examples=(
        "genctl classify answer.txt",
        "genctl classify - --provider openai --status 429 < body.json",
        "genctl classify answer.txt -o json | jq .providerMessage",
    ),
)
@click.argument("file", type=click.File("rb"))
@provider_option("the tool's")
@click.option("--status", type=click.IntRange(100, 599), metavar="N", help="HTTP status of a body alone.")
def classify(out: Output, file: BinaryIO, *, provider: str | None, status: int | None) -> None:
    """Classify a recorded provider answer, as the worker would.

    FILE (- is stdin) holds what `curl -i` writes, a body alone, a line of tests/corpus, or error_details.
    """
    from datetime import UTC, datetime

    from genctl.ops import meaning

    whose = _provider(out, provider)
    answer = meaning.answer_of(file.read(MOST_BYTES), whose, status)
    out.emit(meaning.of_answer(answer, whose, out.settings.verdicts, datetime.now(UTC)))


def _provider(out: Output, name: str | None) -> "Provider":
    """Find the provider of this name, by default the tool's. Raises click.BadParameter."""
    from genctl.tools.found import Tools

    tools = Tools.of(out.settings)
    if name is None:
        return tools.named(out.settings.tool).provider
    if (found := tools.providers.get(name)) is None:
        known = ", ".join(tools.providers)
        raise click.BadParameter(f"{name!r} is not one of {known}.", param_hint="--provider")
    return found
