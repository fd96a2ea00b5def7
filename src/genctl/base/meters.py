"""What a pipeline tells of its jobs to whoever counts; here nobody does."""

from genctl.domain.model import ErrorDetails, Failure, Success

REFUSALS = ("reservation", "words", "other")  # what a settle was refused for


class Meters:
    """A worker's metrics take its place; commands count nothing and need no metrics library."""

    def called(self, result: Success | Failure, seconds: float) -> None:
        """A provider call has come to this."""

    def retried(self, failure: Failure) -> None:
        """A run went back to the queue."""

    def settled(self, details: ErrorDetails | None, seconds: float) -> None:
        """A run has ended, with details if it failed; the settle took so long."""

    def refused(self, kind: str) -> None:
        """The database refused a settle, for one of REFUSALS."""

    def unnotified(self) -> None:
        """A run has ended, and no NOTIFY told it."""

    def copied(self) -> None:
        """A copy went into the DLQ."""

    def repeated(self) -> None:
        """A delivery found nothing to claim: somebody else has the run, or it is over, or not due yet."""

    def orphaned(self) -> None:
        """A call was let go, or its worker died: nobody knows what it came to."""
