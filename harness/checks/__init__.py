"""Checks: a method against its contract, scores against the true damage, a model's state, and the installation."""
