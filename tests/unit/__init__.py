"""Pure parts, without a kernel call."""
