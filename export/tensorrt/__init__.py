"""TensorRT plans of a bundle's networks: built, cached by what they depend on, refitted."""
