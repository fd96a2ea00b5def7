"""What one user's orders provoke stops that user's orders of the kind: the gate stays open for everybody."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import msgspec
import pytest
from tests.ears import Client, served
from tests.kit import Kit, until
from tests.path.test_breaker import close_by_breaker, keeper, now, time_passes, working

from genctl import traits
from genctl.domain.classify import classify
from genctl.domain.model import Answer, Failure, GenctlError, Session, Status, Success, rfc3339
from genctl.domain.traits import Refused
from genctl.ops import enqueue
from genctl.ops.enqueue import EnqueueOptions
from genctl.ops.status import look
from genctl.services.gatekeeper import Gatekeeper
from genctl.tools.seedream4 import TOOL

MODEL = "seedream-4-5-251128"
ENOUGH = traits.ENOUGH
TIME = datetime(2025, 11, 2, 10, 11, 12, tzinfo=UTC)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The row is looked at often."""
    monkeypatch.setattr("genctl.services.gatekeeper.LOOK_S", 0.05)
    monkeypatch.setattr("genctl.services.worker.LOOK_S", 0.05)


@asynccontextmanager
async def clients(kit: Kit, *users: str) -> AsyncIterator[list[Client]]:
    async with served(kit.settings) as client:
        yield [Client(client.url, user) for user in users]


def order(kit: Kit, user: str, model: str | None = None, **params: Any) -> Any:
    plain = kit.order(user=user)
    return msgspec.structs.replace(plain, model=model or plain.model, params=params or None)


def refusal(status: int, code: str, message: str, param: str = "") -> Failure:
    body = {"error": {"code": code, "message": message, "param": param, "type": "Forbidden"}}
    result = classify(Answer(status, {}, msgspec.json.encode(body)), TOOL.provider, now=TIME)
    assert isinstance(result, Failure)
    return result


NOT_OPEN = refusal(404, "ModelNotOpen", "Your account has not activated the model.")


def row(kit: Kit, user: str, model: str | None = None, **params: Any) -> Session:
    """As much of a claimed session as the gatekeeper looks at."""
    wanted = order(kit, user, model, **params)
    return Session(
        uuid4(), user, wanted.model, wanted.prompt, Status.PROCESSING, 1, 1, 0, 1, params=wanted.params
    )


async def heard(kit: Kit, who: Gatekeeper, *outcomes: tuple[Success | Failure, Session]) -> None:
    """Calls came to this, and the watch has told the rows."""
    await who.allowance(1)
    for result, session in outcomes:
        who.called()(result, session)
    await who.leave()


async def takes(kit: Kit, user: str, model: str | None = None, **params: Any) -> bool:
    try:
        await traits.check(kit.db, TOOL, [order(kit, user, model, **params)])
    except GenctlError as error:
        assert (error.code, error.exit_code) == ("ValueRefused", 2)
        return False
    return True


async def test_one_user_naming_a_model_that_is_not_open_closes_no_gate_and_is_soon_refused_unpaid(
    kit: Kit,
) -> None:
    """The attack: 25 orders that are answered 404 ModelNotOpen. Others' orders go on, before and after."""
    statuses: list[int] = []
    async with (
        clients(kit, "mallory", "ann") as (mallory, ann),
        working(kit.pipeline, concurrency=1) as worker,
    ):
        for n in range(25):
            body = {"prompt": "x [scenario:model-not-open]", "model": MODEL}
            status, said = await mallory.order(body)
            statuses.append(status)
            if status == 202:
                await until(lambda said=said: ended(kit, said["sessionId"]))  # type: ignore[misc]
                await until(lambda: told(worker.gatekeeper))
            if n == 12:
                assert (await ann.order({"prompt": "a heron"}))[0] == 202
        assert statuses == [202] * ENOUGH + [422] * (25 - ENOUGH)
        assert said["error"]["code"] == "ValueRefused"
        assert f"several orders with model {MODEL}" in said["error"]["message"]
        assert "ModelNotOpen" not in said["error"]["message"] + said["error"]["fix"]
        status, good = await ann.order({"prompt": "a heron"})
        await until(lambda: ended(kit, good["sessionId"]))
        assert await mallory.get("/credits") == {"balance": 1000, "held": 0}
        assert (await mallory.order({"prompt": "a plain one"}))[0] == 202
    assert (await now(kit)).changed_at is None, "nobody ever closed it"
    rows = await kit.query("select user_id, status from generation_sessions where user_id = 'ann'")
    assert {one["status"] for one in rows} == {"completed"}


async def ended(kit: Kit, session: str) -> bool:
    return bool(
        await kit.query(
            "select from generation_sessions where id = %s and status in ('failed', 'completed')", session
        )
    )


