"""Bad rows of the recipe's files: each complaint once, with the sources of the recipe that it is about."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from paretune.data.columns import LabelMapping


@dataclass
class FileIssues:
    """Complaints about files, in order; one that several sources share names all of them."""

    places: dict[str, list[str]] = field(default_factory=dict)
    """Complaint -> the keys of the recipe where it is mended."""

    def add(self, issues: str, source: str, mappings: Mapping[str, LabelMapping] | None = None) -> None:
        """Remember the complaints of reading one source.

        Args:
            issues: One line per complaint, of the form `file:line: column: problem; fix: ...`.
            source: Key path, such as "reward.ratings.mine".
            mappings: Objective -> the columns of its labels.
        """
        objective_of = {column: name for name, m in (mappings or {}).items() for column in m.columns}
        for line in issues.splitlines():
            head, _, fix = line.partition("; fix: ")
            place = source
            if fix.startswith(("map: ", "missing: ")):
                column = next((c for c in objective_of if f": {c}: " in head), "")
                place = f"{source}.labels.{objective_of[column]}" if column else source
            places = self.places.setdefault(line, [])
            if place not in places:
                places.append(place)

    def lines(self) -> list[str]:
        """The complaints; each says at the end where in the recipe it is mended."""
        return [_with_places(line, places) for line, places in self.places.items()]


def _with_places(line: str, places: list[str]) -> str:
    _, _, fix = line.partition("; fix: ")
    if not fix:
        return line  # such as "... and 3 more errors"
    names = ", ".join(places)
    if "columns: {" in fix:
        return f"{line}, beside `file:` in {names}"
    return f"{line}, under {names}" if fix.startswith(("map: ", "missing: ")) else f"{line} ({names})"
