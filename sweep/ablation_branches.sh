#!/bin/sh
# PFNet without its parts: flow through boundary points, flow through salient points, edge loss; three seeds each
#   sh sweep/ablation_branches.sh experiment=dubai_scratch dataset.root=<dubai>
# Cost: 24 runs; 2 hours with the built-in data set on two cores.
# Stops: after all of them.
exec python train.py -m model.num_edge_points=0,128 model.salient_pool=0,14 loss.edge_weight=0,1 seed=0,1,2 "$@"
