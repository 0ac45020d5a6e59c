"""What trackers need: an API key, and whether there is a network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mapsage_kaggle.config.tracking import tracked, trackers_of
from mapsage_kaggle.messages import Message
from mapsage_kaggle.training.prepare import Prepared

WANDB_KEY = "WANDB_API_KEY"


def tracking(prepared: Prepared, run_id: str, environ: Mapping[str, str]) -> tuple[dict[str, str], str]:
    """Return environment variables for a child's trackers, and a warning or an empty string.

    The key comes from the environment or Kaggle's Secrets, and goes nowhere but into that environment.
    """
    if "wandb" not in tracked(prepared.discovery.cfg, prepared.options.track):
        return {}, ""
    scratch = prepared.discovery.paths.temp / "wandb"
    env = {f"WANDB_{name}_DIR": str(scratch) for name in ("CACHE", "CONFIG", "DATA")}
    env |= {"WANDB_SILENT": "true", "WANDB_DISABLE_GIT": "true"}
    key = environ.get(WANDB_KEY) or _kaggle_secret(WANDB_KEY)
    if key:
        env[WANDB_KEY] = key
    if "WANDB_MODE" in environ:
        return env, ""
    if prepared.machine.internet and (key or _has_logged_in()):
        return env, ""
    env["WANDB_MODE"] = "offline"
    folder = trackers_of(prepared.work_dir, run_id) / "wandb"
    why = (
        Message("there is no {name} in Kaggle's Secrets or the environment", WANDB_KEY)
        if prepared.machine.internet
        else Message("there is no Internet")
    )
    return env, Message(
        "Weights & Biases is written offline ({why}). To sync it from elsewhere: wandb sync {folder}/wandb/*",
        why,
        folder,
    )


def _kaggle_secret(name: str) -> str:
    """Return one of Kaggle's Secrets; empty where there is none, or no Kaggle."""
    try:
        from kaggle_secrets import UserSecretsClient

        return str(UserSecretsClient().get_secret(name) or "")
    except Exception:  # noqa: BLE001 - a secret that is not attached, a service that does not answer
        return ""


def _has_logged_in() -> bool:
    """Tell whether ``wandb login`` has left a key where wandb looks for it."""
    try:
        return "wandb.ai" in (Path.home() / ".netrc").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, RuntimeError):
        return False
