"""A claimed session in a worker's hands, and how sure the worker can be that it still is."""

import asyncio
import time

from genctl.domain.model import LeaseLostError, Session

STALE_S = 20  # no request is sent when the last renewal is older


class Hold:
    """A claimed session in our hands: renewed until the hold ends, cancelled when the lease is lost."""

    def __init__(self, session: Session, claimed_at: float) -> None:
        self.session = session
        self.renewed_at = claimed_at  # monotonic; before the claim was sent
        self.calling = False
        self.sent = False  # the provider may have got the request
        self.lost = False
        self.task = asyncio.current_task()

    def on_send(self) -> None:
        """The request is about to leave. Raises LeaseLostError when we slept: somebody else may be at it."""
        if self.stale:
            raise LeaseLostError(self.session.id)
        self.sent = True

    def lose(self) -> None:
        """The lease is lost: a call under way is cancelled; a settle finds out by itself."""
        if self.calling and self.task:
            self.lost = True
            self.task.cancel()

    @property
    def waiting(self) -> bool:
        """On the way to its call, and no byte of the request is out."""
        return self.calling and not self.sent

    @property
    def stale(self) -> bool:
        """The last renewal is too long ago to be sure that the session is still ours."""
        return time.monotonic() - self.renewed_at > STALE_S
