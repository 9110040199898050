"""The command line: translation only. Commands import what they run when they run it."""
