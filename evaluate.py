"""Evaluate: `python evaluate.py checkpoint=<run folder or .safetensors file>`, the same as `pfseg evaluate`."""

from pfseg.commands.app import main

if __name__ == "__main__":
    main("evaluate")
