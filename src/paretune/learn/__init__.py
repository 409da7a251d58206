"""Room 7, one number to new weights: the recipe, its dry run, the gradient loop, supervised fitting.

Start with `descend.py`: it is the loop. `recipe.py` says what a recipe is, `check.py` runs it once on a fake
batch, `optim.py` turns gradients into weights, `guard.py` stops what is not a number before it gets there,
`diagnose.py` computes what is logged, `progress.py` and `resume.py` hold what must survive a stop. `fit.py`
is the other loop: demonstrations and ratings.
"""
