"""What the tests share, and no user of the package needs."""
