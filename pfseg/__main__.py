"""`python -m pfseg`: the command `pfseg`."""

from pfseg.commands.app import main

if __name__ == "__main__":
    main()
