"""RIB refinement: pooling, loss, extra samples, the refinement of one image, and its localization maps. Pure torch."""
