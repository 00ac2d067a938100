"""Recipes: many steps on named checkpoints, carried out in one pass over the bytes."""
