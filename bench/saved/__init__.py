"""A pruned model as a folder that others can open."""
