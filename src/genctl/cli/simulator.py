"""`genctl simulator`."""

from pathlib import Path

import click

from genctl.cli.command import Command
from genctl.cli.output import Output


@click.command(
    cls=Command,
    within=None,
    data=False,
    examples=(
        "genctl simulator",
        "genctl simulator --port 9000",
        "ARK_BASE_URL=http://127.0.0.1:9000/api/v3 genctl worker",
        "genctl simulator --events docs/streams/redriven.sse",
    ),
)
@click.option("--host", default="127.0.0.1", help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8788, help="Port; 0 picks one.")
@click.option(
    "--events",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Play a recorded stream (docs/streams/) to a front end, at /api/seedream4, from its start.",
)
def simulator(out: Output, *, host: str, port: int, events: Path | None) -> None:
    """Serve the provider's images API, with failures on request.

    A prompt that contains `[scenario:NAME]` gets the answer of that scenario; `genctl help scenarios` lists
    them. The simulator refuses the words that the provider's filter refuses. Any other prompt gets an image.
    """
    from genctl.services.playback import Recording
    from genctl.services.simulator import serve

    out.serve(serve(host, port, Recording(events) if events else None))
