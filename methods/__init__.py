"""One file per pruning method; what two of them share is a module of its own here."""
