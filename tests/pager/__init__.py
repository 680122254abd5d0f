"""Regions that a pager process fills, and what becomes of them when it dies, hangs or raises."""
