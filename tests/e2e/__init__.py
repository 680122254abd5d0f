"""Whole commands and whole stories."""
