"""What a stage is and what stages share: keys, a pool of images, a training, reading what was made; no science."""
