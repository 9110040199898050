"""Named, typed runs: functions that return settings. Nothing here loads torch or does any work."""
