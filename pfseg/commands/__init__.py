"""The commands of `pfseg`: one module each, started by `pfseg.commands.app`."""
