"""Room 12, methods against each other: the runs of a comparison, what they took, and who came out how.

Every run is an ordinary run in a process of its own. Nothing here trains anything.
"""
