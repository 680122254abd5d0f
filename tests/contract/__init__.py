"""Promises that every source, store or codec keeps."""
