"""prunebench: what a pruning method costs, what it keeps, and how much faster the model really is."""

import sys

__version__ = "0.1.0"

if sys.argv[:1] == ["-m"]:  # Python is about to run a module of ours: what that imports has to be what is meant
    from bench import shadows

    shadows.refuse()
