"""Networks in the host's memory."""
