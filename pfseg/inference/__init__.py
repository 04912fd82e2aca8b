"""Windows, views, blending and folding, for evaluation and prediction."""
