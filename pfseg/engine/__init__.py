"""The experiment flow: trainer, evaluator, schedules, checkpoints."""
