"""The verbs that every surface calls. Import the modules; importing the package alone loads nothing."""
