"""Settings of all tests: no test talks to a W&B server, and Optuna keeps quiet about SQLAlchemy 2."""

from __future__ import annotations

import os

os.environ["WANDB_MODE"] = "offline"
os.environ["SQLALCHEMY_SILENCE_UBER_WARNING"] = "1"  # at importing optuna
