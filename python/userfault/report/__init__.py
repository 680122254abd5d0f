"""Pictures of what happened in a region."""
