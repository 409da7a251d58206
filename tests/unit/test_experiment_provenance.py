import os

from paretune.experiment.provenance import hash_model_dir
from paretune.models.load import save_model
from support.tiny_models import tiny_model, tiny_tokenizer


def test_a_model_hash_depends_on_content_and_not_on_dates(tmp_path):
    tokenizer = tiny_tokenizer()
    save_model(tiny_model("llama", len(tokenizer)), tokenizer, tmp_path / "m")
    weights = tmp_path / "m" / "model.safetensors"
    before, stat = hash_model_dir(tmp_path / "m"), weights.stat()
    os.utime(weights, (1, 1))
    (tmp_path / "m" / "README.md").write_text("words")
    assert hash_model_dir(tmp_path / "m") == before
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert hash_model_dir(tmp_path / "m") != before
