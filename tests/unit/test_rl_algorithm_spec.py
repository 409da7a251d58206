"""The description of a spec: one line per part."""

from paretune.algorithms import ALGORITHMS

GATE = (("helpful", "safety", 0.5, 0.0),)


def test_describe_has_one_line_per_part_in_order():
    recipe = ALGORITHMS["dapo"]({"helpful": 1.0, "safety": 0.5}, gates=GATE, kl_coef=0.1, num_generations=4)
    assert recipe.describe() == [
        "algorithm        dapo",
        "rollout          OnPolicy(num_generations=4, max_new_tokens=256, temperature=1.0, prompt_format='')",
        "reward_steps     Gate(objective='helpful', condition_objective='safety', threshold=0.5, "
        "fallback=0.0, comparison='>=')",
        "                 WeightedSum(weights={'helpful': 1.0, 'safety': 0.5})",
        "                 DropZeroVarianceGroups(min_relative_std=0.05)",
        "                 OverlongPenalty(max_new_tokens=256, buffer_length=51, penalty_factor=1.0)",
        "model_passes     OldLogprobs(source='rollout')",
        "                 RefLogprobs(role='reference')",
        "credit           GroupNormalize(scale_rewards='group', std_estimator='sample', eps=0.0001, "
        "zero_std_rtol=1e-05, singleton='zero')",
        "                 BroadcastToTokens()",
        "losses           1 x ClippedSurrogate(clip_low=0.2, clip_high=0.28, dual_clip=None, level='token')",
        "                 0.1 x KlToReference(kl_estimator='k3_value_k2_grad', ratio_level='none')",
        "loss_aggregation LossAggregation(mode='token_mean', norm_length=1, empty_rows='include')",
        "updates          num_iterations=1, minibatch_size=all rows",
    ]


def test_describe_leaves_out_absent_parts():
    lines = ALGORITHMS["gdpo"]({"helpful": 1.0}, minibatch_size=8).describe()
    assert not any(line.startswith("reward_steps") for line in lines)
    assert lines[-1] == "updates          num_iterations=1, minibatch_size=8"


def test_describe_shows_a_phase_as_a_block():
    recipe = ALGORITHMS["rto"]({"helpful": 1.0})
    (phase,) = recipe.phases
    inner = phase.spec.describe()
    lines = recipe.describe()
    assert lines[1] == (
        f"phases           PretrainPhase(role='dpo', max_steps={phase.max_steps}), its algorithm:"
    )
    assert lines[2 : 2 + len(inner)] == [f"{'':<16} {line}" for line in inner]
    assert inner[0] == "algorithm        dpo"
    assert lines[2 + len(inner)].startswith("rollout          ")


def test_describe_shows_the_adapter_phase_as_a_block():
    evolution = ALGORITHMS["essa"]({"helpful": 1.0})
    lines = evolution.describe()
    assert lines[1:3] == [
        "phases           PretrainPhase(role='warm', max_steps=20), its algorithm:",
        "                 algorithm        sft",
    ]
    assert max(map(len, lines)) < 150
