"""What needs numbers: elements, statistics, and merging tensors of one name, one at a time.

torch is imported here and in `models`, and nowhere else. The catalogue of methods and the recipe
reader do not import it, so that a wrong option is refused before two seconds of import.
"""
