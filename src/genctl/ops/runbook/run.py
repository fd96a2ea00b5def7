"""Carrying out a runbook: steps in their order, the clean-up always, all of it in the journal."""

import asyncio
import json
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple, TypeVar

import msgspec

from genctl import __version__
from genctl.base.durations import format_duration, parse_duration
from genctl.base.person import who
from genctl.domain.conditions import UncomparableError, complaint, find, holds, roots
from genctl.domain.masking import MASK
from genctl.domain.model import GenctlError
from genctl.domain.runbooks import as_word, fill, spoken
from genctl.ops.runbook.actions import Actions, Document, SkippedError
from genctl.ops.runbook.inputs import Start
from genctl.ops.runbook.journal import Journal, first_of, shortened
from genctl.ops.runbook.model import Loaded, Step

T = TypeVar("T")

LONGEST_WHY = 600  # characters


class Person(NamedTuple):
    """Who answers. `confirm` gives the value of `--yes`; both raise GenctlError when the answer is no,
    or when nobody can be asked.
    """

    confirm: Callable[[str], str]
    answer: Callable[[str, bool], str]  # the question, whether the answer is a secret; "" for the default
    each: bool = False  # is asked before each step


class Told(msgspec.Struct, rename="camel", kw_only=True):
    """What became of a step; `state` is ok, failed, skipped, interrupted or not run.

    `shown` is what it has shown, without the last `more` lines or items.
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

    def line(self) -> str:
        """For people."""
        took = f"{self.ms / 1000:6.1f} s" if self.ms is not None else " " * 8
        again = f" ({self.tries} tries)" if self.tries > 1 else ""
        loud = self.state if self.state in {"ok", "skipped", "not run"} else self.state.upper()
        return f"  {loud:<11} {took}  {self.step}{again}" + (f": {self.why}" if self.why else "")


class Report(msgspec.Struct, rename="camel", kw_only=True):
    """A run; `state` is ok, failed or interrupted."""

    run: str
    runbook: str
    state: str
    exit_code: int
    seconds: float
    why: str
    steps: list[Told]


class Run:
    """One run of a runbook."""

    def __init__(
        self,
        loaded: Loaded,
        start: Start,
        values: dict[str, Any],
        means: Actions,
        person: Person,
        journal: Journal,
    ) -> None:
        self.runbook = loaded.runbook
        self.loaded = loaded
        self.start = start
        self.values = values
        self.means = means
        self.person = person
        self.journal = journal
        self.secret = loaded.runbook.secrets()
        self.mask = means.mask
        self.mask.add(*(values[name] for name in self.secret & values.keys()))
        self._signal = 0
        self._work: asyncio.Task[Any] | None = None

    def interrupt(self, number: int) -> None:
        """Take a signal, between any two lines: what is being done ends, and the clean-up follows."""
        self._signal = number
        if work := self._work:
            work.get_loop().call_soon_threadsafe(work.cancel)

    async def go(self, begun: Callable[[Step], None], told: Callable[[Told], None]) -> Report:
        """Carry it out; `begun` and `told` hear of each step. Raises what they raise, after the clean-up."""
        began = time.monotonic()
        self._begin()
        steps: list[Told] = []
        lost: BaseException | None = None

        def tell(one: Told) -> None:
            nonlocal lost
            steps.append(one)
            if lost is None:
                try:
                    told(one)
                except BaseException as error:  # noqa: BLE001 - the clean-up comes first, it is raised then
                    lost = error

        code = await self._steps(begun, tell, lambda: lost)
        bad = next((one for one in steps if one.state in {"failed", "interrupted"} and not one.always), None)
        report = Report(
            run=self.journal.run,
            runbook=self.runbook.name,
            state="ok" if code == 0 else "failed" if code == 1 else "interrupted",
            exit_code=code,
            seconds=round(time.monotonic() - began, 3),
            why=f"step {bad.step}: {bad.why}" if bad else "",
            steps=steps,
        )
        self.journal.write("ended", state=report.state, exitCode=code, why=report.why)
        self.journal.close()
        if lost:
            raise lost
        return report

    async def _steps(
        self, begun: Callable[[Step], None], tell: Callable[[Told], None], lost: Callable[[], object]
    ) -> int:
        """All of them; the exit code that the first failure or signal has made."""
        code = 0
        for step in self.runbook.steps:
            if step.step in self.start.done and not step.always:
                continue
            if step.always:
                code = code or self._signalled()
            elif code or lost():
                tell(self._told(step, "not run"))
                continue
            try:
                begun(step)
                one = await self._step(step)
            except SystemExit as signal:
                why = "interrupted" if signal.code == 130 else "terminated"
                one = self._told(step, "interrupted", why=why)
                code = code or (signal.code if isinstance(signal.code, int) else 130)
            except Exception as error:  # noqa: BLE001 - whatever it is, the clean-up follows
                one = self._told(step, "failed", why=f"unexpected {type(error).__name__}: {error}")
            self._note(step, one)
            tell(one)
            if one.state == "failed" and not step.always:
                code = code or 1
        return code or self._signalled() or int(bool(lost()))

    def _begin(self) -> None:
        kept, hidden = self._as_kept(self.values)
        self.journal.write(
            "begun",
            run=self.journal.run,
            runbook=self.runbook.name,
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

    def _as_kept(self, values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """Values as the journal has them, and the names of those that are masked in it."""
        kept = {name: MASK if name in self.secret else self.mask(value) for name, value in values.items()}
        return kept, [name for name, value in values.items() if name in self.secret or kept[name] != value]

    def _note(self, step: Step, one: Told) -> None:
        saved, hidden = self._as_kept({name: self.values[name] for name in step.save if name in self.values})
        output = shortened(self.mask(self._output))
        self.journal.write(
            "step.ended", **msgspec.to_builtins(one), output=output, saved=saved, hidden=hidden
        )

    def _told(self, step: Step, state: str, why: str = "", **more: Any) -> Told:
        kind = step.kinds[0]
        return Told(
            step=step.step,
            does=step.does,
            kind=kind,
            state=state,
            always=step.always,
            why=_fitting(self.mask.text(why)),
            **more,
        )

    # --- one step ------------------------------------------------------------------------------------

    async def _step(self, step: Step) -> Told:
        """Raises SystemExit when a signal came."""
        self._output: Document | None = None
        self._lacking: str | None = None
        began, self._tries = time.monotonic(), 0
        try:
            self._fits(step)
            state, why = await self._done(step)
        except SkippedError as reason:
            return self._told(step, "skipped", why=str(reason))
        except (GenctlError, UncomparableError) as error:
            state, why = "failed", _said(error)
        ms = round((time.monotonic() - began) * 1000, 1)
        shown, more = self._shown(step)
        return self._told(step, state, why=why, ms=ms, tries=self._tries, shown=shown, more=more)

    def _shown(self, step: Step) -> tuple[Any, int]:
        """What of its output a person is to see: masked, JSON, an empty list where nothing is found; and how
        much that leaves out.
        """
        if not step.show or self._output is None:
            return None, 0
        try:
            found = _unread(self._output, [step.show]) or find(step.show, self._output)
        except UncomparableError as error:
            found = str(error)
        found, more = first_of([] if found is None else self.mask(found))
        shown = json.dumps(found, ensure_ascii=False, default=str).encode(errors="replace")
        return json.loads(shown), more

    def _fits(self, step: Step) -> None:
        """Raises SkippedError where its condition does not hold or a value of its is not there."""
        for name in sorted(step.needs() - self.values.keys()):
            if name in self.runbook.variables:
                raise SkippedError(f"{name} was not given (--var {name}=...)")
            by = next(one.step for one in self.runbook.steps if name in one.save)
            raise SkippedError(f"{name} is not known: step {by} was not run")
        for condition in step.only_if or []:
            if not holds(condition, self.values):
                raise SkippedError(f"it is only for when {condition}")

    async def _done(self, step: Step) -> tuple[str, str]:
        """State and reason."""
        yes = None
        self._heed()
        if step.ask:
            return self._asked(step)
        if step.dangerous or self.person.each:
            yes = self.person.confirm(f"{step.step}: {step.does}")
        patience_s, pause_s = self._seconds(step.patience), self._seconds(step.pause)
        deadline = time.monotonic() + patience_s if step.wait else None
        tries = step.retry.tries if step.retry else 1
        while True:
            self._tries += 1
            left_s = deadline - time.monotonic() if deadline else patience_s
            why = await self._try(step, left_s, yes if step.dangerous else None)
            if why is None:
                return "ok", ""
            if deadline and time.monotonic() + pause_s > deadline:
                return "failed", f"{why}, after {format_duration(patience_s)}"
            if not deadline and self._tries == tries:
                return "failed", why
            await self._bounded(partial(asyncio.sleep, pause_s), pause_s + 60)

    def _signalled(self) -> int:
        """Take the signal that came: its exit code, 0 where none did."""
        number, self._signal = self._signal, 0
        return 128 + number if number else 0

    def _heed(self) -> None:
        if code := self._signalled():
            raise SystemExit(code)

    async def _bounded(self, work: Callable[[], Coroutine[Any, Any, T]], seconds: float) -> T:
        """The result of `work`. Raises TimeoutError after so long, and SystemExit when a signal ended it."""

        async def bounded() -> T:
            async with asyncio.timeout(seconds):
                return await work()

        self._work = task = asyncio.ensure_future(bounded())
        try:
            if self._signal:
                task.cancel()
            return await task
        except asyncio.CancelledError:
            self._heed()
            raise
        finally:
            self._work = None

    def _seconds(self, duration: str) -> float:
        try:
            return parse_duration(as_word(fill(duration, self.values)))
        except ValueError as error:
            raise UncomparableError(f"{duration}: expected {error}") from None

    def _asked(self, step: Step) -> tuple[str, str]:
        assert step.ask  # noqa: S101 - of its kind
        question = f"{step.step}: {self.mask.text(spoken(step.ask.text, self.values))}"
        if step.ask.kind != "answer":
            self.person.confirm(question)
            answer = "yes"
        else:
            default = as_word(fill(step.ask.default or "", self.values))
            if default and not step.ask.secret:
                question += f" [{self.mask.text(default)}]"
            answer = self.person.answer(question, step.ask.secret) or default
        why = self._judged(step, {"answer": answer})
        return ("failed", why) if why else ("ok", "")

    async def _try(self, step: Step, timeout_s: float, yes: str | None) -> str | None:
        """Do it once; what is wrong with what came of it."""
        kind, what = step.action()
        if not step.wait:
            self._output = None
        try:
            output = await self._bounded(partial(self.means.perform, kind, what, self.values, yes), timeout_s)
            error = output.get("error") if kind == "genctl" else None
            if yes is None and isinstance(error, dict) and error.get("code") == "NotConfirmed":
                yes = self.person.confirm(f"{step.step}: {error['message']}")
                again = partial(self.means.perform, kind, what, self.values, yes)
                output = await self._bounded(again, timeout_s)
        except TimeoutError:
            if step.wait and self._lacking:  # its last look was cut off
                return self._lacking
            return f"no end within {format_duration(max(round(timeout_s, 1), 0.1))}"
        except GenctlError as error:
            return _said(error)
        self._lacking = self._judged(step, output)
        return self._lacking

    def _judged(self, step: Step, output: Document) -> str | None:
        """What is expected and not so; else what is to be saved is saved."""
        self._output = output
        for name, what in step.saves():
            if name in self.secret:  # whatever else is found wrong with it
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
                return f"nothing is found at {what.path}, which is to be saved as {name}"
            self.values[name] = found
        return None


def _fitting(why: str) -> str:
    """A reason that fits a line and any encoding; its end is kept too, where a command has said its own."""
    text, half = why.encode(errors="backslashreplace").decode(), LONGEST_WHY // 2
    return text if len(text) <= LONGEST_WHY else f"{text[:half]} … {text[-half:]}"


def _said(error: Exception) -> str:
    fix = error.fix if isinstance(error, GenctlError) else ""
    return f"{error}; {fix}" if fix else str(error)


def _unread(output: Document, paths: list[str]) -> str | None:
    """Why these paths would find nothing where there may be something."""
    why: str | None = output.get("unread")
    return why if why and any("json" in roots(path) for path in paths) else None


def _told_by(output: Document) -> str:
    """What a command or a script has said of its failure."""
    match output:
        case {"error": {"message": message, "fix": fix}}:
            return f"; it said: {message}" + (f"; {fix}" if fix else "")
        case {"stderr": str(said)} if said.strip() and output.get("exit"):
            return f"; it said: {said.strip().splitlines()[-1]}"
    return ""
