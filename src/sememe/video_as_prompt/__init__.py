"""Video-As-Prompt: its networks, pipeline, stages, recipes and evaluation. README.md draws how data flows."""
