"""Where trials run: `local` in worker processes of this machine."""
