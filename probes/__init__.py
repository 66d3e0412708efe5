"""Probes: what each head does, read from a trace or found by running the model."""

from interp.probes.detecting import detect
from interp.probes.detector import Detector, RowDetector
from interp.probes.experiment import Experiment
from interp.probes.registry import (
    DETECTORS,
    EXPERIMENTS,
    TEXT_EXPERIMENTS,
    resolve,
)
from interp.probes.text_experiment import TextExperiment

__all__ = [
    "DETECTORS",
    "EXPERIMENTS",
    "TEXT_EXPERIMENTS",
    "Detector",
    "Experiment",
    "RowDetector",
    "TextExperiment",
    "detect",
    "resolve",
]
