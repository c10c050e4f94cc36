"""Whether a checkpoint still computes what its source does: the source is found or reconstructed, and compared."""
