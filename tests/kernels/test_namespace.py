"""`kernels/` must stay a namespace folder: with an __init__.py, transformers takes it for the PyPI
package `kernels` and breaks on import."""

import importlib.util
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_kernels_has_no_init() -> None:
    assert not (ROOT / "kernels" / "__init__.py").exists()
    spec = importlib.util.find_spec("kernels")
    assert spec is not None and spec.origin is None


def test_transformers_models_import_beside_it() -> None:
    code = (
        "import kernels.lora.op\n"
        "from transformers.utils.import_utils import is_kernels_available\n"
        "from transformers import LlamaForCausalLM\n"
        "assert not is_kernels_available()"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
