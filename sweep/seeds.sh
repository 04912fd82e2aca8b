#!/bin/sh
# One setting five times, for mean and spread: sh sweep/seeds.sh loss.edge_weight=5
# Then `pfseg report outputs/<name>` gives mean ± standard deviation, and for two settings over the same seeds
# the paired difference with its interval.
# Cost: 5 runs of 5 minutes with the built-in data set on two cores.
# Stops: after all of them.
exec python train.py -m seed=0,1,2,3,4 "$@"
