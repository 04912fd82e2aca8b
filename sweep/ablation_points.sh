#!/bin/sh
# How many points flow: boundary points a level by the side of the pooled map that picks salient points; three seeds each
#   sh sweep/ablation_points.sh experiment=dubai_scratch dataset.root=<dubai>
# Cost: 27 runs; 2¼ hours with the built-in data set on two cores.
# Stops: after all of them.
exec python train.py -m model.num_edge_points=64,128,256 model.salient_pool=7,14,20 seed=0,1,2 "$@"
