"""Ways to make images without data, one file each."""
