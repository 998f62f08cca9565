"""prunebench: what a pruning method costs, what it keeps, and how much faster the model really is."""

__version__ = "0.1.0"
