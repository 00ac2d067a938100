"""Deciding from names and shapes what trains and how: inventories, rules, plans, their texts."""
