"""Back ends: each turns a network into a callable ``forward(rows)`` over the loop's shared memory."""
