"""How good frozen features are: a kNN vote and a linear classifier on them."""
