"""Arrays in, frozen results out. Never paths, never tables."""
