"""Carry out a runbook: its steps in order, its clean-up always; the journal keeps all of it."""

import asyncio
import json
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
from genctl.domain.runbooks import Start, as_word, fill, spoken
from genctl.ops.runbook.actions import Actions, Document, SkippedError, unanswered
from genctl.ops.runbook.journal import Journal, first_of, shortened
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
    journal: Journal

    def __post_init__(self) -> None:
        self.secret = self.loaded.runbook.secrets()
        self.mask = self.actions.mask
        self.mask.add(*(self.values[name] for name in self.secret & self.values.keys()))
        self.steps = self.loaded.runbook.left(self.start.done)
        self._signal = 0
        self._output: Document | None = None
        self._work: asyncio.Task[StepResult] | None = None

    def interrupt(self, number: int) -> None:
        """End the step under way by this signal; the clean-up follows. It may come between any two lines."""
        self._signal = number
        if work := self._work:
            work.get_loop().call_soon_threadsafe(work.cancel)

    async def go(self, note: Note, show: Callable[[StepResult], object]) -> RunResult:
        """Run all steps; `show` takes each result. Raises what `show` raises, after the clean-up."""
        began, code = time.monotonic(), 0
        results: list[StepResult] = []
        lost: BaseException | None = None
        self._begin()
        for step in self.steps:
            if step.always:
                code = self._signalled(code)
            if (code or lost) and not step.always:
                result = self._result(step, "not run")
            else:
                note(f"{step.step} ...")
                result = await self._carried_out(step)
                if result.state == "interrupted":
                    code = self._signalled(code)
                elif result.state == "failed" and not step.always:
                    code = 1
                self._keep(step, result)
                self._output = None
            results.append(result)
            if lost is None:
                try:
                    show(result)
                except BaseException as error:  # noqa: BLE001 - we raise it after the clean-up
                    lost = error
        code = self._signalled(code) or int(bool(lost))
        bad = [one for one in results if one.state in {"failed", "interrupted"} and not one.always]
        done = RunResult(
            run=self.journal.run,
            runbook=self.loaded.runbook.name,
            state="ok" if code == 0 else "failed" if code == 1 else "interrupted",
            exit_code=code,
            seconds=round(time.monotonic() - began, 3),
            why=f"step {bad[0].step}: {bad[0].why}" if bad else "",
            steps=results,
        )
        self.journal.write("ended", state=done.state, exitCode=code, why=done.why)
        self.journal.close()
        if lost:
            raise lost
        return done

    def _signalled(self, code: int) -> int:
        """Forget a signal that came; return its exit code, or `code` when there is one already."""
        number, self._signal = self._signal, 0
        return code or (128 + number if number else 0)

    def _begin(self) -> None:
        kept, hidden = self._as_kept(self.values)
        self.journal.write(
            "begun",
            run=self.journal.run,
            runbook=self.loaded.runbook.name,
            file=str(self.loaded.file.absolute()),
            sha256=self.loaded.sha256,
            who=who(),
            version=__version__,
            values=kept,
            hidden=hidden,
            done=list(self.start.done),
            shown=list(self.start.shown),
            resumes=self.start.resumes,
        )

    def _keep(self, step: Step, result: StepResult) -> None:
        saved, hidden = self._as_kept({name: self.values[name] for name in step.save if name in self.values})
        self.journal.write("step.ended", **msgspec.to_builtins(result), saved=saved, hidden=hidden)

    def _as_kept(self, values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """Mask values for the journal, and name those that this has changed."""
        kept = {name: MASK if name in self.secret else self.mask(value) for name, value in values.items()}
        return kept, [name for name, value in values.items() if name in self.secret or kept[name] != value]

    def _result(self, step: Step, state: str, why: str = "", **more: Any) -> StepResult:
        why = _fitting(self.mask.text(why))
        output = None if self._output is None else _readable(shortened(self.mask(self._output)))
        facts: dict[str, Any] = {key: getattr(step, key) for key in ("step", "does", "kind", "always")}
        return StepResult(**facts, state=state, why=why, output=output, **more)

    # --- one step ------------------------------------------------------------------------------------

    async def _carried_out(self, step: Step) -> StepResult:
        """Do a step until a signal ends it, also a signal that came before the step began."""
        self._output = None
        self._lacking: str | None = None
        self._work = asyncio.ensure_future(self._step(step))
        if self._signal:
            self._work.cancel()
        try:
            return await self._work
        except asyncio.CancelledError:
            if not self._signal:
                raise
            how = "interrupted" if self._signal == SIGINT else "terminated"
            return self._result(step, "interrupted", why=how)
        except Exception as error:  # noqa: BLE001 - no error keeps us from the clean-up
            return self._result(step, "failed", why=f"unexpected {type(error).__name__}: {error}")
        finally:
            self._work = None

    async def _step(self, step: Step) -> StepResult:
        began, self._tries = time.monotonic(), 0
        try:
            self._check_fit(step)
            why = await self._done(step)
        except SkippedError as reason:
            return self._result(step, "skipped", why=str(reason))
        except (GenctlError, UncomparableError) as error:
            why = _words_of(error)
        except SystemExit as asked:  # a signal that ended a question
            self._signal = int(asked.code or 0) - 128
            raise asyncio.CancelledError from None
        ms = round((time.monotonic() - began) * 1000, 1)
        shown, more = self._shown(step)
        state = "failed" if why else "ok"
        return self._result(step, state, why=why or "", ms=ms, tries=self._tries, shown=shown, more=more)

    def _shown(self, step: Step) -> tuple[Any, int]:
        """Return what a person should see of the output, as masked JSON, and how much is left out."""
        if not step.show or self._output is None:
            return None, 0
        try:
            found = _unread(self._output, [step.show]) or find(step.show, self._output)
        except UncomparableError as error:
            found = str(error)
        found, more = first_of([] if found is None else self.mask(found))
        return _readable(found), more

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
        if step.ask:
            self.confirm(f"{step.step}: {self.mask.text(spoken(step.ask, self.values))}")
            return None
        yes = self.confirm(f"{step.step}: {step.does}") if step.dangerous else None
        patience_s, pause_s = self._seconds(step.patience), self._seconds(step.pause)
        deadline = time.monotonic() + patience_s
        while True:
            self._tries += 1
            why = await self._try(step, deadline - time.monotonic(), yes)
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

    async def _try(self, step: Step, timeout_s: float, yes: str | None) -> str | None:
        """Try the step once; return what is wrong with the output."""
        try:
            output = await self._output_of(step, timeout_s, yes)
            error = output.get("error") if step.genctl else None
            if yes is None and isinstance(error, dict) and error.get("code") == "NotConfirmed":
                yes = self.confirm(f"{step.step}: {error['message']}")
                output = await self._output_of(step, timeout_s, yes)
        except TimeoutError:  # of a wait, the try before tells more
            return self._lacking or _no_end(timeout_s)
        except GenctlError as error:
            return _words_of(error)
        self._lacking = self._judged(step, output)
        return self._lacking

    async def _output_of(self, step: Step, timeout_s: float, yes: str | None) -> Document:
        try:
            async with asyncio.timeout(timeout_s):
                return await self.actions.perform(step.kind, step.action, self.values, yes)
        except TimeoutError:
            if not step.http:
                raise
            return unanswered(_no_end(timeout_s))

    def _judged(self, step: Step, output: Document) -> str | None:
        """Say which expectation does not hold; if all hold, save what the step saves."""
        self._output = output
        for name, what in step.saves():
            if name in self.secret:  # first, so that no complaint shows it
                with suppress(UncomparableError):
                    self.mask.add(find(what.path, output))
        paths = [*(step.expect or []), *(what.path for _, what in step.saves())]
        if why := _unread(output, paths):
            return why
        for condition in step.expect or []:
            if why := complaint(condition, {**output, "values": self.values}):
                return why + _told_by(output)
        for name, what in step.saves():
            try:
                found = find(what.path, output)
            except UncomparableError as error:
                return str(error)
            if found is None:
                return f"{what.path} finds nothing to save as {name}"
            self.values[name] = found
        return None


def _no_end(timeout_s: float) -> str:
    return f"no end within {format_duration(max(round(timeout_s, 1), 0.1))}"


def _readable(found: Any) -> Any:
    """Return it as JSON that can be written: with no lone surrogate."""
    return json.loads(json.dumps(found, ensure_ascii=False, default=str).encode(errors="replace"))


def _fitting(why: str) -> str:
    """Shorten a reason in its middle: at its end a command gives its own. Escape lone surrogates."""
    text, half = why.encode(errors="backslashreplace").decode(), LONGEST_WHY // 2
    return text if len(text) <= LONGEST_WHY else f"{text[:half]} … {text[-half:]}"


def _words_of(error: Exception) -> str:
    fix = error.fix if isinstance(error, GenctlError) else ""
    return f"{error}; {fix}" if fix else str(error)


def _unread(output: Document, paths: list[str]) -> str | None:
    """Say why we have not read the JSON that these paths search."""
    why: str | None = output.get("unread")
    return why if why and any("json" in roots(path) for path in paths) else None


def _told_by(output: Document) -> str:
    """Repeat what a command or a script said of its failure."""
    match output:
        case {"error": {"message": message, "fix": fix}}:
            return f"; it said: {message}" + (f"; {fix}" if fix else "")
        case {"stderr": str(told)} if told.strip() and output.get("exit"):
            return f"; it said: {told.strip().splitlines()[-1]}"
    return ""
