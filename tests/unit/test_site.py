"""Under which address a user sees us, whatever stands in between, and whose word counts for it."""

import pytest
from starlette.requests import HTTPConnection

from genctl.base.values import as_networks, as_public_url
from genctl.domain.model import GenctlError
from genctl.services.site import Front, Site

APP = "https://app.example.com"
SAME = {"Sec-Fetch-Site": "same-origin"}
FORWARDED = {"X-Forwarded-Host": "app.example.com", "X-Forwarded-Proto": "https"}
NOBODY, PUBLIC, PROXIED = Front(None), Front(APP), Front(None, ["127.0.0.0/8"])


def request(client: str = "127.0.0.1", **headers: str) -> HTTPConnection:
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    return HTTPConnection({"type": "http", "scheme": "http", "client": (client, 1), "headers": raw})


@pytest.mark.parametrize(
    ("front", "headers", "cookie"),
    [
        (NOBODY, {"Origin": APP, "Host": "app.example.com:443"}, "__Host-genctl_token"),
        (NOBODY, {"Origin": APP, "Host": "app.example.com"}, "__Host-genctl_token"),
        (NOBODY, {"Origin": "http://app.example.com", "Host": "APP.example.com.:80"}, "genctl_token"),
        (NOBODY, {"Origin": f"{APP}:8443", "Host": "app.example.com:8443"}, "__Host-genctl_token_8443"),
        (NOBODY, {"Origin": "http://[::1]:8787", "Host": "[::1]:8787"}, "genctl_token_8787"),
        (NOBODY, {"Origin": APP, "Host": "10.0.0.7", **SAME}, "__Host-genctl_token"),
        (PUBLIC, {"Origin": APP, "Host": "10.0.0.7:8787"}, "__Host-genctl_token"),
        (PUBLIC, {"Origin": APP, "Host": "10.0.0.7:8787", **SAME}, "__Host-genctl_token"),
        (Front(f"{APP}:443"), {"Origin": APP, "Host": "x"}, "__Host-genctl_token"),
        (Front(f"{APP}/my/images"), {"Origin": APP, "Host": "x"}, "__Host-genctl_token_my-images"),
        (PROXIED, {"Origin": APP, "Host": "10.0.0.7", **FORWARDED}, "__Host-genctl_token"),
        (PROXIED, {"Origin": APP, "Host": "x", "X-Forwarded-Host": "y, app.example.com"}, "__Host-genctl_token"),
    ],
)  # fmt: skip
def test_the_page_may_change_things_and_its_cookie_has_its_name(
    front: Front, headers: dict[str, str], cookie: str
) -> None:
    site = front.check_origin(request(**headers))
    assert (site.cookie, site.is_secure) == (cookie, cookie.startswith("__Host-"))
    assert front.cookie(request(Cookie=f"genctl_token_1=no; {cookie}=yes", **headers)) == "yes"


@pytest.mark.parametrize(
    ("front", "headers"),
    [
        (NOBODY, {"Host": "app.example.com"}),
        (NOBODY, {"Host": "app.example.com", **SAME}),
        (NOBODY, {"Origin": "null", "Host": "app.example.com", **SAME}),
        (NOBODY, {"Origin": "https://[", "Host": "app.example.com", **SAME}),
        (NOBODY, {"Origin": "file:///", "Host": "app.example.com", **SAME}),
        (NOBODY, {"Origin": APP, "Host": "app.example.com", "Sec-Fetch-Site": "cross-site"}),
        (NOBODY, {"Origin": APP, "Host": "app.example.com", "Sec-Fetch-Site": "same-site"}),
        (NOBODY, {"Origin": f"{APP}:8443", "Host": "app.example.com"}),
        (NOBODY, {"Origin": APP, "Host": "app.example.com:8443"}),
        (NOBODY, {"Origin": f"{APP}.evil.example", "Host": "app.example.com"}),
        (NOBODY, {"Origin": APP, "Host": "x", **FORWARDED}),
        (NOBODY, {"Origin": "http://", "Host": ""}),
        (Front(None, ["10.0.0.0/8"]), {"Origin": APP, "Host": "x", **FORWARDED}),
        (PROXIED, {"Origin": APP, "Host": "x", "X-Forwarded-Host": "app.example.com, y"}),
        (PUBLIC, {"Origin": "http://app.example.com", "Host": "app.example.com"}),
        (PUBLIC, {"Origin": f"{APP}:8443", "Host": "app.example.com:8443"}),
        (PUBLIC, {"Origin": "https://evil.example", "Host": "evil.example", **SAME}),
        (PUBLIC, {"Origin": APP, "Host": "app.example.com", "Sec-Fetch-Site": "same-site"}),
    ],
)
def test_what_another_page_sends_changes_nothing(front: Front, headers: dict[str, str]) -> None:
    with pytest.raises(GenctlError) as caught:
        front.check_origin(request(**headers))
    assert caught.value.code == "ForeignOrigin"
    assert "GENCTL_PUBLIC_URL" in caught.value.fix


