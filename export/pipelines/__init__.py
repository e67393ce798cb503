"""From diffusers folders to bundles: a module a pipeline class."""
