"""Room 7, one number to new weights: the recipe, its dry run, the gradient loop, supervised fitting.

Start with `descend.py`: it is the loop. `recipe.py` says what a recipe is, `check.py` runs it once on a fake
batch, `optim.py` turns gradients into weights, `guard.py` stops what is not a number before it gets there,
`diagnose.py` computes what is logged, `progress.py` and `resume.py` hold what survives a stop. `evolve.py`
is the loop without gradients: `evolution.py` is its recipe, `search.py` asks for candidates, `candidates.py`
tries them, `spread.py` in several processes. `fit.py` is the loop of demonstrations and ratings.
"""
