"""Programs that measure; run each as ``python -m benchmarks.NAME``."""