@pytest.mark.parametrize(
    ("headers", "elsewhere"),
    [
        ({"Sec-Fetch-Site": "none"}, False),
        (SAME, False),
        ({"Sec-Fetch-Site": "same-site"}, True),
        ({"Sec-Fetch-Site": "cross-site", "Referer": f"{APP}/"}, True),
        ({"Referer": f"{APP}/signin"}, False),
        ({"Referer": "https://evil.example/"}, True),
        ({"Referer": "https://["}, True),
        ({}, True),  # the page that led here may have seen to it that none is sent
    ],
)
@pytest.mark.parametrize("front", [NOBODY, PUBLIC])
def test_another_site_may_have_led_here_unless_the_browser_says_no(
    front: Front, headers: dict[str, str], elsewhere: bool
) -> None:
    assert front.is_from_elsewhere(request(Host="app.example.com", **headers)) == elsewhere


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("10.0.0.1", "9.9.9.9, 192.0.2.1:50123", "192.0.2.1"),
        ("10.0.0.1", "[2001:db8::1]:50123", "2001:db8::1"),
        ("10.0.0.1", "[2001:db8::1]", "2001:db8::1"),
        ("10.0.0.1", "192.0.2.1, 10.0.0.1:50123", "192.0.2.1"),
        ("192.0.2.1", "9.9.9.9", "192.0.2.1"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "9.9.9.9", "9.9.9.9"),
        ("10.0.0.1", "1.1.1.1, 9.9.9.9, 10.0.0.2", "9.9.9.9"),
        ("10.0.0.1", "10.0.0.3, 10.0.0.2", "10.0.0.1"),
        ("::ffff:10.0.0.1", "2001:db8::1", "2001:db8::1"),
        ("10.0.0.1", "unknown", "unknown"),
    ],
)
def test_a_request_is_of_the_last_address_that_is_no_proxy_of_ours(
    peer: str, forwarded: str, client: str
) -> None:
    front = Front(None, as_networks("10.0.0.0/8, 172.16.0.1"))
    assert front.client(dict(request(peer, **{"X-Forwarded-For": forwarded}).scope)) == client


@pytest.mark.parametrize(
    ("path", "inner"),
    [
        ("/api", None),
        ("/api/", "/"),
        ("/", "/"),
        ("/api/api/seedream4/credits", "/api/seedream4/credits"),
        ("/api/seedream4/credits", "/api/seedream4/credits"),
        ("/api/signin", "/signin"),
        ("/apis/x", "/apis/x"),
    ],
)
def test_the_public_path_is_taken_away_once_even_where_it_is_named_as_one_of_ours(
    path: str, inner: str | None
) -> None:
    assert Front(f"{APP}/api").inner_path(path) == inner
    assert NOBODY.inner_path(path) == path


def test_hosts_that_are_none_are_nobodys_site() -> None:
    assert {Site.of(f"http://{bad}") for bad in ("[", "x:99999999", "x:y")} == {Site("", "", None)}


@pytest.mark.parametrize(
    "value", ["app.example.com", "ftp://x", "https://x/?a=1", "https://x/#a", "https://u:p@x", "https://x/a b", "https://x/a;b", "https://x//a", "https://x/a/../b", "https://x/."]
)  # fmt: skip
def test_a_public_address_is_an_origin_and_a_plain_path(value: str) -> None:
    with pytest.raises(ValueError, match=r"https://"):
        as_public_url(value)
    assert as_public_url("https://x.example/a/") == "https://x.example/a"


@pytest.mark.parametrize("value", ["10.0.0.1/8", "x", "10.0.0.0/33", "10.0.0.0-10.0.0.9"])
def test_a_trusted_proxy_is_an_address_or_a_network(value: str) -> None:
    with pytest.raises(ValueError, match=r"10\.0\.0\.0/8"):
        as_networks(value)
