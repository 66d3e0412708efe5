"""Readers of checkpoint formats that are not safetensors."""
