"""Requests of the LLM judges of a run and their cost, compared with the caps of the recipe."""

import json
from collections.abc import Iterator
from dataclasses import dataclass

from paretune.config.judges import judge_limits, load_rubric
from paretune.config.scorer_schema import LlmJudgeScorerSection
from paretune.config.scorers import PAIRWISE, scorer_sections
from paretune.data.records import Prompt
from paretune.experiment.dataset import Dataset
from paretune.experiment.estimates import LENGTH_SAMPLE_SIZE, rows_per_step, sampled_lengths
from paretune.experiment.resolved import ResolvedRun
from paretune.reward.judge_messages import comparison_question, rating_question
from paretune.rl.algorithm_spec import PretrainPhase

CHARS_PER_TOKEN = 4
"""Of English text, roughly."""


@dataclass(frozen=True, kw_only=True)
class RequestEstimate:
    """Requests of one judge: one per response, whatever the number of criteria."""

    scorer: str
    """Its section, such as "scorers.politeness"."""
    in_training: int
    in_evaluation: int
    """Of both policies; with `evaluate.eval_steps`, of the evaluations during the training too."""
    cost_per_request: float
    """In the currency of the prices; 0 without prices."""
    max_requests: int | None
    max_cost: float | None

    @property
    def num_requests(self) -> int:
        """At most: equal responses to a prompt are asked once. Repeats of failed requests come on top."""
        return self.in_training + self.in_evaluation

    @property
    def cost(self) -> float:
        """Of all requests."""
        return self.num_requests * self.cost_per_request

    def describe(self) -> str:
        """Number of requests, and their cost if there is a price."""
        parts = f"{self.in_training:,} in the training, {self.in_evaluation:,} in the evaluation"
        text = f"{self.scorer}: up to {self.num_requests:,} ({parts})"
        return text if not self.cost else f"{text}, which cost about {_rounded(self.cost)}"

    def warnings(self) -> Iterator[str]:
        """The caps that the run must hit."""
        if self.max_requests is not None and self.max_requests < self.num_requests:
            needed = f"the run asks up to {self.num_requests:,} requests"
            yield self._warning("max_requests", f"{self.max_requests:,}", needed, self.max_requests)
        if self.max_cost is not None and self.max_cost < self.cost:
            needed = f"the requests of the run cost about {_rounded(self.cost)}"
            yield self._warning(
                "max_cost", f"{self.max_cost:g}", needed, int(self.max_cost / self.cost_per_request)
            )

    def _warning(self, key: str, cap: str, needed: str, last: int) -> str:
        stage = "training" if last < self.in_training else "evaluation"
        share = last / self.in_training if last < self.in_training else None
        when = f"after {100 * share:.0f} % of the training" if share is not None else f"in the {stage}"
        return (
            f"{self.scorer}.{key} is {cap}, and {needed}: {when} responses will not be scored any more, and "
            "the run stops; fix: raise it, or fewer steps, responses or test prompts"
        )


def request_estimates(run: ResolvedRun, dataset: Dataset) -> list[RequestEstimate]:
    """Requests of every LLM judge of the recipe."""
    config = run.config
    num_generations = config.evaluate.num_generations
    at_the_end = 2 * len(dataset.test_prompts) * num_generations
    # In evaluations during the training, the initial policy's equal responses are asked once.
    num_policies = config.num_step_evaluations and config.num_step_evaluations + 1
    during_training = num_policies * len(dataset.validation_prompts) * num_generations
    estimates = []
    for path, _, section in scorer_sections(config):
        if isinstance(section, LlmJudgeScorerSection):
            # Of pairs too: each is asked in both orders.
            is_pairwise = path[:2] == PAIRWISE
            in_training = _num_rollouts(run) if path[0] == "scorers" else 0
            estimates.append(
                RequestEstimate(
                    scorer=".".join(map(str, path)),
                    in_training=in_training,
                    in_evaluation=at_the_end + (0 if is_pairwise else during_training),
                    cost_per_request=_cost_per_request(run, dataset, section, pairs=is_pairwise),
                    max_requests=section.max_requests,
                    max_cost=section.max_cost,
                )
            )
    return estimates


def _num_rollouts(run: ResolvedRun) -> int:
    """Responses that are sampled and scored in the training, phases included."""
    config, spec = run.config, run.algorithm
    loops = [(config.run.max_steps, spec)]
    loops += [(phase.max_steps, phase.spec) for phase in spec.phases if isinstance(phase, PretrainPhase)]
    return sum(steps * rows_per_step(config, each) for steps, each in loops if each.rollout.generates)


def _cost_per_request(
    run: ResolvedRun, dataset: Dataset, section: LlmJudgeScorerSection, *, pairs: bool
) -> float:
    """Mean cost: the question with responses of the usual length, and a reply of the rubric's form.

    Args:
        run: The run.
        dataset: Its records.
        section: The judge.
        pairs: It compares two responses.
    """
    limits = judge_limits(section)
    if not limits.input_price and not limits.output_price:
        return 0.0
    rubric = load_rubric(section.rubric)
    prompts: list[Prompt] = [*dataset.test_prompts[:LENGTH_SAMPLE_SIZE]] or [Prompt(messages=())]
    questions = [
        comparison_question(prompt, "", "", rubric.criteria)
        if pairs
        else rating_question(prompt, "", rubric.criteria)
        for prompt in prompts
    ]
    characters = sum(len(m["content"]) for question in questions for m in question.messages)
    response = sampled_lengths(run, dataset, test=True).response
    num_input = characters / len(prompts) / CHARS_PER_TOKEN + response * (2 if pairs else 1)
    reply = json.dumps(dict.fromkeys(rubric.criteria, "an answer"))
    return limits.cost(round(num_input), min(len(reply) // CHARS_PER_TOKEN + 1, section.max_tokens))


def _rounded(cost: float) -> str:
    return f"{cost:,.0f}" if cost >= 100 else f"{cost:.2g}"
