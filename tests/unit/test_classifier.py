"""A verdict that is remembered is the one that a fresh look gives."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from genctl.base.others import others, rules_of_others
from genctl.base.settings import Settings
from genctl.domain import details
from genctl.domain.classify import classify
from genctl.domain.model import Answer, Failure, NoAnswer, Success
from genctl.domain.providers import Provider
from genctl.tools.found import Tools
from genctl.tools.wire import REMEMBERED, REMEMBERED_BYTES, Classifier

NOW = datetime(2025, 11, 2, 10, 11, 12, tzinfo=UTC)
PROVIDERS = [*Tools.of(Settings()).providers.values(), *others().values()]
ID = "021762078271000d6f8e1a2b3c4d5e6f708192a3b4c5d6e7f8091"
SAID = [
    b"", b"<html>502</html>", b'{"error":{"code":"OutputImageSensitiveContentDetected","message":"No."}}',
    f'{{"error":{{"code":"InvalidParameter","message":"No. Request id: {ID}"}}}}'.encode(),
    b'{"detail":[{"type":"content_policy_violation","msg":"No. Contact us at help@example.com."}]}',
    b'{"error":{"code":429,"message":"Wait","retry_after":7}}', b'{"code":0,"data":[{"url":"https://a/b"}]}',
    b'{"data":[{"url":"https://a/b?X-Tos-Date=20251102T101112Z&X-Tos-Expires=60"}],"created":1762078271}',
    b'{"message":"token=sk-0123456789abcdef0123"}',
]  # fmt: skip
HEADERS = {
    "date": ["Sun, 02 Nov 2025 10:11:12 GMT", "Sun, 02 Nov 2025 11:11:12 GMT", "soon"],
    "retry-after": ["0", "7", "Sun, 02 Nov 2025 10:12:00 GMT", "x"],
    "x-request-id": [ID, "req_0123456789", "req_9876543210"],
    "x-fal-error-type": ["content_policy_violation", "timeout"],
    "content-type": ["application/json"],
}
headers = st.fixed_dictionaries({}, optional={name: st.sampled_from(said) for name, said in HEADERS.items()})
answers = st.one_of(
    st.builds(Answer, st.sampled_from([200, 400, 403, 422, 429, 500, 503]), headers, st.sampled_from(SAID)),
    st.builds(NoAnswer, st.sampled_from(["Timeout", "RequestNotMade"]), st.text(max_size=5), st.booleans()),
)


def fresh(answer: Answer | NoAnswer, provider: Provider, now: datetime) -> Success | Failure:
    said = classify(answer, provider, now=now, verdicts=("422=retry",), others=rules_of_others())
    return details.without_secrets(said, provider.key_shape)


@given(st.sampled_from(PROVIDERS), st.lists(st.tuples(answers, st.integers(0, 100)), max_size=12))
def test_a_remembered_verdict_is_a_fresh_one(
    provider: Provider, heard: list[tuple[Answer | NoAnswer, int]]
) -> None:
    """In any order of answers, of which many are the same but for an id, a date or a wait."""
    remembers = Classifier(provider, verdicts=("422=retry",), others=rules_of_others())
    for answer, seconds in heard:
        now = NOW + timedelta(seconds=seconds)
        assert remembers(answer, now=now) == fresh(answer, provider, now)


@given(st.lists(st.tuples(st.sampled_from([400, 500]), st.text(max_size=40), st.sampled_from([ID, None]))))
def test_remembered_words_are_those_of_a_fresh_look(said: list[tuple[int, str, str | None]]) -> None:
    forgetful = (details._stored, details._for_people, details._tidied)
    for status, text, request_id in said:
        words = f"{text} {request_id or ''}"
        first = [details.for_people(words, "", request_id), details.stored(words, status)]
        for remembering in forgetful:
            remembering.cache_clear()
        assert [details.for_people(words, "", request_id), details.stored(words, status)] == first


def test_few_answers_are_remembered_and_no_long_one() -> None:
    remembers = Classifier(PROVIDERS[0])
    for n in range(2 * REMEMBERED):
        remembers(Answer(400, {}, b"%d" % n), now=NOW)
        remembers(Answer(400, {}, b"%d" % n + b" " * REMEMBERED_BYTES), now=NOW)
    assert remembers._remembered.cache_info().currsize == REMEMBERED
