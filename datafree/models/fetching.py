"""What libraries fetch from the network: nothing unless they may, and one line soon where there is none."""

import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from ..errors import UserError, first_line

SECONDS = 10  # to wait for an answer; chosen by us
TORCHVISIONS = "https://download.pytorch.org"
IN_NO_CACHE = ("LocalEntryNotFoundError", "OfflineModeIsEnabled")  # of huggingface_hub


class NoNetworkError(ConnectionError):
    """What a library gets that asks for the network here."""


@contextmanager
def fetching(name: str, library: str, may: bool) -> Iterator[None]:
    """Within, a library reads what its cache holds, and fetches the rest where it may and the network is there.

    Raises UserError, with the name, where something is not in the cache and cannot be had.
    """
    constants = constants_of_hub() if library != "torchvision" else None
    place = constants.ENDPOINT if constants else TORCHVISIONS
    why_not = unreachable(place) if may else ""
    try:
        if may and not why_not:
            yield
        else:
            with _no_network(constants):
                yield
    except Exception as error:
        if not is_for_want_of_network(error):
            raise
        if not may:
            what, remedy = f"{name} was never fetched: its library's cache lacks it", "give --download to fetch it"
        else:
            what = f"its library's cache lacks {name}, and {place} cannot be reached ({why_not or first_line(error)})"
            remedy = "check the network, or give the weights with --teacher_path"
        raise UserError(what, remedy) from None


def unreachable(place: str) -> str:
    """Why no answer comes from an address; empty where one does."""
    try:
        urllib.request.urlopen(urllib.request.Request(place, method="HEAD"), timeout=SECONDS).close()
    except urllib.error.HTTPError:  # an answer
        return ""
    except OSError as error:
        reason = getattr(error, "reason", error)
        return "" if isinstance(reason, ssl.SSLError) else first_line(reason)  # libraries bring certificates
    return ""


def constants_of_hub() -> Any:
    """The constants of huggingface_hub; None where that is not installed."""
    try:
        from huggingface_hub import constants
    except ImportError:
        return None
    return constants


@contextmanager
def _no_network(constants: Any) -> Iterator[None]:
    """Within, no address is found; huggingface_hub, which would try for half a minute, looks into its cache alone."""

    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise NoNetworkError("not to be fetched")

    kept = [(socket, "getaddrinfo", refuse)] + ([(constants, "HF_HUB_OFFLINE", True)] if constants else [])
    before = [getattr(where, name) for where, name, _ in kept]
    try:
        for where, name, value in kept:
            setattr(where, name, value)
        yield
    finally:
        for (where, name, _), value in zip(kept, before, strict=True):
            setattr(where, name, value)


def is_for_want_of_network(error: Any) -> bool:
    """Whether that, or what brought it about, is that something was to be fetched and was not."""
    if not isinstance(error, BaseException):
        return False
    causes = error.__cause__ or error.__context__, getattr(error, "reason", None)
    return (
        isinstance(error, NoNetworkError)
        or type(error).__name__ in IN_NO_CACHE
        or any(map(is_for_want_of_network, causes))
    )
