"""One file for each family of elements; importing this folder registers them all."""
