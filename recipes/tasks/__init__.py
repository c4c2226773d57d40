"""One Lightning module per kind of model."""
