"""Studies: the analysis of stored runs, detection of planted noise, the probe."""
