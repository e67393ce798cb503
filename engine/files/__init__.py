"""Files as such: JSON and arrays of unknown origin, and files and folders that are there wholly or not at all."""
