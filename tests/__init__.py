"""Tests, in folders like those of the code; what several of them use is in `support`."""
