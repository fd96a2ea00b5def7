"""`genctl serve`."""

import click

from genctl.cli.command import Command
from genctl.cli.output import Output

GONE_AFTER_S = 1.8


@click.command(
    cls=Command,
    within=None,
    tool=True,
    data=False,
    examples=(
        "genctl serve",
        "genctl serve --host 0.0.0.0 --port 80",
        "genctl serve -S cors_origins=https://app.example.com",
    ),
)
@click.option("--host", default="127.0.0.1", help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8787, help="Port; 0 picks one.")
def serve(out: Output, *, host: str, port: int) -> None:
    """Serve the API, the streams and the page.

    One LISTEN connection tells it when to read the rows; it sends every change to the open streams of the
    user. It starts without its database, and connects when the database comes. Behind a proxy set
    GENCTL_PUBLIC_URL. On SIGTERM it sends `bye` to each stream and exits within two seconds.
    """
    from genctl.services.server import serve as run

    out.serve(run(out.settings, host=host, port=port), gone_after_s=GONE_AFTER_S)
