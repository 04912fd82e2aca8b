"""Whether Weights & Biases can be reached: the mode that is possible here, the key, the server."""

from __future__ import annotations

import http.client
import netrc
import os
import ssl
import threading
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

import wandb

from pfseg.errors import ConfigError

PROBE_SECONDS = 5.0
_MODES = {mode: mode for mode in ("auto", "online", "offline", "disabled")}
_WANDB_MODES = _MODES | {"dryrun": "offline", "run": "online", "shared": "online"}  # of WANDB_MODE


def forget_service() -> None:
    """Forget W&B's own process, so that the next run starts a new one."""
    with suppress(Exception, SystemExit):  # it exits this process when the other one didn't end well
        wandb.teardown()


def choose_mode(mode: str) -> tuple[str, str]:
    """The mode that is possible here (online, offline or disabled), and the reason for being offline.

    Raises:
        ConfigError: an unknown mode in the environment, or `online` without an API key.
    """
    reason = f"logger.wandb.mode={mode}"
    if mode == "auto":
        given = os.environ.get("WANDB_MODE", "").strip().lower() or "auto"
        if given not in _WANDB_MODES:
            raise ConfigError(
                f"WANDB_MODE={given} (of the environment) is not one of {', '.join(_WANDB_MODES)}; unset it or use one "
                "of them"
            )
        mode, reason = _WANDB_MODES[given], f"WANDB_MODE={given}"
    if mode in ("disabled", "offline"):
        return mode, reason
    if has_key():
        fault = unreachable(server())
        return ("offline", fault) if fault else ("online", "")
    if mode == "online":
        raise ConfigError(
            "logger.wandb.mode=online needs a W&B key, none is known; run `wandb login`, set WANDB_API_KEY, "
            "or use logger.wandb.mode=auto"
        )
    return "offline", "no API key, see `wandb login`"


def server() -> str:
    """The address of the W&B server."""
    return str(wandb.setup().settings.base_url)


def has_key() -> bool:
    """Whether an API key is known for the W&B server."""
    if wandb.setup().settings.api_key or os.environ.get("WANDB_API_KEY"):
        return True
    host = server().split("://")[-1].split("/")[0]
    try:
        file = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
        return netrc.netrc(str(file)).authenticators(host) is not None
    except (OSError, RuntimeError, netrc.NetrcParseError):  # RuntimeError: there is no home
        return False


def unreachable(url: str) -> str:
    """Say why a server gives no answer at all within a few seconds; empty where it gives one, be it an error."""
    # W&B's own start would try for much longer, and leave its service unusable.
    fault = f"no answer from {url} in {PROBE_SECONDS:.0f} s"

    def ask() -> None:
        nonlocal fault
        try:
            with suppress(urllib.error.HTTPError, http.client.HTTPException):
                urllib.request.urlopen(url, timeout=PROBE_SECONDS).close()
            fault = ""
        except TimeoutError:
            pass
        except OSError as error:
            reason = getattr(error, "reason", error)
            # A certificate that only W&B's own settings accept is still an answer.
            fault = "" if isinstance(reason, ssl.SSLError) else f"{url} can't be reached: {reason}"

    thread = threading.Thread(target=ask, name="pfseg-wandb-probe", daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)  # looking up a name has no time limit of its own
    return fault
