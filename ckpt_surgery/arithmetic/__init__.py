"""The numbers: merging tensors of one name, element types, policies. One tensor at a time.

Only this package and `models` may import torch. The catalogue of methods and the recipe reader do
not import it, so that a wrong option is refused before two seconds of import.
"""
