"""MapSage Kaggle: a chain of Kaggle sessions that behaves like one uninterrupted training run."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mapsage_kaggle.notebook.maps import maps
    from mapsage_kaggle.notebook.selftest import selftest
    from mapsage_kaggle.notebook.session import preflight
    from mapsage_kaggle.setup.install import install

__version__ = "0.1.0"

_HOMES = {
    "install": "mapsage_kaggle.setup.install",
    # Opens a session; the notebook's further cells are that session's methods. So few names stand here
    # because a function of a module's name (configure, training) would hide the module.
    "preflight": "mapsage_kaggle.notebook.session",
    "maps": "mapsage_kaggle.notebook.maps",
    "selftest": "mapsage_kaggle.notebook.selftest",
}

__all__ = ["__version__", "install", "maps", "preflight", "selftest"]


def __getattr__(name: str) -> Any:
    # Loaded on first use: importing the package must cost next to nothing.
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
