"""From a folder of images to batches of two augmented views, the same for any number of processes and workers."""
