"""The experiments: each generates samples with an engine, measures them and returns a dataclass of rows."""
