"""int8 bundles for the CPU, measured before they are kept."""