async def told(who: Gatekeeper) -> bool:
    return not who._noted and not who._sound


@pytest.mark.parametrize(
    ("result", "model", "params"),
    [
        (NOT_OPEN, MODEL, {}),
        (refusal(404, "InvalidEndpointOrModel.NotFound", "It does not exist."), "seedream-4-nonsense", {}),
        (refusal(404, "NeverHeardOf", f"no such deployment: {MODEL}"), MODEL, {}),
        (refusal(403, "OperationDenied.PermissionDenied", "No such output.", "size"), None, {"size": "4K"}),
        (refusal(403, "AccessDenied", "Your account may not use the parameter `size`."), None, {"size": "4K"}),
        (refusal(400, "InvalidParameter", "Timeout while downloading url.", "image"), None, {"image": "https://a.example/1"}),
        (refusal(400, "InvalidImageURL.EmptyURL", "It is empty."), None, {"image": ["https://a.example/1"]}),
        (refusal(429, "SetLimitExceeded", "The owner has paused it."), MODEL, {}),
        (refusal(403, "AccessDenied", f"Your plan does not cover {MODEL}."), MODEL, {}),
    ],
    ids=["a model that is not open", "no such model", "an unknown 404 that names it", "a size, by param",
         "a size, by its words", "an image that is too slow", "an image without an address", "a quota of one model",
         "a model by its name"],
)  # fmt: skip
async def test_a_refusal_that_names_what_was_ordered_counts_for_that_value_alone(
    kit: Kit, result: Failure, model: str | None, params: dict[str, Any]
) -> None:
    """25 of one user close nothing, and stop what that user orders so; two users stop it for all."""
    who = keeper(kit)
    await heard(kit, who, *[(result, row(kit, "mallory", model, **params))] * 25)
    assert (await now(kit)).is_open
    assert not await takes(kit, "mallory", model, **params)
    assert await takes(kit, "mallory")
    assert await takes(kit, "ann", model, **params), "that is one user's trouble"
    await heard(kit, who, *[(result, row(kit, "ben", model, **params))] * ENOUGH)
    assert not await takes(kit, "ann", model, **params)
    assert await takes(kit, "ann")
    assert (await now(kit)).is_open


async def test_few_refusals_and_those_of_long_ago_stop_nothing(kit: Kit) -> None:
    who, mine = keeper(kit), row(kit, "ann", MODEL)
    await heard(kit, who, *[(NOT_OPEN, mine)] * (ENOUGH - 1))
    assert await takes(kit, "ann", MODEL)
    await kit.query("update refused_traits set since = now() - interval '11 minutes'")
    await heard(kit, who, (NOT_OPEN, mine))
    assert await takes(kit, "ann", MODEL)


async def test_a_value_that_is_sound_for_others_is_not_at_fault(kit: Kit) -> None:
    """Something else in those orders is: nobody can take a size from everybody."""
    who, params = keeper(kit), {"size": "4K"}
    bad_size = refusal(400, "InvalidParameter", "Not valid.", "size")
    await heard(kit, who, (Success(images=()), row(kit, "ann", **params)))
    await heard(kit, who, *[(bad_size, row(kit, user, **params)) for user in ("mallory", "eve") * ENOUGH])
    assert await takes(kit, "mallory", **params)
    assert await takes(kit, "ann", **params)


async def test_after_a_while_one_order_tries_and_its_outcome_decides(kit: Kit) -> None:
    who, mine = keeper(kit), row(kit, "ann", MODEL)
    await heard(kit, who, *[(NOT_OPEN, mine)] * ENOUGH)
    over = "update refused_traits set until = now() - interval '1 s'"
    await kit.query(over)
    tried = await asyncio.gather(*(takes(kit, "ann", MODEL) for _ in range(8)))
    assert sum(tried) == 1, "the others wait for what it comes to"
    await heard(kit, who, (NOT_OPEN, mine))
    (left,) = await kit.query("select extract(epoch from until - now())::float8 as s from refused_traits")
    assert traits.FIRST_S < left["s"] <= 2 * traits.FIRST_S
    await kit.query(over)
    assert await takes(kit, "ann", MODEL)
    await heard(kit, who, (Success(images=()), mine))
    assert [await takes(kit, "ann", MODEL) for _ in range(3)] == [True] * 3


