"""A model by name: which there are, how one is built (and built again), its weights and its head."""
