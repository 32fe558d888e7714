"""Heads of detection and segmentation: what stands on a backbone's feature pyramid."""
