"""Detectors: what each head does, read from a trace."""

from interp.probes.detector import Detector, RowDetector
from interp.probes.registry import DETECTORS, detect, resolve

__all__ = ["DETECTORS", "Detector", "RowDetector", "detect", "resolve"]
