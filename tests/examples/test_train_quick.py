"""The demo's training script, run for a few steps."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open

ROOT = Path(__file__).parents[2]
TRAINED = ("shouted", "expanded")


def _train(*options: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "examples.demo.train", "--quick", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo")
    done = _train("--out", str(out), "--only", *TRAINED)
    rows = [line.split("|")[1].strip() for line in done.stdout.splitlines() if "|" in line]
    assert rows == ["voice", "---", "english", *TRAINED]
    return out


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_writes_a_hugging_face_model(trained: Path):
    config = json.loads((trained / "model" / "config.json").read_text())
    assert config["model_type"] == "llama"
    assert config["num_key_value_heads"] < config["num_attention_heads"]
    with safe_open(trained / "model" / "model.safetensors", "np") as weights:
        embedding = weights.get_slice("model.embed_tokens.weight")
        assert embedding.get_shape() == [config["vocab_size"], config["hidden_size"]]
        assert embedding.get_dtype() == "BF16"


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("voice", TRAINED)
def test_writes_adapters_that_have_learned_something(trained: Path, voice: str):
    folder = trained / "adapters" / voice
    assert sorted(p.name for p in folder.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "chorale-demo"
    with safe_open(folder / "adapter_model.safetensors", "pt") as weights:
        b_matrices = [name for name in weights.keys() if "lora_B" in name]  # noqa: SIM118
        assert b_matrices
        assert all(weights.get_tensor(name).any() for name in b_matrices)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_same_seed_gives_the_same_weights(trained: Path, tmp_path: Path):
    (tmp_path / "model").symlink_to(trained / "model")
    _train("--keep-base", "--out", str(tmp_path), "--only", "shouted")
    weights = Path("adapters", "shouted", "adapter_model.safetensors")
    assert (tmp_path / weights).read_bytes() == (trained / weights).read_bytes()
