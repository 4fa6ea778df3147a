"""Prompts, answer extraction and verification, per answer type."""
