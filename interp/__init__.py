"""Interpretability of attention."""
