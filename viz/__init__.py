"""Figures and pages: what the numbers look like."""
