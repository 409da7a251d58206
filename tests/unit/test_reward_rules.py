"""Rules: every score by hand, bad settings at the door, patterns whose time explodes."""

import json
import math
import pickle

import pytest
import regex
import torch

from paretune.core.errors import ConfigError, WiringError
from paretune.data.records import Prompt, Sample
from paretune.reward.failures import FallibleScorer
from paretune.reward.json_rule import JsonRule, load_schema
from paretune.reward.rules import LengthRule, PhrasesRule, RegexRule, RepetitionRule, RuleScorer
from paretune.reward.scorers import Scorer

CIRCLE = {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "pattern": "^[a-z]+$"}, "age": {"type": "integer"}},
    "required": ["name"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # Lengths 0, 1, 2, 3, 4, 5, 8.
        ({"target": 2}, [0, 0.5, 1, 0.5, 0, 0, 0]),
        ({"min": 2}, [0, 0.5, 1, 1, 1, 1, 1]),
        ({"max": 4}, [1, 1, 1, 1, 1, 0.75, 0]),
        ({"min": 2, "max": 4}, [0, 0.5, 1, 1, 1, 0.75, 0]),
        ({"min": 0, "max": 4}, [1, 1, 1, 1, 1, 0.75, 0]),
        ({"min": 2, "max": 2}, [0, 0.5, 1, 0.5, 0, 0, 0]),
    ],
)
@pytest.mark.parametrize("unit", ["words", "characters", "tokens"])
def test_length(settings, expected, unit):
    rule = LengthRule(unit, **settings, tokenize=lambda text: [1] * len(text))
    text = "a " if unit == "words" else "a"
    assert [rule(text * length) for length in (0, 1, 2, 3, 4, 5, 8)] == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "no length is given"),
        ({"target": 3, "max": 4}, "target cannot be combined"),
        ({"min": 5, "max": 4}, "min 5 is greater than max 4"),
        ({"min": 0}, "holds for every response"),
    ],
)
def test_wrong_lengths(settings, message):
    with pytest.raises(ConfigError, match=message):
        LengthRule(**settings)


def test_tokens_need_a_tokenizer():
    with pytest.raises(WiringError, match="needs a tokenizer"):
        LengthRule("tokens", max=4)("a")


@pytest.mark.parametrize(
    ("settings", "text", "expected"),
    [
        ({"pattern": r"\d+"}, "a 12", 1),
        ({"pattern": r"\d+"}, "", 0),
        ({"pattern": r"\d+", "full_match": True}, "a 12", 0),
        ({"pattern": r"\d+", "full_match": True}, "12", 1),
        ({"pattern": "yes"}, "YES", 0),
        ({"pattern": "yes", "ignore_case": True}, "YES", 1),
        ({"pattern": r"(?s)<think>.*</think>\s*\S"}, "<think>a\nb</think> c", 1),
        ({"pattern": r"^(?!.*sorry)"}, "so sorry", 0),
    ],
)
def test_regex(settings, text, expected):
    assert RegexRule(**settings)(text) == expected


@pytest.mark.parametrize("pattern", ["(", "[a", "*a", r"(?P<n>a)(?P<n", "a{2,1}"])
def test_wrong_patterns(pattern):
    with pytest.raises(ConfigError, match="is no regular expression"):
        RegexRule(pattern)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(" * 3000 + ")" * 3000, "regular expression|nested too deeply"),
        ("\n(\nx[", r'"\\n\(\\nx\[" is no regular expression'),
        ("x" * 500 + "(", r'^"x{57}\.\.\." is no'),
    ],
)
def test_the_error_of_a_pattern_is_one_short_line(pattern, message):
    for build in (lambda: RegexRule(pattern), lambda: JsonRule({"pattern": pattern})):
        with pytest.raises(ConfigError, match=message) as caught:
            build()
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 200


@pytest.mark.parametrize("kind", ["regex", "json", "phrases"])
def test_a_pattern_whose_time_explodes_is_not_scored(kind, monkeypatch):
    limit = 0.05
    monkeypatch.setattr("paretune.reward.rules.MATCH_TIMEOUT", limit)
    monkeypatch.setattr("paretune.reward.json_rule.MATCH_TIMEOUT", limit)
    pattern, text = r"^(a|aa)+$", "a" * 300 + "!"
    rule = JsonRule({"type": "string", "pattern": pattern}) if kind == "json" else RegexRule(pattern)
    if kind == "phrases":
        rule = PhrasesRule(("a",))
        vars(rule)["patterns"] = ((regex.compile(pattern),), ())
    scorer = RuleScorer("style", rule)
    scores = scorer([sample(json.dumps(text) if kind == "json" else text), sample("a")])
    assert scores.isnan().tolist() == [[True], [False]]
    assert scorer.failures.rate == 0.5
    assert scorer.failures.reasons == {"pattern not searched within 0.05 s": 1}


