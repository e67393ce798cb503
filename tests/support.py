"""Models and bundles small enough to make in a test."""
