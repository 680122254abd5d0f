"""Sources written in Python, run by whoever touches."""
