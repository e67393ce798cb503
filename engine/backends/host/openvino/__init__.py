"""OpenVINO on the CPU: networks compiled for one number of rows each, kept compiled on the disk."""
