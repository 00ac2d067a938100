"""Target models: describing, comparing, matching and fitting without their weights.

Modules that need no torch (`specs`, `target`, `comparison`, `folding`, `correspondence`, `maps`,
`adaptations`, `fitting`, `signatures`) import none, so that commands which only look can use them
at no cost. The others (`building`, `layers`, `verdict`, `initial`, `adapting`) import it at module
level and are imported where they are needed.
"""
