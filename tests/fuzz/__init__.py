"""Damaged and hostile checkpoints: ``python -m tests.fuzz --cases 20000`` makes and loads so many, and counts."""
