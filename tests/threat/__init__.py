"""Hostile input and hostile conditions."""
