"""Carry out a runbook: its steps in order, its clean-up always; the journal keeps all of it."""

import asyncio
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from signal import SIGINT
from typing import Any

import msgspec

from genctl import __version__
from genctl.base.durations import format_duration, parse_duration
from genctl.base.person import Note, who
from genctl.domain.conditions import UncomparableError, complaint, find, holds, roots
from genctl.domain.masking import MASK
from genctl.domain.model import GenctlError
from genctl.domain.runbooks import as_word, fill, spoken
from genctl.ops.runbook.actions import Actions, Document, SkippedError
from genctl.ops.runbook.journal import Journal, Start, first_of, shortened
from genctl.ops.runbook.model import Loaded, Step

LONGEST_WHY = 600  # characters


class StepResult(msgspec.Struct, rename="camel", kw_only=True):
    """Say what became of a step; `state` is ok, failed, skipped, interrupted or not run.

    `shown` is what the step shows people, without the last `more` lines or items; `output` is all that
    it got, or the beginning.
    """

    step: str
    does: str
    kind: str
    state: str
    always: bool
    ms: float | None = None
    tries: int = 0
    why: str = ""
    shown: Any = None
    more: int = 0
    output: Any = None

    def line(self) -> str:
        """Write it as one line of the output."""
        took = f"{self.ms / 1000:6.1f} s" if self.ms is not None else " " * 8
        again = f" ({self.tries} tries)" if self.tries > 1 else ""
        loud = self.state if self.state in {"ok", "skipped", "not run"} else self.state.upper()
        return f"  {loud:<11} {took}  {self.step}{again}" + (f": {self.why}" if self.why else "")


class RunResult(msgspec.Struct, rename="camel", kw_only=True):
    """Say what became of a run; `state` is ok, failed or interrupted."""

    run: str
    runbook: str
    state: str
    exit_code: int
    seconds: float
    why: str
    steps: list[StepResult]

    def line(self) -> str:
        """Write it as the last line of the output."""
        return f"{self.runbook}: {self.state}" + (f" at {self.why}" if self.why else "")


