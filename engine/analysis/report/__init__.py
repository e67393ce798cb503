"""The report of a model: which experiments run at which sizes, their findings in sentences, and the files."""
