"""Room 4, what a response is worth: a column of scores for every objective, read from text.

`score.py` puts the columns of all scorers into a batch; `reward_model.py` is a transformer with one named
regression head for each objective, and the scorer made of it; `reward_loss.py` holds the losses such a model
is fitted by; `rules.py` and `confidence.py` hold scorers that need no model. A score that nobody can give is
NaN, and stays it.
"""
