"""Models by name: all names, how a model is built (and built again), its weights and its head."""
