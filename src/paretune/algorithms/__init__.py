"""Algorithms: functions that choose parts and return an AlgorithmSpec. No tensor arithmetic here.

The keys of `ALGORITHMS` are the values of `algorithm.name` in recipes.
"""

from collections.abc import Callable

from paretune.algorithms.aggregators import chebyshev_grpo, lagrangian_grpo
from paretune.algorithms.call_checks import with_call_checks
from paretune.algorithms.custom import custom
from paretune.algorithms.evolution import essa
from paretune.algorithms.grpo import dr_grpo, gdpo, grpo, mo_grpo, reinforce_pp, rloo
from paretune.algorithms.ppo import pf_ppo, ppo, ppo_max, rto, safe_rlhf, salsa
from paretune.algorithms.preference import dpo, modpo, pro, sft, superhf, tdpo
from paretune.algorithms.ratio_variants import cispo, dapo, gspo, sapo
from paretune.algorithms.trl import trl_grpo
from paretune.algorithms.wrappers import ppo_c, ppo_m
from paretune.rl.algorithm_spec import AlgorithmSpec
from paretune.rl.evolution.spec import EvolutionSpec

ALGORITHMS: dict[str, Callable[..., AlgorithmSpec | EvolutionSpec]] = {
    "grpo": grpo,
    "dr_grpo": dr_grpo,
    "rloo": rloo,
    "reinforce_pp": reinforce_pp,
    "gdpo": gdpo,
    "mo_grpo": mo_grpo,
    "dapo": dapo,
    "gspo": gspo,
    "cispo": cispo,
    "sapo": sapo,
    "trl_grpo": trl_grpo,
    "lagrangian_grpo": lagrangian_grpo,
    "chebyshev_grpo": chebyshev_grpo,
    "ppo": ppo,
    "ppo_max": ppo_max,
    "salsa": salsa,
    "safe_rlhf": safe_rlhf,
    "pf_ppo": pf_ppo,
    "rto": rto,
    "ppo_m": ppo_m,
    "ppo_c": ppo_c,
    "sft": sft,
    "dpo": dpo,
    "tdpo": tdpo,
    "modpo": modpo,
    "pro": pro,
    "superhf": superhf,
    "essa": essa,
    "custom": custom,
}
"""Name in recipes -> function."""


# The names of this package are called from Python, where nobody has checked their arguments.
globals().update({name: with_call_checks(function) for name, function in ALGORITHMS.items()})
