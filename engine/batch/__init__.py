"""Tables of requests, drawn to files: an offline job that goes on where it was ended, each row once."""
