"""All networks of the table."""

from __future__ import annotations

from benchmarks.other_libraries import medical, sequences, vision
from benchmarks.other_libraries.network import NETWORKS, Network

__all__ = ["NETWORKS", "QUICK", "Network"]

for fill in (
    vision.segmentation,
    medical.medical,
    sequences.transformers,
    sequences.detection_transformers,
    sequences.audio,
    vision.detection_and_video,
    vision.images,
    sequences.graphs_and_fields,
    vision.quick,
):
    fill()

#: What ``--quick`` runs, and nothing else does.
QUICK = ("timm/test_resnet", "torchvision/mobilenet_v2")
