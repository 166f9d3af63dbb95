"""The methods that refine the maps of one image, and what they share: files, extra samples, pooling. Pure torch."""
