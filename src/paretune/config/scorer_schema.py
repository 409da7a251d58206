"""Schema of scorers: the signals that a recipe names under `scorers` and `judges`, by type."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, JsonValue
from pydantic_core import PydanticCustomError

from paretune.config.data_schema import Dtype, Name, NonEmptyStr, PathStr, Section
from paretune.core.types import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, UnitInterval


def _unique(names: tuple[str, ...]) -> tuple[str, ...]:
    repeated = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if repeated is not None:
        raise PydanticCustomError("objectives", f"{repeated} is named twice; fix: name each objective once")
    return names


class FallibleScorerSection(Section):
    """A scorer whose calls can fail: a response that it could not score is NaN, with a reason."""

    max_failure_rate: UnitInterval = 0.2
    """Largest share of responses of one step, or of one evaluation, that may fail; above it the run stops."""


class PythonScorerSection(FallibleScorerSection):
    """A Python function: a reward function of TRL, verl or OpenRLHF, unchanged, or one of your own.

    It returns one number per response, or a dict or objects with `reward_components` of several objectives;
    None means that a response has no score. A call that raises leaves all its responses unscored.
    """

    type: Literal["python"]
    function: NonEmptyStr
    """`package.module:name`, or `file.py:name` with a path relative to the working directory. A class, or a
    function that takes no responses, is called once with `arguments` and makes the function."""
    timeout: PositiveFloat | None = 60.0
    """Seconds that a call may take; the responses of a call that takes longer are not scored. null: no limit;
    the function is called in the main thread, which functions that use signals need."""
    signature: Literal["trl", "verl", "openrlhf"] = "trl"
    """The arguments that it expects: those of TRL's `reward_funcs`, of verl's `compute_score`, or of
    OpenRLHF's `reward_func`. verl's is called once per response, the others once per batch. Columns of the
    prompts are arguments of the first; verl's reads `data_source`, `reward_model` or `ground_truth`, and
    `extra_info`, OpenRLHF's `label`."""
    objectives: Annotated[tuple[Name, ...], Field(strict=False), AfterValidator(_unique)] = ()
    """The objectives that one call scores, if it returns several; empty: one, with the scorer's name."""
    input: Literal["auto", "messages", "text"] = "auto"
    """Prompts and completions as lists of messages or as text; auto: messages if the policy has a chat
    template."""
    arguments: dict[NonEmptyStr, JsonValue] = Field(default_factory=dict)
    """Further keyword arguments of every call."""


class RuleScorerSection(Section):
    """A rule that reads the response alone."""

    type: Literal["rule"]
    objective: Name | None = None
    """The objective that it scores; null: its name."""


class LengthRuleSection(RuleScorerSection):
    """1 from min to max; below min length / min, above max 2 - length / max, and never under 0."""

    rule: Literal["length"]
    unit: Literal["words", "characters", "tokens"] = "words"
    """words: separated by white space; tokens: of the policy's tokenizer, without EOS."""
    target: PositiveInt | None = None
    """The best length, as both min and max: the score falls linearly from 1 there to 0 at no length and at
    twice the target."""
    min: NonNegativeInt | None = None
    max: PositiveInt | None = None


class RegexRuleSection(RuleScorerSection):
    """1 if a regular expression is found in the response, else 0; not scored if the search takes over 1 s."""

    rule: Literal["regex"]
    pattern: NonEmptyStr
    full_match: bool = False
    """The whole response must match."""
    ignore_case: bool = False


class JsonRuleSection(RuleScorerSection):
    """1 if the whole response is JSON, and valid under the schema if there is one; else 0."""

    rule: Literal["json"]
    json_schema: dict[str, JsonValue] | PathStr | None = None
    """A JSON Schema, by default of draft 2020-12, or a file that holds one."""


class PhrasesRuleSection(RuleScorerSection):
    """Share of the required phrases that occur, minus the share of the forbidden ones that do.

    A phrase occurs as whole words with any white space between them; in scripts without spaces, anywhere.
    """

    rule: Literal["phrases"]
    required: Annotated[tuple[NonEmptyStr, ...], Field(strict=False)] = ()
    forbidden: Annotated[tuple[NonEmptyStr, ...], Field(strict=False)] = ()
    ignore_case: bool = True


class RepetitionRuleSection(RuleScorerSection):
    """Minus the share of n-grams of words that occurred before in the response: from 0 to -1.

    Words are separated by white space and compared in lower case.
    """

    rule: Literal["repetition"]
    n: PositiveInt = 3


