"""Sources over stores, read from real servers."""
