"""One file for each scale rule; importing this folder registers them all."""
