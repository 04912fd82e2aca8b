#!/bin/sh
# Channels of the point matcher, side of the map that thins out boundaries, and sizes of the pyramid pooling
#   sh sweep/ablation_sizes.sh experiment=dubai_scratch dataset.root=<dubai>
# Cost: 18 runs; 1½ hours with the built-in data set on two cores.
# Stops: after all of them.
exec python train.py -m model.match_dim=32,64,128 model.edge_pool=5,9,13 'model.pool_sizes=[1],[1,2,3,6]' "$@"
