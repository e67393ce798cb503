"""What samples and networks are measured by: differences, a judge, the Fréchet distance, FLOPs."""
