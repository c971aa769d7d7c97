"""Recipes: one named choice of format, method and execution for a whole model."""
