"""The figures of the experiments, one module for each experiment that has a figure of its own."""
