"""Training: recipes are functions that return a full configuration; `python -m recipes.train NAME:VARIANT` runs one.

The only package that imports Lightning; nothing imports this one.
"""
