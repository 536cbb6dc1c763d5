"""Hashes of the behaviour of code, blind to the places and names of its parts."""

from harness.trials.code_hash.walk import hashes as hashes
from harness.trials.code_hash.walk import reached as reached
