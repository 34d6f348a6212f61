"""Images: data sets, augmentation of whole batches, and the pool of synthetic images."""
