"""The kernel interface, tried for real."""
