"""What a tool is: one kind of generation, and everything that is particular to it, said in one file.

`found.py` finds the tools that are installed, `wire.py` carries their requests. No other part of genctl
names one.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from ipaddress import ip_address
from typing import Any, Literal, Self
from urllib.parse import urlsplit

import msgspec

from genctl.base.settings import Entry, Settings
from genctl.domain.masking import LEAST_PART, Masker, without_login
from genctl.domain.model import GenctlError, Session
from genctl.domain.providers import Provider

BESIDE = ("prompt", "clientKey", "model")  # what every order has, beside its tool's parameters
Said = Mapping[str, Any]  # the values of a tool's settings, by key


class Params(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What may be ordered beside prompt and model: a tool's own kind of it has a field for each."""


class Request(msgspec.Struct, frozen=True):
    """One call: a POST of these bytes, which are JSON unless the headers say otherwise."""

    url: str
    headers: Mapping[str, str]
    body: bytes

    def check(self) -> None:
        """Raises TypeError: what a tool's file has put together cannot be sent."""
        if not all(isinstance(text, str) for text in (self.url, *self.headers, *self.headers.values())):
            raise TypeError(f"a Request's URL and headers are texts, not {self.url!r}, {[*self.headers]}")
        if not isinstance(self.body, bytes):
            raise TypeError(f"a Request's body is bytes, not {type(self.body).__name__}")


class Tool(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of generation. A session belongs to the tool whose pattern its model matches.

    `models` are shell patterns of `*` alone, matched with case; the setting `models_setting` adds to them.
    `refusal` says why the model takes no such order, before it is paid; None: it does. `request` makes the
    call of a session, whose row may be older than this version of `params`; `knock` makes one that nobody
    bills, which tells whether the key is taken. `base` is the key of the setting that holds the provider's
    address, `key` of the one that holds the secret. `sensitive` are words that the provider's filter refuses.
    `sizes` are what the page offers as an order's `size`, with the words for each; with none it does not ask.
    """

    name: str
    models: tuple[str, ...]
    models_setting: str = ""
    default_model: str
    price: int  # credits for one image
    params: type[Params] = Params
    refusal: Callable[[str, Any], str | None] = lambda *_: None
    settings: tuple[Entry, ...] = ()
    base: str
    key: str = ""
    provider: Provider
    request: Callable[[Session, Said], Request]
    knock: Callable[[Said], Request]
    brings: Literal["url", "bytes"] = "url"
    sensitive: str = "explicit nudity"
    good: str = "a lighthouse at dusk, watercolour"
    sizes: Mapping[str, str] = msgspec.field(default_factory=dict)
    said: Said = msgspec.field(default_factory=dict)

    def bound(self, settings: Settings) -> Self:
        """The tool with the values of its settings, and the models that they add."""
        said = {entry.key: settings.of(entry) for entry in self.settings}
        more = tuple(said.get(self.models_setting) or ())
        told = msgspec.structs.replace(self, said=said, models=(*self.models, *more))
        # what a provider says of a key that has another shape is no less secret
        values = Masker(told.secrets, least=LEAST_PART).pattern
        shape = "|".join(filter(None, (self.provider.key_shape, values)))
        return msgspec.structs.replace(told, provider=msgspec.structs.replace(self.provider, key_shape=shape))

    def checked(
        self, given: Mapping[str, Any], model: str | None, beside: Sequence[str] = ()
    ) -> dict[str, Any]:
        """The parameters of an order, as they are stored. `beside` are other names that may have been meant.

        Raises GenctlError (exit 2): an unknown one, one of another type, what `model` refuses (None: any);
        exit 3: what the tool fails on.
        """
        fields = [field.encode_name for field in msgspec.structs.fields(self.params)]
        if unknown := next((name for name in given if name not in fields), None):
            meant = {name.lower(): name for name in (*fields, *beside)}
            close = get_close_matches(unknown.lower(), meant, 1)
            hint = f"did you mean {meant[close[0]]}?" if close else f"it takes {', '.join(fields) or 'none'}"
            told = f"the tool {self.name} knows no {unknown[:80]!r}"
            raise GenctlError("UnknownParameter", told, hint, exit_code=2)
        try:
            params = msgspec.convert(given, self.params)
        except msgspec.ValidationError as error:
            why = f"{error}".replace("`$.", "`").replace(" - at `", " at `")
            raise GenctlError("BadParameter", why, "see `genctl tools -o json`", exit_code=2) from None
        try:
            refused = None if model is None else self.refusal(model, params)
        except Exception as bug:
            told = f"the tool {self.name} cannot judge this order: {type(bug).__name__}: {bug}"
            raise GenctlError("ToolUnusable", told, "mend its package") from bug
        if refused:
            raise GenctlError("BadParameter", refused, "change it, or take it away", exit_code=2)
        stored: dict[str, Any] = msgspec.to_builtins(params)
        return stored

    def takes(self, model: str | None, stored: Mapping[str, Any]) -> bool:
        """Whether the model takes a row's parameters; what this version does not know is not sent."""
        fields = {field.encode_name for field in msgspec.structs.fields(self.params)}
        try:
            self.checked({name: stored[name] for name in stored if name in fields}, model)
        except GenctlError:
            return False
        return True

    @property
    def api_path(self) -> str:
        """Where the API serves it."""
        return f"/api/{self.name}"

    @property
    def like(self) -> list[str]:
        """The patterns as SQL's LIKE says them."""
        return [re.sub(r"([\\%_])", r"\\\1", pattern).replace("*", "%") for pattern in self.models]

    def serves(self, model: str | None) -> bool:
        """Whether a session of this model is the tool's."""
        return any(fnmatchcase(model or "", pattern) for pattern in self.models)

    @property
    def address(self) -> str:
        """Where the provider is, as it may be shown; empty where nobody has said."""
        return without_login(str(self.said.get(self.base) or ""))

    @property
    def is_real(self) -> bool:
        """Whether calls may cost money: the provider's host is no loopback address."""
        host = urlsplit(self.address).hostname or ""
        try:
            return not ip_address(host).is_loopback
        except ValueError:
            return host != "localhost"

    @property
    def secrets(self) -> list[str]:
        """The values of its settings that nobody may read."""
        return [str(self.said[entry.key]) for entry in self.settings if entry.secret and self.said[entry.key]]

    def check_usable(self) -> None:
        """Raises GenctlError (exit 3) when no process of this version can carry out its orders."""
        if not self.models:
            raise GenctlError("UnknownTool", f"no tool {self.name!r} is installed", "install its package")
        if self.brings == "bytes":
            raise GenctlError(
                "NoStorage",
                f"the tool {self.name} brings images as bytes, and this genctl cannot keep them",
                "ask its provider for URLs",
            )

    def check_ready(self) -> None:
        """The same, and when this process cannot, as it has no key."""
        self.check_usable()
        if not self.address:
            env = next(entry.env for entry in self.settings if entry.key == self.base)
            raise GenctlError(
                "ProviderAddressMissing",
                f"{env} is not set, and says where the provider of {self.name} is",
                f"set {env}",
            )
        entry = next((entry for entry in self.settings if entry.key == self.key), None)
        key = self.said.get(self.key) or ("" if self.is_real else "simulator")
        if entry and (not key or not str(key).isascii()):
            raise GenctlError(
                "ProviderKeyMissing",
                f"no usable {entry.env} for the provider at {self.address}",
                f"set {entry.env} to a key of that provider",
            )
