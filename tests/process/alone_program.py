"""genctl whose jobs share no statement and no SQS call: `alone_program.py ARGUMENT…`."""

from genctl import cli, pipeline
from genctl.base.batch import Together
from genctl.services import worker


def main() -> None:
    """What many jobs do at the same moment is done one by one."""
    setattr(pipeline, "BATCH", 1)  # noqa: B010 - it is imported there, not exported
    worker.MORE = 0  # of receives at once: a lost one hides what it took for half a minute
    assert Together.__init__.__kwdefaults__
    Together.__init__.__kwdefaults__["most"] = 1
    cli.main()


if __name__ == "__main__":
    main()
