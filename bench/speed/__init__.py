"""How fast a model is and what it takes: time, memory, energy, and what bounds them."""
