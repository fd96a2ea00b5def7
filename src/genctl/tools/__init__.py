"""Define a tool: one kind of generation, described in one file.

`found.py` finds the installed tools, `wire.py` sends their requests. No other part of genctl names a tool.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from ipaddress import ip_address
from typing import Any, Literal, Self
from urllib.parse import urlsplit

import msgspec

from genctl.base import hidden
from genctl.base.settings import Entry, Settings
from genctl.domain.masking import LEAST_PART, Masker, without_login
from genctl.domain.model import GenctlError, Session, closest
from genctl.domain.providers import Provider

BESIDE = ("prompt", "clientKey", "model")  # every order has these, beside its tool's parameters
Said = Mapping[str, Any]  # the values of a tool's settings, by key


class Params(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Hold what an order may have beside prompt and model; a tool's subtype has a field for each."""


class Request(msgspec.Struct, frozen=True):
    """Hold one call: a POST of these bytes, which are JSON unless the headers say otherwise."""

    url: str
    headers: Mapping[str, str]
    body: bytes


class Tool(msgspec.Struct, frozen=True, kw_only=True):
    """Describe one kind of generation. A session belongs to the tool whose pattern its model matches.

    `models` are patterns with `*` as the only wildcard; the setting `models_setting` adds to them. `refusal`
    says why a model takes no such order, before anybody pays for it; None: the model takes it. `request`
    makes the call of a session, whose row may be older than this version of `params`; `knock` makes a call
    that the provider does not bill and that shows whether it accepts the key. `base` and `key` name the
    settings that hold the provider's address and the secret. The provider's filter refuses the words
    `sensitive`. The page offers `sizes`, with a text for each; without any it does not ask.
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
    only: tuple[str, ...] = ()  # patterns of the models that users may order; none: all

    def bound(self, settings: Settings) -> Self:
        """Return the tool with the values of its settings, and with the models that they add."""
        said = {entry.key: settings.of(entry) for entry in self.settings}
        more = tuple(said.get(self.models_setting) or ())
        bound = msgspec.structs.replace(self, said=said, models=(*self.models, *more), only=settings.models)
        # a key of another shape is a secret, too, and so is what a proxy between may repeat
        values = Masker([*bound.secrets, *hidden.known()], least=LEAST_PART).pattern
        shape = "|".join(filter(None, (self.provider.key_shape, values)))
        provider = msgspec.structs.replace(self.provider, key_shape=shape)
        return msgspec.structs.replace(bound, provider=provider)

    def checked(
        self, given: Mapping[str, Any], model: str | None, beside: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Return the parameters of an order as we store them; a suggestion may also be a name of `beside`.

        Raises GenctlError: exit 2 for an unknown parameter, one of another type, or one that `model` refuses
        (None: any model); exit 3 when the tool's own code fails.
        """
        fields = [field.encode_name for field in msgspec.structs.fields(self.params)]
        if unknown := next((name for name in given if name not in fields), None):
            close = closest(unknown, (*fields, *beside))
            hint = f"did you mean {close}?" if close else f"it takes {', '.join(fields) or 'none'}"
            message = f"the tool {self.name} knows no {unknown[:80]!r}"
            raise GenctlError("UnknownParameter", message, hint, exit_code=2)
        try:
            params = msgspec.convert(given, self.params)
        except msgspec.ValidationError as error:
            why = f"{error}".replace("`$.", "`").replace(" - at `", " at `")
            raise GenctlError("BadParameter", why, "see `genctl tools -o json`", exit_code=2) from None
        try:
            refused = None if model is None else self.refusal(model, params)
        except Exception as bug:
            message = f"the tool {self.name} cannot judge this order: {type(bug).__name__}: {bug}"
            raise GenctlError("ToolUnusable", message, "mend its package") from bug
        if refused:
            raise GenctlError("BadParameter", refused, "change it, or take it away", exit_code=2)
        stored: dict[str, Any] = msgspec.to_builtins(params)
        return stored

    def check_orderable(self, model: str) -> None:
        """Raise GenctlError (exit 2) when nobody may order the model any more, or ever could."""
        if not self.serves(model) or (self.only and not _fits(model, self.only)):
            known = ", ".join(self.only or self.models)
            message = f"{self.name} takes no orders for the model {model[:80]!r}"
            raise GenctlError("UnknownModel", message, f"use one like {known}", exit_code=2)

    def takes(self, model: str | None, stored: Mapping[str, Any]) -> bool:
        """Tell whether the model takes those of a row's parameters that we know, as we send only them."""
        fields = {field.encode_name for field in msgspec.structs.fields(self.params)}
        try:
            self.checked({name: stored[name] for name in stored if name in fields}, model)
        except GenctlError:
            return False
        return True

    @property
    def api_path(self) -> str:
        return f"/api/{self.name}"

    @property
    def like(self) -> list[str]:
        """Return the patterns as patterns of SQL's LIKE."""
        return [re.sub(r"([\\%_])", r"\\\1", pattern).replace("*", "%") for pattern in self.models]

    def serves(self, model: str | None) -> bool:
        """Tell whether a session of this model belongs to the tool."""
        return _fits(model or "", self.models)

    @property
    def address(self) -> str:
        """Return the provider's address without its login; empty if nobody has set it."""
        return without_login(str(self.said.get(self.base) or ""))

    @property
    def is_real(self) -> bool:
        """Tell whether calls may cost money: the provider's host is no loopback address."""
        host = urlsplit(self.address).hostname or ""
        try:
            return not ip_address(host).is_loopback
        except ValueError:
            return host != "localhost"

    @property
    def secrets(self) -> list[str]:
        return [str(self.said[entry.key]) for entry in self.settings if entry.secret and self.said[entry.key]]

    def check_usable(self) -> None:
        """Raise GenctlError (exit 3) when no process of this version can carry out the tool's orders."""
        if not self.models:
            raise GenctlError("UnknownTool", f"no tool {self.name!r} is installed", "install its package")
        if self.brings == "bytes":
            told = f"the tool {self.name} brings images as bytes, and this genctl cannot keep them"
            raise GenctlError("NoStorage", told, "ask its provider for URLs")

    def check_ready(self) -> None:
        """Raise it also when this process has no key or no address."""
        self.check_usable()
        if not self.address:
            env = next(entry.env for entry in self.settings if entry.key == self.base)
            told = f"{env}, the address of the provider of {self.name}, is not set"
            raise GenctlError("ProviderAddressMissing", told, f"set {env}")
        entry = next((entry for entry in self.settings if entry.key == self.key), None)
        key = self.said.get(self.key) or ("" if self.is_real else "simulator")
        if entry and (not key or not str(key).isascii()):
            told = f"no usable {entry.env} for the provider at {self.address}"
            raise GenctlError("ProviderKeyMissing", told, f"set {entry.env} to a key of that provider")


def _fits(model: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(model, pattern) for pattern in patterns)
