"""How a network holds out against corrupted pictures."""
