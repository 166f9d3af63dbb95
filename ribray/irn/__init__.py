"""IRN (Ahn et al., CVPR 2019): pairs of cells, its loss, and the random walk over its boundaries. Pure torch."""
