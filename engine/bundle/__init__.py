"""Models on disk: checked folders, and what a bundle says of its network."""