@dataclass
class Run:
    """Carry out a runbook once.

    `confirm` asks a person and returns the value of `--yes`; it raises GenctlError where it gets no yes.
    """

    loaded: Loaded
    start: Start
    values: dict[str, Any]
    actions: Actions
    confirm: Callable[[str], str]

    def __post_init__(self) -> None:
        self.secret = self.loaded.runbook.secrets()
        self.mask = self.actions.mask
        self.mask.add(*(self.values[name] for name in self.secret & self.values.keys()))
        self.steps = self.loaded.runbook.left(self.start.done)
        self.lost: BaseException | None = None
        self._signal = 0
        self._output: Document | None = None
        self._work: asyncio.Task[str | None] | None = None

    def masked(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Mask values for people and the journal; a resumed run asks for those that this has changed."""
        return {name: MASK if name in self.secret else self.mask(value) for name, value in values.items()}

    def interrupt(self, number: int) -> None:
        """End the step under way by this signal; the clean-up follows. It may come between any two lines."""
        self._signal = number
        if work := self._work:
            work.get_loop().call_soon_threadsafe(work.cancel)

    async def go(self, journal: Journal, note: Note, show: Callable[[StepResult], object]) -> RunResult:
        """Run all steps; `show` takes each result. What it raises is in `lost`; only the clean-up follows."""
        began, code = time.monotonic(), 0
        results: list[StepResult] = []
        journal.write(
            "begun",
            run=journal.run,
            runbook=self.loaded.runbook.name,
            file=str(self.loaded.file.absolute()),
            sha256=self.loaded.sha256,
            who=who(),
            version=__version__,
            values=self.masked(self.values),
            done=self.start.done,
            shown=self.start.shown,
            resumes=self.start.resumes,
        )
        for step in self.steps:
            code = self._signalled(code)
            if code and not step.always:
                result = self._result(step, "not run")
            else:
                note(f"{step.step} ...")
                result = await self._carried_out(step)
                if result.state == "failed" and not step.always:
                    code = 1
                saved = {name: self.values[name] for name in step.save if name in self.values}
                journal.write("step.ended", **msgspec.to_builtins(result), saved=self.masked(saved))
                self._output = None
            results.append(result)
            if self.lost is None:
                try:
                    show(result)
                except BaseException as error:  # noqa: BLE001 - the clean-up comes first
                    self.lost, code = error, code or 1
        code = self._signalled(code)
        bad = [one for one in results if one.state in {"failed", "interrupted"} and not one.always]
        done = RunResult(
            run=journal.run,
            runbook=self.loaded.runbook.name,
            state="ok" if code == 0 else "failed" if code == 1 else "interrupted",
            exit_code=code,
            seconds=round(time.monotonic() - began, 3),
            why=f"step {bad[0].step}: {bad[0].why}" if bad else f"output: {self.lost}" if self.lost else "",
            steps=results,
        )
        journal.write("ended", state=done.state, exitCode=code, why=done.why)
        journal.close()
        return done

    def _signalled(self, code: int) -> int:
        """Forget a signal that came; return its exit code, or `code` when there is one already."""
        number, self._signal = self._signal, 0
        return code or (128 + number if number else 0)

    def _result(self, step: Step, state: str, why: str = "", **more: Any) -> StepResult:
        output = None if self._output is None else shortened(self.mask(self._output))
        facts: dict[str, Any] = {key: getattr(step, key) for key in ("step", "does", "kind", "always")}
        return StepResult(**facts, state=state, why=_fitting(self.mask.text(why)), output=output, **more)

    # --- one step ------------------------------------------------------------------------------------

    async def _carried_out(self, step: Step) -> StepResult:
        """Do a step until a signal ends it, also a signal that came before the step began."""
        began, self._tries = time.monotonic(), 0
        self._output = None
        self._lacking: str | None = None
        self._yes: str | None = None  # once a person has said so: for all tries
        self._work = asyncio.ensure_future(self._done(step))
        if self._signal:
            self._work.cancel()
        try:
            why = await self._work
        except SkippedError as reason:
            return self._result(step, "skipped", str(reason))
        except asyncio.CancelledError:
            if not self._signal:
                raise
            how = "interrupted" if self._signal == SIGINT else "terminated"
            return self._result(step, "interrupted", how)
        except Exception as error:  # noqa: BLE001 - no error keeps us from the clean-up
            why = _words_of(error)
        finally:
            self._work = None
        ms = round((time.monotonic() - began) * 1000, 1)
        shown, more = self._shown(step)
        state = "failed" if why else "ok"
        return self._result(step, state, why or "", ms=ms, tries=self._tries, shown=shown, more=more)

    def _shown(self, step: Step) -> tuple[Any, int]:
        """Return what a person should see of the output, as masked JSON, and how much is left out."""
        if not step.show or self._output is None:
            return None, 0
        try:
            found = find(step.show, self._output)
        except UncomparableError as error:
            found = str(error)
        return first_of([] if found is None else self.mask(found))

    def _check_fit(self, step: Step) -> None:
        """Raise SkippedError when a condition in `if` does not hold, or a value is missing."""
        for name in sorted(step.needs() - self.values.keys()):
            if name in self.loaded.runbook.variables:
                raise SkippedError(f"{name} was not given (--var {name}=...)")
            by = next(one.step for one in self.loaded.runbook.steps if name in one.save)
            raise SkippedError(f"{name} is not known: step {by} was not run")
        for condition in step.only_if or []:
            if not holds(condition, self.values):
                raise SkippedError(f"it runs only if {condition}")

    async def _done(self, step: Step) -> str | None:
        """Try the step until its expectations hold or its time is over; return what is wrong then."""
        self._check_fit(step)
        if step.ask:
            self._confirmed(step, spoken(step.ask, self.values))
            return None
        self._yes = self._confirmed(step, step.does) if step.dangerous else None
        patience_s, pause_s = self._seconds(step.patience), self._seconds(step.pause)
        deadline = time.monotonic() + patience_s
        while True:
            self._tries += 1
            why = await self._try(step, deadline - time.monotonic())
            if why is None or not step.wait:
                return why
            if time.monotonic() + pause_s > deadline:
                return f"{why}, after {format_duration(patience_s)}"
            await asyncio.sleep(pause_s)

    def _seconds(self, duration: str) -> float:
        try:
            return parse_duration(as_word(fill(duration, self.values)))
        except ValueError as error:
            raise UncomparableError(f"{duration}: expected {error}") from None

    def _confirmed(self, step: Step, question: str) -> str:
        try:
            return self.confirm(self.mask.text(f"{step.step}: {question}"))
        except SystemExit as asked:  # a signal that ended the question
            self._signal = int(asked.code or 0) - 128
            raise asyncio.CancelledError from None

    async def _try(self, step: Step, timeout_s: float) -> str | None:
        """Try the step once; return what is wrong with the output."""
        try:
            output = await self.actions.perform(step, self.values, self._yes, timeout_s)
            error = output.get("error") if step.genctl else None
            if self._yes is None and isinstance(error, dict) and error.get("code") == "NotConfirmed":
                self._yes = self._confirmed(step, error["message"])
                output = await self.actions.perform(step, self.values, self._yes, timeout_s)
            self._lacking = self._judged(step, output)
        except TimeoutError as late:  # of a wait, the try before tells more
            return self._lacking or str(late)
        except (GenctlError, ValueError) as error:
            return _words_of(error)
        return self._lacking

    def _judged(self, step: Step, output: Document) -> str | None:
        """Say which expectation does not hold; if all hold, save what the step saves."""
        self._output = output
        for name, what in step.saves():
            if name in self.secret:  # first, so that no complaint shows it
                with suppress(UncomparableError):
                    self.mask.add(find(what.path, output))
        if "unread" in output and any("json" in roots(path) for path in step.paths()):
            return str(output["unread"])
        for condition in step.expect or []:
            if why := complaint(condition, {**output, "values": self.values}):
                return why + _told_by(output)
        saved = {name: find(what.path, output) for name, what in step.saves()}
        for name, found in saved.items():
            if found is None:
                return f"there is nothing to save as {name}"
        self.values |= saved
        return None


def _fitting(why: str) -> str:
    """Shorten a reason in its middle: at its end a command gives its own. Escape lone surrogates.

    It is one line, whatever a library has said.
    """
    text, half = re.sub(r"\s*\n\s*", " ", why.encode(errors="backslashreplace").decode()), LONGEST_WHY // 2
    return text if len(text) <= LONGEST_WHY else f"{text[:half]} … {text[-half:]}"


def _words_of(error: Exception) -> str:
    match error:
        case GenctlError(fix=fix):
            return f"{error}; {fix}" if fix else str(error)
        case ValueError():  # a path that does not fit, a value that is nested too deeply
            return str(error)
    return f"unexpected {type(error).__name__}: {error}"


def _told_by(output: Document) -> str:
    """Repeat what a command or a script said of its failure."""
    match output:
        case {"error": {"message": message, "fix": fix}}:
            return f"; it said: {message}" + (f"; {fix}" if fix else "")
        case {"stderr": str(told)} if told.strip() and output.get("exit"):
            return f"; it said: {told.strip().splitlines()[-1]}"
    return ""
