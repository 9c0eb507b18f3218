"""Collapsible: train wide, deploy narrow."""
