"""Layers without weights of their own."""

from __future__ import annotations

import numpy as np

from pfseg.ops.layers import ChannelDropout
from pfseg.runtime import jt


def test_channel_dropout_repeats_with_its_generator():
    dropout = ChannelDropout(0.5)
    dropout.train()
    x = jt.ones((2, 64, 3, 3))
    dropout.generator = np.random.default_rng(7)
    first = dropout(x).numpy()
    dropout.generator = np.random.default_rng(7)
    assert (dropout(x).numpy() == first).all()
    assert set(np.unique(first)) == {0.0, 2.0}
    assert (first == first[..., :1, :1]).all()
    dropout.eval()
    assert (dropout(x).numpy() == 1).all()
