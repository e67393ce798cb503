"""From the arguments of a call to what the loop runs: tables, seeds, conditioning, images."""
