"""Converted networks against frozen BatchNorm and other baselines, by the protocol of ``docs/evidence-protocol.md``."""
