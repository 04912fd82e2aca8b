"""Settings of all tests: no test talks to a W&B server."""

from __future__ import annotations

import os

os.environ["WANDB_MODE"] = "offline"
