"""Stored results: one JSON file per trial, its samples beside it, and collections of both."""
