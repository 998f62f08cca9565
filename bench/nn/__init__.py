"""The kinds of sub-layers that a model is made of."""