class ClassifierScorerSection(FallibleScorerSection):
    """A sequence classifier of transformers, one of its labels as one objective.

    A text longer than the classifier reads is not scored.
    """

    type: Literal["classifier"]
    path: PathStr
    """Folder or hub name."""
    objective: Name | None = None
    """The objective that it scores; null: its name."""
    revision: NonEmptyStr | None = None
    label: NonEmptyStr | NonNegativeInt
    """The label, by name or index."""
    output: Literal["probability", "logit", "log_odds"] = "probability"
    """probability: of the softmax over the labels, or the sigmoid in a model with one label or independent
    ones; logit: as the model gives it, the only output of a regression; log_odds: log(p / (1 - p))."""
    invert: bool = False
    """The label is bad: the score is 1 - probability, or minus the logit or log-odds."""
    reads: Literal["response", "prompt_and_response", "conversation"] = "response"
    """The response alone; the contents of the prompt's messages and the response as a pair of texts; the
    conversation by the chat template of the classifier. As in its training."""
    dtype: Dtype = "float32"
    """Precision of its body; the head is float32."""


class RewardModelScorerSection(FallibleScorerSection):
    """A ready-made reward model with one or more outputs; the section `reward` fits one.

    It reads the conversation by its chat template; one longer than its context is not scored.
    """

    type: Literal["reward_model"]
    path: PathStr
    """Folder or hub name."""
    revision: NonEmptyStr | None = None
    outputs: dict[Name, NonEmptyStr | NonNegativeInt] = Field(default_factory=dict)
    """Objective -> label or index of the output; empty: the model's labels are the objectives, and a model
    with a single output scores the objective of the scorer's name."""
    dtype: Dtype = "float32"
    """Precision of its body; the heads are float32."""
    chat_template_kwargs: dict[NonEmptyStr, JsonValue] = Field(default_factory=dict)
    """Arguments of its chat template."""


class LlmJudgeScorerSection(FallibleScorerSection):
    """A language model behind an OpenAI-compatible endpoint that rates responses by a rubric."""

    type: Literal["llm_judge"]
    base_url: NonEmptyStr
    """Address of the API, such as http://127.0.0.1:8000/v1."""
    model: NonEmptyStr
    """Name of the model there."""
    api_key_env: NonEmptyStr | None = None
    """Name of the environment variable that holds the key; null: no key."""
    rubric: PathStr
    """YAML file of criteria: text, levels or points, weight, class."""
    criteria_column: NonEmptyStr | None = None
    """Column of the prompts that holds a list of criteria: names of the rubric's, or objects of their own."""
    temperature: NonNegativeFloat | None = 0.0
    """null: the endpoint's default, for models that allow no other."""
    max_tokens: PositiveInt = 512
    """Longest reply."""
    response_format: Literal["json_schema", "json_object", "text"] = "json_schema"
    """How the endpoint is made to answer in JSON."""
    timeout: PositiveFloat = 60.0
    """Seconds that one request may take."""
    max_retries: NonNegativeInt = 3
    """Repeats of a request after a timeout, error 429 or 5xx, with growing random pauses, or after the pause
    that the endpoint asks for."""
    max_concurrency: PositiveInt = 8
    """Requests at the same time."""
    max_requests: PositiveInt | None = None
    """Cap on requests of the run, repeats and resumes included; later responses are not scored."""
    max_cost: PositiveFloat | None = None
    """Cap on the cost of the run, in the currency of the prices; a request is sent only if the most that it
    can cost is left."""
    input_price: NonNegativeFloat = 0.0
    """Price of a million input tokens."""
    output_price: NonNegativeFloat = 0.0
    """Price of a million output tokens."""
    cache_dir: PathStr | None = None
    """Folder of replies, by endpoint, model, rubric and text, on a disk of this machine; null: `judge_cache`
    in the run folder."""
    canaries: PathStr | None = None
    """JSON Lines file of responses with known answers, asked before anything else: prompt, response, and
    `answers` {criterion: level or points, or a list of those that are right}."""
    min_canary_accuracy: UnitInterval = 0.8
    """Smallest share of canaries that must be answered as known."""


RuleSection = Annotated[
    LengthRuleSection | RegexRuleSection | JsonRuleSection | PhrasesRuleSection | RepetitionRuleSection,
    Field(discriminator="rule"),
]
ScorerSection = Annotated[
    PythonScorerSection
    | RuleSection
    | ClassifierScorerSection
    | RewardModelScorerSection
    | LlmJudgeScorerSection,
    Field(discriminator="type"),
]
"""A scorer of any type."""
