"""Train: `python train.py [key=value ...]`, the same as `pfseg train`; see conf/train.yaml."""

from pfseg.commands.app import main

if __name__ == "__main__":
    main("train")