@pytest.mark.parametrize(
    ("text", "plain", "valid"),
    [
        ('{"name": "ann", "age": 3}', 1, 1),
        (' \n{"name": "ann"} ', 1, 1),
        ('{"name": "Ann"}', 1, 0),
        ('{"age": 3}', 1, 0),
        ('{"name": "ann", "x": 1}', 1, 0),
        ("[1, 2]", 1, 0),
        ("3", 1, 0),
        ("", 0, 0),
        ("null", 1, 0),
        ('{"name": "ann"', 0, 0),
        ('Here: {"name": "ann"}', 0, 0),
        ('```json\n{"name": "ann"}\n```', 0, 0),
        ('{"name": "ann", "age": NaN}', 0, 0),
        ("{'name': 'ann'}", 0, 0),
        ("[" * 100_000, 0, 0),
        ("[" * 100_000 + "]" * 100_000, 0, 0),
        ("9" * 5000, 0, 0),
    ],
)
def test_json(text, plain, valid):
    assert (JsonRule()(text), JsonRule(SCHEMA)(text)) == (plain, valid)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "objekt"}, "not a JSON Schema: at type: 'objekt' is not valid"),
        ({"properties": {"a": {"minimum": "x"}}}, "at properties/a/minimum: 'x' is not of type 'number'"),
        ({"properties": {"a": {"pattern": "("}}}, r'"\(" is no regular expression'),
        ({"patternProperties": {"a": {}}}, "patternProperties is not supported"),
        ({"$ref": "#/$defs/a"}, 'refers to "(#)?/\\$defs/a", which is not in it'),
        ({"items": {"$ref": "https://example.com/x.json"}}, 'refers to "https://example.com/x.json"'),
        ({"$ref": "#"}, "refers to itself without end"),
        ({"$ref": "#place"}, 'refers to "#place", which is not in it'),
        ({"$ref": "file:///etc/hostname"}, 'refers to "file:///etc/hostname"'),
        ({"$dynamicRef": "#place"}, 'refers to "#place", which is not in it'),
        ({"properties": {"q": {"$ref": "#/$defs/a"}}, "$defs": CIRCLE}, "refers to itself without end"),
        ({"items": {"$ref": "#/$defs/b"}, "$defs": CIRCLE}, "refers to itself without end"),
        # What is referred to stands where no schema is looked for.
        ({"x": {"pattern": "("}, "$ref": "#/x"}, r'"\(" is no regular expression'),
        ({"x": {"y": {"patternProperties": {}}}, "not": {"$ref": "#/x/y"}}, "patternProperties is not"),
        ({"$schema": "https://example.com/mine"}, 'schema "https://example.com/mine" is no draft'),
        ({"$schema": 3}, "schema 3 is no draft"),
    ],
)
def test_wrong_schemas(schema, message):
    with pytest.raises(ConfigError, match=message):
        JsonRule(schema)


def test_references_within_a_schema():
    tree = {"$defs": {"t": {"type": "array", "items": {"$ref": "#/$defs/t"}}}, "$ref": "#/$defs/t"}
    assert [JsonRule(tree)(text) for text in ("[[], [[]]]", "[1]", "[" * 400 + "]" * 400)] == [1, 0, 0]
    named = {"$id": "https://example.com/a", "$defs": {"n": {"$anchor": "n", "type": "null"}}, "$ref": "#n"}
    assert [JsonRule(named)(text) for text in ("null", "1")] == [1, 0]
    draft = {"$schema": "http://json-schema.org/draft-07/schema#", "items": [{"type": "null"}]}
    assert [JsonRule(draft)(text) for text in ("[null, 1]", "[1]")] == [1, 0]


