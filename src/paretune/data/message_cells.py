"""Columns whose cells hold lists of messages as text, as a spreadsheet or a data frame writes them."""

import json
import re
from typing import Any

from paretune.data.columns import (
    DEFAULT_COLUMN_NAMES,
    ColumnNames,
    FieldError,
    RowValues,
    parse_messages,
    resolve_column,
)
from paretune.data.exports import as_role_messages

MESSAGE_FIELDS = ("prompt", "response", "chosen", "rejected", "messages")
MESSAGES_PATTERN = re.compile(r"""\s*\[\s*\{\s*['"](?:role|from|content|value|name)['"]\s*:""")
JSON_FIX = "write every cell of the column as JSON, as json.dumps does, or every one as plain text"


class MessageCells:
    """Reads the lists of messages of the columns that hold them as text.

    The first row decides for each column: a user's text that spells a list of messages must not become turns
    of its own, such as a system prompt, among rows of plain text.

    Args:
        columns: Column names.
    """

    def __init__(self, columns: ColumnNames) -> None:
        self.names: list[str] = []
        for field in MESSAGE_FIELDS:
            configured = getattr(columns, field)
            self.names += [configured] if configured else DEFAULT_COLUMN_NAMES[field]
        self.holds_messages: dict[str, bool] = {}

    def decode(self, values: dict[str, Any]) -> None:
        """Replace the texts of a row that spell lists of messages by these lists.

        Raises:
            FieldError: Some cells of a column spell messages and others do not, or one is not JSON.
        """
        for name in self.names:
            text = values.get(name)
            if type(text) is not str or not text:
                continue
            spells = text.lstrip()[:1] == "[" and MESSAGES_PATTERN.match(text) is not None
            if spells is not self.holds_messages.setdefault(name, spells):
                kinds = ("a list of messages", "plain text")
                one, other = kinds if spells else kinds[::-1]
                raise FieldError(name, f"{one}, and earlier cells are {other}", fix=JSON_FIX)
            if spells:
                try:
                    values[name] = json.loads(text)
                except (ValueError, RecursionError) as error:
                    raise FieldError(name, "a list of messages that is not JSON", fix=JSON_FIX) from error


def require_one_prompt(values: RowValues, columns: ColumnNames) -> None:
    """Refuse a row with a prompt and a conversation that does not contain it, where the recipe names neither.

    Raises:
        FieldError: It has both, and the two differ.
    """
    if columns.prompt or columns.messages:
        return
    prompt_name, name = resolve_column(columns, "prompt", values), resolve_column(columns, "messages", values)
    if not (prompt_name and name):
        return
    messages = parse_messages(as_role_messages(values[name]), name)
    prompt = values[prompt_name]
    if isinstance(prompt, str):
        is_same = any(prompt.strip() == message.content.strip() for message in messages)
    else:
        turns = parse_messages(as_role_messages(prompt), prompt_name)
        is_same = messages[: len(turns)] == turns
    if not is_same:
        problem = f"this row has another prompt in {name}"
        fix = f"choose one, columns: {{prompt: {prompt_name}}} or columns: {{messages: {name}}}"
        raise FieldError(prompt_name, problem, fix=fix)
