"""Turn a board into trials, and each trial into a record. Missing trials run on this machine or on a cluster."""
