"""Slow, exact definitions that everything else is tested against."""
