"""A message to a person, through the library ``apprise``: mail, Telegram, Slack, webhooks and many more.

The address holds secrets. It is read from the environment, and never printed, logged or kept.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Mapping
from concurrent import futures

from mapsage_kaggle.errors import MachineError, UsageError
from mapsage_kaggle.processes import in_background

VARIABLE = "MAPSAGE_KAGGLE_NOTIFY"
TIMEOUT_S = 10.0


def check(environ: Mapping[str, str] | None = None) -> None:
    """See whether messages can be sent, as far as that can be told without sending one.

    Raises:
        UsageError: There is no address, or none that can be understood.
        MachineError: The library is not installed.
    """
    environ = os.environ if environ is None else environ
    if not environ.get(VARIABLE):
        raise UsageError(
            f"--notify needs an address in the variable {VARIABLE}.",
            "Set it to an address of apprise's, such as ntfys://ntfy.sh/your-topic.",
        )
    if importlib.util.find_spec("apprise") is None:
        raise MachineError(
            "The package apprise is not installed.", "Run `pip install 'mapsage-kaggle[notify]'`."
        )
    import apprise

    if not apprise.Apprise().add(environ[VARIABLE].split()):
        raise UsageError(
            f"The variable {VARIABLE} holds no address that apprise understands.",
            "Its documentation lists the forms of all services.",
        )


def send(title: str, text: str, environ: Mapping[str, str] | None = None) -> bool:
    """Send a message, within 10 s or not at all; tell whether that is known to have been done."""
    environ = os.environ if environ is None else environ
    addresses = environ.get(VARIABLE, "").split()

    def post() -> bool:
        import apprise

        logging.getLogger("apprise").disabled = True  # it logs addresses
        target = apprise.Apprise()
        target.add(addresses)
        return bool(target.notify(body=text, title=title))

    sending = in_background(post)
    futures.wait([sending], timeout=TIMEOUT_S)
    # Whatever it has raised: a message must not end a run.
    return sending.done() and sending.exception() is None and sending.result()
