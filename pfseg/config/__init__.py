"""Settings: their declaration, composing them with Hydra, and checks across them (no Jittor)."""
