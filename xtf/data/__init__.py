"""Rows -> examples -> token ids -> packed steps."""
