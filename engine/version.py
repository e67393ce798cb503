"""The package's version. The build reads it here, and a cold start need not import what reads installed metadata."""

__version__ = "0.1.0"