def test_schema_files(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(SCHEMA))
    assert load_schema(tmp_path / "a.json") == SCHEMA
    for text, message in (("{", "not a JSON file"), ("[]", "it holds a list"), (b"\xff", "not a JSON file")):
        (tmp_path / "b.json").write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(ConfigError, match=message):
            load_schema(tmp_path / "b.json")
    with pytest.raises(ConfigError, match="there is no file"):
        load_schema(tmp_path / "c.json")


@pytest.mark.parametrize(
    ("required", "forbidden", "text", "expected"),
    [
        (("thank you",), (), "Thank \n you!", 1),
        (("thank you",), (), "thank your mother", 0),
        (("art",), (), "start", 0),
        (("a", "b", "c", "d"), ("x", "y"), "a, b; x", 0),
        ((), ("sorry", "as an AI"), "Sorry.", -0.5),
        ((), ("sorry",), "", 0),
        (("C++",), (), "I like c++.", 1),
        (("C++",), (), "I like c++11", 1),
        (("$5",), (), "it costs $5", 1),
        (("$5",), (), "it costs $50", 0),
        (("安全",), (), "这是很安全的。", 1),
        (("caf\u00e9",), (), "Un cafe\u0301", 1),
        (("straße",), (), "STRASSE", 1),
    ],
)
def test_phrases(required, forbidden, text, expected):
    assert PhrasesRule(required, forbidden)(text) == expected


def test_phrases_with_case():
    assert PhrasesRule(("US",), ignore_case=False)("us") == 0
    assert PhrasesRule(("US", "us"), ignore_case=False)("us") == 0.5


@pytest.mark.parametrize(
    ("required", "forbidden", "message"),
    [
        ((), (), "no phrase is given"),
        (("a", "  "), (), "a phrase is empty"),
        (("a b",), ("A  B",), 'the phrase "a b" is listed twice'),
    ],
)
def test_wrong_phrases(required, forbidden, message):
    with pytest.raises(ConfigError, match=message):
        PhrasesRule(required, forbidden)


@pytest.mark.parametrize(
    ("n", "text", "expected"),
    [
        (1, "a b c", 0),
        (1, "a a a a", -0.75),
        (2, "a b a b", -1 / 3),
        (2, "A b a B", -1 / 3),
        (3, "a b", 0),
        (3, "", 0),
        (3, "no no " * 50, -97 / 98),
    ],
)
def test_repetition(n, text, expected):
    assert RepetitionRule(n)(text) == pytest.approx(expected)


def sample(text):
    return Sample(prompt=Prompt(messages=()), response=text)


@pytest.mark.parametrize(
    "rule",
    [
        LengthRule(max=3),
        RegexRule(r"\d", ignore_case=True),
        JsonRule(SCHEMA),
        PhrasesRule(("a",), ("b",)),
        RepetitionRule(2),
    ],
)
def test_rules_are_bounded_scorers_that_can_be_sent_to_another_process(rule):
    texts = ["", "a", "b " * 1000, "\0\ud83d", "é" * 10, '{"name": "a"}', "\u202e\n\r\t"]
    scorer = RuleScorer("style", rule)
    assert isinstance(scorer, Scorer)
    assert isinstance(scorer, FallibleScorer)
    scores = scorer([sample(text) for text in texts])
    assert scores.shape == (len(texts), 1)
    assert ((scores >= -1) & (scores <= 1)).all()
    assert scorer.failures.rate == 0
    again = pickle.loads(pickle.dumps(scorer))
    assert torch.equal(again([sample(text) for text in texts]), scores)
    assert again.identity == scorer.identity
    assert scorer([]).shape == (0, 1)
    assert not math.isnan(rule("a"))


def test_a_schema_may_refer_to_itself_through_its_parts():
    tree = {"type": "object", "properties": {"next": {"$ref": "#"}}, "additionalProperties": False}
    assert JsonRule(tree)('{"next": {"next": {}}}') == 1
    assert JsonRule(tree)('{"next": {"last": {}}}') == 0
    node = {"$dynamicAnchor": "node", "type": "array", "items": {"$dynamicRef": "#node"}}
    assert JsonRule(node)("[[], [[]]]") == 1


def test_a_schema_file_may_begin_with_a_byte_order_mark_and_holds_no_nan(tmp_path):
    path = tmp_path / "s.json"
    path.write_text('\ufeff{"type": "object"}', encoding="utf-8")
    assert load_schema(path) == {"type": "object"}
    path.write_text('{"minimum": NaN}')
    with pytest.raises(ConfigError, match="NaN is not JSON"):
        load_schema(path)
