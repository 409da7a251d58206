import os

from paretune.experiment.provenance import hash_model_dir
from paretune.models.load import save_model
from support.tiny_models import tiny_model, tiny_tokenizer


def test_a_model_is_named_by_its_content_not_by_its_dates(tmp_path):
    tokenizer = tiny_tokenizer()
    save_model(tiny_model("llama", len(tokenizer)), tokenizer, tmp_path / "m")
    weights = tmp_path / "m" / "model.safetensors"
    before, when = hash_model_dir(tmp_path / "m"), weights.stat()
    os.utime(weights, (1, 1))
    (tmp_path / "m" / "README.md").write_text("words")
    assert hash_model_dir(tmp_path / "m") == before
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    os.utime(weights, ns=(when.st_atime_ns, when.st_mtime_ns))
    assert hash_model_dir(tmp_path / "m") != before
