"""Kaggle, spoken to through the objects of its own client. Only the modules ``client*`` import it.

``import kaggle`` reads the credentials where the official client does, and checks a token over the
network. So it is imported by :meth:`KaggleClient.connect` and not before. The client itself has no time
limits and retries next to nothing: time limits are added here, and repeating is the loop's matter,
since repeating a push would start a second session.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import re
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from mapsage_kaggle.errors import MachineError, MapsageError, UsageError
from mapsage_kaggle.processes import in_background
from mapsage_kaggle.relay.answers import (
    REMEDIES,
    Absent,
    Denied,
    Refusal,
    Rejected,
    Unreachable,
    Unreadable,
    kind_of_refusal,
    sentence,
)
from mapsage_kaggle.relay.client_datasets import Datasets
from mapsage_kaggle.relay.client_notebooks import MAX_PAGES, PAGE_SIZE, Notebooks

TIMEOUT_S = 60.0
"""For one answer of Kaggle's, and between two pieces of a download."""
CONNECT_S = 120.0
"""For the import of the client, which checks a token."""
LATER_S = 300.0
"""How long to wait where Kaggle answers at the start that it cannot now."""
MAX_RETRY_AFTER_S = 86_400.0
"""Kaggle is left alone for no longer, whatever it asks for."""
CLOCKS_AGREE_S = 120.0
"""By how much this machine's clock may differ from Kaggle's without being corrected."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Quota:
    """GPU time of this week.

    Attributes:
        left_s: What is left of it, what running sessions have reserved taken off.
        allowed_s: The whole of it.
        used_s: What has been used of it, what is reserved included.
        renews_s: When it is renewed, in seconds since the epoch; None where Kaggle does not say.
    """

    left_s: float
    allowed_s: float
    used_s: float
    renews_s: float | None = None


class KaggleClient:
    """One account."""

    def __init__(self, api: Any, owner: str, *, clock: Callable[[], float] = time.time) -> None:
        self.api = api
        self.owner = owner
        self.timeout_s = TIMEOUT_S
        self.notebooks = Notebooks(self)
        self.datasets = Datasets(self)
        self._clock = clock
        self._ahead_s = 0.0
        self._renewing = False
        self._build = api.build_kaggle_client
        # So that what the client does on its own (push, upload, follow a log) has time limits, too.
        api.build_kaggle_client = self._bounded_client

    @classmethod
    def connect(cls, owner: str) -> KaggleClient:
        """Read the credentials as the official client does, and see whether they are the owner's.

        Raises:
            MachineError: The package is missing, there are no valid credentials, or no Kaggle.
            UsageError: They are another account's.
        """
        with _quiet():
            connecting = in_background(_imported)  # which has no time limit of its own
            futures.wait([connecting], timeout=CONNECT_S)
        if not connecting.done():
            raise Unreachable(f"Kaggle did not answer within {CONNECT_S:.0f} s.", "Try again.")
        error = connecting.exception()  # the client exits where it has no credentials
        if error is not None:
            _raise_unless_without_credentials(error)
        user = "" if error else str(connecting.result().config_values.get("username") or "")
        if not user:
            raise MachineError(
                "There are no valid Kaggle credentials here; a token that has expired counts as none.",
                "Create a token on kaggle.com (Settings, API) and put it into ~/.kaggle/access_token or the "
                "variable KAGGLE_API_TOKEN.",
            )
        if user.lower() != owner.lower():
            raise UsageError(
                f"The credentials here are {user}'s, not {owner}'s.",
                f"Give --owner {user}, or {owner}'s token.",
            )
        return cls(connecting.result(), user)

    def now_s(self) -> float:
        """Return the time by Kaggle's clock: this machine's may jump, or have been asleep."""
        return self._clock() + self._ahead_s

    def quota(self) -> Quota | None:
        """Return this week's GPU time; None where Kaggle does not tell. Nothing may depend on it."""
        try:
            answer = self.ask("get_accelerator_quota_statistics")
        except (ImportError, Refusal, Unreachable):  # kagglesdk before 0.1.15 has no such request
            return None
        gpu = answer.gpu_quota
        if gpu is None or gpu.total_time_allowed is None:
            return None
        used_s = sum(item.total_seconds() for item in (gpu.time_used, gpu.time_reserved) if item is not None)
        allowed_s = gpu.total_time_allowed.total_seconds()
        renews = answer.quota_refresh_time
        return Quota(
            left_s=max(0.0, allowed_s - used_s),
            allowed_s=allowed_s,
            used_s=used_s,
            renews_s=_epoch_s(renews) if renews else None,
        )

    # -- how it is called

    def ask(self, method: str, **fields: Any) -> Any:
        """Send one request, by the name that kagglesdk has for it, and return the answer.

        Raises:
            ImportError: This kagglesdk has no such request.
            Refusal: Kaggle said no.
            Unreachable: It did not answer, or not so that it can be read.
        """
        room, prefix = ("datasets", "dataset") if "dataset" in method else ("kernels", "kernels")
        types = importlib.import_module(f"kagglesdk.{room}.types.{prefix}_api_service")
        name = f"Api{method.title().replace('_', '')}Request"
        if not hasattr(types, name):
            raise ImportError(f"kagglesdk has no {name}")
        request = getattr(types, name)()
        for field, value in fields.items():
            # kagglesdk before 0.1.16 knows the newest version only, which is what is mostly asked for.
            if field != "version_label" or hasattr(request, field):
                setattr(request, field, value)
        with self.translating(), self.api.build_kaggle_client() as client:
            return getattr(getattr(getattr(client, room), f"{prefix}_api_client"), method)(request)

    def pages(self, method: str, **fields: Any) -> Iterator[Any]:
        """Send a request for each page of a listing, as :meth:`ask` does, and yield the answers."""
        token = ""
        for _ in range(MAX_PAGES):
            page = self.ask(method, **fields, page_size=PAGE_SIZE, page_token=token)
            yield page
            if not page.next_page_token or page.next_page_token == token:
                return
            token = page.next_page_token

    def renew(self) -> bool:
        """Read the credentials again, since a token may have expired; tell whether there are any.

        The official client takes a token at its start and never another; those of ``kaggle auth login``
        live for hours.
        """
        if self._renewing:
            return False
        self._renewing, known, renewed = True, dict(self.api.config_values), False
        try:
            with _quiet():
                self.api.authenticate()
            renewed = bool(self.api.config_values.get("username"))
        except (SystemExit, Exception):  # noqa: BLE001 - it exits without credentials; raises what it meets
            renewed = False
        finally:
            self._renewing = False
            if not renewed:
                self.api.config_values = known  # which it may have begun anew
        return renewed

    def _bounded_client(self) -> Any:
        from requests.adapters import HTTPAdapter

        kaggle = self

        class Bounded(HTTPAdapter):
            def send(self, request: Any, *arguments: Any, **options: Any) -> Any:
                options["timeout"] = options.get("timeout") or kaggle.timeout_s
                answer = super().send(request, *arguments, **options)
                if answer.status_code == 401 and kaggle.renew():
                    # Nothing was done yet, so that it can be asked again whatever it is.
                    token = kaggle.api.config_values.get("token")
                    if token:
                        request.headers["Authorization"] = f"Bearer {token}"
                    answer = super().send(request, *arguments, **options)
                kaggle.note_time(answer.headers.get("Date"))
                return answer

        client = self._build()
        http = client.http_client()
        http._init_session()
        for scheme in ("http://", "https://"):
            http._session.mount(scheme, Bounded())
        return client

    def note_time(self, date: str | None) -> None:
        with contextlib.suppress(ValueError, TypeError):
            ahead_s = parsedate_to_datetime(date or "").timestamp() - self._clock()
            self._ahead_s = ahead_s if abs(ahead_s) > CLOCKS_AGREE_S else 0.0

    @contextlib.contextmanager
    def translating(self) -> Iterator[None]:
        """Turn what the client raises into what the loop understands, without a secret in it."""
        import requests

        try:
            with _quiet():
                yield
        except requests.exceptions.HTTPError as error:
            raise self._refusal(error) from None
        except (requests.RequestException, ConnectionError, TimeoutError) as error:
            raise Unreachable(f"Kaggle does not answer ({type(error).__name__}).") from None
        except (json.JSONDecodeError, AttributeError, TypeError, LookupError):
            raise Unreadable("Kaggle answered with something that its client cannot read.") from None
        except ValueError as error:
            # The client's own: what it was given does not do.
            raise self.rejected(str(error)) from None

    def rejected(self, text: str, *, stray: bool = False) -> Rejected:
        """Return the refusal that is put in these words."""
        kind = kind_of_refusal(text)
        usual = "See whether it can be done on kaggle.com, then run the relay again." if stray else ""
        error = Rejected(sentence(self._scrub(text)), REMEDIES.get(kind, usual))
        error.kind, error.stray = kind, stray
        return error

    def _refusal(self, error: Any) -> MapsageError:
        code, message = error.response.status_code, ""
        with contextlib.suppress(ValueError, AttributeError):
            document = error.response.json()
            code = int(document.get("code", code))
            message = str(document.get("message", ""))
        message = sentence(self._scrub(message))
        if code == 429 or code >= 500:
            later = Unreachable(f"Kaggle cannot answer now (HTTP {code}).")
            later.retry_after_s = _retry_after_s(error.response.headers.get("Retry-After"), self.now_s())
            return later
        said = f" (HTTP {code}): {message}" if message else f" (HTTP {code})."
        if code == 401:
            return Denied(
                f"Kaggle does not accept the credentials{said}",
                "Create a new token on kaggle.com (Settings, API), or run `kaggle auth login`.",
            )
        if code == 403:
            kind = kind_of_refusal(message)
            what = "This account is suspended" if kind == "suspended" else "The credentials do not allow it"
            token = "Create a token with rights to notebooks and data sets on kaggle.com (Settings, API)."
            denied = Denied(f"{what}{said}", REMEDIES.get(kind, token))
            denied.kind = kind
            return denied
        if code == 404:
            return Absent(f"Kaggle knows nothing of it{said}")
        return self.rejected(f"Kaggle said no{said}", stray=True)

    def _scrub(self, text: str) -> str:
        for name in ("token", "key"):
            secret = self.api.config_values.get(name)
            if secret:
                text = text.replace(str(secret), "***")
        text = re.sub(r"(https?://[^\s?]+)\?\S+", r"\1?***", text)
        return re.sub(r"KGAT_\w+", "***", text)[:500]


