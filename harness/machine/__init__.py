"""This machine: facts, measured limits, clocks, memory, and where the time of a trial goes."""
