"""Masks of updates: pads that clients add, parties that know their sums, and the noise that parties add."""