async def test_status_tells_what_is_refused_and_resume_takes_it_again(kit: Kit) -> None:
    who = keeper(kit)
    await heard(kit, who, *[(NOT_OPEN, row(kit, user, MODEL)) for user in ("ann", "ben") * ENOUGH])
    await heard(kit, who, *[(NOT_OPEN, row(kit, "cem", "seedream-4-mine"))] * ENOUGH)
    lines = [line for line in await look(kit.settings) if line.part == "orders"]
    assert [line.level for line in lines] == ["attention", "ok"]
    refused: list[Refused] = await traits.standing(kit.db)
    until_ = {one.value: rfc3339(one.until) for one in refused}
    assert lines[0].message == (
        f"seedream4: those with model {MODEL} are refused to all until {until_[MODEL]}: the provider said ModelNotOpen"
    )
    assert lines[0].next == "genctl resume --tool seedream4"
    await traits.forget_all(kit.db, TOOL.name)
    assert await takes(kit, "cem", "seedream-4-mine")


async def test_one_user_hides_nothing_from_status_by_having_much_refused(kit: Kit) -> None:
    await kit.query(
        "insert into refused_traits (tool, field, value, user_id, refusals, code, since, until) "
        "select 'seedream4', 'model', 'ours', name, 5, 'X', now(), now() + interval '1 min' "
        "from unnest(array['ann', 'ben']) name union all "
        "select 'seedream4', 'image', n::text, 'cem', 5, 'X', now(), now() + interval '1 h' "
        "from generate_series(1, 200) n"
    )
    lines = [line for line in await look(kit.settings) if line.part == "orders"]
    assert [line.level for line in lines] == ["attention", "ok", "ok", "ok", "ok"]


BUSY = refusal(500, "InternalServiceError", "The service has a problem.")


async def test_failures_that_name_nothing_close_the_gate_once_they_are_of_more_than_one_user(
    kit: Kit,
) -> None:
    """Or where a value that nobody else has had with success may explain them."""
    who = keeper(kit)
    await heard(kit, who, (Success(images=()), row(kit, "ann")), *[(BUSY, row(kit, "mallory"))] * 25)
    assert (await now(kit)).is_open
    odd = [(BUSY, row(kit, user, size="4K")) for user in ("ann", "ben", "cem") * 9]
    await heard(kit, who, (Success(images=()), row(kit, "ann")), *odd)
    assert (await now(kit)).is_open
    await heard(kit, who, *[(BUSY, row(kit, user)) for user in ("mallory", "ann") * 2])
    assert not (await now(kit)).is_open


async def test_a_refusal_that_names_what_was_ordered_decides_no_probe(kit: Kit) -> None:
    """The next job does: one user's orders neither close the gate nor keep it closed."""
    await close_by_breaker(kit)
    await time_passes(kit)
    who = keeper(kit)
    assert await who.allowance(1) == 1
    who.called()(NOT_OPEN, row(kit, "mallory", MODEL))
    assert await who.allowance(1) == 1
    who.called()(Success(images=()), row(kit, "ann"))
    await who.leave()
    assert (await now(kit)).is_open


async def test_enqueue_is_refused_before_it_grants_or_orders_anything(kit: Kit) -> None:
    await heard(kit, keeper(kit), *[(NOT_OPEN, row(kit, "dora-1", MODEL))] * ENOUGH)
    wish = EnqueueOptions(prompt="x", user="dora", users=2, count=4, model=MODEL, grant=100)
    with pytest.raises(GenctlError, match="refused several orders with model") as caught:
        await enqueue.run(
            kit.settings, wish, lambda **_: "genctl", advance=lambda _: None, note=lambda _: None
        )
    assert caught.value.exit_code == 2
    assert await kit.query("select from credit_accounts where starts_with(user_id, 'dora')") == []


async def test_our_own_wrong_model_closes_the_gate(kit: Kit) -> None:
    """The default model is our choice, so that what a 404 says of it is about us, whoever ordered."""
    for user in ("ann", "ben", "cem", "dag"):
        await kit.enqueue("model-not-found", user=user)
    async with working(kit.pipeline, concurrency=1):

        async def closed() -> bool:
            return not (await now(kit)).is_open

        await until(closed)
    assert "InvalidEndpointOrModel.NotFound (config)" in str((await now(kit)).reason)


async def test_refused_values_of_many_users_at_once_are_counted_without_deadlock(kit: Kit) -> None:
    """By several workers, in any order."""
    who = [keeper(kit) for _ in range(4)]
    rows = [row(kit, user, MODEL, size="4K") for user in "abcdefgh"]
    both = msgspec.structs.replace(NOT_OPEN, names=("model", "size"))
    await asyncio.gather(
        *(heard(kit, one, *[(both, mine) for mine in rows[n:] + rows[:n]]) for n, one in enumerate(who))
    )
    (count,) = await kit.query("select count(*) as rows, sum(refusals) as refusals from refused_traits")
    assert (count["rows"], count["refusals"]) == (16, 64)
