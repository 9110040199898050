"""The verbs that every surface calls. Import the modules; this package loads nothing by itself."""
