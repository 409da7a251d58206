"""Room 6, advantages to one number: each loss is `(per-token loss * batch.weight).sum()`.

The mathematics stands in pure functions of tensors; the frozen parts beside them feed these from a batch.
Read `term.py`, then `ratio.py`, `policy.py` and `kl.py`. Losses that compare whole responses of a group stand
in `preference.py` (pairs) and `ranking.py`, on what `group.py` says of groups; `imitate.py` and `exact.py`
hold the likelihood and the divergence that go with them.
"""
