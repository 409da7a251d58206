"""Room 10: a run folder becomes a page and a table that a person reads.

Nothing here imports torch, and nothing here computes what it shows: the numbers come from the files of the
run folder, and what is not in them is said to be missing. Text written by a model is hostile: it reaches
the page as text nodes only, and the terminal without control characters.
"""
