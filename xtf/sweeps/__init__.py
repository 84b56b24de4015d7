"""Many jobs: composed, checked, planned, reported."""
