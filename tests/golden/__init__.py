"""Checkpoints of every format version that was released, with inputs and the outputs that they gave."""
