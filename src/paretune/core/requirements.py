"""What an algorithm requires of the run that trains it, as plain data."""

from dataclasses import dataclass

ANY_NUMBER = -1
"""Value heads of a critic whose size is unknown, because it is not the package's own class."""


@dataclass(frozen=True, slots=True)
class MissingRequirement:
    """One requirement that a run does not meet."""

    field: str
    """Name of the field of `Requirements`."""
    description: str
    """Noun phrase for an error message: "stored responses"."""

    def __str__(self) -> str:
        return self.description


@dataclass(frozen=True, kw_only=True)
class Requirements:
    """Everything that an algorithm needs besides the policy; the same class says what a run has available."""

    sampler: bool = False
    """A sampler of the policy that is trained."""
    initial_policy_sampler: bool = False
    """A sampler of the policy as it was before the first update."""
    stored_responses: bool = False
    """Responses of a data set, with scores."""
    scorers: bool = False
    """Scorers of the objectives."""
    demonstrations: bool = False
    """Demonstrations for the auxiliary language-modeling loss."""
    frozen_roles: tuple[str, ...] = ()
    """Frozen models, by role."""
    num_critic_heads: int = 0
    """Value heads of the critic; 0: no critic. `ANY_NUMBER`, if available: a critic of unknown size."""
    num_selected_rows: int = 0
    """Rows of the dry run's batch that are left after selection; not compared by `missing`."""

    def __or__(self, other: "Requirements") -> "Requirements":
        """The requirements of both."""
        return Requirements(
            sampler=self.sampler or other.sampler,
            initial_policy_sampler=self.initial_policy_sampler or other.initial_policy_sampler,
            stored_responses=self.stored_responses or other.stored_responses,
            scorers=self.scorers or other.scorers,
            demonstrations=self.demonstrations or other.demonstrations,
            frozen_roles=tuple(sorted({*self.frozen_roles, *other.frozen_roles})),
            num_critic_heads=max(self.num_critic_heads, other.num_critic_heads),
            num_selected_rows=max(self.num_selected_rows, other.num_selected_rows),
        )

    def missing(self, available: "Requirements") -> list[MissingRequirement]:
        """The requirements that are not available, in the order of the fields.

        A critic must have exactly as many heads as required: one that no loss trains would be dead weight.
        """
        flags = (
            ("sampler", "a sampler of the policy"),
            ("initial_policy_sampler", "a sampler of the initial policy"),
            ("stored_responses", "stored responses"),
            ("scorers", "scorers"),
            ("demonstrations", "demonstrations"),
        )
        missing = [
            MissingRequirement(field, description)
            for field, description in flags
            if getattr(self, field) and not getattr(available, field)
        ]
        roles = [role for role in self.frozen_roles if role not in available.frozen_roles]
        if roles:
            missing.append(MissingRequirement("frozen_roles", f"the frozen models {', '.join(roles)}"))
        heads = available.num_critic_heads
        if heads not in {self.num_critic_heads, ANY_NUMBER}:
            required = self.num_critic_heads
            needs = f"a critic with {_count_heads(required)}" if required else "no critic"
            has = f" (the given one has {_count_heads(heads)})" if heads else ""
            missing.append(MissingRequirement("num_critic_heads", needs + has))
        return missing


def _count_heads(count: int) -> str:
    return f"{count} head" if count == 1 else f"{count} heads"
