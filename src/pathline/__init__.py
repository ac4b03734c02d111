"""Pathline."""
