"""Token scores, thresholds, masks, and the methods that turn them into weights."""
