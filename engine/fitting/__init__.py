"""Tables that are fitted to a network: few steps that end where many steps end."""

from stepfuse.fitting.fitted import fit
from stepfuse.fitting.rivals import Compared, compare

__all__ = ["Compared", "compare", "fit"]
