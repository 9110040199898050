"""Pipelines: one per system, in the manner of diffusers. Import the modules; this package loads nothing by itself."""
