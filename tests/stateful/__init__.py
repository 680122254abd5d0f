"""Long random runs against a simple model."""