def _epoch_s(moment: Any) -> float:
    """Return a time of the client's, which is UTC without saying so, in seconds since the epoch."""
    from datetime import timezone

    return float((moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp())


def _retry_after_s(value: str | None, now_s: float) -> float:
    try:
        seconds = float(value or 0)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value or "").timestamp() - now_s
        except (ValueError, TypeError):
            return 0.0
    return max(0.0, min(seconds, MAX_RETRY_AFTER_S))


def _imported() -> Any:
    import kaggle

    api = kaggle.api
    if not api.config_values.get("username"):
        # The import keeps silent about why it could not; this tells.
        api.authenticate()
    return api


def _raise_unless_without_credentials(error: BaseException) -> None:
    if isinstance(error, ImportError):
        raise MachineError(
            f"The package kaggle is not installed ({error}).", "Run `pip install 'kaggle>=2,<3'`."
        ) from error
    import requests

    answer = getattr(error, "response", None)
    refused = answer is not None and answer.status_code < 500 and answer.status_code != 429
    if isinstance(error, SystemExit) or refused:
        return
    if answer is not None:  # it is there, and cannot now: for maintenance, or because it is asked too often
        later = Unreachable(f"Kaggle cannot answer now (HTTP {answer.status_code}).", "Try again later.")
        later.retry_after_s = max(LATER_S, _retry_after_s(answer.headers.get("Retry-After"), time.time()))
        raise later from None
    if isinstance(error, requests.RequestException):
        raise Unreachable("Kaggle cannot be reached.", "Check the network, then try again.") from None
    raise MachineError(
        f"Kaggle's client cannot start: {type(error).__name__}.", "Try `kaggle config view`."
    ) from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
