"""RIB refinement: pooling, loss, extra samples, one image, its localization maps. Pure torch."""
