"""The verbs: arguments in, a report out. The command line and library users call the same ones.

Each is imported from a module of its name, so that a command pays for its own only.
"""
