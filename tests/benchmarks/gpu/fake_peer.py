"""A folder that looks like vLLM's LoRA kernels and computes with torch."""

from __future__ import annotations

from pathlib import Path

SHRINK = """
from vllm import envs
from vllm.lora.ops.triton_ops.utils import checked, remembered
from vllm.triton_utils import tl, triton
from vllm.utils.torch_utils import direct_register_custom_op

assert not envs.VLLM_SOMETHING

def _lora_shrink(inputs, weights, output, mapping, num_active, scaling):
    checked(mapping, num_active)
    remembered(weights)
    for at, stack in enumerate(weights):
        output[at] = scaling * (stack[mapping].float() @ inputs.float().unsqueeze(-1)).squeeze(-1)

try:
    direct_register_custom_op(op_name="lora_shrink", op_func=_lora_shrink)
    lora_shrink = None
except AttributeError:
    lora_shrink = _lora_shrink
"""
EXPAND = """
from vllm.lora.ops.triton_ops.utils import checked

def lora_expand(hidden, weights, output, mapping, num_active, offset_start=0, add_inputs=False):
    checked(mapping, num_active)
    assert add_inputs
    start = offset_start
    for at, stack in enumerate(weights):
        delta = (stack[mapping].float() @ hidden[at].unsqueeze(-1)).squeeze(-1) * FACTOR
        output[:, start : start + stack.shape[1]] += delta.to(output.dtype)
        start += stack.shape[1]
"""
UTILS = """
from vllm.logger import init_logger
from vllm.platforms import current_platform
from vllm.model_executor.layers.anything import thing

init_logger(__name__).info_once("imported on cuda: %s", current_platform.is_cuda())

_LORA_A_PTR_DICT = {}

def checked(mapping, num_active):
    assert num_active.item() == len(mapping) and not thing.is_on()

def remembered(weights):
    # By address only, as the peer does.
    key = tuple(weight.data_ptr() for weight in weights)
    assert _LORA_A_PTR_DICT.setdefault(key, weights[0].stride()) == weights[0].stride()
"""
METADATA = """
import torch

class LoRAKernelMeta:
    @staticmethod
    def make(max_loras, max_num_tokens, device):
        return LoRAKernelMeta()

    def prepare_tensors(self, token_lora_mapping):
        self.mapping = token_lora_mapping.long()

    def meta_args(self, token_nums, specialize_active_lora):
        assert specialize_active_lora
        return self.mapping[:token_nums], torch.tensor([len(self.mapping)])
"""


def write_fake_peer(folder: Path, *, factor: float = 1.0) -> Path:
    """factor: what its results are wrong by."""
    ops = folder / "vllm" / "lora" / "ops" / "triton_ops"
    ops.mkdir(parents=True)
    (ops / "__init__.py").write_text("raise ImportError('brings all of vLLM')")
    (folder / "vllm" / "__init__.py").write_text("raise ImportError('brings all of vLLM')")
    (folder / "vllm" / "envs.py").write_text("VLLM_SOMETHING = False")
    (ops / "lora_shrink_op.py").write_text(SHRINK)
    (ops / "lora_expand_op.py").write_text(EXPAND.replace("FACTOR", str(factor)))
    (ops / "utils.py").write_text(UTILS)
    (ops / "lora_kernel_metadata.py").write_text(METADATA)
    return folder
