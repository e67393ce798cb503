"""What can go wrong beyond a bad argument, which is a ``ValueError`` or ``TypeError``."""


class BundleError(ValueError):
    """A bundle cannot be used; the message names file, rule and value."""


class DenoiserError(RuntimeError):
    """A network returned what it must not: a wrong shape or dtype, or a number that is not finite."""
