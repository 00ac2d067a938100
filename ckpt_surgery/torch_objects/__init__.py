"""A pickle's graph in torch's terms: tensors, storages, mappings, modules, state dicts."""
