"""Finds what is wrong with data before anything is trained on it."""
