#!/bin/sh
# What the edge loss is worth on 54 Dubai images: three weights by two seeds, PFNet R18 with a thin pyramid, 128 px crops
#   sh sweep/edge_weight_dubai.sh dataset.root=<dubai>
#   pfseg report outputs/edge_weight_dubai sort=loss.edge_weight html=edge_weight.html
# Cost: 6 runs of 4 minutes on two cores, 6 at most.
# Stops: after all of them; each after 336 steps, or 6 minutes on a slower machine.
exec python train.py -m experiment=dubai_scratch name=edge_weight_dubai loss.edge_weight=0,1,5 seed=0,1 \
    model.fpn_dim=64 model.match_dim=32 dataset.crop_size=128 trainer.max_steps=336 trainer.val_every=8 \
    trainer.bn_batches=10 schedule.warmup_steps=20 trainer.max_time=6 "$@"
