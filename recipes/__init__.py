"""Recipes that run as they are, and the JSON Schema from which editors complete their keys."""
