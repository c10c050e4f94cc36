"""Exact conversion of pretrained BatchNorm and GroupNorm networks to Instance-Level Meta Normalization."""

__version__ = "0.1.0"
