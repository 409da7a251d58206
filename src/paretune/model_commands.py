"""Commands on single models, and `plan`, which reads their shapes alone. `cli` registers them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from paretune.core.errors import ConfigError
from paretune.report.terminal import echo

Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Device of the models.")]


def add_commands(app: typer.Typer) -> None:
    """Add the commands to an application."""
    for command in (plan, sample, score, rate, evaluate, export):
        app.command()(command)


def plan(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a shipped recipe.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[a.b=c]...", help="Values that override the recipe.")
    ] = None,
    gpus: Annotated[int, typer.Option(min=1, max=1024, help="Number of GPUs, one process each.")] = 1,
    device: Annotated[
        Literal["h200", "h100", "a100-80", "a100-40", "l40s", "4090", "mi300x", "cpu"],
        typer.Option(case_sensitive=False, help="The kind of GPU; cpu: this machine."),
    ] = "h200",
    config: Annotated[
        Path | None, typer.Option("--config", help="config.json of the policy, if its folder is not here.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", help="HTML page to write; default: runs/NAME-GPUSxDEVICE-plan.html."),
    ] = None,
) -> None:
    """Forecast memory, time and scaling on other GPUs."""
    echo(_plan(recipe, overrides or [], gpus, device, config, output))


def sample(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A model folder, a run folder, or a hub name.")
    ],
    prompt: Annotated[list[str] | None, typer.Argument(metavar="[PROMPT]...", help="Each in quotes.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="A file of prompts.")] = None,
    num_generations: Annotated[int, typer.Option(min=1, help="Responses per prompt.")] = 1,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest response in tokens.")] = 256,
    temperature: Annotated[float, typer.Option(help="Sampling temperature.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of the responses.")] = 1000,
    output: Annotated[
        Path | None, typer.Option("--output", help="JSON Lines file of the prompts' rows and the responses.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Sample responses of a model."""
    settings: dict[str, Any] = {"num_generations": num_generations, "max_new_tokens": max_new_tokens}
    settings |= {"temperature": temperature, "seed": seed, "device": device}
    echo(_sample(model, prompt or [], prompts, output, settings))


def score(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A reward model (folder or hub name), a run folder (its training reward), or "
            "RECIPE:scorers.NAME.",
        ),
    ],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Rows with a prompt and a response.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", help="Write id, response and scores to .parquet, .csv or .jsonl."),
    ] = None,
    device: Device = "auto",
) -> None:
    """Score the responses of a file by any scorer."""
    echo(_score(model, file, output, device))


def rate(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A recipe with a scorer or judge of type llm_judge.")
    ],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Rows with a prompt and a response.")],
    output: Annotated[Path, typer.Option("--output", help="JSON Lines file of the ratings.")] = Path(
        "ratings.jsonl"
    ),
    judge: Annotated[str | None, typer.Option(help="Name of the judge, if there are several.")] = None,
    repeats: Annotated[
        int, typer.Option(min=1, help="Independent ratings per response; above 1 their agreement.")
    ] = 1,
) -> None:
    """Rate responses by an LLM judge, as training data."""
    echo(_rate(recipe, file, output, judge, repeats))


def evaluate(
    before: Annotated[
        str, typer.Argument(metavar="BEFORE", help="A model folder, a run folder, or a hub name.")
    ],
    after: Annotated[str, typer.Argument(metavar="AFTER", help="The model to compare with it.")],
    judges: Annotated[
        str,
        typer.Option(metavar="RECIPE", help="Recipe or run folder with the judges, prompts and settings."),
    ],
    prompts: Annotated[
        Path | None, typer.Option(help="A file of prompts instead of the recipe's test prompts.")
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", help="Folder of eval.json, generations.parquet and report.html.")
    ] = Path("evaluation"),
    device: Device = "auto",
) -> None:
    """Compare two models by the judges of a recipe."""
    echo(_evaluate(before, after, judges, prompts, output, device))


def export(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.")],
    output: Annotated[
        Path | None, typer.Option("--output", help="Folder to write; default: export/ in the run folder.")
    ] = None,
    model: Annotated[
        Literal["policy", "adapter", "reward"],
        typer.Option("--what", help="The merged policy, its adapter alone, or the reward model."),
    ] = "policy",
    push: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="Upload to a private repository on the hub.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Upload without asking.")] = False,
) -> None:
    """Write a Hugging Face folder with a model card."""
    _export(run_dir, output, model, push, yes)


def _plan(
    recipe: str,
    overrides: Sequence[str],
    gpus: int,
    device: str,
    config_file: Path | None,
    output: Path | None,
) -> str:
    from paretune.config import find_recipe, load_config
    from paretune.experiment.planning import plan as make_plan
    from paretune.report.plan_page import plan_text, write_plan_page

    # Data files need not be here: a plan reads none of them.
    config = load_config(find_recipe(recipe), overrides, check_files=False)
    values = make_plan(config, num_gpus=gpus, device_name=device, config_file=config_file)
    output = output or Path("runs") / f"{config.name}-{gpus}x{device}-plan.html"
    page = write_plan_page(output, values)
    return f"{plan_text(values)}\npage: {page}"


def _sample(
    model: str, given: Sequence[str], file: Path | None, output: Path | None, settings: Mapping[str, Any]
) -> str:
    if bool(given) == (file is not None):
        problem = "prompts are given twice" if given else "no prompt"
        raise ConfigError(f'{problem}; fix: paretune sample MODEL "PROMPT", or --prompts FILE')
    _require_new(output, (".jsonl",))
    from paretune.api.inputs import read_prompts
    from paretune.api.policies import sample
    from paretune.api.ratings import save_ratings

    records = read_prompts(list(given) if file is None else file)
    responses = sample(model, records, **settings)
    if output is not None:
        rows = [
            {
                **record.columns,
                "id": record.id,
                **({"category": record.category} if record.category else {}),
                "prompt": [{"role": message.role, "content": message.content} for message in record.messages],
                "response": text,
            }
            for record, texts in zip(records, responses, strict=True)
            for text in texts
        ]
        save_ratings(rows, output)
        return f"{len(rows):,} responses: {output}"
    blocks = []
    for record, texts in zip(records, responses, strict=True):
        question = record.messages[-1].content
        blocks.append("\n".join([f"> {line}" for line in question.splitlines()] + texts))
    return "\n\n".join(blocks)


def _score(model: str, file: Path, output: Path | None, device: str) -> str:
    _require_new(output, (".parquet", ".csv", ".jsonl"))
    from paretune.api.inputs import read_samples
    from paretune.api.loading import LoadingContext
    from paretune.api.recipe_parts import scorers_of
    from paretune.api.scores import save_scores, score_summary, score_table

    samples = read_samples(file)
    prompts = tuple(sample.prompt for sample in samples)
    scores = score_table(scorers_of(model, LoadingContext(prompts=prompts, device=device)), samples)
    lines = [score_summary(scores)]
    if output is not None:
        save_scores(scores, samples, output)
        lines.append(f"scores: {output}")
    return "\n".join(lines)


def _rate(recipe: str, file: Path, output: Path, name: str | None, repeats: int) -> str:
    _require_new(output, (".jsonl",))
    from paretune.api.inputs import read_samples
    from paretune.api.ratings import guarded_ratings, load_llm_judge, rating_summary, save_ratings
    from paretune.api.recipe_parts import llm_judge_setup, recipe_of

    setup = llm_judge_setup(recipe_of(recipe), recipe, name)
    samples = read_samples(file)
    judge = load_llm_judge(setup, samples, output.parent)
    rows = list(guarded_ratings(setup.name, judge, samples, num_repeats=repeats))
    save_ratings(rows, output)
    return f"{rating_summary(judge, rows, repeats)}\nratings: {output}"


def _evaluate(before: str, after: str, recipe: str, file: Path | None, output: Path, device: str) -> str:
    _require_new(output, ())
    from paretune.api.evaluation import compare_policies, comparison_subtitle
    from paretune.api.loading import LoadingContext
    from paretune.api.pairwise import load_pairwise_judges
    from paretune.api.policies import load_policy
    from paretune.api.recipe_parts import evaluation_prompts, evaluation_settings, recipe_judges, recipe_of
    from paretune.api.scorers import ScorerSetup

    config = recipe_of(recipe)
    prompts = evaluation_prompts(config, file)
    policies = (load_policy(before, device=device), load_policy(after, device=device))
    context = LoadingContext(prompts=prompts, tokenizer=policies[1].tokenizer, run_dir=output, device=device)
    run_dir = Path(config.run.output_dir)
    judges, rewards = recipe_judges(config, recipe, run_dir, context)
    generation, settings = evaluation_settings(config)
    subtitle = comparison_subtitle(before, after)
    setups = {
        name: ScorerSetup(name=name, section=section) for name, section in config.evaluate.pairwise.items()
    }
    pairwise = load_pairwise_judges(setups, context)
    result = compare_policies(policies, prompts, judges, rewards, generation, subtitle, pairwise, **settings)
    page = result.save(output)
    return f"{result}\n\nevaluation: {output}\nreport: {page}"


def _export(
    run_dir: Path,
    output: Path | None,
    model: Literal["policy", "adapter", "reward"],
    push: str | None,
    yes: bool,
) -> None:
    from paretune.api.exports import check_repo_name, export, folder_files, push_to_hub

    if push is not None:
        check_repo_name(push)
    folder = export(run_dir, output_dir=output, model=model)
    files = folder_files(folder)
    echo("\n".join(f"{_format_size(size):>12}  {name}" for name, size in files))
    echo(f"model: {folder}")
    if push is None:
        return
    if not yes and not typer.confirm(f"Upload these {len(files)} files to {push}?"):
        echo("nothing was uploaded")
        return
    echo(f"uploaded: {push_to_hub(folder, push)}")


def _format_size(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB" if num_bytes >= 1e6 else f"{num_bytes / 1e3:.1f} kB"


def _require_new(output: Path | None, suffixes: Sequence[str]) -> None:
    """Refuse an output that exists or has another format, before anything is computed.

    Raises:
        ConfigError: It is not to be written.
    """
    if output is None:
        return
    if suffixes and output.suffix not in suffixes:
        raise ConfigError(f"{output}: unknown format; fix: end it with {' or '.join(suffixes)}")
    if output.exists():
        raise ConfigError(f"{output}: exists already; fix: choose another name, or remove it")
